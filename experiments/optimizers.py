"""Optimisers and schedules of ``Training``, put together from optax."""

import functools
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from experiments.errors import UsageError
from experiments.experiment import Training
from zoo.checks import check_choice, check_positive

OPTIMIZERS = ("adamw", "adam", "lion", "rmsprop", "sgd")
DECAYED = ("adamw", "lion")
SCHEDULES = ("constant", "cosine", "linear", "inverse_sqrt", "wsd")


def validate(training: Training, num_devices: int = 1) -> None:
    """Raises UsageError for a field of ``training`` that cannot be, naming it as ``--set`` would."""
    try:
        check_choice("optimizer", training.optimizer, OPTIMIZERS)
        check_choice("schedule", training.schedule, SCHEDULES)
        for name in ("batch_size", "accumulate", "steps_per_call"):
            check_positive(name, getattr(training, name))
        for name in ("evaluate_every", "checkpoint_every"):
            if getattr(training, name) is not None:
                check_positive(name, getattr(training, name))
    except ValueError as error:
        raise UsageError(f"training.{error}") from None
    for name in ("steps", "warmup", "learning_rate", "weight_decay", "final_scale", "eps"):
        if not getattr(training, name) >= 0:
            raise UsageError(f"training.{name} must not be negative, got {getattr(training, name)!r}")
    for name in ("clip_norm", "clip_value"):
        if getattr(training, name) is not None and not getattr(training, name) > 0:
            raise UsageError(f"training.{name} must be positive or None, got {getattr(training, name)!r}")
    if not 0 <= training.decay_share <= 1:
        raise UsageError(f"training.decay_share must lie in [0, 1], got {training.decay_share!r}")
    for name in ("b1", "b2", "ema"):
        if getattr(training, name) is not None and not 0 <= getattr(training, name) < 1:
            raise UsageError(f"training.{name} must lie in [0, 1), got {getattr(training, name)!r}")
    if training.weight_decay and training.optimizer not in DECAYED:
        raise UsageError(
            f"training.weight_decay={training.weight_decay} needs training.optimizer {' or '.join(DECAYED)}, "
            f"got {training.optimizer!r}"
        )
    for pattern in training.slow:
        try:
            re.compile(pattern)
        except re.error as error:
            raise UsageError(f"training.slow: {pattern!r} is not a regular expression: {error}") from None
    if isinstance(training.slow_scale, tuple) and len(training.slow_scale) != len(training.slow):
        raise UsageError(
            f"training.slow_scale has {len(training.slow_scale)} numbers, but training.slow {len(training.slow)} "
            "regular expressions; give one for each, or one number for all"
        )
    if not all(scale >= 0 for scale in slow_scales(training)):
        raise UsageError(f"training.slow_scale must not be negative, got {training.slow_scale!r}")
    parts = num_devices * training.accumulate
    if training.batch_size % parts:
        raise UsageError(
            f"training.batch_size={training.batch_size} is not divisible by {parts} "
            f"({num_devices} devices x accumulate={training.accumulate}); "
            f"the nearest that is: {max(parts, round(training.batch_size / parts) * parts)}"
        )


def learning_rate(training: Training) -> optax.Schedule:
    """Learning rate as a function of the optimiser step (from 0): linear warm-up from 0, then the schedule."""
    peak, warmup = training.learning_rate, training.warmup
    rest = max(1, training.steps - warmup)
    if training.schedule == "cosine":
        after = optax.cosine_decay_schedule(peak, rest, alpha=training.final_scale)
    elif training.schedule == "linear":
        after = optax.linear_schedule(peak, peak * training.final_scale, rest)
    elif training.schedule == "inverse_sqrt":
        # peak * sqrt(warmup / step): continuous at the end of the warm-up, as in Vaswani et al. 2017
        offset = max(1, warmup)

        def after(step):
            return peak * jnp.sqrt(offset / (step + offset))
    elif training.schedule == "wsd":
        # the last steps of the whole run, but none of the warm-up: they begin later where that is longer than the rest
        decay = min(rest, round(training.decay_share * training.steps))
        after = (
            optax.linear_schedule(peak, peak * training.final_scale, decay, rest - decay)
            if decay
            else (optax.constant_schedule(peak))
        )
    else:
        after = optax.constant_schedule(peak)
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), after], [warmup]) if warmup else after


