"""The meaning of ``block_scan`` in plain jnp: one ``lax.scan`` over time."""

import jax.numpy as jnp
from jax import Array, lax


def reference(
    matrices: Array,
    inputs: Array,
    initial: Array,
    *,
    reverse: bool = False,
    after: bool = False,
) -> tuple[Array, Array]:
    """Runs the recurrence step by step; arguments and results are those of ``block_scan``."""
    dtype = jnp.result_type(matrices, inputs)
    wide = jnp.promote_types(jnp.promote_types(dtype, initial.dtype), jnp.float32)

    def step(carry, now):
        a, x = now
        if after:
            out = x + carry
            return jnp.einsum("bnij,bnj->bni", a, out, precision="highest"), out
        out = jnp.einsum("bnij,bnj->bni", a, carry, precision="highest") + x
        return out, out

    xs = tuple(jnp.moveaxis(x, 1, 0).astype(wide) for x in (matrices, inputs))
    last, states = lax.scan(step, initial.astype(wide), xs, reverse=reverse)
    return jnp.moveaxis(states, 0, 1).astype(dtype), last
