"""The meaning of ``chunked`` in plain jnp, one step after another."""

import jax
import jax.numpy as jnp
from jax import lax


def reference(q, k, v, log_decay, initial):
    """``S_t = diag(exp(log_decay_t)) S_{t-1} + k_t v_t^T`` and ``y_t = q_t S_t``; arguments as in ``chunked``.

    Reverse mode keeps the state of every 64th step.
    """
    batch, steps, groups, keys = q.shape
    heads, values = v.shape[2:]
    carried = initial.dtype

    def step(state, now):
        q, k, v, decay = (None if a is None else a.astype(carried) for a in now)
        if decay is not None:
            state = jnp.exp(decay).reshape(batch, groups, heads // groups, -1, 1) * state
        state = state + k[:, :, None, :, None] * v.reshape(batch, groups, -1, 1, values)
        return state, jnp.sum(q[:, :, None, :, None] * state, axis=-2).reshape(batch, heads, values)

    def cut(array):
        array = jnp.pad(array, [(0, 0), (0, -steps % size)] + [(0, 0)] * (array.ndim - 2))
        return jnp.moveaxis(array.reshape(batch, -1, size, *array.shape[2:]), 0, 2)

    size = min(64, steps)
    chunk = jax.checkpoint(lambda state, now: lax.scan(step, state, now), prevent_cse=False)
    state = initial.reshape(batch, groups, heads // groups, keys, values)
    state, y = lax.scan(chunk, state, jax.tree.map(cut, (q, k, v, log_decay)))
    y = jnp.moveaxis(y.reshape(-1, *y.shape[2:]), 0, 1)[:, :steps]
    return y.astype(jnp.result_type(q, k, v)), state.reshape(initial.shape)
