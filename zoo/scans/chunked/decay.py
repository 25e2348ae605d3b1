"""Recurrences whose state is a matrix, in chunks: linear attention with a decay, one form for its whole family.

    S_t = diag(exp(g_t)) S_{t-1} + k_t v_t^T        S_t [K, V] per batch row and head
    y_t = q_t S_t

g_t <= 0 is the log decay. Without it this is linear attention; with one number per head, RetNet and Mamba-2 (q = C, k = B,
v = delta x, g = delta A); with one number per key channel, gated linear attention. Scale, feature maps and normalisation are
the caller's. Shapes, with G heads of q and k shared by H = G * R heads of v (head h uses q and k of head h // R):

    q, k       [B, T, G, K]
    v          [B, T, H, V]
    log_decay  [B, T, H] or [B, T, H, K] or None
    initial    [B, H, K, V]

A document reset is ``log_decay = -inf`` at the first token of the document: it lets exactly nothing through.

Forms, all with the same numbers up to rounding:

    sequential   T steps, the meaning
    chunked      chunks of C steps. Inside a chunk, y_i += sum_{j <= i} (q_i . k_j) exp(g_{j+1} + ... + g_i) v_j as masked
                 matrix products; between chunks, the state. T/C dependent steps
    pallas       a kernel of ``pallas_kernels``, interpreted on CPU; first derivatives in reverse mode only

No exponent is ever positive, and none is a difference of large sums. A decay per channel does not commute with q_i . k_j,
so the sum of g between j and i is cut at a border between them: exp(g_{j+1} + ... + g_border) goes to k_j, and
exp(g_{border+1} + ... + g_i) to q_i. The borders are those of a binary tree over the chunk: every pair has one, the middle
of the smallest block of 2^n steps that holds both.

Derivatives. Both forms can be differentiated any number of times in both modes. Reverse mode stores the inputs and the state
at the chunk borders, [B, T/C, H, K, V], and computes a chunk again when it gets there.

Cost per head: O(T K V) sequential; O(T K V + T C (K + V)) chunked, in matrix products.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from pallas_kernels import operation
from zoo.checks import check_choice, check_floating, check_positive
from zoo.dtypes import accumulator
from zoo.scans import _auto

FeatureMap = Callable[[Float[Array, "*B F"]], Float[Array, "*B K"]]
METHODS = ("auto", "sequential", "chunked", "pallas")
_matmul = partial(jnp.matmul, precision=lax.Precision.HIGHEST)
_LEAF = (
    16  # steps in which the products of all tree levels are made whole and masked: smaller ones are not worth a call
)


def linear_attention(
    q: Float[Array, "B T G F"],
    k: Float[Array, "B T G F"],
    v: Float[Array, "B T H V"],
    log_decay: Float[Array, "B T H"] | Float[Array, "B T H K"] | None = None,
    initial: Float[Array, "B H K V"] | None = None,
    *,
    method: str = "auto",
    chunk_size: int | None = None,
    feature_map: FeatureMap | None = None,
) -> tuple[Float[Array, "B T H V"], Float[Array, "B H K V"]]:
    """Runs ``S_t = diag(exp(log_decay_t)) S_{t-1} + k_t v_t^T`` and reads ``y_t = q_t S_t``, along axis 1.

    Args:
      q: [B, T, G, F], T >= 1; no scale is applied. F = K without ``feature_map``.
      k: as q.
      v: [B, T, H, V], H a multiple of G.
      log_decay: [B, T, H], one number per head, or [B, T, H, K], one per key channel; <= 0, -inf allowed; None: no decay.
      initial: [B, H, K, V], the state before the first step; zeros when None.
      method: one of ``METHODS``; "auto" chooses from platform and shape by the table in ``zoo.scans._auto``.
      chunk_size: steps per chunk (any T is allowed; with a decay per channel the next power of two is taken); chosen from
        the shape when None.
      feature_map: queries and keys are these features of q and k, [..., F] -> [..., K]; made chunk by chunk, and again for
        the derivative, so that wide features of all steps are never in memory at once. A step of zeros must have finite
        features.

    Returns:
      y: [B, T, H, V] in the result type of q, k and v.
      last: [B, H, K, V], the state after the last step, in the accumulation type (at least float32).

    Raises:
      TypeError: an argument is not floating-point, or complex.
      ValueError: shapes do not fit, T = 0, or an unknown method.
    """
    features = q if feature_map is None else jax.eval_shape(feature_map, q)
    _check(q, k, v, log_decay, initial, method, chunk_size, features.shape[-1])
    dtype = jnp.result_type(q, k, v)
    carried = accumulator(*(a.dtype for a in (q, k, v, log_decay, initial) if a is not None))
    (batch, steps, groups, _), keys = q.shape, features.shape[-1]
    heads, values = v.shape[2:]
    channels = log_decay is not None and log_decay.ndim == 4
    form, size = _auto.matrix_form(method, chunk_size, steps, keys, values, dtype)
    if form == "pallas":
        if feature_map is not None:
            q, k = feature_map(q), feature_map(k)
        return operation("chunked")(q, k, v, log_decay, initial, **_auto.kernel_options())
    if channels:
        size = 1 << (size - 1).bit_length()

    if log_decay is not None:
        log_decay = _bounded(log_decay.astype(carried)).reshape(batch, steps, groups, heads // groups, -1)
    v = v.reshape(batch, steps, groups, heads // groups, values)
    if initial is None:
        state = jnp.zeros((batch, groups, heads // groups, keys, values), carried)
    else:
        state = initial.astype(carried).reshape(batch, groups, heads // groups, keys, values)

    def cut(array):
        """[B, T, G, (R,) X] -> [chunks, B, G, R or 1, C, X]; steps of zeros at the end change no state."""
        array = array.astype(carried).reshape(*array.shape[:3], -1, array.shape[-1])
        array = jnp.pad(array, [(0, 0), (0, -steps % size)] + [(0, 0)] * 3)
        array = array.reshape(batch, -1, size, *array.shape[2:])
        return jnp.transpose(array, (1, 0, 3, 4, 2, 5))

    chunk = _chunk_of_steps if form == "sequential" else _chunk_of_channels if channels else _chunk
    if feature_map is not None:
        chunk = partial(_with_features, chunk, feature_map)
    state, y = lax.scan(jax.checkpoint(chunk, prevent_cse=False), state, jax.tree.map(cut, (q, k, v, log_decay)))
    y = jnp.transpose(y, (1, 0, 4, 2, 3, 5)).reshape(batch, -1, heads, values)[:, :steps]
    return y.astype(dtype), state.reshape(batch, heads, keys, values)


def linear_attention_step(
    q: Float[Array, "B G F"],
    k: Float[Array, "B G F"],
    v: Float[Array, "B H V"],
    log_decay: Float[Array, "B H"] | Float[Array, "B H K"] | None,
    state: Float[Array, "B H K V"],
    *,
    feature_map: FeatureMap | None = None,
) -> tuple[Float[Array, "B H V"], Float[Array, "B H K V"]]:
    """One step of ``linear_attention``: returns (y, the new state). Shapes are those of one step of its arguments."""
    y, state = linear_attention(
        q[:, None],
        k[:, None],
        v[:, None],
        None if log_decay is None else log_decay[:, None],
        state,
        method="sequential",
        feature_map=feature_map,
    )
    return y[:, 0], state


def _check(q, k, v, log_decay, initial, method, chunk_size, keys=None):
    """Checks every argument of ``linear_attention``; ``keys`` is the width of the state where q's is another."""
    check_choice("method", method, METHODS)
    if chunk_size is not None:
        check_positive("chunk_size", chunk_size)
    given = {"q": q, "k": k, "v": v, "log_decay": log_decay, "initial": initial}
    for name, array in given.items():
        if array is None and name in ("log_decay", "initial"):
            continue
        check_floating(name, array)
        if jnp.issubdtype(array.dtype, jnp.complexfloating):
            raise TypeError(f"{name} must be real, got {array.dtype}")
    for name in ("q", "v"):
        if given[name].ndim != 4:
            raise ValueError(f"{name} must have shape [batch, time, heads, width], got {list(given[name].shape)}")
    batch, steps, groups, width = q.shape
    keys = width if keys is None else keys
    heads, values = v.shape[2:]
    if steps == 0:
        raise ValueError("q has no time steps (T = 0); a scan needs at least one")
    if tuple(k.shape) != tuple(q.shape):
        raise ValueError(f"k must have the shape of q {list(q.shape)}, got {list(k.shape)}")
    if tuple(v.shape[:2]) != (batch, steps):
        raise ValueError(f"v must have shape {[batch, steps, 'heads', 'width']} to go with q, got {list(v.shape)}")
    if heads % groups:
        raise ValueError(f"v has {heads} heads, which is not a multiple of the {groups} heads of q and k")
    if log_decay is not None and tuple(log_decay.shape) not in ((batch, steps, heads), (batch, steps, heads, keys)):
        raise ValueError(
            f"log_decay must have shape {[batch, steps, heads]} (per head) or {[batch, steps, heads, keys]} (per key "
            f"channel), got {list(log_decay.shape)}"
        )
    if initial is not None and tuple(initial.shape) != (batch, heads, keys, values):
        raise ValueError(f"initial must have shape {[batch, heads, keys, values]}, got {list(initial.shape)}")


