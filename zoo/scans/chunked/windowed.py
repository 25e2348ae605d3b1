"""Linear attention over a sliding window: a recurrence that forgets exactly what left the window.

Chen et al. (2024), Stuffed Mamba, section on mitigations ("sliding window by state difference"), for the recurrence of
``zoo.scans.linear_attention`` with one decay per head:

    S_t = exp(g_t) S_{t-1} + k_t v_t^T                          everything that was ever read
    W_t = S_t - exp(g_{t-r+1} + ... + g_t) S_{t-r}              its last r steps; y_t = q_t W_t

Shapes as in ``linear_attention``: q, k [B, T, G, K], v [B, T, H, V], log_decay [B, T, H] <= 0. Forms, the same numbers up to
rounding:

    sequential   W_t = exp(g_t) W_{t-1} + k_t v_t^T - exp(g_{t-r+1} + ... + g_t) k_{t-r} v_{t-r}^T. The inputs of the last r
                 steps are kept in a ring, and the sum is taken over the ring, so that no product of decays drifts
    banded       y_t = sum_{t-r < s <= t} exp(g_{s+1} + ... + g_t) (q_t . k_s) v_s: masked matrix products of r queries with
                 2 r keys, O(T r (K + V)) per head
    blocks       time is cut into blocks of r steps. The window of a step is the beginning of its own block, and the end
                 of the block before: two calls of ``linear_attention``, one of them backwards in time. O(T K V), whatever r

Both parallel forms add non-negative weights and never subtract; S_t and S_{t-r}, which are nearly equal and large where
decays are near 1, are never made. ``window_difference`` is the definition, by the difference, for whoever has all states.

State: W [B, H, K, V] and the ring, r (G K + H V + H) numbers per row. One token costs O(K V) per head and O(r) for the sum.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from zoo.checks import check_choice, check_positive
from zoo.dtypes import accumulator
from zoo.scans.chunked.decay import _bounded, _check, _sums_between, linear_attention

METHODS = ("auto", "sequential", "banded", "blocks")
_einsum = partial(jnp.einsum, precision=lax.Precision.HIGHEST)


class WindowRing(NamedTuple):
    """Inputs of the last r steps, over the slots of a ring; zeros where there were none yet.

    Attributes:
      keys: [B, r, G, K].
      values: [B, r, H, V].
      log_decay: [B, r, H], finite: a decay of zero is kept as a large negative number.
      slot: [B] int32, the slot of the oldest step, where the next one goes.
    """

    keys: Float[Array, "B R G K"]
    values: Float[Array, "B R H V"]
    log_decay: Float[Array, "B R H"]
    slot: Int[Array, " B"]

    @classmethod
    def empty(cls, batch: int, window: int, groups: int, heads: int, keys: int, values: int, dtype) -> "WindowRing":
        """The ring before the first step; ``dtype`` is that of keys and values."""
        return cls(
            jnp.zeros((batch, window, groups, keys), dtype),
            jnp.zeros((batch, window, heads, values), dtype),
            jnp.zeros((batch, window, heads), accumulator(dtype)),
            jnp.zeros((batch,), jnp.int32),
        )


def windowed_linear_attention(
    q: Float[Array, "B T G K"],
    k: Float[Array, "B T G K"],
    v: Float[Array, "B T H V"],
    log_decay: Float[Array, "B T H"],
    initial: Float[Array, "B H K V"] | None = None,
    ring: WindowRing | None = None,
    *,
    window: int,
    method: str = "auto",
) -> tuple[Float[Array, "B T H V"], Float[Array, "B H K V"], WindowRing]:
    """The recurrence of the module docstring.

    Args:
      q, k, v, log_decay: as for ``zoo.scans.linear_attention``, one decay per head.
      initial: W before the first step; with ``ring``, and only with it.
      ring: the steps before the first.
      window: r >= 1, the steps that a step can see, itself included.
      method: one of ``METHODS``; "auto": one step is taken as a step, more of them in blocks.

    Returns:
      (y in the result type of q, k and v, W after the last step in at least float32, the ring after it).

    Raises:
      TypeError: an argument is not real and floating-point.
      ValueError: shapes do not fit, T = 0, a window below 1, a ring of another size, or an unknown method.
    """
    _check(q, k, v, log_decay, initial, "auto", None)
    check_positive("window", window)
    check_choice("method", method, METHODS)
    if log_decay.ndim != 3:
        raise ValueError(f"a window needs one decay per head, [batch, time, heads], got {list(log_decay.shape)}")
    if (initial is None) != (ring is None):
        raise ValueError("initial and ring go together: both or neither")
    batch, steps, groups, keys = k.shape
    heads, values = v.shape[2:]
    wide = accumulator(q.dtype, k.dtype, v.dtype, log_decay.dtype)
    if ring is None:
        ring = WindowRing.empty(batch, window, groups, heads, keys, values, jnp.result_type(k, v))
        initial = jnp.zeros((batch, heads, keys, values), wide)
    if ring.keys.shape[1] != window:
        raise ValueError(f"the ring holds {ring.keys.shape[1]} steps, but window={window}")
    dtype = jnp.result_type(q, k, v)
    k, v, decay = k.astype(ring.keys.dtype), v.astype(ring.values.dtype), _bounded(log_decay.astype(wide))
    if method == "sequential" or (method == "auto" and steps == 1):
        y, last, ring = _by_steps(q, k, v, decay, initial.astype(wide), ring)
    else:
        order = (ring.slot[:, None] + jnp.arange(window)) % window  # the oldest step first
        before = (
            jnp.take_along_axis(a, order.reshape(*order.shape, *(1,) * (a.ndim - 2)), axis=1)
            for a in (ring.keys, ring.values, ring.log_decay.astype(wide))
        )
        k, v, decay = (jnp.concatenate(pair, axis=1) for pair in zip(before, (k, v, decay)))
        y = (_banded if method == "banded" else _by_blocks)(q, k, v, decay, window)[:, :steps]
        k, v, decay = (a[:, -window:] for a in (k, v, decay))
        last = _einsum("btgk,btgrv->bgrkv", k.astype(wide), _grouped(jnp.exp(_after(decay))[..., None] * v, groups))
        last = last.reshape(batch, heads, keys, values)
        slot = (ring.slot + steps) % window
        place = (jnp.arange(window) - slot[:, None]) % window
        ring = WindowRing(
            *(
                jnp.take_along_axis(a, place.reshape(*place.shape, *(1,) * (a.ndim - 2)), axis=1)
                for a in (k, v, decay.astype(ring.log_decay.dtype))
            ),
            slot,
        )
    return y.astype(dtype), last, ring


def window_difference(
    states: Float[Array, "B T H K V"], log_decay: Float[Array, "B T H"], window: int
) -> Float[Array, "B T H K V"]:
    """W_t = S_t - exp(g_{t-r+1} + ... + g_t) S_{t-r} from all states S of a sequence that began with S = 0: the definition.

    It subtracts what may be nearly equal: use it in float64, or to look at states.
    """
    check_positive("window", window)
    if window >= states.shape[1]:
        return states
    spans = lax.reduce_window(
        _bounded(log_decay), 0.0, lax.add, (1, window, 1), (1, 1, 1), ((0, 0), (window - 1, 0), (0, 0))
    )
    late = jnp.pad(states, ((0, 0), (window, 0), *((0, 0),) * 3))[:, : states.shape[1]]
    return states - jnp.exp(spans)[..., None, None] * late


def _grouped(v, groups):
    """[..., H, V] -> [..., G, R, V]."""
    return v.reshape(*v.shape[:-2], groups, -1, v.shape[-1])


def _after(decay):
    """[B, T, H]: the sums of the decays after every step."""
    return lax.cumsum(jnp.pad(decay[:, 1:], ((0, 0), (0, 1), (0, 0))), axis=1, reverse=True)


def _outer(k, v):
    """k [B, G, K] and v [B, H, V] -> [B, H, K, V]."""
    product = k[:, :, None, :, None] * _grouped(v, k.shape[1])[..., None, :]
    return product.reshape(*v.shape[:2], k.shape[-1], v.shape[-1])


def _by_steps(q, k, v, decay, state, ring):
    """The recurrence with the ring, step after step."""
    rows, window, wide = jnp.arange(q.shape[0]), ring.keys.shape[1], state.dtype

    def step(carry, now):
        state, ring = carry
        q, k, v, decay = now
        gone = _outer(ring.keys[rows, ring.slot].astype(wide), ring.values[rows, ring.slot].astype(wide))
        kept = [
            old.at[rows, ring.slot].set(new.astype(old.dtype)) for old, new in zip(ring[:3], (k, v, decay), strict=True)
        ]
        ring = WindowRing(*kept, (ring.slot + 1) % window)
        through = jnp.exp(jnp.sum(ring.log_decay.astype(wide), axis=1))
        state = jnp.exp(decay)[..., None, None] * state + _outer(k.astype(wide), v.astype(wide))
        state = state - through[..., None, None] * gone
        grouped = state.reshape(state.shape[0], k.shape[1], -1, *state.shape[2:])
        return (state, ring), _einsum("bgk,bgrkv->bgrv", q.astype(wide), grouped).reshape(v.shape)

    now = jax.tree.map(lambda a: jnp.moveaxis(a, 1, 0), (q, k, v, decay))
    (state, ring), y = lax.scan(step, (state, ring), now)
    return jnp.moveaxis(y, 0, 1), state, ring


def _cut(q, k, v, decay, window):
    """Blocks of ``window`` steps, as rows: queries, then keys, values and decays of their own block and of the one before.

    q has T steps, the others the window before and T. Returns arrays [B * blocks, window, ...].
    """
    steps = q.shape[1]
    short = -steps % window

    def blocks(a):
        a = jnp.pad(a, ((0, 0), (0, short), *((0, 0),) * (a.ndim - 2)))
        return a.reshape(a.shape[0], -1, window, *a.shape[2:])

    def rows(a):
        return a.reshape(-1, *a.shape[2:])

    cut = [blocks(a) for a in (k, v, decay)]
    return rows(blocks(q)), [rows(a[:, 1:]) for a in cut], [rows(a[:, :-1]) for a in cut]


def _by_blocks(q, k, v, decay, window):
    """y [B, >= T, H, V] by two linear attentions over blocks."""
    batch = q.shape[0]
    q, (k, v, decay), (k_before, v_before, decay_before) = _cut(q, k, v, decay, window)
    y, _ = linear_attention(q, k, v, decay)
    # Backwards from the end of the block before, down to the step after the one of the query's place: hence the shift.
    weighted = jnp.exp(_after(decay_before))[..., None] * v_before
    k_late, v_late = (jnp.pad(a[:, :0:-1], ((0, 0), (1, 0), (0, 0), (0, 0))) for a in (k_before, weighted))
    y_before, _ = linear_attention(q[:, ::-1], k_late, v_late)
    y = y + jnp.exp(jnp.cumsum(decay, axis=1))[..., None] * y_before[:, ::-1]
    return y.reshape(batch, -1, *y.shape[2:])


def _banded(q, k, v, decay, window):
    """y [B, >= T, H, V] by masked products of a block of queries with the keys of two blocks."""
    batch, groups, wide = q.shape[0], q.shape[2], decay.dtype
    q, own, before = _cut(q, k, v, decay, window)
    k, v, decay = (jnp.concatenate(pair, axis=1) for pair in zip(before, own))
    between = _sums_between(jnp.moveaxis(decay, 1, -1))[..., window:, :]
    between = between.reshape(between.shape[0], groups, -1, *between.shape[2:])
    place, seen = jnp.arange(window)[:, None], jnp.arange(2 * window)[None]
    visible = (seen > place) & (seen <= place + window)
    scores = _einsum("btgk,bsgk->bgts", q.astype(wide), k.astype(wide))[:, :, None] * jnp.exp(between)
    y = _einsum("bgrts,bsgrv->btgrv", jnp.where(visible, scores, 0), _grouped(v.astype(wide), groups))
    return y.reshape(batch, -1, *v.shape[2:])
