"""Normalised attention: attention without softmax and features, divided by a learned function of the query's input.

Sieber, Amo Alonso, Didier, Zeilinger, Orvieto (2024), Understanding the Differences in Foundation Models: Attention, State
Space Models, and Recurrent Neural Networks, arXiv 2405.15731.

With x_t [D], H heads, keys of width K (the state expansion), values of width V = D / H:

    q_t = W_q x_t,  k_t = W_k x_t  [H, K]      v_t = W_v x_t  [H, V]      z_t = w x_t + b  [H]
    S_t = S_{t-1} + k_t v_t^T                  [H, K, V]
    y_t = W_o (q_t S_t / eta(z_t))             eta = exp, softplus or sigmoid

Linear attention divides by the sum of its weights, which hangs on every key so far; here the divisor is free to be learned,
which in the form h_t = (eta_{t-1} / eta_t) h_{t-1} + ... is a gate (``zoo.analysis.to_dsf``). Weights may be negative, and
exp(-z_t) is unbounded. Time O(B T D (D + K)), parallel over time by chunks (``zoo.scans.linear_attention``); state: S.

``dropout`` is on the attention weights, after the division, as in ``zoo.mixers.linear_attention``.
"""

from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Key

from zoo.checks import check_choice, check_sequence, check_state
from zoo.dtypes import accumulator
from zoo.layers.attention import merge_heads, project_heads
from zoo.layers.linear_attention import check_dropout, dropped_attention, head_sizes, linear_attention_parameters
from zoo.registry import register
from zoo.scans import linear_attention as attention_scan

NORMALIZERS = {"exp": jnp.exp, "softplus": jax.nn.softplus, "sigmoid": jax.nn.sigmoid}


@struct.dataclass
class NormalizedAttentionState:
    """Carried state: ``memory`` [B, H, K, V], sums of k v^T."""

    memory: Float[Array, "B H K V"]


def normalized_attention(
    params: Mapping[str, Array],
    x: Float[Array, "B T D"],
    state: NormalizedAttentionState,
    *,
    normalizer: str = "exp",
    dropout: tuple[Key[Array, ""], float] | None = None,
    reset: Bool[Array, "B T"] | None = None,
    method: str = "auto",
    chunk_size: int | None = None,
) -> tuple[Float[Array, "B T D"], NormalizedAttentionState]:
    """The layer of the module docstring.

    Args:
      params: ``query``, ``key`` [D, H, K], ``value`` [D, H, V], ``output`` [H, V, D]; ``normalizer`` [D, H] and
        ``normalizer_bias`` [H], w and b.
      x: inputs; projections run in their dtype, the divisor in at least float32.
      state: state before the first token.
      normalizer: eta: "exp", "softplus" or "sigmoid".
      dropout: (random key, rate) for the attention weights; None: none are dropped.
      reset: True at the first token of a new document.
      method: how the scan is computed, see ``zoo.scans.linear_attention``.
      chunk_size: steps per chunk, likewise.

    Returns:
      (y, state after the last token); y has x's dtype.
    """
    wide = accumulator(x.dtype)
    q, k, v = project_heads(params, x, None, 0.0)
    z = (x @ params["normalizer"].astype(x.dtype)).astype(wide) + params["normalizer_bias"].astype(wide)
    decay = None if reset is None else jnp.where(reset[..., None], -jnp.inf, jnp.zeros_like(z))
    y, last = attention_scan(q, k, v, decay, state.memory, method=method, chunk_size=chunk_size)
    y = y.astype(wide)
    if dropout is not None:
        key, rate = dropout
        y = dropped_attention(q, k, v, None, state.memory, key=key, rate=rate, reset=reset)
    y = y * jnp.exp(-z)[..., None] if normalizer == "exp" else y / NORMALIZERS[normalizer](z)[..., None]
    return merge_heads(params, y.astype(x.dtype)), NormalizedAttentionState(last)


@register(
    "normalized_attention",
    variants={
        "default": {"heads": 2, "key_dim": 3},
        "softplus": {"normalizer": "softplus"},
        "sigmoid": {"normalizer": "sigmoid", "key_dim": 4},
    },
)
class NormalizedAttention(nn.Module):
    """Normalised attention: no softmax, divided by a learned function of the query's input.

    Attributes:
      dim: width D of input and output.
      heads: number of heads H; divides ``dim``.
      key_dim: width K of queries and keys per head, the numbers of state per channel; None for ``dim / heads``.
      normalizer: the divisor's function: "exp", "softplus" or "sigmoid".
      dropout: rate on the attention weights, where an rng "dropout" is given.
      chunk_size: steps per chunk; None: chosen from the shape.
      dtype: compute dtype of the projections; the recurrence and the divisor are at least float32.
    """

    dim: int
    heads: int = 1
    key_dim: int | None = None
    normalizer: str = "exp"
    dropout: float = 0.0
    chunk_size: int | None = None
    dtype: str = "float32"

    causal: ClassVar[bool] = True
    paper: ClassVar[str] = "Sieber et al. 2024, Understanding the Differences in Foundation Models"

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], state: NormalizedAttentionState | None = None, *,
        reset: Bool[Array, "B T"] | None = None,
    ) -> tuple[Float[Array, "B T D"], NormalizedAttentionState]:  # fmt: skip
        check_sequence(x, self.dim, reset)
        check_choice("normalizer", self.normalizer, NORMALIZERS)
        check_dropout(self.dropout)
        initial = self.initial_state(x.shape[0])
        if state is not None:
            check_state(state, initial)
        params = linear_attention_parameters(self, dim=self.dim, heads=self.heads, key_dim=self.key_dim)
        params |= {
            "normalizer": self.param("normalizer", nn.initializers.lecun_normal(), (self.dim, self.heads)),
            "normalizer_bias": self.param("normalizer_bias", nn.initializers.zeros, (self.heads,)),
        }
        drop = self.dropout > 0 and self.has_rng("dropout")
        return normalized_attention(
            params, x.astype(self.dtype), initial if state is None else state, normalizer=self.normalizer,
            dropout=(self.make_rng("dropout"), self.dropout) if drop else None, reset=reset, chunk_size=self.chunk_size,
        )  # fmt: skip

    def initial_state(self, batch_size: int, dtype: str | None = None) -> NormalizedAttentionState:
        """Zeros, at least float32 whatever ``dtype``."""
        value_dim, key_dim = head_sizes(self.dim, self.heads, self.key_dim)
        return NormalizedAttentionState(
            jnp.zeros((batch_size, self.heads, key_dim, value_dim), accumulator(self.dtype))
        )
