"""Universal Transformer: one Transformer block, the same weights at every step, iterated over depth.

Dehghani, Gouws, Vinyals, Uszkoreit, Kaiser (2018), Universal Transformers, arXiv 1807.03819. Two mixers:
``universal_transformer`` (causal, with a key/value cache per depth step) and ``universal_transformer_encoder``
(bidirectional, no state). The decoder of an encoder-decoder is the causal one with ``cross=True``.

With x [T, D] the input, s_0 = x, and P_t [T, D] the coordinate signal of depth step t = 0, 1, ..., steps - 1:

    b_t = s_t + P_t                                      (combine "concat": [s_t, P_t] W_c, W_c [2D, D])
    s_{t+1} = Block(b_t)                                 recurrence "basic"; y = s_steps
    Block, norm "post" (the paper):      a = LN(b + MHSA(b));        Block(b) = LN(a + Trans(a))
    Block, norm "pre" (released code):   a = b + MHSA(LN(b));        Block(b) = a + Trans(LN(a)); one LN on the final y
    MHSA(h) = concat_h softmax(Q_h K_h^T / sqrt(D / H)) V_h  W_o,    Q, K, V = h W_q, h W_k, h W_v, all [D, D], no biases
    Trans(h) = W_2 relu(W_1 h + b_1) + b_2, W_1 [D, F];  "sepconv": a depthwise convolution over time before W_1 and W_2

With ``cross`` an attention over ``memory`` [S, D], with residual and norm of its own, stands between MHSA and Trans.
P_t is the sum of a position signal ("sinusoid" or "none") and a step signal: a "learned" table [steps, D] used times
sqrt(D), the "sinusoid" of the step, or "none". ``sinusoid`` says which: "interleaved" (the paper: sin, cos, sin, cos, ...,
positions and steps counted from 1) or "concatenated" (the released code: all sines, then all cosines, counted from 0).
``position_start`` shifts the positions: "random" by an offset drawn below T per row in training, "step" by
floor(document length * t / steps).

Recurrences besides "basic", s' = Block(s_t + P_t), [..] a choice of s (state), t (s'), i (x), by ``gate_inputs``:

    highway   s_{t+1} = g * s' + (1 - g) * s_t,  g = sigmoid([..] W_g + b_g), b_g = -1 at first
    skip      s_{t+1} = g * s' + (1 - g) * x     (``couple_gates=False``: own carry gate, bias +1, instead of 1 - g)
    dwa       s_{t+1} = Block(sum_{n<=t} w_n * s_n + P_t),  w = softmax of (s_n + e_n) W + b over the depth n, channel by
              channel (``dwa_axis="depth"``), or over the channels (``"channel"``, the released code)
    gru       a = LN(MHSA(s + P));  z, r = sigmoid([a, s] W + b), b = 1 at first;  c = tanh([a, r * s] W_c + b_c);
              s_{t+1} = LN((1 - z) * a + z * c)
    lstm      a as above; i, f, o, g gates of [a, s], forget bias 1; m = sig(f) * m + sig(i) * tanh(g);
              s_{t+1} = sig(o) * tanh(m).  Neither takes a step signal, they count by themselves
    act       adaptive computation time, see ``zoo.scans.adaptive_halting``: p = sigmoid(b_t . w + b) decides for every
              position when it has had enough; y mixes the s_{t+1} of the steps taken. ``act_type`` "basic" (running
              interpolation), "accumulated" (weighted sum), "global" (p averaged over the document), "random" (p uniform)

``inner_layers`` blocks of their own weights make up one step; ``mix_before`` and ``mix_after`` plain layers, without
signal, stand around the recurrence. With ``shared=False`` every step has weights of its own: a plain Transformer of
``steps`` times ``inner_layers`` layers that gets the same signals, the baseline. Each of the layers sees the current token
and at most ``window - 1`` before it in its document (causal), or its whole document (encoder).

State of the causal form: for every layer application (depth step times inner layer) a ring of the last ``window`` keys and
values, and the inputs of the convolutions. Decoding with it is exact because no position sees a later one; under ACT every
position therefore takes all steps in s, and only the weights in y depend on where it halted. What cannot be
streamed (act_type "global", position_start "step", random offsets) only the encoder has.

Cost: steps * inner_layers Transformer layers in time; memory of reverse mode grows likewise; parameters of one step;
compile time does not depend on ``steps``. Encoder O(T^2) per layer; causal O(T min(T, window)).

Diagnostics: ``run`` returns a ``Depth`` with the ponder time n and remainder R of every position, and on request
attention maps; ``__call__`` sows ``ponder_steps`` and ``ponder_remainder`` in "intermediates". ``ponder_cost`` and
``step_histogram`` summarise them. In training (an rng "dropout" is given) dropout and random offsets are on.

    encoder = UniversalTransformerEncoder(dim=32, heads=2, steps=6, mlp_dim=64, position_signal="none")
    params = encoder.init(key, x)
    y, depth = encoder.apply(params, x, valid=mask, method="run")            # padding: mask [B, T] False
    cost = tau * ponder_cost(depth.steps, depth.remainder, mask)
"""