def _bounded(log_decay):
    """-inf as the largest finite number that is as good: its exponential is zero, and sums with it keep their digits."""
    return jnp.maximum(log_decay, -104.0 if log_decay.dtype == jnp.float32 else -746.0)


def _with_features(chunk, feature_map, state, inputs):
    """``chunk`` with the features of queries and keys."""
    q, k, v, decay = inputs
    return chunk(state, (feature_map(q), feature_map(k), v, decay))


def _spread(decay):
    """The factor [..., K or 1, 1] of a state for log decays [..., K or 1]."""
    return jnp.exp(decay)[..., None]


def _chunk_of_steps(state, inputs):
    """The recurrence step by step. state [B, G, R, K, V]; inputs [B, G, R or 1, C, X] -> y [B, G, R, C, V]."""

    def step(state, now):
        q, k, v, decay = now
        if decay is not None:
            state = _spread(decay) * state
        state = state + k[..., :, None] * v[..., None, :]
        return state, jnp.sum(q[..., :, None] * state, axis=-2)

    state, y = lax.scan(step, state, jax.tree.map(lambda a: jnp.moveaxis(a, -2, 0), inputs))
    return state, jnp.moveaxis(y, 0, -2)


def _chunk(state, inputs):
    """A chunk with one decay per head, or none, as matrix products; shapes as in ``_chunk_of_steps``."""
    q, k, v, decay = inputs
    size = q.shape[-2]
    seen = jnp.tril(jnp.ones((size, size), bool))
    scores = _matmul(q, jnp.swapaxes(k, -1, -2))
    if decay is None:
        y = _matmul(jnp.where(seen, scores, 0), v) + _matmul(q, state)
        return state + _matmul(jnp.swapaxes(k, -1, -2), v), y
    between = _sums_between(decay[..., 0])
    prefix, suffix = between[..., :, :1] + decay[..., :1, :], between[..., -1:, :]
    scores = jnp.where(seen, scores * jnp.exp(between), 0)
    y = _matmul(scores, v) + jnp.exp(prefix) * _matmul(q, state)
    update = _matmul(jnp.swapaxes(k, -1, -2), jnp.exp(jnp.swapaxes(suffix, -1, -2)) * v)
    return _spread(prefix[..., -1, :]) * state + update, y


