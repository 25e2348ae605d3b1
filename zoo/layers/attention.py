"""Softmax attention over given keys and values, rotary positions, and the projections that attention layers share."""

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from zoo.checks import check_choice, check_divides, check_positive
from zoo.dtypes import accumulator

POSITIONS = ("rotary", "none")


def document_positions(
    reset: Bool[Array, "B T"] | None, before: Int[Array, " B"] | None = None, *, shape: tuple[int, int] | None = None
) -> Int[Array, "B T"]:
    """Position of every token in its own document, counted from 0.

    Args:
      reset: True at the first token of a new document; None for no new documents, then ``shape`` is needed.
      before: tokens that the document in progress already has when the sequence begins; zeros when None.
      shape: (B, T), only read when ``reset`` is None.
    """
    batch, time = shape if reset is None else reset.shape
    steps = jnp.arange(time, dtype=jnp.int32)
    carried = steps[None] + (jnp.zeros((batch, 1), jnp.int32) if before is None else before[:, None])
    if reset is None:
        return carried
    start = lax.cummax(jnp.where(reset, steps, -1), axis=1)
    return jnp.where(start >= 0, steps - start, carried)


def rotary(
    x: Float[Array, "B T H K"], positions: Int[Array, "B T"], *, base: float = 10_000.0
) -> Float[Array, "B T H K"]:
    """Rotates the channel pairs (j, j + K/2) of ``x`` by position * base^(-2j/K) (Su et al. 2021).

    Args:
      x: queries or keys [batch, time, heads, head_dim]; head_dim even.
      positions: [batch, time] integer positions.
      base: largest wavelength over 2 pi.

    Returns:
      Array of x's shape and dtype.
    """
    half = x.shape[-1] // 2
    if x.shape[-1] % 2:
        raise ValueError(f"rotary positions need an even head dimension, got {x.shape[-1]}")
    dtype = accumulator(x.dtype)
    angles = positions[..., None, None].astype(dtype) * base ** (-jnp.arange(half, dtype=dtype) / half)
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    a, b = x[..., :half].astype(dtype), x[..., half:].astype(dtype)
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1).astype(x.dtype)