import dataclasses
import math
from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from zoo.checks import check_divides, check_positive, check_sequence, check_state
from zoo.dtypes import accumulator
from zoo.layers.attention import (
    document_positions,
    grouped_attention,
    ring_of_last,
    unroll_ring,
    windowed_attention,
)
from zoo.layers.depth_recurrence import RECURRENCES, DepthStep, Options, ponder_cost, step_histogram
from zoo.layers.positions import sinusoidal_positions
from zoo.layers.transformer_layer import Layer, LayerCache, layer_normed, project_memory, transformer_layers
from zoo.registry import register

__all__ = [
    "Depth",
    "Options",
    "UniversalTransformer",
    "UniversalTransformerBase",
    "UniversalTransformerState",
    "ponder_cost",
    "project_memory",
    "step_histogram",
    "universal_transformer",
]

Params = Mapping[str, Any]


class Depth(NamedTuple):
    """What happened over depth.

    Attributes:
      steps: n [B, T] int32, the ponder time of every position (all steps, without ACT; 0 where not valid).
      remainder: R [B, T], zeros without ACT.
      loops: how many steps were run at all.
      maps: attention averaged over heads [steps, inner_layers, B, query, key], if asked for.
    """

    steps: Int[Array, "B T"]
    remainder: Float[Array, "B T"]
    loops: Int[Array, ""]
    maps: Float[Array, "N L B T T"] | None


@struct.dataclass
class UniversalTransformerState:
    """Carried state; A layer applications in order, rings over W slots.

    Attributes:
      keys: [A, B, W, H, K].
      values: [A, B, W, H, K].
      up_inputs: the latest inputs of the first convolution [A, B, taps - 1, D]; None without convolutions.
      down_inputs: of the second one [A, B, taps - 1, F]; None without.
      slot: [B] int32, where the next token goes.
      length: [B] int32, tokens of the current document so far.
    """

    keys: Float[Array, "A B W H K"]
    values: Float[Array, "A B W H K"]
    up_inputs: Float[Array, "A B I D"] | None
    down_inputs: Float[Array, "A B J F"] | None
    slot: Int[Array, " B"]
    length: Int[Array, " B"]


class _Scene(NamedTuple):
    """What stays the same over depth: ``age`` [B, T] positions in the document, ``document`` [B, T, T] which positions are
    in the same one and ``lengths`` [B, T] how many (encoder only), ``slot`` [B] of the state if there is one."""

    age: Any
    document: Any
    lengths: Any
    slot: Any


