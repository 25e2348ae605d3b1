"""Linear attention: softmax's exponential replaced by a product of feature maps, so that the past is one matrix.

Katharopoulos, Vyas, Pappas, Fleuret (2020), Transformers are RNNs: Fast Autoregressive Transformers with Linear Attention,
arXiv 2006.16236.

With x_t [D], H heads, keys of width K (its state expansion), values of width V = D / H, phi the feature map, elementwise
elu(.) + 1 by default:

    q_t = phi(W_q x_t),  k_t = phi(W_k x_t)  [H, K]      v_t = W_v x_t  [H, V]
    S_t = S_{t-1} + k_t v_t^T                            [H, K, V]
    z_t = z_{t-1} + k_t                                  [H, K]
    y_t = W_o (q_t S_t / (q_t . z_t))                    without ``normalize``: W_o (q_t S_t)

The weights of the values that came are positive and sum to one for positive features, as softmax's do; the state has K
numbers for every channel where softmax would need infinitely many (``zoo.analysis.to_dsf``). Time O(B T D (D + K)),
parallel over time by chunks (``zoo.scans.linear_attention``); state: S and z.

``dropout`` is on the attention weights, after the division. It needs the weights one by one: with an rng "dropout" at hand
the layer takes the quadratic form, and without one (evaluation, decoding) nothing is dropped.
"""

from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Key

from zoo.checks import check_choice, check_sequence, check_state
from zoo.dtypes import accumulator
from zoo.layers.attention import merge_heads, project_heads
from zoo.layers.linear_attention import (
    FEATURE_MAPS,
    append_normalizer,
    check_dropout,
    dropped_attention,
    head_sizes,
    linear_attention_parameters,
    normalized,
)
from zoo.registry import register
from zoo.scans import linear_attention as attention_scan


@struct.dataclass
class LinearAttentionState:
    """Carried state: ``memory`` [B, H, K, V], sums of k v^T; ``key_sum`` [B, H, K], sums of k (None if not normalised)."""

    memory: Float[Array, "B H K V"]
    key_sum: Float[Array, "B H K"] | None


def linear_attention_layer(
    params: Mapping[str, Array],
    x: Float[Array, "B T D"],
    state: LinearAttentionState,
    *,
    feature_map: str = "elu",
    dropout: tuple[Key[Array, ""], float] | None = None,
    reset: Bool[Array, "B T"] | None = None,
    method: str = "auto",
    chunk_size: int | None = None,
) -> tuple[Float[Array, "B T D"], LinearAttentionState]:
    """The layer of the module docstring; normalised if ``state`` has a ``key_sum``.

    Args:
      params: ``query``, ``key`` [D, H, K], ``value`` [D, H, V], ``output`` [H, V, D].
      x: inputs; projections run in their dtype.
      state: state before the first token.
      feature_map: a name of ``zoo.layers.FEATURE_MAPS``.
      dropout: (random key, rate) for the attention weights; None: none are dropped.
      reset: True at the first token of a new document.
      method: how the scan is computed, see ``zoo.scans.linear_attention``.
      chunk_size: steps per chunk, likewise.

    Returns:
      (y, state after the last token); y has x's dtype.
    """
    q, k, v = project_heads(params, x, None, 0.0)
    q, k = (FEATURE_MAPS[feature_map](a) for a in (q, k))
    decay = (
        None if reset is None else jnp.where(reset[..., None], -jnp.inf, jnp.zeros(v.shape[:3], accumulator(x.dtype)))
    )
    normalize = state.key_sum is not None
    values, start = append_normalizer(v, state.memory, state.key_sum) if normalize else (v, state.memory)
    y, last = attention_scan(q, k, values, decay, start, method=method, chunk_size=chunk_size)
    y = y.astype(accumulator(x.dtype))
    divisor = y[..., -1] if normalize else None
    if dropout is not None:
        key, rate = dropout
        y = dropped_attention(q, k, v, divisor, state.memory, key=key, rate=rate, reset=reset)
    elif normalize:
        y = normalized(y)
    last = LinearAttentionState(last[..., :-1], last[..., -1]) if normalize else LinearAttentionState(last, None)
    return merge_heads(params, y.astype(x.dtype)), last


@register(
    "linear_attention",
    variants={"default": {"heads": 2, "key_dim": 3}, "unnormalised": {"heads": 1, "normalize": False}},
)
class LinearAttention(nn.Module):
    """Linear attention: a matrix of key features and values in place of softmax over the past.

    Attributes:
      dim: width D of input and output.
      heads: number of heads H; divides ``dim``.
      key_dim: width K of queries and keys per head, the numbers of state per channel; None for ``dim / heads``.
      feature_map: of queries and keys: "elu" (elu(x) + 1), "relu", "exp" or "identity".
      normalize: divide by the sum of the weights (wants positive features).
      dropout: rate on the attention weights, where an rng "dropout" is given.
      chunk_size: steps per chunk; None: chosen from the shape.
      dtype: compute dtype of the projections; the recurrence runs in at least float32.
    """

    dim: int
    heads: int = 1
    key_dim: int | None = None
    feature_map: str = "elu"
    normalize: bool = True
    dropout: float = 0.0
    chunk_size: int | None = None
    dtype: str = "float32"

    causal: ClassVar[bool] = True
    paper: ClassVar[str] = "Katharopoulos et al. 2020, Transformers are RNNs"

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], state: LinearAttentionState | None = None, *,
        reset: Bool[Array, "B T"] | None = None,
    ) -> tuple[Float[Array, "B T D"], LinearAttentionState]:  # fmt: skip
        check_sequence(x, self.dim, reset)
        check_choice("feature_map", self.feature_map, FEATURE_MAPS)
        check_dropout(self.dropout)
        initial = self.initial_state(x.shape[0])
        if state is not None:
            check_state(state, initial)
        params = linear_attention_parameters(self, dim=self.dim, heads=self.heads, key_dim=self.key_dim)
        drop = self.dropout > 0 and self.has_rng("dropout")
        return linear_attention_layer(
            params, x.astype(self.dtype), initial if state is None else state, feature_map=self.feature_map,
            dropout=(self.make_rng("dropout"), self.dropout) if drop else None, reset=reset, chunk_size=self.chunk_size,
        )  # fmt: skip

    def initial_state(self, batch_size: int, dtype: str | None = None) -> LinearAttentionState:
        """Zeros, at least float32 whatever ``dtype``."""
        value_dim, key_dim = head_sizes(self.dim, self.heads, self.key_dim)
        memory = jnp.zeros((batch_size, self.heads, key_dim, value_dim), accumulator(self.dtype))
        return LinearAttentionState(memory, memory[..., 0] if self.normalize else None)