def _sums_between(decay):
    """[..., C] -> [..., C, C]: entry (i, j) is decay_{j+1} + ... + decay_i for j <= i, and 0 above the diagonal.

    A difference of two running sums would lose the digits of a small decay behind a large one. Here the running sums are
    of multiples of 2^-8, which are exact, and of what is left of each, which is small.
    """
    coarse = jnp.round(decay * 256) / 256
    total = 0
    for part in (coarse, decay - coarse):
        running = jnp.cumsum(part, axis=-1)
        total = total + (running[..., :, None] - running[..., None, :])
    return jnp.where(jnp.tril(jnp.ones(total.shape[-2:], bool)), total, 0)


def _chunk_of_channels(state, inputs):
    """A chunk of 2^n steps with a decay per key channel; shapes as in ``_chunk_of_steps``."""
    q, k, v, decay = inputs
    size = q.shape[-2]
    leaf = min(size, _LEAF)

    def rows(array, *shape):
        """Cuts the axis of the steps: [..., C, X] -> [..., *shape, X]."""
        return array.reshape(*array.shape[:-2], *shape, array.shape[-1])

    def pairs(blocks):
        """[..., blocks, steps, X] -> the even and the odd blocks, each [..., blocks / 2, steps, X]."""
        both = blocks.reshape(*blocks.shape[:-3], -1, 2, *blocks.shape[-2:])
        return both[..., 0, :, :], both[..., 1, :, :]

    def flat(blocks, width):
        return rows(blocks.reshape(*blocks.shape[:-3], size, blocks.shape[-1]), -1, width)

    row, column = jnp.arange(leaf)[:, None], jnp.arange(leaf)[None, :]
    q_leaf, k_leaf = rows(q, -1, leaf), rows(k, -1, leaf)
    scores = jnp.where(row == column, jnp.sum(q_leaf * k_leaf, axis=-1)[..., None], 0)
    # of every block of ``width`` steps: the sums up to and with step i, the sums after step i, the sum of the block
    prefix, suffix, total = rows(decay, -1, 1), rows(jnp.zeros_like(decay), -1, 1), rows(decay, -1, 1)
    width, y = 1, None
    while True:
        if width == leaf:
            y = _matmul(scores, rows(v, -1, leaf))
        if width == size:
            break
        if width < leaf:
            odd = row // width % 2 == 1
            weight = jnp.exp(jnp.where(odd, flat(prefix, leaf), flat(suffix, leaf)))
            product = _matmul(q_leaf * weight, jnp.swapaxes(k_leaf * weight, -1, -2))
            scores = scores + jnp.where(odd & (row // width == column // width + 1), product, 0)
        (before, prefix), (suffix, after), (first, second) = pairs(prefix), pairs(suffix), pairs(total)
        if width >= leaf:
            late = jnp.exp(prefix) * pairs(rows(q, -1, width))[1]
            early = jnp.exp(suffix) * pairs(rows(k, -1, width))[0]
            seen = _matmul(_matmul(late, jnp.swapaxes(early, -1, -2)), pairs(rows(v, -1, width))[0])
            even, odd = pairs(y)
            y = jnp.concatenate([even, odd + seen], axis=-2)
        prefix = jnp.concatenate([before, prefix + first], axis=-2)
        suffix = jnp.concatenate([suffix + second, after], axis=-2)
        total = first + second
        width *= 2
    prefix, suffix, total = prefix[..., 0, :, :], suffix[..., 0, :, :], total[..., 0, 0, :]
    y = y[..., 0, :, :] + _matmul(jnp.exp(prefix) * q, state)
    return _spread(total) * state + _matmul(jnp.swapaxes(jnp.exp(suffix) * k, -1, -2), v), y