def _attention(
    queries: Array, keys: Array, values: Array, cache: Any, *, scene: _Scene, window: int | None, maps: bool
) -> tuple[Array, tuple[Any, Any], Any]:
    """Attention in the document, or over its last ``window`` tokens; returns (y, key and value rings, map or None)."""
    q, k, v, slot = queries, keys, values, scene.slot
    time, dtype = q.shape[1], q.dtype
    if window is None:
        return grouped_attention(q, k, v, scene.document), (None, None), _map(q, k, scene.document) if maps else None
    visible = jnp.minimum(scene.age + 1, window)
    if cache is None:
        y, weights = windowed_attention(q, k, v, visible, window=window), None
        if maps:
            distance = jnp.arange(time)[:, None] - jnp.arange(time)
            weights = _map(q, k, (distance >= 0) & (distance < visible[..., None]))
        return y, (ring_of_last(k, window), ring_of_last(v, window)), weights
    # Through the cache's dtype in every case: a token must look the same from this call and from the next.
    k, v = k.astype(cache.keys.dtype), v.astype(cache.values.dtype)
    if time == 1:
        rows = jnp.arange(q.shape[0])
        k, v = cache.keys.at[rows, slot].set(k[:, 0]), cache.values.at[rows, slot].set(v[:, 0])
        distance = (slot[:, None] - jnp.arange(window)) % window
        return grouped_attention(q, k.astype(dtype), v.astype(dtype), (distance < visible)[:, None]), (k, v), None
    k, v = (jnp.concatenate([unroll_ring(old, slot), new], axis=1) for old, new in ((cache.keys, k), (cache.values, v)))
    y = windowed_attention(q, k.astype(dtype), v.astype(dtype), visible, window=window)
    first = (window - (slot + time) % window) % window
    return y, tuple(unroll_ring(a[:, -window:], first) for a in (k, v)), None


def _map(q: Array, k: Array, mask: Array) -> Array:
    """Attention weights averaged over heads [B, T, S]."""
    scores = jnp.einsum("bthk,bshk->bhts", q, k, preferred_element_type=accumulator(q.dtype)) * q.shape[-1] ** -0.5
    return jnp.mean(jax.nn.softmax(scores, axis=-1, where=mask[:, None]), axis=1)


