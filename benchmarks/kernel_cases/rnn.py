"""Cases of rnn: FlashRNN's head sizes at width 768, B = 16, T = 1024, bfloat16; other cells, a small and a large batch."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from benchmarks.kernel_cases import Case
from pallas_kernels import operation
from pallas_kernels.rnn.cells import cell


def _forward(function: str) -> Callable:
    def on(platform: str) -> Callable:
        run = operation("rnn")
        return lambda Wx, R, b: run(
            Wx, R, b, function=function, platform=platform, interpret=None if platform is None else False
        )[0]

    return on


def _both(function: str) -> Callable:
    def on(platform: str) -> Callable:
        forward = _forward(function)(platform)

        def run(Wx, R, b, states_bar):
            states, pullback = jax.vjp(forward, Wx, R, b)
            return states, pullback(states_bar)

        return run

    return on


def cases() -> list[Case]:
    """Forward and forward+backward of every shape."""
    found = []
    for function, batch, steps, heads, dim in (
        *((function, 16, 1024, 768 // dim, dim) for function in ("lstm", "slstm") for dim in (64, 128, 256, 768)),
        ("gru", 16, 1024, 12, 64),
        ("elman", 16, 1024, 12, 64),
        ("lstm", 2, 1024, 12, 64),
        ("lstm", 256, 1024, 12, 64),
    ):
        the = cell(function)
        Wx = jax.ShapeDtypeStruct((batch, steps, the.gates_w, heads, dim), jnp.bfloat16)
        R = jax.ShapeDtypeStruct((the.gates_r, heads, dim, dim), jnp.bfloat16)
        b = jax.ShapeDtypeStruct((the.gates_t, heads, dim), jnp.bfloat16)
        states = jax.ShapeDtypeStruct((the.states, batch, steps, heads, dim), jnp.bfloat16)
        inputs, weights, out = (2 * n for n in (Wx.size, R.size + b.size, states.size))
        gates = 2 * batch * steps * the.gates_i * heads * dim
        flops = 2 * batch * steps * R.size
        label = f"{function} B{batch} T{steps} N{heads} D{dim}"
        found.append(Case(f"{label} forward", _forward(function), (Wx, R, b), inputs + weights + out, flops))
        # forward writes the gates too; backward reads gates, states and their gradient, and writes that of Wx, R and b
        forward = inputs + weights + out + gates
        backward = gates + 2 * out + weights + inputs + weights
        found.append(
            Case(f"{label} forward+backward", _both(function), (Wx, R, b, states), forward + backward, 3 * flops)
        )
    return found
