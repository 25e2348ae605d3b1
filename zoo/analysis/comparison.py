"""What mixers cost, counted and measured side by side: ``python -m zoo compare mamba2 s5 lstm attention``."""

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from zoo.analysis.counting import count_parameters, flops, memory, state_bytes
from zoo.analysis.streaming import step_flops, stream_seconds
from zoo.checks import check_positive
from zoo.models.stack import keeps_state
from zoo.registry import create


class Cost(NamedTuple):
    """What a mixer costs, counted on the traced program; nothing is run.

    Attributes:
      parameters: scalars.
      state_bytes: bytes of the state carried per row and layer; 0 where there is none.
      training_flops: floating-point operations per token of value and gradient, at the stated length.
      training_bytes: bytes per token that value and gradient need beside parameters, inputs and results: XLA's plan for
        this platform.
      decoding_flops: floating-point operations for one more token; None without a state.
      decoding_bytes: bytes that one more token must read and write: parameters once, the state twice; None likewise.
    """

    parameters: int
    state_bytes: int
    training_flops: float
    training_bytes: float
    decoding_flops: int | None
    decoding_bytes: int | None


def cost(module: Any, *, length: int = 1024, batch_size: int = 1) -> Cost:
    """The cost of any mixer.

    Args:
      module: a registered mixer with its ``dim``.
      length: T of the training call.
      batch_size: B of the training call.
    """
    check_positive("length", length)
    check_positive("batch_size", batch_size)
    x = jax.ShapeDtypeStruct((batch_size, length, module.dim), jnp.float32)
    params = jax.eval_shape(module.init, jax.random.key(0), x)
    tokens = batch_size * length
    step = _training_step(module)
    plan = memory(step, params, x)
    weights = sum(math.prod(p.shape) * p.dtype.itemsize for p in jax.tree.leaves(params))
    state = state_bytes(module) if keeps_state(module) else 0
    return Cost(
        count_parameters(params), state, flops(step, params, x) / tokens, plan.temporary / tokens,
        step_flops(module, params, module.dim) if keeps_state(module) else None,
        weights + 2 * state if keeps_state(module) else None,
    )  # fmt: skip


class Measured(NamedTuple):
    """One mixer at one length.

    Attributes:
      name: as asked for.
      length: T.
      step_seconds: value and gradient over one batch, median.
      peak_bytes: of that program: parameters, inputs, results and temporaries, as XLA plans it.
      decoding_rate: tokens per second of one row, one token at a time in a compiled loop; None without a state.
      cost: what was counted.
    """

    name: str
    length: int
    step_seconds: float
    peak_bytes: int
    decoding_rate: float | None
    cost: Cost


def compare(
    specs: Sequence[str | Mapping[str, Any]],
    *,
    lengths: Sequence[int] = (1024, 4096),
    dim: int = 128,
    batch_size: int = 1,
    repeats: int = 5,
    decoded: int = 64,
) -> list[Measured]:
    """Measures mixers side by side on this machine.

    All mixers of one length are compiled first and then run in turn, ``repeats`` times, so that a disturbance of the
    machine meets them alike; medians are reported. Mixers with a ``window`` that is not stated get one of the length:
    attention over everything.

    Args:
      specs: names, or mappings with "name" and options.
      lengths: sequence lengths T.
      dim: width D of all mixers.
      batch_size: rows of a training step.
      repeats: runs of every step.
      decoded: tokens decoded to measure the decoding rate.

    Returns:
      One entry per mixer and length, in the order given.
    """
    for name, value in (("dim", dim), ("batch_size", batch_size), ("repeats", repeats), ("decoded", decoded)):
        check_positive(name, value)
    if not specs or not lengths:
        raise ValueError("compare needs at least one mixer and one length")
    result = []
    for length in lengths:
        check_positive("lengths", length)
        x = jax.random.normal(jax.random.key(1), (batch_size, length, dim))
        runs = []
        for spec in specs:
            module = _with_window(spec, dim, length)
            params = jax.jit(module.init)(jax.random.key(0), x)
            runs.append((module, params, jax.jit(_training_step(module)).lower(params, x).compile()))
        seconds: list[list[float]] = [[] for _ in runs]
        for turn in range(repeats + 1):
            for times, (_, params, step) in zip(seconds, runs):
                start = time.perf_counter()
                jax.block_until_ready(step(params, x))
                if turn:  # the first run warms caches
                    times.append(time.perf_counter() - start)
        for spec, times, (module, params, step) in zip(specs, seconds, runs):
            plan = step.memory_analysis()
            peak = plan.argument_size_in_bytes + plan.output_size_in_bytes + plan.temp_size_in_bytes
            rate = decoded / stream_seconds(module, params, decoded, dim, repeats=3) if keeps_state(module) else None
            counted = cost(module, length=length, batch_size=batch_size)
            label = spec if isinstance(spec, str) else str(spec["name"])
            result.append(Measured(label, length, float(np.median(times)), peak, rate, counted))
    return result


def table(rows: Sequence[Measured]) -> str:
    """``rows`` as a Markdown table."""
    lines = [
        "| mixer | length | step ms | peak MB | decoded tokens/s | state bytes | parameters | train MFLOP/token | "
        "train kB/token | decode MFLOP/token | decode kB/token |",
        "|" + "---|" * 11,
    ]

    def number(value, scale=1.0, digits=2):
        return "-" if value is None else f"{value / scale:,.{digits}f}"

    for r in rows:
        c = r.cost
        cells = [
            r.name, str(r.length), number(1e3 * r.step_seconds), number(r.peak_bytes, 1e6), number(r.decoding_rate, 1, 0),
            number(c.state_bytes, 1, 0), number(c.parameters, 1, 0), number(c.training_flops, 1e6),
            number(c.training_bytes, 1e3), number(c.decoding_flops, 1e6), number(c.decoding_bytes, 1e3, 1),
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(rows: Sequence[Measured]) -> Any:
    """A matplotlib figure: time per step, peak memory, decoding rate and state size against length."""
    from matplotlib.figure import Figure

    panels = (
        ("time per training step", "seconds", lambda r: r.step_seconds),
        ("peak memory of a step", "bytes", lambda r: r.peak_bytes),
        ("decoding, one row", "tokens per second", lambda r: r.decoding_rate),
        ("state per row", "bytes", lambda r: r.cost.state_bytes or None),
    )
    figure = Figure(figsize=(11, 7), layout="constrained")
    for axes, (title, unit, value) in zip(figure.subplots(2, 2).flat, panels):
        for name in dict.fromkeys(r.name for r in rows):
            points = [(r.length, value(r)) for r in rows if r.name == name and value(r) is not None]
            if points:
                axes.plot(*zip(*points), marker="o", label=name)
        axes.set(title=title, ylabel=unit, xlabel="length")
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.grid(alpha=0.3)
    figure.axes[0].legend()
    return figure


def _training_step(module: Any) -> Any:
    def loss(params, x):
        return jnp.sum(module.apply(params, x)[0] ** 2)

    return jax.value_and_grad(loss, (0, 1))


def _with_window(spec: str | Mapping[str, Any], dim: int, length: int) -> Any:
    module = create(spec, dim=dim)
    stated = not isinstance(spec, str) and "window" in spec
    return module.clone(window=length) if hasattr(module, "window") and not stated else module
