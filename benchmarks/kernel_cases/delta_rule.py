"""Cases of the ``delta_rule`` kernel: DeltaNet, Gated DeltaNet, Qwen3-Next and DeltaProduct at the sizes of their models."""

import jax
import jax.numpy as jnp

from benchmarks.kernel_cases import Case
from pallas_kernels.delta_rule import delta_rule

# name, B, T, heads of q and k, heads of v, K, V, with a decay?
SIZES = (
    ("deltanet_1.3b", 8, 2048, 16, 16, 128, 128, False),
    ("gated_deltanet_1.3b", 8, 2048, 6, 6, 256, 512, True),
    ("qwen3_next", 4, 4096, 16, 32, 128, 128, True),
    ("deltaproduct_2", 8, 4096, 16, 16, 64, 64, True),  # two steps per token
    ("deltanet_long", 1, 32768, 8, 8, 128, 128, False),
)


def _case(name, batch, steps, groups, heads, keys, values, decay, backward):
    def array(*shape, dtype=jnp.bfloat16):
        return jax.ShapeDtypeStruct((batch, *shape), dtype)

    # heads side by side in one axis, as projections make them and take them
    q = k = array(steps, groups * keys)
    v = y = array(steps, heads * values)
    beta = array(steps, heads, dtype=jnp.float32)
    log_decay = array(steps, heads, dtype=jnp.float32) if decay else None
    state = array(heads, keys, values, dtype=jnp.float32)

    def function(platform):
        options = {"platform": platform, "interpret": False} if platform in ("gpu", "tpu") else {}

        def forward(q, k, v, beta, log_decay, state):
            q, k = (a.reshape(batch, steps, groups, keys) for a in (q, k))
            y, last = delta_rule(q, k, v.reshape(batch, steps, heads, values), beta, log_decay, state, **options)
            return y.reshape(batch, steps, heads * values), last

        def both(q, k, v, beta, log_decay, state, y_bar):
            (y, last), pullback = jax.vjp(forward, q, k, v, beta, log_decay, state)
            return y, last, pullback((y_bar, jnp.zeros_like(last)))

        return both if backward else forward

    def size(*arrays):
        return sum(a.size * a.dtype.itemsize for a in arrays if a is not None)

    inputs = (q, k, v, beta, log_decay, state)
    # backward: the inputs and the cotangent of y are read, the cotangents of the inputs written
    moved = size(*inputs, y, state) + (size(*inputs, y, *inputs) if backward else 0)
    # per step and head: prediction, update and reading of the state, K V products each; the backward pass twice as much
    flops = 6.0 * batch * steps * heads * keys * values * (3 if backward else 1)
    text = f"{name} B{batch} T{steps} H{heads} K{keys} V{values} {'forward+backward' if backward else 'forward'}"
    odd = None
    if name != "odd":
        odd = _case("odd", 3, 37, *((2, 4) if groups < heads else (3, 3)), 19, 23, decay, backward)
    return Case(text, function, (*inputs, y) if backward else inputs, moved, flops, odd)


def cases() -> list[Case]:
    """Every size, forward and forward+backward."""
    return [_case(*size, backward) for size in SIZES for backward in (False, True)]
