"""Cases of block_scan: the linear systems of ParaLSTM, one long row of few channels and many of many."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from benchmarks.kernel_cases import Case
from pallas_kernels.compat import resolve
from pallas_kernels.linear_scan import scan_planes


def _forward(platform: str) -> Callable:
    """On planes, as the kernel has them: cutting them out of [B, T, N, 2, 2] belongs to what makes the blocks."""
    platform, interpret = resolve(platform, None if platform is None else False)
    return lambda matrices, inputs, initial: scan_planes(
        (False, False, platform, interpret), matrices, inputs, initial
    )[0]


def _both(platform: str) -> Callable:
    forward = _forward(platform)

    def run(matrices, inputs, initial, states_bar):
        states, pullback = jax.vjp(lambda *a: forward(*a, initial), matrices, inputs)
        return states, pullback(states_bar)

    return run


def cases() -> list[Case]:
    """Forward and forward+backward of every shape."""
    found = []
    for batch, steps, channels in ((16, 2048, 2048), (1, 100_000, 128)):
        plane = jax.ShapeDtypeStruct((batch, steps, channels), jnp.float32)
        state = jax.ShapeDtypeStruct((batch, channels), jnp.float32)
        size, label = 4 * plane.size, f"B{batch} T{steps} N{channels}"
        arguments = ((plane,) * 4, (plane,) * 2, (state,) * 2)
        found.append(Case(f"{label} forward", _forward, arguments, 8 * size, 8 * plane.size))
        found.append(Case(f"{label} forward+backward", _both, (*arguments, (plane,) * 2), 22 * size, 24 * plane.size))
    return found
