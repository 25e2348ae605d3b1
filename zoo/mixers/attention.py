"""Causal softmax self-attention with rotary positions, grouped keys and a bounded key/value cache.

Vaswani et al. (2017), Attention Is All You Need; Su et al. (2021), RoFormer (rotary positions); Ainslie et al. (2023),
GQA (grouped keys); Beltagy et al. (2020), Longformer (sliding window).

With x_t [D], H query heads, G key/value heads (G divides H, head h reads group h // (H/G)), K = D / H or stated:

    q_t = rot(W_q x_t, p_t) [H, K]      k_t = rot(W_k x_t, p_t) [G, K]      v_t = W_v x_t [G, K]
    a_ts = softmax over s of q_t . k_s / sqrt(K)      for s in the document of t with t - window < s <= t
    y_t = W_o (sum_s a_ts v_s)                        W_o [H K, D]

p_t is the position in the document, from 0. A token attends to itself and to at most ``window - 1`` tokens before it in
its document, whatever the length of the call: ``window`` is the stated maximum of the cache, and it is part of the
definition, so that cutting a sequence anywhere changes nothing.

State per row: a ring of the last ``window`` rotated keys and values [window, G, K], the slot of the next token, the
number of tokens in the document so far. Time O(T min(T, window) D + T D^2) and as much memory for the scores: calls of
more than two windows are computed in chunks of ``window`` queries, each against its own and the previous chunk of keys.
One token costs O(window D).
"""

from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from zoo.checks import check_positive, check_sequence, check_state
from zoo.layers.attention import (
    Prefix,
    attention_parameters,
    document_positions,
    merge_heads,
    prefixed_attention,
    project_heads,
    ring_of_last,
    unroll_ring,
    windowed_attention,
)
from zoo.registry import register


@struct.dataclass
class AttentionState:
    """Carried state, a ring buffer over slots.

    Attributes:
      keys: [B, window, G, K], rotated.
      values: [B, window, G, K].
      slot: [B] int32, where the next token goes.
      length: [B] int32, tokens of the current document so far (not bounded by the window).
    """

    keys: Float[Array, "B W G K"]
    values: Float[Array, "B W G K"]
    slot: Int[Array, " B"]
    length: Int[Array, " B"]


def attention(
    params: Mapping[str, Array],
    x: Float[Array, "B T D"],
    state: AttentionState | None = None,
    *,
    window: int,
    positions: str = "rotary",
    base: float = 10_000.0,
    rotary_fraction: float = 1.0,
    rotary_scaling: Mapping[str, float] | None = None,
    reset: Bool[Array, "B T"] | None = None,
) -> tuple[Float[Array, "B T D"], AttentionState]:
    """The attention of the module docstring.

    Args:
      params: ``query`` [D, H, K], ``key`` and ``value`` [D, G, K], ``output`` [H, K, D]; where there are biases also
        ``query_bias`` [H, K], ``key_bias``, ``value_bias`` [G, K], ``output_bias`` [D].
      x: inputs; their dtype is the compute dtype.
      state: state before the first token, None for the start (then no empty cache is read).
      window: tokens that a token can see, itself included.
      positions: "rotary" or "none".
      base: base of the rotary wavelengths.
      rotary_fraction: share of a head's channels that is rotated.
      rotary_scaling: scaling of the rotary frequencies, see ``zoo.layers.rotary_frequencies``.
      reset: True at the first token of a new document.

    Returns:
      (y, state after the last token).
    """
    age = document_positions(reset, None if state is None else state.length, shape=x.shape[:2])
    where = age if positions == "rotary" else None
    q, k, v = project_heads(params, x, where, base, rotary_fraction, rotary_scaling)
    y, state = cached_attention(q, k, v, age, state, window=window)
    return merge_heads(params, y), state


