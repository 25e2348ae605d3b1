"""Titans MAG, memory as a gate: sliding-window attention and the neural memory side by side, one gating the other.

Behrouz, Zhong and Mirrokni (2025), Titans: Learning to Memorize at Test Time, arXiv 2501.00663. With x_t [D], N_p persistent
tokens P [N_p, D], x~ = [P; x]:

    y_t = SWA*(x~)_t        softmax attention over P, always, and over the last ``window`` tokens of the document
    r_t = M_t(q_t)          the memory, which reads P and then x, see ``zoo.layers.neural_memory``
    o_t = W_o (norm(y_t) * sigma(norm(r_t)))        root-mean-square norms with gains [D] of their own, sigma silu or sigmoid

Keys and queries of the attention are rotated to their positions, P at 0 .. N_p - 1 and the document behind it. The paper
says "a nonlinearity" for sigma; silu is our choice. Time: that of the two branches, O(T min(T, window) D) and that of
``titans_memory``. State per row: a ring of the last ``window`` keys and values, and the memory's.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
from flax import struct
from flax.core import FrozenDict
from jaxtyping import Array, Bool, Float

from zoo.checks import check_choice, check_positive, check_sequence, check_state
from zoo.layers.attention import attention_parameters, document_positions, project_heads
from zoo.layers.neural_memory import (
    COMBINES,
    NeuralMemory,
    NeuralMemoryState,
    combine,
    initial_neural_memory,
    neural_memory,
    neural_memory_parameters,
    persistent_tokens,
)
from zoo.layers.projections import linear
from zoo.mixers.attention import AttentionState, cached_attention
from zoo.registry import register


@struct.dataclass
class TitansGateState:
    """Carried state: ``cache`` of the attention, ``memory`` (``zoo.layers.neural_memory.NeuralMemoryState``)."""

    cache: AttentionState
    memory: NeuralMemoryState


def titans_mag(
    params: Mapping[str, Array],
    x: Float[Array, "B T D"],
    state: TitansGateState | None,
    *,
    config: NeuralMemory,
    window: int,
    positions: str = "rotary",
    base: float = 10_000.0,
    gate: str = "silu",
    norm_eps: float = 1e-6,
    reset: Bool[Array, "B T"] | None = None,
) -> tuple[Float[Array, "B T D"], TitansGateState]:
    """The layer of the module docstring.

    Args:
      params: those of ``zoo.layers.neural_memory``; ``query``, ``key``, ``value`` [D, H, K] of the attention;
        ``attention_scale``, ``memory_scale`` [D]; ``output`` [D, D]; ``persistent`` [N_p, D] where there are such tokens.
      x: inputs; projections run in their dtype.
      state: state before the first token; None: the start, which is faster.
      config: the memory.
      window: tokens that a token attends to, itself included, besides P.
      positions: "rotary" or "none".
      base: base of the rotary wavelengths.
      gate: sigma.
      norm_eps: of the norms.
      reset: True at the first token of a new document.

    Returns:
      (o, state after the last token); o has x's dtype.
    """
    tokens = params.get("persistent")
    lead = 0 if tokens is None else tokens.shape[0]
    age = document_positions(reset, None if state is None else state.memory.age, shape=x.shape[:2])
    rotated = positions == "rotary"
    q, k, v = project_heads(params, x, age + lead if rotated else None, base)
    prefix = None
    if tokens is not None:
        own = tokens[None].astype(x.dtype)
        _, *prefix = project_heads(params, own, jnp.arange(lead)[None] if rotated else None, base)
        prefix = (*prefix, jnp.ones((*x.shape[:2], lead), bool))
    y, cache = cached_attention(q, k, v, age, None if state is None else state.cache, window=window, prefix=prefix)
    r, _, memory = neural_memory(
        params, x, None if state is None else state.memory, config, reset=reset, persistent=tokens
    )
    scales = params["attention_scale"], params["memory_scale"]
    o = combine(y.reshape(x.shape).astype(r.dtype), r, scales, gate, norm_eps)
    return linear(o.astype(x.dtype), params, "output"), TitansGateState(cache, memory)


@register(
    "titans_mag",
    variants={
        "default": {
            "heads": 2, "window": 4, "persistent": 3, "memory": {"heads": 2, "expansion": 1, "chunk_size": 4},
        },
        "bare": {
            "heads": 2, "window": 16, "persistent": 0, "positions": "none", "gate": "sigmoid",
            "memory": {"heads": 2, "depth": 1, "chunk_size": 5, "conv_size": 0},
        },
    },
)  # fmt: skip
class TitansGate(nn.Module):
    """Titans MAG: sliding-window attention, gated by what the neural memory reads.

    Attributes:
      dim: width D of input and output.
      heads: heads of the attention; divides ``dim``.
      window: tokens that a token attends to, itself included: the stated maximum of the cache.
      persistent: number N_p of persistent tokens.
      memory: the memory, fields of ``zoo.layers.neural_memory.NeuralMemory`` by name.
      positions: "rotary" (counted from the first persistent token) or "none".
      base: base of the rotary wavelengths.
      gate: sigma of the gate, "silu" or "sigmoid".
      norm_eps: of the norms in front of the gate.
      dtype: compute dtype of projections and attention; memories are at least float32.
    """

    dim: int
    heads: int = 4
    window: int = 1024
    persistent: int = 16
    memory: Mapping[str, Any] = FrozenDict()
    positions: str = "rotary"
    base: float = 10_000.0
    gate: str = "silu"
    norm_eps: float = 1e-6
    dtype: str = "float32"

    causal: ClassVar[bool] = True
    paper: ClassVar[str] = "Behrouz, Zhong and Mirrokni 2025, Titans: Learning to Memorize at Test Time (MAG)"

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], state: TitansGateState | None = None, *, reset: Bool[Array, "B T"] | None = None
    ) -> tuple[Float[Array, "B T D"], TitansGateState]:
        check_sequence(x, self.dim, reset)
        check_positive("window", self.window)
        check_choice("gate", self.gate, COMBINES)
        config = NeuralMemory(**self.memory)
        params = attention_parameters(self, dim=self.dim, heads=self.heads, kv_heads=None, positions=self.positions)
        params |= neural_memory_parameters(self, config, self.dim)
        tokens = persistent_tokens(self, self.persistent, self.dim)
        if tokens is not None:
            params["persistent"] = tokens
        for name in ("attention_scale", "memory_scale"):
            params[name] = self.param(name, nn.initializers.ones, (self.dim,))
        params["output"] = params["output"].reshape(self.dim, self.dim)
        if state is not None:
            check_state(state, self.initial_state(x.shape[0]))
        options = {name: getattr(self, name) for name in ("window", "positions", "base", "gate", "norm_eps")}
        return titans_mag(params, x.astype(self.dtype), state, config=config, reset=reset, **options)

    def initial_state(self, batch_size: int, dtype: str | None = None) -> TitansGateState:
        """An empty cache, and zeros; ``dtype`` is the storage dtype of caches, memories are at least float32."""
        dtype = dtype or self.dtype
        empty = jnp.zeros((batch_size, self.window, self.heads, self.dim // self.heads), dtype)
        count = jnp.zeros((batch_size,), jnp.int32)
        memory = initial_neural_memory(NeuralMemory(**self.memory), self.dim, batch_size, dtype)
        return TitansGateState(AttentionState(empty, empty, count, count), memory)
