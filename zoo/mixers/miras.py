"""Miras: a memory per head that learns while it reads, put together from four parts.

Behrouz, Razaviyayn, Zhong, Mirrokni (2025), It's All Connected: A Journey Through Test-Time Memorization, Attentional Bias,
Retention, and Online Optimization, arXiv 2504.13173; from the equations, there is no public code.

With x_t [D], H heads of width P = D / H:

    u_t = [W_q x_t, W_k x_t, W_v x_t]
    [q_t, k_t, v_t] = silu(sum_j K_j * u_{t-j})        causal depthwise convolution over ``conv_size`` taps
    q_t, k_t                                           scaled to length 1
    alpha_t = sigmoid(.), eta_t = softplus(.), delta_t = softplus(.), m_t = sigmoid(.)       those that the parts read
    W_t = step(W_{t-1}, k_t, v_t, alpha_t, eta_t, ...)      ``zoo.scans.miras_scan``: what is learned, how, and what is kept
    y_t = W_o (rms_norm(M(W_t; q_t)) * scale * silu(W_z x_t))

The gates are affine in x_t: [H], a number per head, or [H, P], a number per channel, through ``rank`` channels.
The memory M is a matrix [P, P], a vector [P], or x + norm(MLP(x)); its first weights W_0 are learned, and the softmax or
the link of a parameter where the retention keeps weights on a simplex or in an interval. ``chunk_size`` is part of the
model.

Algorithm "multi_step" reads so many keys, values and step sizes for every token. Algorithm "non_parametric" is attention:
keys and queries are rotated (RoPE) instead of being scaled to length 1, and q_t is divided by sqrt(P).

What the paper leaves open and is chosen here: silu in the output's gate; biases of the gates at initialisation, from the
``*_init`` fields; W_0 normal, of variance 1 / inputs, or 1 for the first of several layers, since keys have length 1.
Gates, memory and norms are float32 whatever ``dtype``. Time O(B T (D^2 + H N)) for N weights per head. State: N weights
per head, twice where ``chunk_size`` > 1, once more with momentum; the last taps - 1 values of u.
"""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from zoo.checks import check_choice, check_divides, check_positive, check_sequence, check_state, nearest
from zoo.dtypes import accumulator
from zoo.layers.attention import document_positions, rotary
from zoo.layers.convolution import depthwise_convolution, recent
from zoo.layers.initializers import symmetric_uniform
from zoo.layers.memory_mlp import memory_mlp, memory_shapes
from zoo.layers.norms import rms_norm
from zoo.layers.projections import linear
from zoo.registry import register
from zoo.scans import Miras, MirasGates, MirasState, matrix_memory, miras_scan, miras_state, vector_memory

LENGTH_EPS = 1e-6
GATES = ("head", "channel")
_MEMORY_FIELDS = {"depth": 2, "expansion": 4, "activation": "gelu"}
_SQUASH = {"decay": jax.nn.sigmoid, "momentum": jax.nn.sigmoid, "step": jax.nn.softplus, "threshold": jax.nn.softplus}


@struct.dataclass
class MirasLayerState:
    """Carried state: ``memory``, a ``zoo.scans.MirasState``; ``history`` [B, taps - 1, C] of u; ``age`` [B], tokens."""

    memory: MirasState
    history: Float[Array, "B J C"]
    age: Int[Array, " B"]


