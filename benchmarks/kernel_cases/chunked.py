"""Cases of the ``chunked`` kernel: linear attention, Mamba-2 and gated linear attention at the sizes of their models."""

import jax
import jax.numpy as jnp

from benchmarks.kernel_cases import Case
from pallas_kernels.chunked import chunked

# name, B, T, heads of q and k, heads of v, K, V, decay
SIZES = (
    ("linear_attention", 8, 2048, 16, 16, 64, 64, None),
    ("retnet", 8, 2048, 16, 16, 128, 128, "head"),
    ("mamba2", 8, 2048, 1, 24, 128, 64, "head"),
    ("gla", 8, 2048, 16, 16, 64, 64, "channel"),
    ("gla_wide", 8, 2048, 16, 16, 128, 128, "channel"),
    ("retnet_long", 1, 32768, 8, 8, 128, 128, "head"),
)


def _case(name, batch, steps, groups, heads, keys, values, decay, backward):
    def array(*shape, dtype=jnp.bfloat16):
        return jax.ShapeDtypeStruct((batch, *shape), dtype)

    # heads side by side in one axis, as projections make them and take them
    q = k = array(steps, groups * keys)
    v = y = array(steps, heads * values)
    state = array(heads, keys, values, dtype=jnp.float32)
    log_decay = {None: None, "head": array(steps, heads, dtype=jnp.float32), "channel": array(steps, heads * keys)}[
        decay
    ]

    def function(platform):
        options = {"platform": platform, "interpret": False} if platform in ("gpu", "tpu") else {}

        def forward(q, k, v, log_decay, state):
            q, k = (a.reshape(batch, steps, groups, keys) for a in (q, k))
            if decay == "channel":
                log_decay = log_decay.reshape(batch, steps, heads, keys)
            y, last = chunked(q, k, v.reshape(batch, steps, heads, values), log_decay, state, **options)
            return y.reshape(batch, steps, heads * values), last

        def both(q, k, v, log_decay, state, y_bar):
            (y, last), pullback = jax.vjp(forward, q, k, v, log_decay, state)
            return y, last, pullback((y_bar, jnp.zeros_like(last)))

        return both if backward else forward

    def size(*arrays):
        return sum(a.size * a.dtype.itemsize for a in arrays if a is not None)

    inputs = (q, k, v, log_decay, state)
    # backward: the inputs and the cotangent of y are read, the cotangents of the inputs written
    moved = size(*inputs, y, state) + (size(*inputs, y, *inputs) if backward else 0)
    # per step and head: the update of the state and its reading, K V products each; the backward pass does twice as much
    flops = 4.0 * batch * steps * heads * keys * values * (3 if backward else 1)
    text = f"{name} B{batch} T{steps} H{heads} K{keys} V{values} {'forward+backward' if backward else 'forward'}"
    if name != "odd":
        odd = _case("odd", 3, 37, *((1, 3) if groups < heads else (3, 3)), 19, 23, decay, backward)
    return Case(text, function, (*inputs, y) if backward else inputs, moved, flops, None if name == "odd" else odd)


def cases() -> list[Case]:
    """Every size, forward and forward+backward."""
    return [_case(*size, backward) for size in SIZES for backward in (False, True)]
