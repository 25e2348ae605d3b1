"""TCNCA: gated attention within chunks, over dilated convolutions that carry information across them.

Terzic, Hersche, Karunaratne, Benini, Sebastian, Rahimi (2023), TCNCA: Temporal Convolution Network with Chunked
Attention for Scalable Sequence Processing, arXiv 2312.05605.

The layer of MEGA (``zoo.mixers.mega``) with its moving average replaced by a stack of dilated convolutions: with x the
residual stream, n = norm(x), m = TCN(n) (``zoo.layers.temporal_convolution``),

    y = u * (h - x),   h = SiLU(s + W_h (attention(q, k, v) * r))

where v comes from n, and q, k and the gates u, r, s from m (``zoo.layers.gated_attention``). As in MEGA the norm is
inside (``normalises_input``), ``zoo.models.Block`` adds x again, and its MLP "silu" is the feed-forward half; a
post-norm model takes ``norm="none"`` here. The default taps, K = 17, f = 8 and depth 4, read 9361 steps.

Two mixers: ``tcnca`` (causal; state: rings of past inputs of the convolutions, keys and values of the present chunk)
and ``tcnca_bidirectional`` (an encoder). Chunks count from the start of the document; the last one may be shorter.

Time O(T (D^2 + c (Z + V) + depth K D)), where the convolution needs no FFT. Initial taps decide how fast a model
learns to look one step back (``decay``): q and k are scaled copies of one projection, and match "this token" with "the
one before" where a channel carries both with the same sign.
"""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import flax.linen as nn
from flax import struct
from jaxtyping import Array, Bool, Float

from zoo.checks import check_sequence, check_state
from zoo.layers.gated_attention import (
    ChunkCache,
    droppers,
    gated_attention,
    gated_attention_parameters,
    initial_cache,
)
from zoo.layers.norms import make_norm
from zoo.layers.temporal_convolution import (
    TemporalConvolutionState,
    convolution_parameters,
    initial_rings,
    temporal_convolution,
)
from zoo.registry import register


@struct.dataclass
class TCNCAState:
    """Carried state: of the convolutions, and keys and values of the present chunk."""

    convolution: TemporalConvolutionState
    cache: ChunkCache


def tcnca(
    params: Mapping[str, Array],
    x: Float[Array, "B T D"],
    normed: Float[Array, "B T D"],
    state: TCNCAState | None = None,
    *,
    chunk: int | None,
    factor: int,
    convolutions: int = 1,
    inner_activation: str = "identity",
    residual: bool = False,
    causal: bool = True,
    activation: str = "softmax",
    reset: Bool[Array, "B T"] | None = None,
    dropout: Callable[[Array], Array] | None = None,
    attention_dropout: Callable[[Array], Array] | None = None,
) -> tuple[Float[Array, "B T D"], TCNCAState | None]:
    """The layer of the module docstring.

    Args:
      params: those of ``zoo.layers.temporal_convolution`` and of ``zoo.layers.gated_attention``.
      x: the residual stream; its dtype is the compute dtype.
      normed: norm(x).
      state: state before the first token, None for the start; causal form only.
      chunk: tokens c of a chunk; None (not causal): whole documents.
      factor, convolutions, inner_activation, residual: of the convolutions.
      causal: see no later token.
      activation: "softmax", "laplace" or "relu2".
      reset: True at the first token of a new document.
      dropout: applied to the convolutions' output and to h.
      attention_dropout: applied to the attention's weights.

    Returns:
      (u * (h - x), state after the last token, None if not causal).
    """
    moved, convolution = temporal_convolution(
        params, normed, None if state is None else state.convolution, factor=factor, convolutions=convolutions,
        activation=inner_activation, residual=residual, causal=causal, reset=reset,
    )  # fmt: skip
    y, cache = gated_attention(
        params, x, normed, moved if dropout is None else dropout(moved), None if state is None else state.cache,
        chunk=chunk, causal=causal, activation=activation, reset=reset, dropout=dropout,
        attention_dropout=attention_dropout,
    )  # fmt: skip
    return y, TCNCAState(convolution, cache) if causal else None


