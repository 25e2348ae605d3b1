"""The meaning of ``selective_scan`` in plain jnp, one step after another."""

import jax
import jax.numpy as jnp
from jax import lax


def reference(x, delta, a, b, c, initial, reset):
    """``h_t = exp(delta_t a) h_{t-1} + delta_t b_t x_t`` and ``y_t = c_t h_t``; arguments as in ``selective_scan``.

    Reverse mode keeps the state of every 64th step.
    """
    steps, carried = x.shape[1], initial.dtype
    keep = jnp.ones(x.shape[:2], carried) if reset is None else jnp.where(reset, 0, 1).astype(carried)

    def step(state, now):
        x, delta, b, c, keep = (array.astype(carried) for array in now)
        decay = jnp.exp(delta[:, :, None] * a) * keep[:, None, None]
        state = decay * state + (delta * x)[:, :, None] * b[:, None, :]
        return state, jnp.sum(state * c[:, None, :], axis=-1)

    def cut(array):
        array = jnp.pad(array, [(0, 0), (0, -steps % size)] + [(0, 0)] * (array.ndim - 2), mode="edge")
        array = jnp.where((jnp.arange(array.shape[1]) < steps).reshape(1, -1, *[1] * (array.ndim - 2)), array, 0)
        return jnp.moveaxis(array.reshape(array.shape[0], -1, size, *array.shape[2:]), 0, 2)

    size = min(64, steps)
    keep = cut(keep - 1) + 1
    chunk = jax.checkpoint(lambda state, now: lax.scan(step, state, now), prevent_cse=False)
    last, y = lax.scan(chunk, initial, (*map(cut, (x, delta, b, c)), keep))
    return jnp.moveaxis(y.reshape(-1, *y.shape[2:]), 0, 1)[:, :steps].astype(x.dtype), last
