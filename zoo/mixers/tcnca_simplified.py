"""Simplified TCNCA: dilated convolutions and attention within chunks, without gates.

Terzic, Hersche, Karunaratne, Benini, Sebastian, Rahimi (2023), TCNCA: Temporal Convolution Network with Chunked
Attention for Scalable Sequence Processing, arXiv 2312.05605: the form without multiplicative and additive interactions
between the operator and the attention. With x_t [D] the (normalised) input,

    m = TCN(x)                                            [D], see zoo.layers.temporal_convolution
    z = SiLU(W_k m + b_k),  q = z * gamma_0 + beta_0,  k = z * gamma_1 + beta_1     [Z]
    v = W_v m + b_v                                       [V]
    y = W_o attention(q, k, v) + b_o                      within chunks, see zoo.layers.gated_attention

Norm before and residual after are those of ``zoo.models.Block``. State: rings of past inputs of the convolutions, keys
and values of the present chunk. Time O(T (D (Z + V) + c (Z + V) + depth K D)).
"""

from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax
from flax import struct
from jaxtyping import Array, Bool, Float

from zoo.checks import check_sequence, check_state
from zoo.layers.gated_attention import (
    ChunkCache,
    chunked_attention,
    chunked_attention_parameters,
    initial_cache,
    queries_and_keys,
    relative_bias,
)
from zoo.layers.temporal_convolution import (
    TemporalConvolutionState,
    convolution_parameters,
    initial_rings,
    temporal_convolution,
)
from zoo.registry import register


@struct.dataclass
class SimplifiedTCNCAState:
    """Carried state: of the convolutions, and keys and values of the present chunk."""

    convolution: TemporalConvolutionState
    cache: ChunkCache


def tcnca_simplified(
    params: Mapping[str, Array],
    x: Float[Array, "B T D"],
    state: SimplifiedTCNCAState | None = None,
    *,
    chunk: int,
    factor: int,
    activation: str = "softmax",
    reset: Bool[Array, "B T"] | None = None,
) -> tuple[Float[Array, "B T D"], SimplifiedTCNCAState]:
    """The layer of the module docstring.

    Args:
      params: those of ``zoo.layers.temporal_convolution``; ``key`` [D, Z], ``value`` [D, V], ``output`` [V, D] with
        ``key_bias``, ``value_bias``, ``output_bias``; ``scale`` and ``shift`` [2, Z]; those of
        ``zoo.layers.gated_attention.relative_bias``.
      x: inputs; their dtype is the compute dtype.
      state: state before the first token, None for the start.
      chunk: tokens c of a chunk.
      factor: dilation factor of the convolutions.
      activation: "softmax", "laplace" or "relu2".
      reset: True at the first token of a new document.

    Returns:
      (y, state after the last token).
    """

    def affine(name, a):
        return a @ params[name].astype(x.dtype) + params[f"{name}_bias"].astype(x.dtype)

    moved, convolution = temporal_convolution(
        params, x, None if state is None else state.convolution, factor=factor, reset=reset
    )
    q, k = queries_and_keys(params, jax.nn.silu(affine("key", moved)))
    attended, cache = chunked_attention(
        q, k, affine("value", moved), None if state is None else state.cache, chunk=chunk, activation=activation,
        bias=relative_bias(params, chunk), reset=reset,
    )  # fmt: skip
    return affine("output", attended), SimplifiedTCNCAState(convolution, cache)


@register(
    "tcnca_simplified",
    variants={
        "default": {"taps": 3, "factor": 2, "depth": 2, "key_dim": 4, "value_dim": 6, "chunk": 5, "max_positions": 8},
    },
)
class SimplifiedTCNCA(nn.Module):
    """TCNCA without gates: attention within chunks over a stack of dilated convolutions.

    Attributes:
      dim: width D of input and output.
      taps: K of every convolution, at least 2.
      factor: dilation factor f; no gaps if at most K.
      depth: layers of the convolutional stack.
      weight_norm: direction and length of the filters are separate parameters.
      decay: taps are drawn around exp(-decay * lag); None: around 0.
      key_dim: width Z of queries and keys.
      value_dim: width V of values; None: 2 D.
      chunk: tokens c of a chunk: the stated maximum of the cache.
      activation: of the scores: "softmax", "laplace" or "relu2".
      bias: of the scores by distance: "simple", "rotary" or "none".
      max_positions: longest chunk of the simple bias.
      weight_std: of the matrices at initialisation; None: 1 / sqrt(fan_in).
      scale_mean, scale_std: of gamma, which scales queries and keys.
      dtype: compute dtype; scores and the sums over taps in at least float32.
    """

    dim: int
    taps: int = 17
    factor: int = 8
    depth: int = 4
    weight_norm: bool = True
    decay: float | None = 0.7
    key_dim: int = 64
    value_dim: int | None = None
    chunk: int = 128
    activation: str = "softmax"
    bias: str = "rotary"
    max_positions: int = 2048
    weight_std: float | None = 0.02
    scale_mean: float = 0.0
    scale_std: float = 0.02
    dtype: str = "float32"

    causal: ClassVar[bool] = True
    paper: ClassVar[str] = "Terzic et al. 2023, TCNCA: Temporal Convolution Network with Chunked Attention"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        state: SimplifiedTCNCAState | None = None,
        *,
        reset: Bool[Array, "B T"] | None = None,
    ) -> tuple[Float[Array, "B T D"], SimplifiedTCNCAState]:
        check_sequence(x, self.dim, reset)
        params = convolution_parameters(
            self, dim=self.dim, taps=self.taps, factor=self.factor, depth=self.depth, decay=self.decay,
            weight_norm=self.weight_norm,
        )  # fmt: skip
        width = self.value_dim or 2 * self.dim
        matrices = {"key": (self.dim, self.key_dim), "value": (self.dim, width), "output": (width, self.dim)}
        params |= chunked_attention_parameters(
            self, matrices, key_dim=self.key_dim, chunk=self.chunk, bias=self.bias, max_positions=self.max_positions,
            weight_std=self.weight_std, scale_mean=self.scale_mean, scale_std=self.scale_std,
        )  # fmt: skip
        if state is not None:
            check_state(state, self.initial_state(x.shape[0]))
        return tcnca_simplified(
            params, x.astype(self.dtype), state, chunk=self.chunk, factor=self.factor, activation=self.activation,
            reset=reset,
        )  # fmt: skip

    def initial_state(self, batch_size: int, dtype: str | None = None) -> SimplifiedTCNCAState:
        """Empty rings and an empty cache of ``dtype`` (default: the compute dtype)."""
        kept = dtype or self.dtype
        return SimplifiedTCNCAState(
            initial_rings(batch_size, self.dim, self.taps, self.factor, self.depth, 1, kept),
            initial_cache(batch_size, self.chunk, self.key_dim, self.value_dim or 2 * self.dim, kept),
        )