@register(
    "tcnca",
    variants={
        "default": {
            "taps": 3, "factor": 2, "depth": 2, "key_dim": 4, "value_dim": 6, "chunk": 5, "max_positions": 8,
        },
        "residual": {
            "taps": 2, "factor": 2, "depth": 2, "convolutions": 2, "inner_activation": "silu", "residual": True,
            "skip": False, "weight_norm": False, "key_dim": 3, "value_dim": 4, "chunk": 4,
            "activation": "laplace", "bias": "simple", "max_positions": 5, "norm": "rms",
        },
    },
)  # fmt: skip
class TCNCA(nn.Module):
    """TCNCA: gated attention within chunks over a stack of dilated convolutions.

    Attributes:
      dim: width D of input and output.
      taps: K of every convolution, at least 2.
      factor: dilation factor f; no gaps if at most K.
      depth: layers of the convolutional stack.
      convolutions: convolutions per layer, all of its dilation.
      inner_activation: nonlinearity after each convolution, see ``zoo.layers.nonlinearity``.
      residual: every layer of the stack adds its input.
      skip: the stack ends with SiLU(. + omega n).
      depthwise: a filter per channel; False mixes channels.
      weight_norm: direction and length of the filters are separate parameters.
      decay: taps are drawn around exp(-decay * lag); None: around 0.
      key_dim: width Z of queries and keys.
      value_dim: width V of values; None: 2 D.
      chunk: tokens c of a chunk: the stated maximum of the cache. None: whole documents of up to
        ``max_positions`` tokens, and chunks of that many beyond.
      activation: of the scores: "softmax", "laplace" or "relu2".
      bias: of the scores by distance: "simple", "rotary" or "none".
      max_positions: longest chunk of the simple bias.
      norm: norm of the input, see ``zoo.layers.make_norm``; "none" in post-norm models.
      norm_eps: of the norm.
      dropout: rate on the convolutions' output and on h (with an rng "dropout").
      attention_dropout: rate on the attention's weights.
      weight_std: of the matrices at initialisation; None: 1 / sqrt(fan_in).
      scale_mean, scale_std: of gamma, which scales queries and keys.
      dtype: compute dtype; scores and the sums over taps in at least float32.
    """

    dim: int
    taps: int = 17
    factor: int = 8
    depth: int = 4
    convolutions: int = 1
    inner_activation: str = "identity"
    residual: bool = False
    skip: bool = True
    depthwise: bool = True
    weight_norm: bool = True
    decay: float | None = 0.7
    key_dim: int = 64
    value_dim: int | None = None
    chunk: int | None = 128
    activation: str = "softmax"
    bias: str = "rotary"
    max_positions: int = 2048
    norm: str = "layer"
    norm_eps: float = 1e-5
    dropout: float = 0.0
    attention_dropout: float = 0.0
    weight_std: float | None = 0.02
    scale_mean: float = 0.0
    scale_std: float = 0.02
    dtype: str = "float32"

    causal: ClassVar[bool] = True
    normalises_input: ClassVar[bool] = True
    paper: ClassVar[str] = "Terzic et al. 2023, TCNCA: Temporal Convolution Network with Chunked Attention"

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], state: TCNCAState | None = None, *, reset: Bool[Array, "B T"] | None = None
    ) -> tuple[Float[Array, "B T D"], TCNCAState]:
        check_sequence(x, self.dim, reset)
        chunk = self.max_positions if self.chunk is None else self.chunk
        params = convolution_parameters(
            self, dim=self.dim, taps=self.taps, factor=self.factor, depth=self.depth, convolutions=self.convolutions,
            decay=self.decay, depthwise=self.depthwise, weight_norm=self.weight_norm, skip=self.skip,
        )  # fmt: skip
        params |= gated_attention_parameters(
            self, dim=self.dim, key_dim=self.key_dim, value_dim=self.value_dim or 2 * self.dim, chunk=chunk,
            bias=self.bias, max_positions=self.max_positions, weight_std=self.weight_std, scale_mean=self.scale_mean,
            scale_std=self.scale_std,
        )  # fmt: skip
        if state is not None:
            check_state(state, self.initial_state(x.shape[0]))
        x = x.astype(self.dtype)
        normed = make_norm(self.norm, eps=self.norm_eps, name="norm" if self.norm != "none" else None)(x)
        dropout, attention_dropout = droppers(self, self.dropout, self.attention_dropout)
        return tcnca(
            params, x, normed, state, chunk=chunk, factor=self.factor, convolutions=self.convolutions,
            inner_activation=self.inner_activation, residual=self.residual, causal=self.causal,
            activation=self.activation, reset=reset, dropout=dropout, attention_dropout=attention_dropout,
        )  # fmt: skip

    def initial_state(self, batch_size: int, dtype: str | None = None) -> TCNCAState:
        """Empty rings and an empty cache of ``dtype`` (default: the compute dtype)."""
        chunk, kept = self.max_positions if self.chunk is None else self.chunk, dtype or self.dtype
        return TCNCAState(
            initial_rings(batch_size, self.dim, self.taps, self.factor, self.depth, self.convolutions, kept),
            initial_cache(batch_size, chunk, self.key_dim, self.value_dim or 2 * self.dim, kept),
        )


