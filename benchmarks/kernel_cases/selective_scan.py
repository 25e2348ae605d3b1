"""Cases of the ``selective_scan`` kernel at the sizes of Mamba 130M and 1.4B, and one long row."""

import jax
import jax.numpy as jnp

from benchmarks.kernel_cases import Case
from pallas_kernels.selective_scan import selective_scan

# name, B, T, D, N
SIZES = (("mamba_130m", 8, 2048, 1536, 16), ("mamba_1.4b", 8, 2048, 4096, 16), ("one_row", 1, 2048, 1536, 16))


def _case(name, batch, steps, channels, size, backward):
    x = y = jax.ShapeDtypeStruct((batch, steps, channels), jnp.bfloat16)
    delta = jax.ShapeDtypeStruct((batch, steps, channels), jnp.float32)
    a = jax.ShapeDtypeStruct((channels, size), jnp.float32)
    b = c = jax.ShapeDtypeStruct((batch, steps, size), jnp.bfloat16)
    state = jax.ShapeDtypeStruct((batch, channels, size), jnp.float32)

    def function(platform):
        options = {"platform": platform, "interpret": False} if platform in ("gpu", "tpu") else {}

        def forward(x, delta, a, b, c, state):
            return selective_scan(x, delta, a, b, c, state, **options)

        def both(x, delta, a, b, c, state, y_bar):
            (y, last), pullback = jax.vjp(forward, x, delta, a, b, c, state)
            return y, last, pullback((y_bar, jnp.zeros_like(last)))

        return both if backward else forward

    inputs = (x, delta, a, b, c, state)
    moved = sum(array.size * array.dtype.itemsize for array in (*inputs, y, state))
    if backward:  # the inputs and the cotangent of y are read, the cotangents of the inputs written
        moved += sum(array.size * array.dtype.itemsize for array in (*inputs, y, *inputs))
    # per state number and step: delta A, exp, decay h, u B, their sum, C h and its sum; backward about twice as much
    flops = 7.0 * batch * steps * channels * size * (3 if backward else 1)
    text = f"{name} B{batch} T{steps} D{channels} N{size} {'forward+backward' if backward else 'forward'}"
    return Case(text, function, (*inputs, y) if backward else inputs, moved, flops)


def cases() -> list[Case]:
    """Every size, forward and forward+backward."""
    return [_case(*size, backward) for size in SIZES for backward in (False, True)]