def universal_transformer(
    params: Params,
    x: Float[Array, "B T D"],
    options: Options,
    state: UniversalTransformerState | None = None,
    *,
    reset: Bool[Array, "B T"] | None = None,
    valid: Bool[Array, "B T"] | None = None,
    memory: Mapping[str, Any] | None = None,
    memory_mask: Bool[Array, "B S"] | None = None,
    key: Any = None,
    halting_key: Any = None,
    dropout: float = 0.0,
    maps: bool = False,
) -> tuple[Float[Array, "B T D"], UniversalTransformerState | None, Depth]:
    """The model of the module docstring.

    Args:
      params: ``block`` (inner layers stacked on axis 0; on axes 0 and 1 steps and inner layers if not shared), ``before``
        and ``after`` likewise if any, each with the parameters of a layer, see ``zoo.layers.transformer_layer``; and
        what the options ask for: ``step_table`` [>= steps, D], ``combine`` [2D, D], ``final_norm`` {``scale``, ``bias``};
        {``weight``, ``bias``} of ``halting`` [D], [1], of ``gate``, ``carry`` [D times gate inputs, D], of ``update``,
        ``reset``, ``candidate`` or ``input``, ``forget``, ``out``, ``cell`` [2D, D]; ``gru_norm``; ``dwa`` {``weight``
        [D, D], ``bias``, ``embedding`` [>= steps, D]}.
      x: inputs; their dtype is the compute dtype, the state s is kept in at least float32.
      options: what is computed.
      state: state before the first token, None for the start; causal form only.
      reset: True at the first token of a new document.
      valid: False at padding. In the encoder the padding becomes a document of its own; in both, it halts at once.
      memory: what ``project_memory`` returned, for layers with cross-attention.
      memory_mask: True where the memory is real.
      key: randomness for dropout and random offsets (training); None: neither.
      halting_key: randomness for act_type "random".
      dropout: rate on every residual branch, only with a key.
      maps: return attention maps; only without ``state``.

    Returns:
      (y in x's dtype, state after the last token or None for the encoder, ``Depth``).

    Raises:
      ValueError: ``steps`` goes beyond a learned table.
    """
    batch, time, dim = x.shape
    o, dtype, s = options, x.dtype, x.astype(accumulator(x.dtype))
    made_for = {"step_table": params.get("step_table"), "dwa": params.get("dwa", {}).get("embedding")}
    made_for["block"] = None if o.shared else params["block"]["query"]
    for name, table in made_for.items():
        if table is not None and table.shape[0] < o.steps:
            raise ValueError(
                f"steps={o.steps} goes beyond the {table.shape[0]} steps that the parameters {name!r} were learned for; "
                "shared weights with step_signal='sinusoid' or 'none', without dwa, have no limit"
            )
    scene = _scene(o, (batch, time), state, reset, valid)
    layer = Layer(
        dtype=dtype,
        heads=o.heads,
        pre=o.norm == "pre",
        attention=partial(_attention, scene=scene, window=o.window, maps=maps),
        age=scene.age,
        lengths=scene.lengths,
        memory_mask=memory_mask,
        dropout=dropout,
    )
    offset = 0
    if o.position_start == "random" and key is not None:
        offset = jax.random.randint(jax.random.fold_in(key, 0), (batch, 1), 0, time)

    def signal(s, t):
        return _add_signal(params, s, _coordinates(params, o, scene, offset, t, dim), o, dtype)

    def run(group, s, t, cache, own=None, gated=False):
        weights, seen = own or (params[group], None if memory is None else memory[group])
        draw = None if key is None else jax.random.fold_in(jax.random.fold_in(key, 1 + GROUPS.index(group)), t)
        return transformer_layers(weights, s, cache, seen, layer, draw, gated=gated)

    # Weights of single steps travel through the loop over depth next to the caches.
    untied = None
    if not o.shared:
        everything = (params["block"], None if memory is None else memory["block"])
        untied = jax.tree.map(lambda a: a[: o.steps], everything)

    def block(s, t, at, gated=False):
        cache, own = (None, jax.tree.map(lambda a: a[t], untied)) if at is None else at
        return run("block", s, t, cache, own, gated)

    step = DepthStep(
        signal=signal,
        block=block,
        attend=partial(block, gated=True),
        linear=lambda p, inputs: _linear(p, inputs, dtype),
    )
    caches = _split(state, o)
    traces = {}
    if o.mix_before:
        s, traces["before"] = run("before", s, 0, caches["before"])
    recurrence, names = RECURRENCES[o.recurrence]
    own = {name: getattr(o, name) for name in names}
    if o.recurrence == "act":
        own |= {
            "method": "trace" if o.causal or maps else o.act_method,
            "halted": None if valid is None else ~valid,
            "document": scene.document,
            "key": halting_key,
        }
    s, traces["block"] = recurrence(params, s, step, (caches["block"], untied), steps=o.steps, **own)
    if o.recurrence == "act":
        depth = Depth(s.steps, s.remainder, s.loops, None)
        s = s.output
    else:
        taken = jnp.full((batch, time), o.steps, jnp.int32)
        taken = taken if valid is None else jnp.where(valid, taken, 0)
        depth = Depth(taken, jnp.zeros((batch, time), s.dtype), jnp.asarray(o.steps, jnp.int32), None)
    if maps:
        depth = depth._replace(maps=traces["block"].map)
    if o.mix_after:
        s, traces["after"] = run("after", s, 0, caches["after"])
    if "final_norm" in params:
        s = layer_normed(params, "final_norm", s)
    return s.astype(dtype), _join(traces, o, scene) if o.causal else None, depth


GROUPS = ("before", "block", "after")


def _scene(o: Options, shape: tuple[int, int], state: Any, reset: Any, valid: Any) -> _Scene:
    if o.causal:
        age = document_positions(reset, None if state is None else state.length, shape=shape)
        return _Scene(age, None, None, None if state is None else state.slot)
    number = jnp.zeros(shape, jnp.int32) if reset is None else jnp.cumsum(reset, axis=1)
    if valid is not None:
        number = 2 * number + valid
    document = number[:, :, None] == number[:, None]
    age = jnp.sum(jnp.tril(document, -1), axis=-1, dtype=jnp.int32)
    return _Scene(age, document, jnp.sum(document, axis=-1, dtype=jnp.int32), None)


def _linear(params: Params, inputs: list[Array], dtype: Any) -> Array:
    """Concatenated inputs times ``weight`` plus ``bias``, multiplied in ``dtype``, returned in that of the inputs."""
    x = inputs[0] if len(inputs) == 1 else jnp.concatenate(inputs, axis=-1)
    return (x.astype(dtype) @ params["weight"].astype(dtype)).astype(x.dtype) + params["bias"]