def cached_attention(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T G K"],
    v: Float[Array, "B T G K"],
    age: Int[Array, "B T"],
    state: AttentionState | None,
    *,
    window: int,
    prefix: Prefix | None = None,
) -> tuple[Float[Array, "B T H K"], AttentionState]:
    """Attention of T queries over their own keys and those of the cache.

    Args:
      q, k, v: queries, keys and values of the call, positions already in them; q's dtype is the compute dtype.
      age: position of every token in its document.
      state: state before the first token, None for the start.
      window: tokens that a token can see, itself included.
      prefix: keys and values beside those, see ``zoo.layers.attention.windowed_attention``.

    Returns:
      (values read by every query, state after the last token).
    """
    batch, time = age.shape
    visible = jnp.minimum(age + 1, window)  # [B, T] how many tokens back a query sees, itself included
    length = age[:, -1] + 1

    if state is None:
        y = windowed_attention(q, k, v, visible, window=window, prefix=prefix)
        keys, values = (ring_of_last(a, window) for a in (k, v))
        slot = jnp.full((batch,), time % window, jnp.int32)
        return y, AttentionState(keys, values, slot, length)

    # Through the cache's dtype in every case: a token must look the same from this call and from the next.
    k, v = k.astype(state.keys.dtype), v.astype(state.values.dtype)
    if time == 1:
        rows = jnp.arange(batch)
        keys, values = (ring.at[rows, state.slot].set(new[:, 0]) for ring, new in ((state.keys, k), (state.values, v)))
        distance = (state.slot[:, None] - jnp.arange(window)) % window
        seen = (distance < visible)[:, None]
        y = prefixed_attention(q, keys.astype(q.dtype), values.astype(q.dtype), seen, prefix)
        return y, AttentionState(keys, values, (state.slot + 1) % window, length)

    k, v = (
        jnp.concatenate([unroll_ring(ring, state.slot), a], axis=1) for ring, a in ((state.keys, k), (state.values, v))
    )
    y = windowed_attention(q, k.astype(q.dtype), v.astype(q.dtype), visible, window=window, prefix=prefix)
    slot = (state.slot + time) % window
    keys, values = (unroll_ring(a[:, -window:], (window - slot) % window) for a in (k, v))
    return y, AttentionState(keys, values, slot, length)


@register(
    "attention",
    variants={
        "default": {"heads": 2, "window": 16},
        "short_window": {"heads": 2, "window": 3, "positions": "none", "output_bias": True},
        "grouped": {
            "heads": 4,
            "kv_heads": 2,
            "window": 8,
            "head_dim": 4,
            "use_bias": True,
            "rotary_fraction": 0.5,
        },
    },
)
class Attention(nn.Module):
    """Causal self-attention: softmax over the last ``window`` tokens of the document.

    Attributes:
      dim: width D of input and output.
      heads: number of query heads H; divides ``dim``.
      kv_heads: number of key/value heads G; divides ``heads``; None for ``heads``.
      window: tokens that a token can see, itself included: the stated maximum of the cache.
      positions: "rotary" (counted within the document) or "none".
      base: base of the rotary wavelengths.
      head_dim: width K of a head; None: ``dim / heads``.
      use_bias: all four projections have biases.
      output_bias: the last projection has one; None: as ``use_bias``.
      rotary_fraction: share of a head's channels that is rotated.
      rotary_scaling: scaling of the rotary frequencies, see ``zoo.layers.rotary_frequencies``; None for none.
      dtype: compute dtype; scores and softmax in at least float32.
    """

    dim: int
    heads: int = 4
    kv_heads: int | None = None
    window: int = 1024
    positions: str = "rotary"
    base: float = 10_000.0
    head_dim: int | None = None
    use_bias: bool = False
    rotary_fraction: float = 1.0
    rotary_scaling: Mapping[str, float] | None = None
    output_bias: bool | None = None
    dtype: str = "float32"

    causal: ClassVar[bool] = True
    paper: ClassVar[str] = "Vaswani et al. 2017, Attention Is All You Need; Su et al. 2021, RoFormer"

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], state: AttentionState | None = None, *, reset: Bool[Array, "B T"] | None = None
    ) -> tuple[Float[Array, "B T D"], AttentionState]:
        check_sequence(x, self.dim, reset)
        check_positive("window", self.window)
        params = attention_parameters(
            self, dim=self.dim, heads=self.heads, kv_heads=self.kv_heads, positions=self.positions,
            head_dim=self.head_dim, use_bias=self.use_bias, output_bias=self.output_bias,
        )  # fmt: skip
        if state is not None:
            check_state(state, self.initial_state(x.shape[0]))
        options = {f: getattr(self, f) for f in ("window", "positions", "base", "rotary_fraction", "rotary_scaling")}
        return attention(params, x.astype(self.dtype), state, reset=reset, **options)

    def initial_state(self, batch_size: int, dtype: str | None = None) -> AttentionState:
        """An empty cache of ``dtype`` (default: the compute dtype)."""
        shape = (batch_size, self.window, self.kv_heads or self.heads, self.head_dim or self.dim // self.heads)
        empty = jnp.zeros(shape, dtype or self.dtype)
        count = jnp.zeros((batch_size,), jnp.int32)
        return AttentionState(empty, empty, count, count)
