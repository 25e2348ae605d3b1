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
    x: Float[Array, "B T H K"],
    positions: Int[Array, "B T"],
    *,
    base: float = 10_000.0,
    fraction: float = 1.0,
    scaling: Mapping[str, float] | None = None,
) -> Float[Array, "B T H K"]:
    """Rotates the channel pairs (j, j + R/2) of ``x``, j < R/2, by position * frequency_j (Su et al. 2021).

    Args:
      x: queries or keys [batch, time, heads, head_dim].
      positions: [batch, time] integer positions.
      base: largest wavelength over 2 pi.
      fraction: share of the channels that is rotated: the first R = fraction * head_dim, an even number.
      scaling: see ``rotary_frequencies``.

    Returns:
      Array of x's shape and dtype.
    """
    turned = int(x.shape[-1] * fraction)
    half = turned // 2
    if turned % 2 or not half:
        raise ValueError(f"rotary positions need an even number of rotated channels, got {turned} of {x.shape[-1]}")
    dtype = accumulator(x.dtype)
    angles = positions[..., None, None].astype(dtype) * rotary_frequencies(half, base, scaling, dtype)
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    a, b = x[..., :half].astype(dtype), x[..., half:turned].astype(dtype)
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos, x[..., turned:]], axis=-1).astype(x.dtype)


def rotary_frequencies(
    half: int, base: float, scaling: Mapping[str, float] | None = None, dtype: jnp.dtype = jnp.float32
) -> Float[Array, " half"]:
    """Radians per position of every channel pair: base^(-j / half), scaled for contexts beyond those trained on.

    Args:
      half: number of pairs.
      base: largest wavelength over 2 pi.
      scaling: None, or "factor" alone: all frequencies over the factor (Chen et al. 2023, position interpolation); or
        with "low_freq_factor", "high_freq_factor" and "original_max_position_embeddings" L as in Llama 3: wavelengths
        above L / low are divided by the factor, those below L / high stay, and between them the two are mixed.
      dtype: of the result.
    """
    frequencies = base ** (-jnp.arange(half, dtype=dtype) / half)
    if scaling is None:
        return frequencies
    slow = frequencies / scaling["factor"]
    if "low_freq_factor" not in scaling:
        return slow
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = scaling["original_max_position_embeddings"] * frequencies / (2 * jnp.pi)
    stay = jnp.clip((turns - low) / (high - low), 0, 1)
    return (1 - stay) * slow + stay * frequencies


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
    module: nn.Module,
    *,
    dim: int,
    heads: int,
    kv_heads: int | None,
    positions: str,
    head_dim: int | None = None,
    use_bias: bool = False,
    output_bias: bool | None = None,
) -> dict[str, Float[Array, "..."]]:
    """Checks the sizes; declares ``query`` [D, H, K], ``key``, ``value`` [D, G, K], ``output`` [H, K, D] on ``module``.

    K = ``head_dim``, or D / H when it is None; G = ``kv_heads``, or H when it is None. With ``use_bias`` also
    ``query_bias`` [H, K], ``key_bias``, ``value_bias`` [G, K] and ``output_bias`` [D]; ``output_bias`` True or False
    overrules it for the last.
    """
    check_choice("positions", positions, POSITIONS)
    check_positive("heads", heads)
    if head_dim is None:
        check_divides("heads", heads, "dim", dim)
    else:
        check_positive("head_dim", head_dim)
    groups = heads if kv_heads is None else kv_heads
    check_positive("kv_heads", groups)
    check_divides("kv_heads", groups, "heads", heads)
    head_dim = dim // heads if head_dim is None else head_dim
    if positions == "rotary" and head_dim % 2:
        raise ValueError(f"rotary positions need an even head dimension, got {head_dim}")
    into = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal", in_axis=0, out_axis=(1, 2))
    out_of = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal", in_axis=(0, 1), out_axis=2)
    declared = {
        "query": (into, (dim, heads, head_dim)),
        "key": (into, (dim, groups, head_dim)),
        "value": (into, (dim, groups, head_dim)),
        "output": (out_of, (heads, head_dim, dim)),
    }
    if use_bias:
        inner = {"query_bias": heads, "key_bias": groups, "value_bias": groups}
        declared |= {name: (nn.initializers.zeros, (count, head_dim)) for name, count in inner.items()}
    if use_bias if output_bias is None else output_bias:
        declared["output_bias"] = (nn.initializers.zeros, (dim,))
    return {name: module.param(name, *how) for name, how in declared.items()}


