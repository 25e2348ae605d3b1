"""Titans MAC, memory as a context: attention inside segments, which sees what the memory of the past recalls.

Behrouz, Zhong and Mirrokni (2025), Titans: Learning to Memorize at Test Time, arXiv 2501.00663. A document is cut in
segments of C tokens. With x_t [D] in segment s, P [N_p, D] the persistent tokens, M* a memory that is read and not written:

    h_t = M*_{s-1}(W_h x_t)                       what the memory, as it was before the segment, recalls
    y_t = Attn(x_t; P, h_u and x_u of the segment, u <= t)      softmax attention
    M_t, r_t                                      the memory writes and reads y_t, see ``zoo.layers.neural_memory``
    o_t = W_o (norm(y_t) * sigma(norm(r_t)))      root-mean-square norms with gains [D] of their own, sigma silu or sigmoid

The paper writes a segment as a whole: P and all of h in front of it, and M_s behind it in the gate. Both would show a token
what comes later in its segment (h_u is a function of x_u), so that here it sees h_u of u <= t and the memory M_t after its
own write. W_h x_t is scaled to length 1, as the memory's own queries are. Queries and keys are rotated to the positions in
[P; h; segment].

Time O(T (N_p + 2 C) D) and that of ``titans_memory``; segments follow each other. A call that begins anywhere (with a
``state``), or has resets, goes through blocks of at most C tokens, and makes each twice where a segment may end inside it.
State per row: keys and values of h and x in the segment [2, C, H, K], the memory's state, and the memory before the segment.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from flax.core import FrozenDict
from jax import lax
from jaxtyping import Array, Bool, Float

from zoo.checks import check_choice, check_positive, check_sequence, check_state
from zoo.dtypes import accumulator
from zoo.layers.attention import (
    attention_parameters,
    document_positions,
    grouped_attention,
    merge_heads,
    project_heads,
)
from zoo.layers.neural_memory import (
    COMBINES,
    NeuralMemory,
    NeuralMemoryState,
    combine,
    initial_neural_memory,
    memory_tokens,
    memory_weights,
    neural_memory_parameters,
    persistent_tokens,
    unit_length,
)
from zoo.layers.projections import linear
from zoo.registry import register
from zoo.scans import apply_memory, memory_descent, start_descent


@struct.dataclass
class TitansContextState:
    """Carried state.

    Attributes:
      memory: the memory after the last token, see ``zoo.layers.neural_memory.NeuralMemoryState``.
      recalled: by name [B, H, ...], the memory before the segment in progress.
      keys, values: [B, 2, C, H, K], of h and of x in the segment, at their places in it.
    """

    memory: NeuralMemoryState
    recalled: dict[str, Float[Array, "B H ..."]]
    keys: Float[Array, "B 2 C H K"]
    values: Float[Array, "B 2 C H K"]


def titans_mac(
    params: Mapping[str, Array],
    x: Float[Array, "B T D"],
    state: TitansContextState | None,
    *,
    config: NeuralMemory,
    heads: int,
    segment: int,
    positions: str = "rotary",
    base: float = 10_000.0,
    gate: str = "silu",
    norm_eps: float = 1e-6,
    reset: Bool[Array, "B T"] | None = None,
) -> tuple[Float[Array, "B T D"], TitansContextState]:
    """The layer of the module docstring.

    Args:
      params: those of ``zoo.layers.neural_memory``; ``recall`` [D, D] (W_h); ``query``, ``key``, ``value`` [D, H, K] and
        ``merge`` [H, K, D] of the attention; ``attention_scale``, ``memory_scale`` [D]; ``output`` [D, D]; ``persistent``
        [N_p, D] where there are such tokens.
      x: inputs; projections run in their dtype.
      state: state before the first token; None: the start, which is faster.
      config: the memory.
      heads: heads H of the attention.
      segment: tokens C of a segment.
      positions: "rotary" or "none".
      base: base of the rotary wavelengths.
      gate: sigma.
      norm_eps: of the norms.
      reset: True at the first token of a new document.

    Returns:
      (o, state after the last token); o has x's dtype.
    """
    batch, time, dim = x.shape
    start = start_descent(memory_weights(params, config), batch)
    fast = state is None and reset is None
    if state is None:
        state = initial_context(config, dim, heads, segment, batch, x.dtype)
    begins = state.memory.age == 0
    descent = state.memory.descent
    began = start._replace(gates=descent.gates)  # at the start they are not read: phase 0
    descent = jax.tree.map(lambda a, b: jnp.where(begins.reshape(-1, *(1,) * (b.ndim - 1)), a, b), began, descent)
    state = state.replace(memory=state.memory.replace(descent=descent))
    # recalled and the anchor of a fast call are known where a segment and a chunk begin together
    aligned = fast and segment % config.chunk_size == 0
    block = _Block(params, config, heads, segment, positions, base, gate, norm_eps, fast, aligned)
    age = document_positions(reset, state.memory.age, shape=(batch, time))
    size = min(segment, time)
    whole = time // size * size

    def body(state, inputs):
        return block(state, *inputs)

    def cut(array):
        return (
            None if array is None else jnp.moveaxis(array[:, :whole].reshape(batch, -1, size, *array.shape[2:]), 1, 0)
        )

    if whole == size:
        state, y = block(state, *(None if a is None else a[:, :size] for a in (x, age, reset)))
    else:
        inputs = tuple(cut(a) for a in (x, age, reset))
        state, y = lax.scan(jax.checkpoint(body, prevent_cse=False), state, inputs)
        y = jnp.moveaxis(y, 0, 1).reshape(batch, whole, dim)
    if whole < time:
        state, rest = block(state, *(None if a is None else a[:, whole:] for a in (x, age, reset)))
        y = jnp.concatenate([y, rest], axis=1)
    return y, state


class _Block:
    """At most one segment's length of tokens, of which some may belong to the segment before, or to later documents.

    ``fast``: the block begins a segment in every row, and no document begins behind its first token. ``aligned``: then it
    begins a chunk of the memory, too.
    """

    def __init__(self, params, config, heads, segment, positions, base, gate, norm_eps, fast, aligned):
        self.params, self.config, self.heads, self.segment = params, config, heads, segment
        self.rotated, self.base, self.gate, self.norm_eps = positions == "rotary", base, gate, norm_eps
        self.fast, self.aligned = fast, aligned
        self.lead = params["persistent"].shape[0] if "persistent" in params else 0

    def __call__(self, state, x, age, reset):
        """(state after the block, o [B, L, D])."""
        place = age % self.segment
        wide = accumulator(x.dtype)
        q = linear(x, self.params, "recall").astype(wide).reshape(*x.shape[:2], self.config.heads, -1)
        q = unit_length(q)
        now = state.memory.descent.weights
        number = jnp.cumsum(place == 0, axis=1)  # of a token's segment, 0 for the one in progress
        later = None if reset is None else jnp.cumsum(reset, axis=1) > 0
        if self.fast:
            middle, h = now, self.recall(now, q)
        else:
            h = self.recall(state.recalled, q)
            if x.shape[1] == 1:
                middle = now
            else:
                y = self.attend(state, x, h, place, number)
                middle = self.remember(state, y, age, None, number == 0)[0].descent.weights
            h = _pick(number > 0, self.recall(middle, q), h)
            if later is not None:
                fresh = start_descent(memory_weights(self.params, self.config), x.shape[0]).weights
                h = _pick(later, self.recall(fresh, q), h)
        y, kept = self.attend(state, x, h, place, number, keep=True)
        memory, r = self.remember(state, y, age, reset, None)
        recalled = middle
        if not self.fast:
            recalled = _rows(number[:, -1] > 0, middle, state.recalled)
            if later is not None:
                recalled = _rows(later[:, -1], fresh, recalled)
        scales = self.params["attention_scale"], self.params["memory_scale"]
        o = combine(y.astype(r.dtype), r, scales, self.gate, self.norm_eps)
        return TitansContextState(memory, recalled, *kept), linear(o.astype(x.dtype), self.params, "output")

    def recall(self, weights, q):
        """M*(q) [B, L, D] in at least float32."""
        h = apply_memory(self.config.memory(), weights, jnp.swapaxes(q, 1, 2))
        return jnp.swapaxes(h, 1, 2).reshape(*q.shape[:2], -1)

    def attend(self, state, x, h, place, number, keep=False):
        """y [B, L, D]; with ``keep`` also (keys, values) of the last token's segment."""
        batch, length, _ = x.shape

        def heads(rows, where):
            return project_heads(self.params, rows, where if self.rotated else None, self.base)

        _, k_h, v_h = heads(h.astype(x.dtype), self.lead + place)
        q, k_x, v_x = heads(x, self.lead + self.segment + place)
        step = jnp.arange(length)
        same = (number[:, :, None] == number[:, None, :]) & (step[:, None] >= step)
        keys, values, seen = [k_h, k_x], [v_h, v_x], [same, same]
        if not self.fast:
            before = jnp.arange(self.segment) < place[:, :1]
            visible = (number == 0)[..., None] & before[:, None]
            for i in range(2):
                keys.append(state.keys[:, i].astype(x.dtype))
                values.append(state.values[:, i].astype(x.dtype))
                seen.append(visible)
        if self.lead:
            _, k, v = heads(self.params["persistent"][None].astype(x.dtype), jnp.arange(self.lead)[None])
            keys.append(jnp.broadcast_to(k, (batch, *k.shape[1:])))
            values.append(jnp.broadcast_to(v, (batch, *v.shape[1:])))
            seen.append(jnp.ones((batch, length, self.lead), bool))
        y = grouped_attention(q, jnp.concatenate(keys, 1), jnp.concatenate(values, 1), jnp.concatenate(seen, 2))
        y = merge_heads({"output": self.params["merge"]}, y)
        if not keep:
            return y
        rows = jnp.arange(batch)[:, None]
        slot = jnp.where(number == number[:, -1:], place, self.segment)  # the others are dropped

        def kept(old, h, x):
            for i, new in enumerate((h, x)):
                old = old.at[rows, i, slot].set(new.astype(old.dtype), mode="drop")
            # what no token will see is 0, wherever the sequence was cut
            used = jnp.arange(self.segment) <= place[:, -1:]
            return jnp.where(used[:, None, :, None, None], old, 0)

        return y, (kept(state.keys, k_h, k_x), kept(state.values, v_h, v_x))

    def remember(self, state, y, age, reset, mask):
        """(the memory's state after writing y, what it reads [B, L, D]); with ``mask`` some tokens only."""
        tokens, history = memory_tokens(self.params, y, self.config, age, state.memory.history)
        r, descent = memory_descent(
            self.config.memory(), memory_weights(self.params, self.config), *tokens, state.memory.descent, reset=reset,
            mask=mask, aligned=self.aligned, **self.config.options(),
        )  # fmt: skip
        r = r.reshape(*y.shape[:2], -1)
        return NeuralMemoryState(descent, history, age[:, -1] + 1), r


