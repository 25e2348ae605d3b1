"""MEGA: gated attention within chunks, over a moving average that carries information across them.

Ma, Zhou, Kong, He, Gui, Neubig, May, Zettlemoyer (2022), Mega: Moving Average Equipped Gated Attention, arXiv
2209.10655.

With x the residual stream, n = norm(x), m = EMA(n) the damped moving average (``zoo.layers.damped_ema``), the layer is

    y = u * (h - x),   h = SiLU(s + W_h (attention(q, k, v) * r))

where v comes from n, and q, k and the gates u, r, s from m (``zoo.layers.gated_attention``). The gate closes over the
stream as it is, without the norm: x + y = u h + (1 - u) x. The norm is therefore inside of the mixer
(``normalises_input``), and ``zoo.models.Block`` hands over x itself and adds it again; its MLP, "silu", is the layer's
normalised feed-forward half. In a post-norm model the mixer's own norm is "none":

    LanguageModel(..., pattern=("mega",), norm="layer", mlp="silu")
    LanguageModel(..., pattern=({"name": "mega", "norm": "none"},), norm="layer", norm_position="post", mlp="silu")

Two mixers: ``mega`` (causal; state: the moving average, keys and values of the present chunk) and
``mega_bidirectional`` (an encoder: moving averages in both directions, every token sees its whole chunk). Chunks count
from the start of the document, so a packed row gives what its documents give alone. The last chunk may be shorter: a
length need not be a multiple.

Time O(T (D^2 + c (Z + V) + D N)); one token O(D^2 + c (Z + V) + D N).
"""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import flax.linen as nn
from flax import struct
from jaxtyping import Array, Bool, Float

from zoo.checks import check_sequence, check_state
from zoo.layers.damped_ema import EMAState, bidirectional_damped_ema, damped_ema, ema_parameters, initial_ema
from zoo.layers.gated_attention import (
    ChunkCache,
    droppers,
    gated_attention,
    gated_attention_parameters,
    initial_cache,
)
from zoo.layers.norms import make_norm
from zoo.registry import register


@struct.dataclass
class MegaState:
    """Carried state: of the moving average, and keys and values of the present chunk."""

    ema: EMAState
    cache: ChunkCache


def mega(
    params: Mapping[str, Array],
    x: Float[Array, "B T D"],
    normed: Float[Array, "B T D"],
    state: MegaState | None = None,
    *,
    chunk: int,
    activation: str = "softmax",
    truncation: int | None = None,
    reset: Bool[Array, "B T"] | None = None,
    dropout: Callable[[Array], Array] | None = None,
    attention_dropout: Callable[[Array], Array] | None = None,
) -> tuple[Float[Array, "B T D"], MegaState]:
    """The causal layer of the module docstring.

    Args:
      params: those of ``zoo.layers.damped_ema`` and of ``zoo.layers.gated_attention``.
      x: the residual stream; its dtype is the compute dtype.
      normed: norm(x).
      state: state before the first token, None for the start.
      chunk: tokens c of a chunk.
      activation: "softmax", "laplace" or "relu2".
      truncation: taps of the moving average; None: all.
      reset: True at the first token of a new document.
      dropout: applied to the moving average and to h.
      attention_dropout: applied to the attention's weights.

    Returns:
      (u * (h - x), state after the last token).
    """
    moved, ema = damped_ema(params, normed, None if state is None else state.ema, truncation=truncation, reset=reset)
    y, cache = gated_attention(
        params, x, normed, moved if dropout is None else dropout(moved), None if state is None else state.cache,
        chunk=chunk, activation=activation, reset=reset, dropout=dropout, attention_dropout=attention_dropout,
    )  # fmt: skip
    return y, MegaState(ema, cache)


def mega_bidirectional(
    params: Mapping[str, Array],
    x: Float[Array, "B T D"],
    normed: Float[Array, "B T D"],
    *,
    chunk: int | None = None,
    activation: str = "softmax",
    truncation: int | None = None,
    reset: Bool[Array, "B T"] | None = None,
    dropout: Callable[[Array], Array] | None = None,
    attention_dropout: Callable[[Array], Array] | None = None,
) -> Float[Array, "B T D"]:
    """The encoder of the module docstring; ``chunk=None``: attention over the whole document. Arguments as of ``mega``."""
    moved = bidirectional_damped_ema(params, normed, truncation=truncation, reset=reset)
    return gated_attention(
        params, x, normed, moved if dropout is None else dropout(moved), chunk=chunk, causal=False,
        activation=activation, reset=reset, dropout=dropout, attention_dropout=attention_dropout,
    )[0]  # fmt: skip