def miras_layer(
    params: Mapping[str, Array],
    x: Float[Array, "B T D"],
    state: MirasLayerState,
    *,
    parts: Miras,
    chunk_size: int = 1,
    norm_eps: float = 1e-6,
    reset: Bool[Array, "B T"] | None = None,
    method: str = "auto",
) -> tuple[Float[Array, "B T D"], MirasLayerState]:
    """The layer of the module docstring.

    Args:
      params: ``query``, ``gate`` [D, H P]; ``key``, ``value`` [D, n H P], n the updates per token; ``kernel`` [taps, (1 +
        2 n) H P]; for every gate g that the parts read ``g_bias`` [H] or [H P], and ``g`` [D, H], or ``g_down`` [D, rank]
        and ``g_up`` [rank, H P] (``step`` and ``threshold``: n times as wide); ``memory_W0`` [H, ...] and so on; ``scale``
        [P]; ``output`` [H P, D].
      x: inputs; projections run in their dtype.
      state: state before the first token.
      parts: of the memory.
      chunk_size: steps per chunk.
      norm_eps: of the output's norm.
      reset: True at the first token of a new document.
      method: see ``zoo.scans.miras_scan``.

    Returns:
      (y, state after the last token); y has x's dtype.
    """
    width = params["scale"].shape[0]
    inner = params["query"].shape[1]
    heads, updates = inner // width, params["key"].shape[1] // inner
    wide = accumulator(x.dtype)
    attends = not parts.gates
    age = document_positions(reset, state.age, shape=x.shape[:2])
    u = jnp.concatenate([linear(x, params, name) for name in ("query", "key", "value")], axis=-1)
    mixed = jax.nn.silu(depthwise_convolution(u, params["kernel"], age, history=state.history)).astype(wide)

    def split(a):
        several = (updates, heads) if updates > 1 else (heads,)
        return a.reshape(*x.shape[:2], *several, width)

    q, k, v = jnp.split(mixed, (inner, (1 + updates) * inner), axis=-1)
    q, k, v = q.reshape(*x.shape[:2], heads, width), split(k), split(v)
    if attends:
        q, k = (rotary(a, age) for a in (q, k))
        q = q * width**-0.5
    else:
        q, k = _unit(q), _unit(k)
    gates = {name: _gate(params, name, x, heads, wide) for name in parts.gates}
    for name in ("step", "momentum", "threshold"):
        if updates > 1 and name in gates:
            gates[name] = gates[name].reshape(*x.shape[:2], updates, heads, *gates[name].shape[3:])
    weights = _first_weights(params, parts, heads, width)
    memory = (
        _begun(state, miras_state(parts, weights, x.shape[0], chunk_size=chunk_size)) if parts.gates else state.memory
    )
    y, memory = miras_scan(
        parts, q, k, v, MirasGates(**gates), weights, memory, chunk_size=chunk_size, reset=reset, method=method
    )
    y = rms_norm(y, params["scale"], norm_eps).reshape(*x.shape[:2], inner)
    y = (y * jax.nn.silu(linear(x, params, "gate").astype(wide))).astype(x.dtype)
    history = recent(u, params["kernel"].shape[0] - 1, state.history)
    return linear(y, params, "output"), MirasLayerState(memory, history, age[:, -1] + 1)


def _unit(a: Float[Array, "*B K"]) -> Float[Array, "*B K"]:
    """``a`` scaled to length 1, or less where it is hardly longer than 0."""
    return a * lax.rsqrt(jnp.sum(a**2, axis=-1, keepdims=True) + LENGTH_EPS)


def _gate(params, name, x, heads, wide):
    """A gate of every step, [B, T, n H] or [B, T, n H, P]; its bias is added, and it is squashed, in at least float32."""
    if f"{name}_up" not in params:
        return _SQUASH[name]((x @ params[name].astype(x.dtype)).astype(wide) + params[f"{name}_bias"])
    rough = (x @ params[f"{name}_down"].astype(x.dtype)) @ params[f"{name}_up"].astype(x.dtype)
    gate = _SQUASH[name](rough.astype(wide) + params[f"{name}_bias"])
    width = params["scale"].shape[0]
    return gate.reshape(*gate.shape[:2], -1, width)


def _begun(state, start):
    """The memory of ``state``, and ``start`` in rows that have read nothing yet."""
    new = state.age == 0
    return jax.tree.map(lambda a, b: jnp.where(new.reshape(-1, *(1,) * (a.ndim - 1)), a, b), start, state.memory)


def _first_weights(params, parts, heads, width):
    """W_0 by name, [H, ...]; of "non_parametric" the shapes of its pairs."""
    if not parts.gates:
        pair = jnp.zeros((heads, width), jnp.float32)
        return {"keys": pair, "values": pair}
    rough = {n.removeprefix("memory_"): a for n, a in params.items() if n.startswith("memory_")}
    return {name: held_weights(parts.retention, a) for name, a in rough.items()}


def held_weights(retention: Any, rough: Float[Array, "H ..."]) -> Float[Array, "H ..."]:
    """Weights that the retention can hold, of numbers without bounds, [H, I, O] or [H, N]."""
    if hasattr(retention, "c"):
        return retention.c * jax.nn.softmax(rough, axis=1)
    return retention.primal(rough) if hasattr(retention, "link") else rough