def grouped_attention(
    queries: Float[Array, "B T H K"],
    keys: Float[Array, "B S G K"],
    values: Float[Array, "B S G V"],
    mask: Bool[Array, "#B #T S"] | None = None,
) -> Float[Array, "B T H V"]:
    """softmax(Q K^T / sqrt(K)) V with H query heads sharing G key/value heads (G divides H).

    Scores and softmax are computed in at least float32. A query whose keys are all masked gets zeros.
    """
    batch, time, heads, head_dim = queries.shape
    groups = keys.shape[2]
    dtype = accumulator(queries.dtype)
    q = queries.reshape(batch, time, groups, heads // groups, head_dim)
    scores = jnp.einsum("btghk,bsgk->bghts", q, keys, preferred_element_type=dtype) * head_dim**-0.5
    if mask is not None:
        mask = mask[:, None, None]
        scores = jnp.where(mask, scores, jnp.finfo(dtype).min)
    weights = jax.nn.softmax(scores, axis=-1)
    if mask is not None:
        weights = jnp.where(mask, weights, 0)  # a query without any key attends to nothing, not to everything
    out = jnp.einsum("bghts,bsgv->btghv", weights.astype(values.dtype), values, preferred_element_type=dtype)
    return out.reshape(batch, time, heads, values.shape[-1]).astype(queries.dtype)


def attention_parameters(
    module: nn.Module, *, dim: int, heads: int, kv_heads: int | None, positions: str
) -> dict[str, Float[Array, "..."]]:
    """Checks the sizes; declares ``query`` [D, H, K], ``key``, ``value`` [D, G, K], ``output`` [H, K, D] on ``module``.

    K = D / H; G = ``kv_heads``, or H when it is None.
    """
    check_choice("positions", positions, POSITIONS)
    check_positive("heads", heads)
    check_divides("heads", heads, "dim", dim)
    groups = heads if kv_heads is None else kv_heads
    check_positive("kv_heads", groups)
    check_divides("kv_heads", groups, "heads", heads)
    head_dim = dim // heads
    if positions == "rotary" and head_dim % 2:
        raise ValueError(f"rotary positions need an even head dimension, got dim / heads = {head_dim}")
    into = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal", in_axis=0, out_axis=(1, 2))
    out_of = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal", in_axis=(0, 1), out_axis=2)
    return {
        "query": module.param("query", into, (dim, heads, head_dim)),
        "key": module.param("key", into, (dim, groups, head_dim)),
        "value": module.param("value", into, (dim, groups, head_dim)),
        "output": module.param("output", out_of, (heads, head_dim, dim)),
    }


def project_heads(
    params: Mapping[str, Float[Array, "..."]],
    x: Float[Array, "B T D"],
    positions: Int[Array, "B T"] | None,
    base: float,
) -> tuple[Float[Array, "B T H K"], Float[Array, "B T G K"], Float[Array, "B T G V"]]:
    """Queries, keys and values of ``x`` in its dtype; queries and keys are rotated to ``positions`` unless None."""
    q, k, v = (jnp.einsum("btd,dhk->bthk", x, params[name].astype(x.dtype)) for name in ("query", "key", "value"))
    if positions is not None:
        q, k = rotary(q, positions, base=base), rotary(k, positions, base=base)
    return q, k, v


def merge_heads(params: Mapping[str, Float[Array, "..."]], y: Float[Array, "B T H K"]) -> Float[Array, "B T D"]:
    """The output projection of all heads, summed."""
    return jnp.einsum("bthk,hkd->btd", y, params["output"].astype(y.dtype))


def windowed_attention(
    queries: Float[Array, "B T H K"],
    keys: Float[Array, "B S G K"],
    values: Float[Array, "B S G V"],
    visible: Int[Array, "B T"],
    *,
    window: int,
) -> Float[Array, "B T H V"]:
    """Attention of T queries, the last T of S positions in time, each over the ``visible`` positions up to its own.

    S is T, or T + window with the window before the first query in front. ``visible`` is at least 1, and at most the
    window and the number of positions there are. More than two windows of keys are computed chunk by chunk, so that no
    [T, S] array is made.
    """
    batch, time, heads, _ = queries.shape
    total = keys.shape[1]
    if total <= 2 * window:
        distance = jnp.arange(total - time, total)[:, None] - jnp.arange(total)
        mask = (distance >= 0) & (distance < visible[..., None])
        return grouped_attention(queries, keys, values, mask)
    chunks = -(-time // window)
    padding = chunks * window - time

    def chunked(a):
        return jnp.pad(a, ((0, 0), (0, padding), *((0, 0),) * (a.ndim - 2))).reshape(-1, window, *a.shape[2:])

    def pairs(a):
        """[B, S, ...] -> [B * chunks, 2 window, ...]: every chunk with the one before it."""
        a = jnp.pad(a, ((0, 0), ((chunks + 1) * window - padding - total, padding), (0, 0), (0, 0)))
        a = a.reshape(batch, chunks + 1, window, *a.shape[2:])
        return jnp.concatenate([a[:, :-1], a[:, 1:]], axis=2).reshape(-1, 2 * window, *a.shape[3:])

    distance = jnp.arange(window, 2 * window)[:, None] - jnp.arange(2 * window)
    mask = (distance >= 0) & (distance < chunked(visible)[..., None])
    y = grouped_attention(chunked(queries), pairs(keys), pairs(values), mask)
    return y.reshape(batch, chunks * window, heads, -1)[:, :time]


def ring_of_last(a: Float[Array, "B T G K"], window: int) -> Float[Array, "B W G K"]:
    """Ring that holds the last ``window`` of T steps, step t in slot t % window."""
    time = a.shape[1]
    if time <= window:
        return jnp.pad(a, ((0, 0), (0, window - time), (0, 0), (0, 0)))
    return jnp.roll(a[:, -window:], time % window, axis=1)


def unroll_ring(ring: Float[Array, "B W G K"], start: Int[Array, " B"]) -> Float[Array, "B W G K"]:
    """Every row of ``ring`` rotated so that slot ``start`` comes first."""
    index = (start[:, None] + jnp.arange(ring.shape[1])) % ring.shape[1]
    return jnp.take_along_axis(ring, index[..., None, None], axis=1)