@register(
    "mega",
    variants={
        "default": {"state_dim": 2, "key_dim": 4, "value_dim": 6, "chunk": 5, "max_positions": 8},
        "laplace": {
            "state_dim": 2, "key_dim": 3, "value_dim": 4, "chunk": 4, "activation": "laplace", "bias": "simple",
            "max_positions": 5, "norm": "scale", "truncation": 3,
        },
        "relu2": {
            "state_dim": 1, "key_dim": 4, "value_dim": 4, "chunk": None, "activation": "relu2", "bias": "none",
            "max_positions": 16, "norm": "rms",
        },
    },
)  # fmt: skip
class Mega(nn.Module):
    """MEGA: gated attention within chunks over a damped moving average.

    Attributes:
      dim: width D of input and output.
      state_dim: decaying sums N per channel of the moving average.
      key_dim: width Z of queries and keys.
      value_dim: width V of values; None: 2 D.
      chunk: tokens c of a chunk: the stated maximum of the cache. None: whole documents of up to
        ``max_positions`` tokens, and chunks of that many beyond.
      activation: of the scores: "softmax", "laplace" or "relu2".
      bias: of the scores by distance: "simple", "rotary" or "none".
      max_positions: longest chunk of the simple bias.
      truncation: taps of the moving average that count; None: all.
      norm: norm of the input, see ``zoo.layers.make_norm``; "none" in post-norm models.
      norm_eps: of the norm.
      dropout: rate on the moving average and on h (with an rng "dropout").
      attention_dropout: rate on the attention's weights.
      weight_std: of the matrices at initialisation; None: 1 / sqrt(fan_in).
      scale_mean, scale_std: of gamma, which scales queries and keys.
      dtype: compute dtype; scores and the moving average in at least float32.
    """

    dim: int
    state_dim: int = 16
    key_dim: int = 64
    value_dim: int | None = None
    chunk: int | None = 128
    activation: str = "softmax"
    bias: str = "rotary"
    max_positions: int = 2048
    truncation: int | None = None
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
    paper: ClassVar[str] = "Ma et al. 2022, Mega: Moving Average Equipped Gated Attention"

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], state: MegaState | None = None, *, reset: Bool[Array, "B T"] | None = None
    ) -> tuple[Float[Array, "B T D"], MegaState]:
        check_sequence(x, self.dim, reset)
        chunk = self.max_positions if self.chunk is None else self.chunk
        params = ema_parameters(self, dim=self.dim, state_dim=self.state_dim, truncation=self.truncation)
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
        return mega(
            params, x, normed, state, chunk=chunk, activation=self.activation, truncation=self.truncation, reset=reset,
            dropout=dropout, attention_dropout=attention_dropout,
        )  # fmt: skip

    def initial_state(self, batch_size: int, dtype: str | None = None) -> MegaState:
        """An empty cache of ``dtype`` (default: the compute dtype); the moving average is in at least float32."""
        chunk = self.max_positions if self.chunk is None else self.chunk
        return MegaState(
            initial_ema(batch_size, self.dim, self.state_dim, self.truncation, self.dtype),
            initial_cache(batch_size, chunk, self.key_dim, self.value_dim or 2 * self.dim, dtype or self.dtype),
        )


@register(
    "mega_bidirectional",
    variants={
        "default": {
            "state_dim": 2, "key_dim": 3, "value_dim": 4, "chunk": 4, "activation": "laplace", "bias": "simple",
            "max_positions": 5,
        },
        "whole": {"state_dim": 1, "key_dim": 4, "value_dim": 6, "chunk": None, "truncation": 3},
    },
)  # fmt: skip
class MegaBidirectional(nn.Module):
    """MEGA as an encoder: moving averages in both directions, attention over whole chunks or documents.

    Attributes as of ``Mega``; ``chunk`` None: attention over the whole document.
    """

    dim: int
    state_dim: int = 16
    key_dim: int = 64
    value_dim: int | None = None
    chunk: int | None = 128
    activation: str = "softmax"
    bias: str = "rotary"
    max_positions: int = 2048
    truncation: int | None = None
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
    paper: ClassVar[str] = "Ma et al. 2022, Mega: Moving Average Equipped Gated Attention"

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], state: Any = None, *, reset: Bool[Array, "B T"] | None = None
    ) -> tuple[Float[Array, "B T D"], None]:
        check_sequence(x, self.dim, reset)
        if state is not None:
            raise ValueError("mega_bidirectional keeps no state (it reads the whole sequence), but got one")
        params = ema_parameters(
            self, dim=self.dim, state_dim=self.state_dim, truncation=self.truncation, bidirectional=True
        )
        params |= gated_attention_parameters(
            self, dim=self.dim, key_dim=self.key_dim, value_dim=self.value_dim or 2 * self.dim, chunk=self.chunk,
            bias=self.bias, max_positions=self.max_positions, weight_std=self.weight_std, scale_mean=self.scale_mean,
            scale_std=self.scale_std,
        )  # fmt: skip
        x = x.astype(self.dtype)
        normed = make_norm(self.norm, eps=self.norm_eps, name="norm" if self.norm != "none" else None)(x)
        dropout, attention_dropout = droppers(self, self.dropout, self.attention_dropout)
        y = mega_bidirectional(
            params, x, normed, chunk=self.chunk, activation=self.activation, truncation=self.truncation, reset=reset,
            dropout=dropout, attention_dropout=attention_dropout,
        )  # fmt: skip
        return y, None

    @property
    def quadratic(self) -> bool:
        """Whether cost grows with the square of the length."""
        return self.chunk is None

    def initial_state(self, batch_size: int, dtype: str | None = None) -> None:
        """None: there is no state."""
        return None