def optimizer(training: Training, global_norm: Callable | None = None) -> optax.GradientTransformation:
    """Clipping by value, then by global norm, the optimiser, decay and learning rate that ``training`` describes.

    Every part but the clipping by norm treats each number by itself, so it may be given parts of the gradients, with a
    ``global_norm`` (tree of parts -> scalar) that knows of the others.
    """
    direction = {
        "adamw": lambda: optax.scale_by_adam(training.b1, training.b2, training.eps),
        "adam": lambda: optax.scale_by_adam(training.b1, training.b2, training.eps),
        "lion": lambda: optax.scale_by_lion(training.b1, training.b2),
        "rmsprop": lambda: optax.scale_by_rms(decay=training.b2, eps=training.eps),
        "sgd": lambda: optax.trace(training.b1) if training.b1 else optax.identity(),
    }[training.optimizer]()
    parts = []
    if training.clip_value is not None:
        parts.append(optax.clip(training.clip_value))
    if training.clip_norm is not None:
        clip = optax.clip_by_global_norm if global_norm is None else functools.partial(_clip_by, global_norm)
        parts.append(clip(training.clip_norm))
    parts.append(direction)
    if training.weight_decay:
        parts.append(optax.add_decayed_weights(training.weight_decay, mask=lambda p: _decayed(training, p)))
    for index, scale in enumerate(slow_scales(training)):
        mask = functools.partial(_first_slow, training, index)
        parts.append(optax.masked(optax.scale(scale), mask))
    parts.append(optax.scale_by_learning_rate(learning_rate(training)))
    return optax.chain(*parts)


def _clip_by(global_norm: Callable, largest: float) -> optax.GradientTransformation:
    def update(grads, _):
        norm = global_norm(grads)
        return jax.tree.map(lambda g: jnp.where(norm < largest, g, (g / norm.astype(g.dtype)) * largest), grads)

    return optax.stateless(update)


def slow(training: Training, params: Any) -> Any:
    """Tree of bool: True for parameters whose path one of ``training.slow`` is found in."""
    return jax.tree_util.tree_map_with_path(lambda path, _: _slow_index(training, path) is not None, params)


def slow_scales(training: Training) -> tuple[float, ...]:
    """The factor of every regular expression of ``training.slow``."""
    scale = training.slow_scale
    return scale if isinstance(scale, tuple) else (scale,) * len(training.slow)


def _slow_index(training: Training, path: tuple) -> int | None:
    """Which of ``training.slow`` is the first to be found in a parameter's path, or None."""
    text = parameter_path(path)
    return next((i for i, pattern in enumerate(training.slow) if re.search(pattern, text)), None)


def _first_slow(training: Training, index: int, params: Any) -> Any:
    """Tree of bool: True for parameters of which ``training.slow[index]`` decides the rate."""
    return jax.tree_util.tree_map_with_path(lambda path, _: _slow_index(training, path) == index, params)


def _decayed(training: Training, params: Any) -> Any:
    """Tree of bool: True for matrices that are not ``slow``.

    Layers that ``zoo.models.Stack`` scans over have their parameters stacked on leading axes (under ``run_<n>``), which
    say nothing about a parameter's own shape. Every block has vectors (its norms' scales, biases), so the fewest axes
    in a run are the stacked ones and one more; ``residual_scale``, the one parameter without axes of its own, is left out.
    """
    fewest: dict[str, int] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        run = _run_of(path)
        if parameter_path(path).endswith("residual_scale"):
            continue
        fewest[run] = min(fewest.get(run, jnp.ndim(leaf)), jnp.ndim(leaf))

    def decays(path, leaf, is_slow):
        run = _run_of(path)
        stacked = max(fewest[run] - 1, 0) if run else 0
        return jnp.ndim(leaf) - stacked >= 2 and not is_slow

    return jax.tree_util.tree_map_with_path(decays, params, slow(training, params))


def _run_of(path: tuple) -> str:
    """The part of a parameter's path up to ``run_<n>``, or "" outside a stack."""
    found = re.match(r".*?/run_\d+(?=/)", parameter_path(path))
    return found.group() if found else ""


def parameter_path(path: tuple) -> str:
    """A key path as text, e.g. ``params/layers/log_step``."""
    return jax.tree_util.keystr(path, simple=True, separator="/")