def _coordinates(params: Params, o: Options, scene: _Scene, offset: Any, t: Array, dim: int) -> Array:
    """P_t, broadcastable to [B, T, D]."""
    interleaved = o.sinusoid == "interleaved"
    origin = 1 if interleaved else 0
    total = jnp.zeros((1, 1, dim))
    if o.position_signal == "sinusoid":
        positions = scene.age + origin + offset
        if o.position_start == "step":
            positions = positions + scene.lengths * t // o.steps
        total = total + sinusoidal_positions(positions, dim, interleaved=interleaved)
    if o.step_signal == "sinusoid":
        total = total + sinusoidal_positions(t + origin, dim, interleaved=interleaved)
    elif o.step_signal == "learned":
        total = total + jnp.asarray(params["step_table"])[t] * dim**0.5
    return total


def _add_signal(params: Params, s: Array, signal: Array, o: Options, dtype: Any) -> Array:
    if o.position_signal == o.step_signal == "none":
        return s
    signal = signal.astype(s.dtype)
    if o.combine == "add":
        return s + signal
    both = jnp.concatenate([s, jnp.broadcast_to(signal, s.shape)], axis=-1).astype(dtype)
    return (both @ params["combine"].astype(dtype)).astype(s.dtype)


def _split(state: UniversalTransformerState | None, o: Options) -> dict[str, Any]:
    """The caches of each group of layers, those of the recurrence stacked as [steps, inner_layers, ...]."""
    if state is None:
        return dict.fromkeys(GROUPS)
    everything = LayerCache(state.keys, state.values, state.up_inputs, state.down_inputs)
    ends = (0, o.mix_before, o.applications - o.mix_after, o.applications)
    groups = {g: jax.tree.map(lambda c, i=i: c[ends[i] : ends[i + 1]], everything) for i, g in enumerate(GROUPS)}
    groups["block"] = jax.tree.map(lambda c: c.reshape(o.steps, o.inner_layers, *c.shape[1:]), groups["block"])
    return groups


def _join(traces: Mapping[str, Any], o: Options, scene: _Scene) -> UniversalTransformerState:
    """The state after the call from the caches that the layers left."""
    groups = {g: traces[g].cache for g in GROUPS if g in traces}
    groups["block"] = jax.tree.map(lambda c: c.reshape(o.steps * o.inner_layers, *c.shape[2:]), groups["block"])
    caches = jax.tree.map(lambda *c: jnp.concatenate(c), *groups.values())
    batch, time = scene.age.shape
    slot = jnp.zeros((batch,), jnp.int32) if scene.slot is None else scene.slot
    return UniversalTransformerState(*caches, slot=(slot + time) % o.window, length=scene.age[:, -1] + 1)


