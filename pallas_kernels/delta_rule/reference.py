"""The meaning of ``delta_rule`` in plain jnp, one step after another."""

import jax
import jax.numpy as jnp
from jax import lax


def reference(q, k, v, beta, log_decay, initial):
    """``S_t = exp(g_t) S_{t-1} + beta_t k_t (v_t - k_t exp(g_t) S_{t-1})^T`` and ``y_t = q_t S_t``.

    Arguments as in ``delta_rule``, with ``log_decay`` and ``initial`` given. Reverse mode keeps every 64th state.
    """
    batch, steps, groups, keys = q.shape
    heads, values = v.shape[2:]
    carried = initial.dtype

    def step(state, now):
        q, k, v, beta, decay = (a.astype(carried) for a in now)
        q, k = (a[:, :, None, :, None] for a in (q, k))
        state = jnp.exp(decay)[..., None, None] * state
        error = v - jnp.sum(k * state, axis=-2)
        state = state + k * (beta[..., None] * error)[..., None, :]
        return state, jnp.sum(q * state, axis=-2)

    def cut(array):
        array = jnp.pad(array, [(0, 0), (0, -steps % size)] + [(0, 0)] * (array.ndim - 2))
        return jnp.moveaxis(array.reshape(batch, -1, size, *array.shape[2:]), 0, 2)

    size = min(64, steps)
    per_head = (a.reshape(batch, steps, groups, heads // groups, *a.shape[3:]) for a in (v, beta, log_decay))
    chunk = jax.checkpoint(lambda state, now: lax.scan(step, state, now), prevent_cse=False)
    state = initial.reshape(batch, groups, heads // groups, keys, values)
    state, y = lax.scan(chunk, state, jax.tree.map(cut, (q, k, *per_head)))
    y = jnp.moveaxis(y.reshape(-1, batch, heads, values), 0, 1)[:, :steps]
    return y.astype(jnp.result_type(q, k, v)), state.reshape(initial.shape)