def project_heads(
    params: Mapping[str, Float[Array, "..."]],
    x: Float[Array, "B T D"],
    positions: Int[Array, "B T"] | None,
    base: float,
    fraction: float = 1.0,
    scaling: Mapping[str, float] | None = None,
) -> tuple[Float[Array, "B T H K"], Float[Array, "B T G K"], Float[Array, "B T G V"]]:
    """Queries, keys and values of ``x`` in its dtype; queries and keys are rotated to ``positions`` unless None."""

    def project(name):
        y = jnp.einsum("btd,dhk->bthk", x, params[name].astype(x.dtype))
        return y + params[f"{name}_bias"].astype(x.dtype) if f"{name}_bias" in params else y

    q, k, v = project("query"), project("key"), project("value")
    if positions is not None:
        q, k = (rotary(a, positions, base=base, fraction=fraction, scaling=scaling) for a in (q, k))
    return q, k, v


def merge_heads(params: Mapping[str, Float[Array, "..."]], y: Float[Array, "B T H K"]) -> Float[Array, "B T D"]:
    """The output projection of all heads, summed."""
    out = jnp.einsum("bthk,hkd->btd", y, params["output"].astype(y.dtype))
    return out + params["output_bias"].astype(y.dtype) if "output_bias" in params else out


# Keys [#B, N, G, K], values [#B, N, G, V] that lie in front of all others, and which of them a query sees [B, T, N].
Prefix = tuple[Float[Array, "#B N G K"], Float[Array, "#B N G V"], Bool[Array, "B T N"]]


def prefixed_attention(
    queries: Float[Array, "B T H K"],
    keys: Float[Array, "B S G K"],
    values: Float[Array, "B S G V"],
    mask: Bool[Array, "#B #T S"],
    prefix: Prefix | None,
) -> Float[Array, "B T H V"]:
    """``grouped_attention`` over ``prefix`` and the keys."""
    if prefix is None:
        return grouped_attention(queries, keys, values, mask)
    batch, time = queries.shape[:2]
    keys, values = (
        jnp.concatenate([jnp.broadcast_to(a, (batch, *a.shape[1:])).astype(b.dtype), b], axis=1)
        for a, b in zip(prefix, (keys, values))
    )
    mask = jnp.broadcast_to(mask, (batch, time, mask.shape[2]))
    return grouped_attention(queries, keys, values, jnp.concatenate([prefix[2], mask], axis=2))


def windowed_attention(
    queries: Float[Array, "B T H K"],
    keys: Float[Array, "B S G K"],
    values: Float[Array, "B S G V"],
    visible: Int[Array, "B T"],
    *,
    window: int,
    prefix: Prefix | None = None,
) -> Float[Array, "B T H V"]:
    """Attention of T queries, the last T of S positions in time, each over the ``visible`` positions up to its own.

    S is T, or T + window with the window before the first query in front. ``visible`` is at least 1, and at most the
    window and the number of positions there are. More than two windows of keys are computed chunk by chunk, so that no
    [T, S] array is made. A query also sees those positions of ``prefix`` that its mask names.
    """
    batch, time, heads, _ = queries.shape
    total = keys.shape[1]
    if total <= 2 * window:
        distance = jnp.arange(total - time, total)[:, None] - jnp.arange(total)
        mask = (distance >= 0) & (distance < visible[..., None])
        return prefixed_attention(queries, keys, values, mask, prefix)
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
    if prefix is not None:
        rows = (jnp.broadcast_to(a, (batch, *a.shape[1:])) for a in prefix[:2])
        prefix = (*(jnp.repeat(a, chunks, axis=0) for a in rows), chunked(prefix[2]))
    y = prefixed_attention(chunked(queries), pairs(keys), pairs(values), mask, prefix)
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