def check_memory(spec: str | Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """(name, fields) of a memory's specification: "matrix", "vector", or "mlp" with depth, expansion and activation.

    Raises:
      ValueError: an unknown name or field (with the nearest one).
    """
    options = {"name": spec} if isinstance(spec, str) else dict(spec)
    name = options.pop("name", None)
    check_choice("memory", name, ("vector", "matrix", "mlp"))
    known = _MEMORY_FIELDS if name == "mlp" else {}
    for option in options:
        if option not in known:
            raise ValueError(
                f"memory {name!r} has no field {option!r}{nearest(option, known)} (fields: {sorted(known)})"
            )
    return name, {**known, **options}


def make_memory(spec: str | Mapping[str, Any], width: int) -> tuple[Any, dict[str, tuple[int, ...]]]:
    """(memory, shapes of its weights) for heads of ``width``; ``spec`` as for ``check_memory``."""
    name, options = check_memory(spec)
    if name != "mlp":
        return (vector_memory, {"W0": (width,)}) if name == "vector" else (matrix_memory, {"W0": (width, width)})
    memory = memory_mlp(options["depth"], activation=options["activation"], residual_norm=True)
    return memory, memory_shapes(options["depth"], width, options["expansion"] * width)


def miras_parameters(
    module: nn.Module, parts: Miras, shapes: Mapping[str, tuple[int, ...]], biases: Mapping[str, float | None]
) -> dict[str, Float[Array, "..."]]:
    """Declares the parameters of ``miras_layer`` on a module with the fields of ``MirasLayer`` that size them.

    Args:
      module: has ``dim``, ``heads``, ``conv_size``, ``gates``, ``rank``.
      parts: of the memory.
      shapes: of the memory's weights, by name.
      biases: value of every gate at initialisation, where its input is 0; None for the step: ``first_step``.
    """
    for name in ("heads", "conv_size", "rank"):
        check_positive(name, getattr(module, name))
    check_divides("heads", module.heads, "dim", module.dim)
    check_choice("gates", module.gates, GATES)
    inner, heads, width, updates = module.dim, module.heads, module.dim // module.heads, parts.updates
    dense = nn.initializers.lecun_normal()
    declared = {
        "query": (dense, (module.dim, inner)),
        "key": (dense, (module.dim, updates * inner)),
        "value": (dense, (module.dim, updates * inner)),
        "kernel": (symmetric_uniform(module.conv_size**-0.5), (module.conv_size, (1 + 2 * updates) * inner)),
        "gate": (dense, (module.dim, inner)),
        "scale": (nn.initializers.ones, (width,)),
        "output": (dense, (inner, module.dim)),
    }
    for name in parts.gates:
        value = first_step(parts, shapes) if biases[name] is None else biases[name]
        unit = name in ("decay", "momentum")
        if not (0 < value < 1 if unit else value > 0):
            raise ValueError(f"{name}_init must {'lie in (0, 1)' if unit else 'be positive'}, got {value}")
        bias = nn.initializers.constant(math.log(value / (1 - value)) if unit else math.log(math.expm1(value)))
        several = 1 if name == "decay" else updates
        if module.gates == "head":
            declared |= {name: (dense, (module.dim, several * heads)), f"{name}_bias": (bias, (several * heads,))}
        else:
            declared |= {
                f"{name}_down": (dense, (module.dim, module.rank)),
                f"{name}_up": (dense, (module.rank, several * inner)),
                f"{name}_bias": (bias, (several * inner,)),
            }
    for name, shape in (shapes if parts.gates else {}).items():
        fill = nn.initializers.normal(initial_deviation(parts, name, shapes))
        declared[f"memory_{name}"] = (fill, (heads, *shape))
    return {name: module.param(name, *how) for name, how in declared.items()}


def initial_deviation(parts: Miras, name: str, shapes: Mapping[str, tuple[int, ...]]) -> float:
    """Standard deviation of a weight at the start: an MLP's layers have variances of about 1 for keys of length 1."""
    if not parts.retention.signed:
        return 2.0  # of logits: weights of one column that are nearly equal would leave the memory's norm nothing to divide
    first = name == "W0" and len(shapes) > 1
    return 1.0 if first or len(shapes[name]) == 1 else shapes[name][0] ** -0.5


def first_step(parts: Miras, shapes: Mapping[str, tuple[int, ...]]) -> float:
    """eta at initialisation where none is given: what moves a memory of these sizes noticeably and stably."""
    if not parts.retention.signed or len(shapes) == 1:
        return 0.05
    hidden = shapes["W0"][1]
    # With l_q retention the weights move as if by |W|_q^(q-2) times as much.
    return (0.05 if hasattr(parts.retention, "q") else 0.25) / hidden


def miras_initial_state(
    module: nn.Module, parts: Miras, shapes: Mapping[str, tuple[int, ...]], batch_size: int, dtype: str | None = None
) -> MirasLayerState:
    """The state before the first token: zeros. The learned W_0 is filled in where ``age`` is 0.

    Args:
      module: as for ``miras_parameters``, with ``chunk_size`` and ``dtype``.
      parts: of the memory.
      shapes: of the memory's weights, by name.
      batch_size: rows.
      dtype: storage dtype of the convolution's history, and of the pairs of "non_parametric".
    """
    inner, heads = module.dim, module.heads
    width, wide = inner // heads, accumulator(module.dtype)
    if not parts.gates:
        shapes, wide = {"keys": (width,), "values": (width,)}, dtype or wide
    weights = {name: jax.ShapeDtypeStruct((heads, *shape), wide) for name, shape in shapes.items()}
    state = jax.eval_shape(lambda w: miras_state(parts, w, batch_size, chunk_size=module.chunk_size), weights)
    return MirasLayerState(
        jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), state),
        jnp.zeros((batch_size, module.conv_size - 1, (1 + 2 * parts.updates) * inner), dtype or module.dtype),
        jnp.zeros(batch_size, jnp.int32),
    )