@register(
    "tcnca_bidirectional",
    variants={
        "default": {
            "taps": 4, "factor": 2, "depth": 2, "key_dim": 4, "value_dim": 6, "chunk": 5, "activation": "relu2",
            "scale_std": 0.5,
        },
    },
)  # fmt: skip
class TCNCABidirectional(nn.Module):
    """TCNCA as an encoder: convolutions look to both sides, attention over whole chunks or documents.

    Attributes as of ``TCNCA``; half of the taps look forward, ``chunk`` None: attention over the whole document.
    """

    dim: int
    taps: int = 17
    factor: int = 8
    depth: int = 4
    convolutions: int = 1
    inner_activation: str = "identity"
    residual: bool = False
    skip: bool = True
    depthwise: bool = True
    weight_norm: bool = True
    decay: float | None = 0.7
    key_dim: int = 64
    value_dim: int | None = None
    chunk: int | None = 128
    activation: str = "softmax"
    bias: str = "rotary"
    max_positions: int = 2048
    norm: str = "layer"
    norm_eps: float = 1e-5
    dropout: float = 0.0
    attention_dropout: float = 0.0
    weight_std: float | None = 0.02
    scale_mean: float = 0.0
    scale_std: float = 0.02
    dtype: str = "float32"

    causal: ClassVar[bool] = False
    normalises_input: ClassVar[bool] = True
    paper: ClassVar[str] = "Terzic et al. 2023, TCNCA: Temporal Convolution Network with Chunked Attention"

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], state: Any = None, *, reset: Bool[Array, "B T"] | None = None
    ) -> tuple[Float[Array, "B T D"], None]:
        check_sequence(x, self.dim, reset)
        if state is not None:
            raise ValueError("tcnca_bidirectional keeps no state (it reads the whole sequence), but got one")
        params = convolution_parameters(
            self, dim=self.dim, taps=self.taps, factor=self.factor, depth=self.depth, convolutions=self.convolutions,
            decay=self.decay, depthwise=self.depthwise, weight_norm=self.weight_norm, skip=self.skip,
        )  # fmt: skip
        params |= gated_attention_parameters(
            self, dim=self.dim, key_dim=self.key_dim, value_dim=self.value_dim or 2 * self.dim, chunk=self.chunk,
            bias=self.bias, max_positions=self.max_positions, weight_std=self.weight_std, scale_mean=self.scale_mean,
            scale_std=self.scale_std,
        )  # fmt: skip
        x = x.astype(self.dtype)
        normed = make_norm(self.norm, eps=self.norm_eps, name="norm" if self.norm != "none" else None)(x)
        dropout, attention_dropout = droppers(self, self.dropout, self.attention_dropout)
        return tcnca(
            params, x, normed, None, chunk=self.chunk, factor=self.factor, convolutions=self.convolutions,
            inner_activation=self.inner_activation, residual=self.residual, causal=self.causal,
            activation=self.activation, reset=reset, dropout=dropout, attention_dropout=attention_dropout,
        )  # fmt: skip

    @property
    def quadratic(self) -> bool:
        """Whether cost grows with the square of the length."""
        return self.chunk is None

    def initial_state(self, batch_size: int, dtype: str | None = None) -> None:
        """None: there is no state."""
        return None
