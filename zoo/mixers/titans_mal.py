"""Titans MAL, memory as a layer: the neural memory reads the sequence, sliding-window attention reads what it says.

Behrouz, Zhong and Mirrokni (2025), Titans: Learning to Memorize at Test Time, arXiv 2501.00663. With x_t [D], N_p persistent
tokens P [N_p, D], x~ = [P; x]:

    r_t = M_t(q_t)                                the memory, which reads P and then x, see ``zoo.layers.neural_memory``
    y_t = norm(r_t) * silu(W_z x~_t)              root-mean-square norm with gains [D]
    o_t = W_o SWA([y_P; y])_t                     softmax attention over the last ``window`` rows, of which y_P are the first

With ``inner_residual`` the attention reads x~ + y. Queries and keys are rotated to their positions, P at 0 .. N_p - 1 and
the document behind it. Time: that of the two layers, O(T min(T, window) D) and that of ``titans_memory``. State per row: a
ring of the last ``window`` keys and values, and the memory's.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from flax.core import FrozenDict
from jaxtyping import Array, Bool, Float

from zoo.checks import check_positive, check_sequence, check_state
from zoo.dtypes import accumulator
from zoo.layers.attention import attention_parameters, document_positions, merge_heads, project_heads
from zoo.layers.neural_memory import (
    NeuralMemory,
    NeuralMemoryState,
    initial_neural_memory,
    neural_memory,
    neural_memory_parameters,
    persistent_tokens,
)
from zoo.layers.norms import rms_norm
from zoo.layers.projections import linear
from zoo.mixers.attention import AttentionState, cached_attention
from zoo.registry import register


@struct.dataclass
class TitansLayerState:
    """Carried state: ``cache`` of the attention, ``memory`` (``zoo.layers.neural_memory.NeuralMemoryState``)."""

    cache: AttentionState
    memory: NeuralMemoryState


def titans_mal(
    params: Mapping[str, Array],
    x: Float[Array, "B T D"],
    state: TitansLayerState | None,
    *,
    config: NeuralMemory,
    window: int,
    positions: str = "rotary",
    base: float = 10_000.0,
    inner_residual: bool = False,
    norm_eps: float = 1e-6,
    reset: Bool[Array, "B T"] | None = None,
) -> tuple[Float[Array, "B T D"], TitansLayerState]:
    """The layer of the module docstring.

    Args:
      params: those of ``zoo.layers.neural_memory``; ``scale`` [D], ``gate`` [D, D]; ``query``, ``key``, ``value`` [D, H, K]
        and ``output`` [H, K, D] of the attention; ``persistent`` [N_p, D] where there are such tokens.
      x: inputs; projections run in their dtype.
      state: state before the first token; None: the start, which is faster.
      config: the memory.
      window: rows that a token attends to, itself included.
      positions: "rotary" or "none".
      base: base of the rotary wavelengths.
      inner_residual: the attention reads x~ + y.
      norm_eps: of the norm.
      reset: True at the first token of a new document.

    Returns:
      (o, state after the last token); o has x's dtype.
    """
    tokens = params.get("persistent")
    lead = 0 if tokens is None else tokens.shape[0]
    r, r_lead, memory = neural_memory(
        params, x, None if state is None else state.memory, config, reset=reset, persistent=tokens,
        prefix_read_until=window,
    )  # fmt: skip

    def said(x, r):
        z = linear(x, params, "gate").astype(accumulator(x.dtype))
        y = (rms_norm(r, params["scale"], norm_eps) * jax.nn.silu(z)).astype(x.dtype)
        return x + y if inner_residual else y

    age = document_positions(reset, None if state is None else state.memory.age, shape=x.shape[:2])
    rotated = positions == "rotary"
    q, k, v = project_heads(params, said(x, r), age + lead if rotated else None, base)
    prefix = None
    if tokens is not None:
        own = said(tokens[None].astype(x.dtype), r_lead)
        _, *prefix = project_heads(params, own, jnp.arange(lead)[None] if rotated else None, base)
        seen = age[..., None] + lead - jnp.arange(lead) < window
        prefix = (*prefix, seen)
    y, cache = cached_attention(q, k, v, age, None if state is None else state.cache, window=window, prefix=prefix)
    return merge_heads(params, y), TitansLayerState(cache, memory)


@register(
    "titans_mal",
    variants={
        "default": {
            "heads": 2, "window": 4, "persistent": 2, "memory": {"heads": 2, "expansion": 1, "chunk_size": 4},
        },
        "bare": {
            "heads": 2, "window": 16, "persistent": 0, "positions": "none", "inner_residual": True,
            "memory": {"heads": 2, "depth": 1, "chunk_size": 5, "conv_size": 0},
        },
    },
)  # fmt: skip
class TitansLayer(nn.Module):
    """Titans MAL: the neural memory, and sliding-window attention on top of it.

    Attributes:
      dim: width D of input and output.
      heads: heads of the attention; divides ``dim``.
      window: rows that a token attends to, itself included: the stated maximum of the cache.
      persistent: number N_p of persistent tokens.
      memory: the memory, fields of ``zoo.layers.neural_memory.NeuralMemory`` by name.
      positions: "rotary" (counted from the first persistent token) or "none".
      base: base of the rotary wavelengths.
      inner_residual: the attention reads its input beside what the memory says.
      norm_eps: of the norm behind the memory.
      dtype: compute dtype of projections and attention; memories are at least float32.
    """

    dim: int
    heads: int = 4
    window: int = 1024
    persistent: int = 16
    memory: Mapping[str, Any] = FrozenDict()
    positions: str = "rotary"
    base: float = 10_000.0
    inner_residual: bool = False
    norm_eps: float = 1e-6
    dtype: str = "float32"

    causal: ClassVar[bool] = True
    paper: ClassVar[str] = "Behrouz, Zhong and Mirrokni 2025, Titans: Learning to Memorize at Test Time (MAL)"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        state: TitansLayerState | None = None,
        *,
        reset: Bool[Array, "B T"] | None = None,
    ) -> tuple[Float[Array, "B T D"], TitansLayerState]:
        check_sequence(x, self.dim, reset)
        check_positive("window", self.window)
        config = NeuralMemory(**self.memory)
        params = attention_parameters(self, dim=self.dim, heads=self.heads, kv_heads=None, positions=self.positions)
        params |= neural_memory_parameters(self, config, self.dim)
        tokens = persistent_tokens(self, self.persistent, self.dim)
        if tokens is not None:
            params["persistent"] = tokens
        params["scale"] = self.param("scale", nn.initializers.ones, (self.dim,))
        params["gate"] = self.param("gate", nn.initializers.lecun_normal(), (self.dim, self.dim))
        if state is not None:
            check_state(state, self.initial_state(x.shape[0]))
        options = {name: getattr(self, name) for name in ("window", "positions", "base", "inner_residual", "norm_eps")}
        return titans_mal(params, x.astype(self.dtype), state, config=config, reset=reset, **options)

    def initial_state(self, batch_size: int, dtype: str | None = None) -> TitansLayerState:
        """An empty cache, and zeros; ``dtype`` is the storage dtype of caches, memories are at least float32."""
        dtype = dtype or self.dtype
        empty = jnp.zeros((batch_size, self.window, self.heads, self.dim // self.heads), dtype)
        count = jnp.zeros((batch_size,), jnp.int32)
        memory = initial_neural_memory(NeuralMemory(**self.memory), self.dim, batch_size, dtype)
        return TitansLayerState(AttentionState(empty, empty, count, count), memory)