class UniversalTransformerBase(nn.Module):
    """Fields and parameters that the causal form and the encoder share; see ``UniversalTransformer``."""

    dim: int
    heads: int = 4
    steps: int = 6
    mlp_dim: int | None = None
    recurrence: str = "basic"
    norm: str = "pre"
    transition: str = "fc"
    kernel_sizes: tuple[int, int] = (3, 5)
    position_signal: str = "sinusoid"
    position_start: str = "none"
    step_signal: str = "learned"
    sinusoid: str = "interleaved"
    combine: str = "add"
    act_type: str = "basic"
    epsilon: float = 0.01
    freeze_halted: bool = False
    act_method: str = "scan"
    halting_bias: float = 1.0
    halting_scale: float = 1.0
    gate_inputs: str = "i"
    couple_gates: bool = True
    dwa_axis: str = "depth"
    inner_layers: int = 1
    mix_before: int = 0
    mix_after: int = 0
    shared: bool = True
    dropout: float = 0.0
    dtype: str = "float32"

    paper: ClassVar[str] = "Dehghani et al. 2018, Universal Transformers"

    def options(self) -> Options:
        """The checked options; the fields without the sizes and initial values of parameters."""
        check_positive("dim", self.dim)
        check_positive("heads", self.heads)
        check_divides("heads", self.heads, "dim", self.dim)
        if not isinstance(self.shared, bool):
            raise TypeError(f"shared must be True or False, got {self.shared!r}")
        names = {f.name for f in dataclasses.fields(Options)}
        return Options(**{f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name in names})

    def setup(self):
        o, d = self.options(), self.dim
        if len(self.kernel_sizes) != 2 or min(self.kernel_sizes) < 1:
            raise ValueError(f"kernel_sizes must be two positive numbers of taps, got {self.kernel_sizes!r}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), got {self.dropout!r}")
        if self.mlp_dim is not None:
            check_positive("mlp_dim", self.mlp_dim)
        gated = o.recurrence in ("gru", "lstm")
        own = () if o.shared else (self._rows("block", "query"),)
        params = {"block": self._stacked("block", o.inner_layers, gated, own)}
        for group, count in (("before", o.mix_before), ("after", o.mix_after)):
            if count:
                params[group] = self._stacked(group, count, False)

        def declare(name, **leaves):
            params[name] = self.param(name, lambda key: _draw(key, leaves))

        if o.step_signal == "learned":
            params["step_table"] = self.param(
                "step_table", nn.initializers.normal(d**-0.5), (self._rows("step_table"), d)
            )
        if o.combine == "concat" and (o.position_signal, o.step_signal) != ("none", "none"):
            params["combine"] = self.param("combine", nn.initializers.normal((2 * d) ** -0.5), (2 * d, d))
        if o.norm == "pre":
            declare("final_norm", scale=(1.0, (d,)), bias=(0.0, (d,)))
        if o.recurrence == "act":
            declare("halting", weight=((self.halting_scale * d**-0.5,), (d,)), bias=(self.halting_bias, (1,)))
        wide = len(o.gate_inputs) * d
        gates = {
            "highway": {"gate": (wide, -1.0)} | ({} if o.couple_gates else {"carry": (wide, 1.0)}),
            "gru": {"update": (2 * d, 1.0), "reset": (2 * d, 1.0), "candidate": (2 * d, 0.0)},
            "lstm": {"input": (2 * d, 0.0), "forget": (2 * d, 1.0), "out": (2 * d, 0.0), "cell": (2 * d, 0.0)},
        }
        gates["skip"] = gates["highway"]
        for name, (fan_in, bias) in gates.get(o.recurrence, {}).items():
            declare(name, weight=((fan_in**-0.5,), (fan_in, d)), bias=(bias, (d,)))
        if o.recurrence == "gru":
            declare("gru_norm", scale=(1.0, (d,)), bias=(0.0, (d,)))
        if o.recurrence == "dwa":
            spread = (d**-0.5,)
            rows = self._rows("dwa", "embedding")
            declare("dwa", weight=(spread, (d, d)), bias=(0.0, (d,)), embedding=(spread, (rows, d)))
        self.parameters = params

    def _rows(self, *path: str) -> int:
        """Steps that a learned table has: those it was made with."""
        if not self.has_variable("params", path[0]):
            return self.steps
        table = self.get_variable("params", path[0])
        return (table[path[1]] if len(path) > 1 else table).shape[0]

    def _stacked(self, name: str, count: int, gated: bool, leading: tuple[int, ...] = ()) -> Params:
        """``count`` layers stacked on axis 0, or behind the axes ``leading``; weights N(0, 1 / fan_in)."""
        d, f = self.dim, self.mlp_dim or 4 * self.dim
        leaves = {p: ((d**-0.5,), (d, d)) for p in ("query", "key", "value", "output")}
        norms = ["attention_norm"]
        if getattr(self, "cross", False):
            leaves |= {f"cross_{p}": ((d**-0.5,), (d, d)) for p in ("query", "key", "value", "output")}
            norms.append("cross_norm")
        if not gated:
            leaves |= {"up": ((d**-0.5,), (d, f)), "up_bias": (0.0, (f,))}
            leaves |= {"down": ((f**-0.5,), (f, d)), "down_bias": (0.0, (d,))}
            norms.append("transition_norm")
            if self.transition == "sepconv":
                for part, taps, width in zip(("up", "down"), self.kernel_sizes, (d, f)):
                    leaves[f"{part}_kernel"] = ((taps**-0.5,), (taps, width))
        leaves |= {norm: {"scale": (1.0, (d,)), "bias": (0.0, (d,))} for norm in norms}
        shape = (*leading, count)

        def draw(key):
            drawn = jax.vmap(lambda k: _draw(k, leaves))(jax.random.split(key, math.prod(shape)))
            return jax.tree.map(lambda a: a.reshape(*shape, *a.shape[1:]), drawn)

        return self.param(name, draw)

    def run(
        self,
        x: Float[Array, "B T D"],
        state: Any = None,
        *,
        reset: Bool[Array, "B T"] | None = None,
        valid: Bool[Array, "B T"] | None = None,
        memory: Any = None,
        memory_mask: Bool[Array, "B S"] | None = None,
        deterministic: bool = False,
        maps: bool = False,
    ) -> tuple[Float[Array, "B T D"], UniversalTransformerState | None, Depth]:
        """Returns (y, state after the last token or None, ``Depth``).

        Args:
          x: inputs.
          state: state before the first token; causal form only.
          reset: True at the first token of a new document.
          valid: False at padding; see ``universal_transformer``.
          memory: what ``project`` returned; with ``cross`` only.
          memory_mask: True where the memory is real.
          deterministic: no dropout and no random offsets even if there is an rng "dropout".
          maps: return attention maps in ``Depth``.
        """
        check_sequence(x, self.dim, reset)
        o = self.options()
        if valid is not None and (valid.dtype != jnp.bool_ or valid.shape != x.shape[:2]):
            raise ValueError(f"valid must be bool of shape {list(x.shape[:2])}, got {valid.dtype}{list(valid.shape)}")
        if (memory is None) == getattr(self, "cross", False):
            raise ValueError("memory (from the method project) goes with cross=True, and only with it")
        if state is not None:
            if not o.causal:
                raise ValueError("the encoder is bidirectional and keeps no state, but got one")
            if maps:
                raise ValueError("maps=True needs state=None: maps are made for whole sequences")
            check_state(state, jax.eval_shape(lambda: self.initial_state(x.shape[0])))
        halting_key = None
        if o.recurrence == "act" and o.act_type == "random":
            if not (self.has_rng("halting") or self.is_initializing()):
                raise ValueError("act_type='random' needs an rng: apply(..., rngs={'halting': key})")
            halting_key = self.make_rng("halting")
        noisy = self.dropout > 0 or o.position_start == "random"
        y, state, depth = universal_transformer(
            self.parameters,
            x.astype(self.dtype),
            o,
            state,
            reset=reset,
            valid=valid,
            memory=memory,
            memory_mask=memory_mask,
            key=self.make_rng("dropout") if noisy and not deterministic and self.has_rng("dropout") else None,
            halting_key=halting_key,
            dropout=self.dropout,
            maps=maps,
        )
        self.sow("intermediates", "ponder_steps", depth.steps)
        self.sow("intermediates", "ponder_remainder", depth.remainder)
        return y, state, depth

    def __call__(
        self, x: Float[Array, "B T D"], state: Any = None, *, reset: Bool[Array, "B T"] | None = None
    ) -> tuple[Float[Array, "B T D"], UniversalTransformerState | None]:
        return self.run(x, state, reset=reset)[:2]