@register(
    "miras",
    variants={
        "default": {"heads": 2, "chunk_size": 4, "rank": 2},
        "elastic": {
            "heads": 1, "gates": "head", "memory": "matrix", "bias": {"name": "value_shift", "radius": 0.2},
            "retention": {"name": "elastic_net", "alpha": 20.0}, "algorithm": "momentum", "chunk_size": 1,
        },
        "attention": {"heads": 2, "algorithm": {"name": "non_parametric", "max_length": 7}, "retention": "none"},
    },
)  # fmt: skip
class MirasLayer(nn.Module):
    """Miras: a memory that learns while it reads, of any memory, attentional bias, retention and algorithm.

    Attributes:
      dim: width D of input and output.
      heads: number of heads H; divides ``dim``.
      memory: "matrix", "vector" or "mlp", or a mapping with "name" and, for "mlp", "depth", "expansion", "activation".
      bias: "dot", "l2", "lp", "l1", "huber", "value_shift", or a mapping with "name" and fields, see ``zoo.scans.BIASES``.
      retention: "none", "l2", "lq", "kl", "f_divergence", "elastic_net", "bregman", likewise (``zoo.scans.RETENTIONS``).
      algorithm: "gradient_descent", "momentum", "implicit", "multi_step", "non_parametric", likewise
        (``zoo.scans.ALGORITHMS``).
      decay_axis, step_axis: where channel gates meet a memory's matrix, see ``zoo.scans.Miras``.
      gates: "head", one number each, or "channel".
      rank: of the projection of channel gates.
      decay_init, step_init, momentum_init, threshold_init: gates at initialisation, where their input is 0;
        ``step_init`` None: see ``first_step``.
      conv_size: taps of the convolution.
      chunk_size: steps per chunk, part of the model; 1: the sequential form.
      norm_eps: of the output's norm.
      dtype: compute dtype of the projections; the memory runs in at least float32.
    """

    dim: int
    heads: int = 4
    memory: str | Mapping[str, Any] = "mlp"
    bias: str | Mapping[str, Any] = "l2"
    retention: str | Mapping[str, Any] = "l2"
    algorithm: str | Mapping[str, Any] = "gradient_descent"
    decay_axis: str | None = None
    step_axis: str | None = None
    gates: str = "channel"
    rank: int = 32
    decay_init: float = 0.98
    step_init: float | None = None
    momentum_init: float = 0.5
    threshold_init: float = 1.0
    conv_size: int = 4
    chunk_size: int = 16
    norm_eps: float = 1e-6
    dtype: str = "float32"

    causal: ClassVar[bool] = True
    paper: ClassVar[str] = "Behrouz, Razaviyayn, Zhong and Mirrokni 2025, It's All Connected (Miras)"

    @property
    def quadratic(self) -> bool:
        """Attention over the pairs costs time and memory by the length of the call."""
        return not self.parts()[0].gates

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        state: MirasLayerState | None = None,
        *,
        reset: Bool[Array, "B T"] | None = None,
    ) -> tuple[Float[Array, "B T D"], MirasLayerState]:
        check_sequence(x, self.dim, reset)
        parts, shapes = self.parts()
        biases = {name: getattr(self, f"{name}_init") for name in parts.gates}
        params = miras_parameters(self, parts, shapes, biases)
        initial = self.initial_state(x.shape[0])
        if state is not None:
            check_state(state, initial)
        return miras_layer(
            params, x.astype(self.dtype), initial if state is None else state, parts=parts, chunk_size=self.chunk_size,
            norm_eps=self.norm_eps, reset=reset,
        )  # fmt: skip

    def parts(self) -> tuple[Miras, dict[str, tuple[int, ...]]]:
        """(the four parts, shapes of the memory's weights)."""
        memory, shapes = make_memory(self.memory, self.dim // self.heads)
        return Miras(memory, self.bias, self.retention, self.algorithm, self.decay_axis, self.step_axis), shapes

    def initial_state(self, batch_size: int, dtype: str | None = None) -> MirasLayerState:
        """Zeros; see ``miras_initial_state``."""
        return miras_initial_state(self, *self.parts(), batch_size, dtype)
