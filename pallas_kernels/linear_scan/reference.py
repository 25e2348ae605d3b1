"""The meaning of ``linear_scan`` in plain jnp: one ``lax.scan`` over time, for any floating dtype."""

import jax.numpy as jnp
from jax import Array, lax


def reference(
    decay: Array,
    inputs: Array,
    initial: Array,
    *,
    reverse: bool = False,
    after: bool = False,
) -> tuple[Array, Array]:
    """Runs the recurrence step by step; ``decay`` has the rank of ``inputs`` and axes that are full or 1.

    Args and results are those of ``pallas_kernels.linear_scan.linear_scan``.
    """
    dtype = jnp.result_type(decay, inputs)
    steps = inputs.shape[1]

    def step(carry, now):
        a, x = now
        out = x + (carry if after else a * carry)
        return (a * out if after else out).astype(carry.dtype), out.astype(dtype)

    shape = (decay.shape[0], steps, *decay.shape[2:])
    carry = initial.astype(jnp.promote_types(jnp.result_type(dtype, initial.dtype), jnp.float32))
    xs = (jnp.moveaxis(jnp.broadcast_to(decay, shape), 1, 0), jnp.moveaxis(inputs, 1, 0))
    xs = tuple(x.astype(jnp.promote_types(x.dtype, jnp.float32)) for x in xs)
    last, states = lax.scan(step, carry, xs, reverse=reverse)
    return jnp.moveaxis(states, 0, 1), last
