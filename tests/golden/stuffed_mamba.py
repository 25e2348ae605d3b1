"""Golden data of Stuffed Mamba: mitigations of state collapse, statistics of states, passkey prompts."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zoo.analysis.state_collapse import channel_variance, memory_retention, state_statistics
from zoo.mixers.mamba2 import ssd
from zoo.scans import WindowRing, window_difference
from zoo.tasks.passkey import FILLER, PREFIX, SUFFIX, passkey_prompt


def check(case: Any) -> Iterator[tuple[str, Any]]:
    """Yields every output of ``case``."""
    systems = {"mitigations": mitigations, "passkey_prompts": passkey_prompts}
    prefix = next((name for name in systems if case.name.startswith(name)), None)
    if prefix is None:
        raise ValueError(f"{case.name} is not built yet (built: {', '.join(systems)})")
    return systems[prefix](case)


def mitigations(case: Any) -> Iterator[tuple[str, Any]]:
    """Every variant whole and token by token; the window by its definition too."""
    x, B, C, delta = (jnp.asarray(case.inputs[name])[None] for name in ("x", "B", "C", "dt"))
    A, D = (jnp.asarray(case.params[name]) for name in ("A", "D"))
    config = case.config
    variants = {
        "base": {},
        "rri_scale": {"retention_scale": config["retention_scale"], "insertion_scale": config["insertion_scale"]},
        "norm": {"max_norm": config["max_norm"]},
        "window": {"window": config["window"]},
    }
    _, _, heads, width = x.shape
    size = B.shape[-1]
    for name, options in variants.items():
        y, _, _ = ssd(x, delta, A, B, C, D, **options)

        def step(carry, now, options=options):
            y, hidden, ring = ssd(now[0], now[1], A, now[2], now[3], D, *carry, **options)
            return (hidden, ring), (y[:, 0], hidden)

        ring = WindowRing.empty(1, config["window"], B.shape[2], heads, size, width, x.dtype)
        start = (jnp.zeros((1, heads, size, width)), ring if name == "window" else None)
        now = tuple(jnp.moveaxis(a, 1, 0)[:, :, None] for a in (x, delta, B, C))
        _, (steps, states) = jax.lax.scan(step, start, now)
        if not np.allclose(steps[:, 0], y[0], rtol=1e-9, atol=1e-11):
            raise ValueError(f"{name}: token by token is not the whole")
        states = states[:, 0]
        if name == "base":
            base = states
        elif name == "window":
            other = window_difference(base[None], A * delta, config["window"])[0]
            banded, _, _ = ssd(x, delta, A, B, C, D, **options, method="banded")
            if not (
                np.allclose(other, states, rtol=1e-9, atol=1e-11) and np.allclose(banded, y, rtol=1e-9, atol=1e-11)
            ):
                raise ValueError("the forms of the window differ")
        yield f"outputs/h_{name}", states
        yield f"outputs/y_{name}", y[0]
    statistics = state_statistics(base)
    yield "outputs/stat_mean", statistics.mean
    yield "outputs/stat_var_unbiased", statistics.variance
    yield "outputs/stat_rms", statistics.rms
    yield "outputs/stat_lower_median", statistics.median
    yield "outputs/channel_var_over_time", channel_variance(base)
    yield "outputs/retention_from_first", memory_retention(delta[0], A)


def passkey_prompts(case: Any) -> Iterator[tuple[str, Any]]:
    """Prompts for the passkeys of the file; how the file drew these is no matter."""

    def tokenize(text):
        return [token for token in text.replace("\n", " \\n ").split(" ") if token]

    keys = case.outputs["passkey"].tolist()
    lengths, positions = case.inputs["context_len"].tolist(), case.inputs["answer_pos"].tolist()
    yield (
        "outputs/prompt",
        np.array([passkey_prompt(tokenize, *how) for how in zip(lengths, positions, keys, strict=True)]),
    )
    yield "outputs/passkey", np.array(keys)
    for name, text in {"block": FILLER, "prefix": PREFIX, "suffix": SUFFIX}.items():
        yield f"outputs/{name}_len", len(tokenize(text))