def _draw(key: Array, leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Initial values: (number, shape) is constant, ((deviation,), shape) normal, a mapping is drawn leaf by leaf."""
    values = {}
    for (name, spec), k in zip(leaves.items(), jax.random.split(key, len(leaves))):
        if isinstance(spec, Mapping):
            values[name] = _draw(k, spec)
        elif isinstance(spec[0], tuple):
            values[name] = spec[0][0] * jax.random.normal(k, spec[1])
        else:
            values[name] = jnp.full(spec[1], spec[0], jnp.float32)  # strongly typed, or a step is compiled twice
    return values


@register(
    "universal_transformer",
    variants={
        "basic": {"heads": 2, "steps": 3, "window": 16, "mlp_dim": 12},
        "act_sepconv": {
            "heads": 2, "steps": 4, "window": 5, "mlp_dim": 12, "recurrence": "act", "act_type": "accumulated",
            "freeze_halted": True, "halting_bias": -2.0, "transition": "sepconv", "step_signal": "none",
            "sinusoid": "concatenated",
        },
        "act_mixed": {
            "heads": 2, "steps": 4, "window": 16, "mlp_dim": 12, "recurrence": "act", "halting_bias": -1.0,
            "inner_layers": 2, "mix_before": 1, "mix_after": 1, "norm": "post",
        },
        "highway_concat": {
            "heads": 2, "steps": 3, "window": 16, "mlp_dim": 12, "recurrence": "highway", "couple_gates": False,
            "gate_inputs": "sti", "combine": "concat", "step_signal": "sinusoid",
        },
        "dwa": {"heads": 2, "steps": 3, "window": 16, "mlp_dim": 12, "recurrence": "dwa", "norm": "post"},
    },
)  # fmt: skip
class UniversalTransformer(UniversalTransformerBase):
    """Universal Transformer, causal: one block iterated over depth, with a key/value cache per step.

    Attributes:
      dim: width D of input and output.
      heads: number of attention heads H; divides ``dim``.
      steps: depth steps; under ACT the most any position may take. Parameters made with more steps also serve fewer.
      mlp_dim: inner width F of the transition; None for 4 ``dim``.
      recurrence: "basic", "act", "highway", "skip", "dwa", "gru" or "lstm".
      norm: "pre" (released code) or "post" (paper).
      transition: "fc" or "sepconv".
      kernel_sizes: taps of the two convolutions of "sepconv".
      position_signal: "sinusoid" or "none".
      position_start: "none", "random" or "step"; the last two only in the encoder.
      step_signal: "learned", "sinusoid" or "none".
      sinusoid: "interleaved" (paper, counts from 1) or "concatenated" (released code, counts from 0).
      combine: "add" the signal, or "concat" and project back.
      act_type: "basic", "accumulated", "random", and in the encoder "global".
      epsilon: a position halts once its probabilities sum to more than 1 - epsilon.
      freeze_halted: halted positions keep their state, instead of being transformed further.
      act_method: "scan", or "while": a loop that ends with the last position, for inference in the encoder. The causal
        form runs all steps in any case, to fill its caches.
      halting_bias: initial bias of the halting unit.
      halting_scale: its weights are N(0, halting_scale^2 / D) at first.
      gate_inputs: what the gates of highway and skip see: letters of "s" (state), "t" (transformed state), "i" (input).
      couple_gates: carry gate 1 - g, instead of one of its own.
      dwa_axis: axis of the softmax of dwa, "depth" or "channel".
      inner_layers: layers in one step.
      mix_before: plain layers before the recurrence.
      mix_after: plain layers after it.
      shared: the same weights at every step; False: each step has its own (a Transformer).
      dropout: rate on every residual branch, when there is an rng "dropout".
      dtype: compute dtype; the state over depth is kept in at least float32.
      window: tokens that a token can see, itself included: the stated maximum of the caches.
      cross: attention over a memory in every layer (``project`` and ``run``).
    """

    window: int = 1024
    cross: bool = False

    causal: ClassVar[bool] = True

    def project(self, memory: Float[Array, "B S D"]) -> dict[str, tuple[Array, Array]]:
        """Keys and values of ``memory`` for every group of layers: computed once, then used at every step and token."""
        if not self.cross:
            raise ValueError("project needs cross=True")
        check_sequence(memory, self.dim)
        memory = memory.astype(self.dtype)
        projected = {}
        for group in set(GROUPS) & set(self.parameters):
            project = partial(project_memory, memory=memory, heads=self.heads)
            own_weights = group == "block" and not self.shared
            cross = {name: self.parameters[group][name] for name in ("cross_key", "cross_value")}
            projected[group] = (jax.vmap(project) if own_weights else project)(cross)
        return projected

    def initial_state(self, batch_size: int, dtype: str | None = None) -> UniversalTransformerState:
        """Empty caches of ``dtype`` (default: the compute dtype)."""
        o = self.options()
        dtype = dtype or self.dtype
        rings = jnp.zeros((o.applications, batch_size, o.window, o.heads, self.dim // o.heads), dtype)
        tails = [None, None]
        if o.transition == "sepconv" and o.recurrence not in ("gru", "lstm"):
            widths = (self.dim, self.mlp_dim or 4 * self.dim)
            tails = [
                jnp.zeros((o.applications, batch_size, taps - 1, width), dtype)
                for taps, width in zip(self.kernel_sizes, widths)
            ]
        count = jnp.zeros((batch_size,), jnp.int32)
        return UniversalTransformerState(rings, rings, *tails, slot=count, length=count)
