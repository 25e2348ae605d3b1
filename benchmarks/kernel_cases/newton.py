"""Cases of newton: ParaRNN's training shape (T = 2048), and one long row of few channels."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from benchmarks.kernel_cases import Case
from pallas_kernels import operation

WEIGHTS = {"paragru": {"A": 3}, "paralstm": {"A": 3, "C": 2}}
ITERATIONS = 3
# products, sums and nonlinearities of one evaluation of cell and Jacobian, and of one step of the reduction
OPERATIONS = {"paragru": 40 + 5, "paralstm": 60 + 25}


def _forward(cell: str) -> Callable:
    def function(platform):
        newton = operation("newton")
        interpret = None if platform is None else False
        return lambda p, params: newton(cell, p, params, iterations=ITERATIONS, platform=platform, interpret=interpret)[
            0
        ]

    return function


def _both(cell: str) -> Callable:
    def function(platform):
        def run(p, params, states_bar):
            states, pullback = jax.vjp(_forward(cell)(platform), p, params)
            return states, pullback(states_bar)

        return run

    return function


def cases() -> list[Case]:
    """Forward and forward+backward of every cell and shape; p [B, T, 3 N] is read, the states are written."""
    found = []
    for cell, rows in WEIGHTS.items():
        for batch, steps, channels in ((8, 2048, 2048), (1, 32_768, 256)):
            size, planes = batch * steps * channels, 1 if cell == "paragru" else 2
            p = jax.ShapeDtypeStruct((batch, steps, 3 * channels), jnp.float32)
            params = {name: jax.ShapeDtypeStruct((count, channels), jnp.float32) for name, count in rows.items()}
            bar = jax.ShapeDtypeStruct((batch, steps, planes * channels), jnp.float32)
            label, work = f"{cell} B{batch} T{steps} N{channels}", ITERATIONS * OPERATIONS[cell] * size
            found.append(Case(f"{label} forward", _forward(cell), (p, params), 4 * (3 + planes) * size, work))
            # backward: p, states and their cotangent in, the cotangent of p out
            bytes_both = 4 * (3 + planes) * size + 4 * (3 + 2 * planes + 3) * size
            both = work + 2 * OPERATIONS[cell] * size
            found.append(Case(f"{label} forward+backward", _both(cell), (p, params, bar), bytes_both, both))
    return found