def _pick(tokens, yes, no):
    """Token by token one of two arrays [B, L, D]."""
    return jnp.where(tokens[..., None], yes, no)


def _rows(rows, yes, no):
    """Row by row one of two trees."""
    return jax.tree.map(lambda a, b: jnp.where(rows.reshape(-1, *(1,) * (b.ndim - 1)), a, b), yes, no)


def initial_context(
    config: NeuralMemory, dim: int, heads: int, segment: int, batch: int, dtype: Any
) -> TitansContextState:
    """Zeros; ``dtype`` is the storage dtype of keys, values and the convolution's history."""
    memory = initial_neural_memory(config, dim, batch, dtype)
    empty = jnp.zeros((batch, 2, segment, heads, dim // heads), dtype)
    return TitansContextState(memory, memory.descent.weights, empty, empty)


@register(
    "titans_mac",
    variants={
        "default": {
            "heads": 2, "segment": 4, "persistent": 2, "memory": {"heads": 1, "expansion": 1, "chunk_size": 4},
        },
        "bare": {
            "heads": 2, "segment": 5, "persistent": 0, "positions": "none", "gate": "sigmoid",
            "memory": {"heads": 2, "depth": 1, "chunk_size": 3, "conv_size": 0},
        },
    },
)  # fmt: skip
class TitansContext(nn.Module):
    """Titans MAC: attention inside segments, over what the neural memory recalls beside the segment itself.

    Attributes:
      dim: width D of input and output.
      heads: heads of the attention; divides ``dim``.
      segment: tokens C of a segment; a multiple of the memory's chunk size is faster.
      persistent: number N_p of persistent tokens.
      memory: the memory, fields of ``zoo.layers.neural_memory.NeuralMemory`` by name.
      positions: "rotary" (counted from the first persistent token of the segment) or "none".
      base: base of the rotary wavelengths.
      gate: sigma of the gate, "silu" or "sigmoid".
      norm_eps: of the norms in front of the gate.
      dtype: compute dtype of projections and attention; memories are at least float32.
    """

    dim: int
    heads: int = 4
    segment: int = 1024
    persistent: int = 16
    memory: Mapping[str, Any] = FrozenDict()
    positions: str = "rotary"
    base: float = 10_000.0
    gate: str = "silu"
    norm_eps: float = 1e-6
    dtype: str = "float32"

    causal: ClassVar[bool] = True
    paper: ClassVar[str] = "Behrouz, Zhong and Mirrokni 2025, Titans: Learning to Memorize at Test Time (MAC)"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        state: TitansContextState | None = None,
        *,
        reset: Bool[Array, "B T"] | None = None,
    ) -> tuple[Float[Array, "B T D"], TitansContextState]:
        check_sequence(x, self.dim, reset)
        check_positive("segment", self.segment)
        check_choice("gate", self.gate, COMBINES)
        config = NeuralMemory(**self.memory)
        params = attention_parameters(self, dim=self.dim, heads=self.heads, kv_heads=None, positions=self.positions)
        params["merge"] = params.pop("output")
        params |= neural_memory_parameters(self, config, self.dim)
        tokens = persistent_tokens(self, self.persistent, self.dim)
        if tokens is not None:
            params["persistent"] = tokens
        for name in ("attention_scale", "memory_scale"):
            params[name] = self.param(name, nn.initializers.ones, (self.dim,))
        dense = nn.initializers.lecun_normal()
        params["recall"] = self.param("recall", dense, (self.dim, self.dim))
        params["output"] = self.param("gated_output", dense, (self.dim, self.dim))
        if state is not None:
            check_state(state, self.initial_state(x.shape[0]))
        options = {name: getattr(self, name) for name in ("heads", "segment", "positions", "base", "gate", "norm_eps")}
        return titans_mac(params, x.astype(self.dtype), state, config=config, reset=reset, **options)

    def initial_state(self, batch_size: int, dtype: str | None = None) -> TitansContextState:
        """Zeros; ``dtype`` is the storage dtype of caches, memories are at least float32."""
        config = NeuralMemory(**self.memory)
        return initial_context(config, self.dim, self.heads, self.segment, batch_size, dtype or self.dtype)
