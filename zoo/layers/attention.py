"""Softmax attention over given keys and values, and rotary positions."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from zoo.dtypes import accumulator


def rotary(x: Float[Array, "B T H K"], positions: Int[Array, "B T"], *, base: float = 10_000.0) -> Float[Array, "B T H K"]:
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
    mask: Bool[Array, "#B T S"] | None = None,
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
