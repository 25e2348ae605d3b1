"""Linear attention whose state is kept below a norm: a recurrence that is not linear any more.

Chen et al. (2024), Stuffed Mamba, section on mitigations ("state normalisation"), for ``zoo.scans.linear_attention``:

    H_t = exp(g_t) S_{t-1} + k_t v_t^T
    S_t = H_t min(1, p / |H_t|)          |.| the Frobenius norm of one head's state [K, V];   y_t = q_t S_t

``clipped_linear_attention`` is this definition, one step after another: T dependent steps, O(T K V) per head.
``chunk_clipped_linear_attention`` clips at the end of chunks of C steps only, and is linear inside: it runs as fast as
``linear_attention``, but it is another, looser bound. What it computes depends on where the chunks begin, that is on
how a sequence is cut into calls.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from zoo.checks import check_positive
from zoo.dtypes import accumulator
from zoo.scans.chunked.decay import _bounded, _check, linear_attention


def clip_state(state: Float[Array, "*B K V"], max_norm: float) -> Float[Array, "*B K V"]:
    """``state`` with every matrix scaled down to the Frobenius norm ``max_norm`` where it exceeds it.

    Raises:
      ValueError: ``max_norm`` is not positive.
    """
    if not max_norm > 0:
        raise ValueError(f"max_norm must be positive, got {max_norm}")
    square = jnp.sum(state * state, axis=(-2, -1), keepdims=True)
    over = square > max_norm**2
    return state * jnp.where(over, max_norm * lax.rsqrt(jnp.where(over, square, 1)), 1)


def clipped_linear_attention(
    q: Float[Array, "B T G K"],
    k: Float[Array, "B T G K"],
    v: Float[Array, "B T H V"],
    log_decay: Float[Array, "B T H"],
    initial: Float[Array, "B H K V"] | None = None,
    *,
    max_norm: float,
) -> tuple[Float[Array, "B T H V"], Float[Array, "B H K V"]]:
    """The recurrence of the module docstring, clipped at every step.

    Args:
      q, k, v, log_decay, initial: as for ``zoo.scans.linear_attention``, one decay per head.
      max_norm: p > 0.

    Returns:
      (y in the result type of q, k and v, the state after the last step in at least float32).
    """
    state, decay = _prepare(q, k, v, log_decay, initial)
    groups, heads = q.shape[2], v.shape[2]

    def heads_of(a):
        return jnp.repeat(a.astype(state.dtype), heads // groups, axis=1)

    def step(state, now):
        q, k, v, decay = now
        state = jnp.exp(decay)[..., None, None] * state + heads_of(k)[..., :, None] * v[..., None, :].astype(
            state.dtype
        )
        state = clip_state(state, max_norm)
        return state, jnp.sum(heads_of(q)[..., :, None] * state, axis=-2)

    state, y = lax.scan(step, state, jax.tree.map(lambda a: jnp.moveaxis(a, 1, 0), (q, k, v, decay)))
    return jnp.moveaxis(y, 0, 1).astype(jnp.result_type(q, k, v)), state


def chunk_clipped_linear_attention(
    q: Float[Array, "B T G K"],
    k: Float[Array, "B T G K"],
    v: Float[Array, "B T H V"],
    log_decay: Float[Array, "B T H"],
    initial: Float[Array, "B H K V"] | None = None,
    *,
    max_norm: float,
    chunk_size: int,
) -> tuple[Float[Array, "B T H V"], Float[Array, "B H K V"]]:
    """Linear attention whose state is clipped after every ``chunk_size`` steps of the call, and at its end.

    Arguments and results are those of ``clipped_linear_attention``. The outputs of a chunk are read before its end is
    clipped. With ``chunk_size`` 1 the states are those of that function, and the outputs are not.
    """
    check_positive("chunk_size", chunk_size)
    state, decay = _prepare(q, k, v, log_decay, initial)
    steps = q.shape[1]

    def cut(a):
        a = jnp.pad(a, ((0, 0), (0, -steps % chunk_size), *((0, 0),) * (a.ndim - 2)))  # steps of zeros change no state
        return jnp.moveaxis(a.reshape(a.shape[0], -1, chunk_size, *a.shape[2:]), 1, 0)

    def chunk(state, now):
        y, state = linear_attention(*now, state, chunk_size=chunk_size)
        clipped = clip_state(state, max_norm)
        return clipped, y

    state, y = lax.scan(chunk, state, tuple(cut(a) for a in (q, k, v, decay)))
    y = jnp.moveaxis(y, 0, 1)
    return y.reshape(y.shape[0], -1, *y.shape[3:])[:, :steps], state


def _prepare(q, k, v, log_decay, initial):
    """Checked arguments: the initial state and the decays, in the accumulation type."""
    _check(q, k, v, log_decay, initial, "auto", None)
    if log_decay.ndim != 3:
        raise ValueError(f"a clipped state needs one decay per head, [batch, time, heads], got {list(log_decay.shape)}")
    wide = accumulator(q.dtype, k.dtype, v.dtype, log_decay.dtype)
    if initial is None:
        initial = jnp.zeros((q.shape[0], v.shape[2], q.shape[3], v.shape[3]), wide)
    return initial.astype(wide), _bounded(log_decay.astype(wide))
