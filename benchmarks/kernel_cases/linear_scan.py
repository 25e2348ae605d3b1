"""Cases of linear_scan: many rows, one very long row, a constant decay, complex values, two-byte storage."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from benchmarks.kernel_cases import Case
from pallas_kernels import operation


def _forward(platform: str) -> Callable:
    scan = operation("linear_scan")
    return lambda decay, inputs: scan(decay, inputs, platform=platform, interpret=None if platform is None else False)[
        0
    ]


def _both(platform: str) -> Callable:
    forward = _forward(platform)

    def run(decay, inputs, states_bar):
        states, pullback = jax.vjp(forward, decay, inputs)
        return states, pullback(states_bar)

    return run


def cases() -> list[Case]:
    """Forward and forward+backward of every shape."""
    found = []
    for label, shape, decay_shape, dtype in (
        ("B64 T512 N4096", (64, 512, 4096), None, jnp.float32),
        ("B1 T1000000 N64", (1, 1_000_000, 64), None, jnp.float32),
        ("B8 T2048 N1024 constant decay", (8, 2048, 1024), (1, 1, 1024), jnp.float32),
        ("B8 T2048 N1024 complex", (8, 2048, 1024), None, jnp.complex64),
        ("B8 T2048 N2048 bfloat16", (8, 2048, 2048), None, jnp.bfloat16),
    ):
        decay = jax.ShapeDtypeStruct(decay_shape or shape, dtype)
        inputs = jax.ShapeDtypeStruct(shape, dtype)
        a, x = (s.size * s.dtype.itemsize for s in (decay, inputs))
        work = inputs.size * (8 if dtype == jnp.complex64 else 2)
        found.append(Case(f"{label} forward", _forward, (decay, inputs), a + 2 * x, work))
        # forward as above; backward reads decay, states and their cotangent, and writes two cotangents
        found.append(
            Case(f"{label} forward+backward", _both, (decay, inputs, inputs), (a + 2 * x) + (2 * a + 3 * x), 3 * work)
        )
    return found
