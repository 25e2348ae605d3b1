"""Memories that learn while they read, put together from four parts: Miras.

Behrouz, Razaviyayn, Zhong, Mirrokni (2025), It's All Connected: A Journey Through Test-Time Memorization, Attentional Bias,
Retention, and Online Optimization, arXiv 2504.13173 (no public code: from the equations). A memory M with weights W reads
pairs (k_t, v_t) and is asked q_t. ``Miras`` holds the parts:

    memory      M: a matrix, a vector, an MLP: a function after the contract of zoo/scans/chunked/memory.py
    bias        l(M(k), v), what it is trained for: zoo/scans/chunked/attentional_bias.py
    retention   how it stays near what it was, W = primal(Z): zoo/scans/chunked/retention.py
    algorithm   how one step is made, below

    g_t = dl(M(W_{t-1}; k_t), v_t)/dW
    change_t = -eta_t g_t                                        GradientDescent; with Momentum S_t = m_t S_{t-1} - eta_t g_t
    Z_t = update(Z_{t-1}, change_t),  W_t = primal(Z_t)          e.g. Z_t = alpha_t Z_{t-1} + change_t
    y_t = M(W_t; q_t)                                            read after the write

Algorithms:

    GradientDescent   the above; ``at`` = "decayed" takes g_t at alpha_t W_{t-1} (Gated DeltaNet) instead of W_{t-1} (Miras,
                      Titans)
    Momentum          likewise, with S
    ImplicitDescent   Longhorn: g_t is taken at W_t itself. For a matrix and l2 = factor |e|^2 / 2 that is the explicit step
                      with eta / (1 + eta factor |k|^2) in place of eta
    MultiStep         DeltaProduct: ``steps`` pairs (k, v) and steps eta for every token; alpha acts before the first of them
    NonParametric     attention: no weights, the pairs themselves are kept. M(q) minimises sum_i exp(q . k_i) |v_i - M|^2
                      over the last ``max_length`` pairs

Gates (``MirasGates``): a number per head and step [B, T, H], or one per channel [B, T, H, D]. A channel gate meets a matrix
[I, O] at the axis of its own size that the table of ``Miras.axes`` names; by default the step size and the momentum meet
the output axis of the last weight and the input axis of the weights before it, and the decay likewise. (The paper does not
say. Weights with no such axis, inside an MLP of three layers or more, get the mean over the channels.)

Forms. ``chunk_size`` is part of the model, for b > 1 it is another function than for b = 1:

    b = 1   the sequential form, T dependent steps
    b > 1   the gradients of a chunk of b steps are all taken at its first weights, in parallel; then Z is a linear
            recurrence inside the chunk where the retention allows it (see there); only Z goes from chunk to chunk

Chunks are counted from the beginning of every document: a sequence may be cut anywhere, also inside a chunk, since the
state
carries the weights that gradients are taken at (``anchor``) and the steps of the chunk that are done (``place``). Rows
whose documents begin at different steps are at different places of their chunks, so rows are cut into segments of at most
b steps, every row its own; how many there are depends on the documents, and segments that no row needs are skipped.

Gradients go through all inner updates, exactly. Everything is computed in at least float32. Reverse mode keeps the weights
at the borders of segments (of about sqrt(T) steps where b = 1) and computes the rest again.

Cost per head, for N weights: O(T N) time. In a chunk the weights of all b steps exist side by side: b N numbers.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from zoo.checks import check_choice, check_floating, check_positive, check_reset, nearest
from zoo.dtypes import accumulator
from zoo.scans.chunked.attentional_bias import BIASES, L2
from zoo.scans.chunked.memory import Memory, apply_memory, token_gradients
from zoo.scans.chunked.retention import RETENTIONS, L2Retention, NoRetention
from zoo.scans.linear import linear_scan

Weights = Mapping[str, Float[Array, "..."]]
POINTS = ("previous", "decayed")


@dataclasses.dataclass(frozen=True)
class GradientDescent:
    """One gradient step for every token, the gradient taken ``at`` the "previous" or the "decayed" weights."""

    at: str = "previous"

    def __post_init__(self):
        check_choice("at", self.at, POINTS)


@dataclasses.dataclass(frozen=True)
class Momentum:
    """Gradient steps with momentum; ``at`` as in ``GradientDescent``."""

    at: str = "previous"

    def __post_init__(self):
        check_choice("at", self.at, POINTS)


@dataclasses.dataclass(frozen=True)
class ImplicitDescent:
    """The implicit step, in closed form: for a matrix memory and the l2 bias."""

    at: str = "decayed"

    def __post_init__(self):
        check_choice("at", self.at, POINTS)


@dataclasses.dataclass(frozen=True)
class MultiStep:
    """``steps`` gradient steps for every token, each with a key, a value and a step size of its own."""

    steps: int = 2
    at: str = "decayed"

    def __post_init__(self):
        check_positive("steps", self.steps)
        check_choice("at", self.at, POINTS)


@dataclasses.dataclass(frozen=True)
class NonParametric:
    """Kernel regression over the last ``max_length`` pairs."""

    max_length: int = 1024

    def __post_init__(self):
        check_positive("max_length", self.max_length)


ALGORITHMS = {
    "gradient_descent": GradientDescent,
    "momentum": Momentum,
    "implicit": ImplicitDescent,
    "multi_step": MultiStep,
    "non_parametric": NonParametric,
}


def make_part(kind: str, spec: str | Mapping[str, Any], known: Mapping[str, type]) -> Any:
    """The part that ``spec`` names: a name of ``known``, or a mapping with "name" and fields.

    Raises:
      ValueError: an unknown name or field (with the nearest one), or a value that the part refuses.
    """
    options = {"name": spec} if isinstance(spec, str) else dict(spec)
    name = options.pop("name", None)
    check_choice(kind, name, known)
    fields = {f.name for f in dataclasses.fields(known[name])}
    for option in options:
        if option not in fields:
            raise ValueError(
                f"{kind} {name!r} has no field {option!r}{nearest(option, fields)} (fields: {sorted(fields)})"
            )
    return known[name](**options)


def matrix_memory(use: Any, x: Float[Array, "*B C K"]) -> Float[Array, "*B C V"]:
    """M(x) = x W, W = weight "W0" [K, V]."""
    return use("W0", x)


def vector_memory(use: Any, x: Float[Array, "*B C K"]) -> Float[Array, "*B C K"]:
    """M(x) = x * w, w = weight "W0" [K]."""
    return use("W0", x)


@dataclasses.dataclass(frozen=True)
class Miras:
    """The four parts. ``bias``, ``retention``, ``algorithm`` may be given by name, or as a mapping with "name" and fields.

    Attributes:
      memory: a function after the contract of zoo/scans/chunked/memory.py.
      bias: a class of zoo/scans/chunked/attentional_bias.py, names ``BIASES``.
      retention: a class of zoo/scans/chunked/retention.py, names ``RETENTIONS``.
      algorithm: a class of this file, names ``ALGORITHMS``.
      decay_axis, step_axis: where gates with a value per channel meet a memory's matrix: "input" or "output" for all
        weights; None: the output axis of the last weight, the input axis of those before it.
    """

    memory: Memory = matrix_memory
    bias: Any = L2()
    retention: Any = NoRetention()
    algorithm: Any = GradientDescent()
    decay_axis: str | None = None
    step_axis: str | None = None

    def __post_init__(self):
        for kind, known in (("bias", BIASES), ("retention", RETENTIONS), ("algorithm", ALGORITHMS)):
            part = getattr(self, kind)
            if isinstance(part, str | Mapping):
                object.__setattr__(self, kind, make_part(kind, part, known))
            elif not isinstance(part, tuple(known.values())):
                raise TypeError(f"{kind} must be one of {', '.join(known)}, or an object of these, got {part!r}")
        for name in ("decay_axis", "step_axis"):
            if getattr(self, name) is not None:
                check_choice(name, getattr(self, name), ("input", "output"))
        decays = isinstance(self.retention, NoRetention | L2Retention)
        closed = self.memory is matrix_memory and isinstance(self.bias, L2) and decays
        if isinstance(self.algorithm, ImplicitDescent) and not closed:
            raise ValueError(
                "algorithm 'implicit' has a closed form for memory=matrix_memory, bias 'l2' and retention 'none' or 'l2' "
                f"only, got {self.memory}, {self.bias} and {self.retention}"
            )
        if getattr(self.algorithm, "at", "previous") == "decayed" and not decays:
            raise ValueError(f"at='decayed' needs weights that decay, retention 'none' or 'l2', got {self.retention}")
        if isinstance(self.algorithm, NonParametric) and self.retention != NoRetention():
            raise ValueError(f"algorithm 'non_parametric' has no weights to retain, got {self.retention}")

    @property
    def gates(self) -> tuple[str, ...]:
        """The fields of ``MirasGates`` that these parts read."""
        if isinstance(self.algorithm, NonParametric):
            return ()
        wanted = {
            "step": True,
            "decay": self.retention.uses_decay,
            "momentum": isinstance(self.algorithm, Momentum),
            "threshold": self.bias.uses_threshold,
        }
        return tuple(name for name, needed in wanted.items() if needed)

    @property
    def updates(self) -> int:
        """Updates per token."""
        return self.algorithm.steps if isinstance(self.algorithm, MultiStep) else 1


class MirasGates(NamedTuple):
    """Gates, each [B, T, H] or [B, T, H, D]; None where the parts do not read it (``Miras.gates``).

    Attributes:
      step: eta_t > 0, how far a step goes.
      decay: alpha_t in [0, 1], what is kept; None also means 1.
      momentum: m_t in [0, 1].
      threshold: delta_t > 0, of the Huber biases.
    """

    step: Array | None = None
    decay: Array | None = None
    momentum: Array | None = None
    threshold: Array | None = None


class MirasState(NamedTuple):
    """What is carried through time.

    Attributes:
      memory: Z by name of the weight, [B, H, ...]; W itself for a "lag" retention in chunks of several steps (a weight near
        the floor is a sum of large ones, its logarithm would be mostly rounding). Of ``NonParametric`` the last pairs:
        "keys" [B, H, N, K], "values" [B, H, N, V].
      momentum: S likewise, or None.
      anchor: weights at which the gradients of the chunk in progress are taken, None for chunks of one step.
      place: [B] int32, steps of the chunk in progress that are done; of ``NonParametric`` the tokens of the document.
    """

    memory: Weights
    momentum: Weights | None
    anchor: Weights | None
    place: Int[Array, " B"]


def miras_weights(parts: Miras, state: MirasState) -> Weights:
    """The weights W that the memory has now, [B, H, ...] by name."""
    if parts.retention.chunk == "lag" and state.anchor is not None:
        return state.memory
    return {name: _by_head(parts.retention.primal)(z) for name, z in state.memory.items()}


def miras_norms(parts: Miras, state: MirasState) -> Mapping[str, Float[Array, "B H"]]:
    """The norm of what is carried, Z, for every weight, row and head: of a memory with l_q retention |A|_q, else |Z|_2.

    To watch l_q retention with: for q > 3 the weights grow without bound as |A|_q goes to 0.
    """
    q = getattr(parts.retention, "q", 2.0)
    return {name: jnp.sum(jnp.abs(z) ** q, axis=tuple(range(2, z.ndim))) ** (1 / q) for name, z in state.memory.items()}


def miras_state(parts: Miras, weights: Weights, batch: int, *, chunk_size: int = 1) -> MirasState:
    """The state before the first step.

    Args:
      parts: the four parts.
      weights: W_0 by name, [H, ...] each; for ``NonParametric`` "keys" [H, K] and "values" [H, V], read for their shapes.
      batch: rows B.
      chunk_size: b.

    Raises:
      ValueError: weights that the retention cannot hold, such as negative ones on a simplex.
    """
    check_positive("chunk_size", chunk_size)
    place = jnp.zeros(batch, jnp.int32)
    if isinstance(parts.algorithm, NonParametric):
        length = parts.algorithm.max_length
        kept = {n: jnp.zeros((batch, w.shape[0], length, w.shape[1]), w.dtype) for n, w in weights.items()}
        return MirasState(kept, None, None, place)
    memory = _dual(parts, weights, chunk_size)

    def rows(tree):
        return {n: jnp.broadcast_to(w, (batch, *w.shape)) for n, w in tree.items()}

    momentum = {n: jnp.zeros((batch, *w.shape), w.dtype) for n, w in memory.items()}
    return MirasState(
        rows(memory),
        momentum if isinstance(parts.algorithm, Momentum) else None,
        None if chunk_size == 1 else rows({n: weights[n].astype(z.dtype) for n, z in memory.items()}),
        place,
    )


def _lags(parts: Miras, size: int) -> bool:
    """Whether chunks are run as those of a "lag" retention, which then carries W."""
    return parts.retention.chunk == "lag" and size > 1


def _dual(parts: Miras, weights: Weights, size: int) -> Weights:
    """What is carried at first, [H, ...], of W_0 [H, ...], in at least float32."""
    weights = {n: w.astype(accumulator(w.dtype)) for n, w in weights.items()}
    duals = {n: _mapped_dual(parts.retention, w) for n, w in weights.items()}  # checks the weights, too
    return weights if _lags(parts, size) else duals


def _mapped_dual(retention: Any, weight: Array) -> Array:
    # Not vmap: inside it a retention that looks at the values of the weights could not see them.
    return jnp.stack([retention.dual(w) for w in weight])


def _by_head(function):
    return jax.vmap(jax.vmap(function))


def miras_step(
    parts: Miras, state: MirasState, k: Float[Array, "B H K"], v: Float[Array, "B H V"], gates: MirasGates,
    *, chunk_size: int = 1,
) -> MirasState:  # fmt: skip
    """The generic step: the state after the pair (k, v), with gates [B, H] or [B, H, D].

    One update: of ``MultiStep`` one of the steps of a token. ``NonParametric`` appends the pair.
    """
    if isinstance(parts.algorithm, NonParametric):
        slot = state.place % parts.algorithm.max_length
        rows = jnp.arange(k.shape[0])
        new = {"keys": k, "values": v}
        kept = {n: a.at[rows, :, slot].set(new[n].astype(a.dtype)) for n, a in state.memory.items()}
        return state._replace(memory=kept, place=state.place + 1)
    step = jax.vmap(_step, (None, None, 0, 0, 0, 0, None))
    step = jax.vmap(step, (None, None, 0, 0, 0, 0, 0))
    carried = (state.memory, state.momentum, state.anchor)
    wide = jax.tree.map(lambda a: a.astype(accumulator(a.dtype)), (k, v, gates))
    memory, momentum, anchor = step(parts, chunk_size, carried, *wide, state.place == 0)
    place = (state.place + 1) % chunk_size
    if _lags(parts, chunk_size):
        memory = _renewed_where(parts, memory, place == 0)
    return MirasState(memory, momentum, anchor, place)


def miras_read(parts: Miras, state: MirasState, q: Float[Array, "B H K"]) -> Float[Array, "B H V"]:
    """y = M(q) of the memory as it is now (right after the last token of a "lag" chunk: after the renewal)."""
    if isinstance(parts.algorithm, NonParametric):
        length = state.memory["keys"].shape[2]
        seen = jnp.arange(length) < state.place[:, None]
        scores = jnp.einsum("bhk,bhnk->bhn", q, state.memory["keys"])
        return jnp.einsum("bhn,bhnv->bhv", _softmax(scores, seen[:, None]), state.memory["values"])
    return apply_memory(parts.memory, miras_weights(parts, state), q[:, :, None])[:, :, 0]


def miras_scan(
    parts: Miras,
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T ..."],
    v: Float[Array, "B T ..."],
    gates: MirasGates,
    weights: Weights,
    state: MirasState | None = None,
    *,
    chunk_size: int = 1,
    reset: Bool[Array, "B T"] | None = None,
    method: str = "auto",
) -> tuple[Float[Array, "B T H V"], MirasState]:
    """Reads T pairs and answers T queries, each after the pair of its own step.

    Args:
      parts: the four parts.
      q: queries [B, T, H, K]; nothing is scaled.
      k, v: pairs [B, T, H, K] and [B, T, H, V]; for ``MultiStep`` [B, T, steps, H, K] and [B, T, steps, H, V].
      gates: those of ``parts.gates``, [B, T, H] or [B, T, H, D]; for ``MultiStep`` all but the decay [B, T, steps, H ...].
      weights: W_0, see ``miras_state``; read at the start (without ``state``) and at every reset.
      state: state before the first step.
      chunk_size: b, part of the model; updates, where a token makes several of them.
      reset: True at the first token of a new document.
      method: "chunked", "sequential" (one step after another, also for b > 1, with the same numbers) or "auto": sequential
        for b = 1 and for one token.

    Returns:
      (y in the result type of q, k and v, state after the last step in at least float32).

    Raises:
      TypeError: an argument is not floating-point.
      ValueError: shapes do not fit, T = 0, a gate is missing or not read, an unknown method, weights that the retention
        cannot hold.
    """
    check_choice("method", method, ("auto", "sequential", "chunked"))
    check_positive("chunk_size", chunk_size)
    _check(parts, q, k, v, gates, reset)
    dtype = jnp.result_type(q, k, v)
    wide = accumulator(dtype)
    q, k, v, gates = jax.tree.map(lambda a: a.astype(wide), (q, k, v, gates))
    weights = {n: w.astype(wide) for n, w in weights.items()}
    if state is None:
        state = miras_state(parts, weights, q.shape[0], chunk_size=chunk_size)
    if isinstance(parts.algorithm, NonParametric):
        y, state = _non_parametric(parts, q, k, v, state, reset)
        return y.astype(dtype), state
    if parts.updates > 1:
        q, k, v, gates, reset = _one_by_one(parts.updates, q, k, v, gates, reset)
    start = _dual(parts, weights, chunk_size)
    one_by_one = method == "sequential" or (method == "auto" and (chunk_size == 1 or q.shape[1] == 1))
    run = _by_steps if one_by_one else _by_chunks
    y, state = run(parts, chunk_size, (q, k, v, gates), start, state, reset)
    return y[:, parts.updates - 1 :: parts.updates].astype(dtype), state


def _check(parts, q, k, v, gates, reset):
    """Checks the arrays of ``miras_scan``."""
    for name, array in {"q": q, "k": k, "v": v, **{n: g for n, g in gates._asdict().items() if g is not None}}.items():
        check_floating(name, array)
    if q.ndim != 4 or q.shape[1] == 0:
        raise ValueError(f"q must have shape [batch, time, heads, channels] with time >= 1, got {list(q.shape)}")
    batch, steps, heads, width = q.shape
    several = (parts.updates,) if isinstance(parts.algorithm, MultiStep) else ()
    for name, array in (("k", k), ("v", v)):
        wanted = (batch, steps, *several, heads)
        if tuple(array.shape[:-1]) != wanted or (name == "k" and array.shape[-1] != width):
            raise ValueError(
                f"{name} must have shape {[*wanted, width if name == 'k' else 'V']}, got {list(array.shape)}"
            )
    for name, gate in gates._asdict().items():
        if gate is None:
            if name in parts.gates and name != "decay":
                raise ValueError(f"these parts need the gate {name!r} (they read {', '.join(parts.gates)})")
            continue
        if name not in parts.gates:
            raise ValueError(
                f"these parts do not read the gate {name!r} (they read {', '.join(parts.gates) or 'none'})"
            )
        wanted = (batch, steps, *(() if name == "decay" else several), heads)
        if tuple(gate.shape[: len(wanted)]) != wanted or gate.ndim > len(wanted) + 1:
            raise ValueError(f"gates.{name} must have shape {list(wanted)} or one axis more, got {list(gate.shape)}")
    check_reset(reset, (batch, steps))


def _one_by_one(updates, q, k, v, gates, reset):
    """Several updates per token as so many steps in time."""

    def flat(a):
        return a.reshape(a.shape[0], -1, *a.shape[3:])

    def first_of(a, other):
        rest = jnp.full_like(a[:, :, None], other)
        return flat(jnp.concatenate([a[:, :, None], *[rest] * (updates - 1)], axis=2))

    decay = None if gates.decay is None else first_of(gates.decay, 1)
    step, momentum, threshold = (None if g is None else flat(g) for g in (gates.step, *gates[2:]))
    reset = None if reset is None else first_of(reset, False)
    return jnp.repeat(q, updates, axis=1), flat(k), flat(v), MirasGates(step, decay, momentum, threshold), reset


# What follows the public functions is written for one head of one row: k [K], v [V], gates [] or [D], weights [I, O] or [N].


def _spread(gate: Array | None, weights: Weights, axis: str | None) -> dict[str, Any]:
    """``gate`` [*C] or [*C, D] as it meets every weight, [*C, 1, 1], [*C, 1, O], ... and None for None.

    ``weights`` are those of one step, without the axes *C.
    """
    if gate is None:
        return dict.fromkeys(weights)
    names = list(weights)
    spread = {}
    for name, weight in weights.items():
        channels = gate.ndim and gate.shape[-1]
        side = axis or ("output" if name == names[-1] else "input")
        if weight.ndim == 1:
            spread[name] = gate
        elif channels == weight.shape[0 if side == "input" else 1]:
            spread[name] = gate[..., :, None] if side == "input" else gate[..., None, :]
        else:
            spread[name] = jnp.mean(gate, axis=-1, keepdims=True)[..., None]
    return spread


def _meet(parts: Miras, gates: MirasGates, weights: Weights, steps: bool) -> tuple[dict, dict, dict]:
    """(decay, step, momentum) as they meet every weight; ``steps``: the gates have a leading axis of time."""
    channel = 2 if steps else 1

    def gate(array, axis):
        if array is None:
            return dict.fromkeys(weights)
        if array.ndim == channel:
            return _spread(array, weights, axis)
        return {n: array.reshape(*array.shape, *(1,) * w.ndim) for n, w in weights.items()}

    return gate(gates.decay, parts.decay_axis), gate(gates.step, parts.step_axis), gate(gates.momentum, parts.step_axis)


def _gradients(parts: Miras, weights: Weights, k: Array, v: Array, gates: MirasGates) -> dict[str, Array]:
    """Gradients [C, ...] of C pairs, all at ``weights``; gates [C] or [C, D]."""
    if getattr(parts.algorithm, "at", "previous") == "decayed":
        decay, step, _ = _meet(parts, gates, weights, True)
        at = {n: parts.retention.rates(decay[n], step[n])[0] * w for n, w in weights.items()}
        at = {n: jnp.broadcast_to(a, (k.shape[0], *weights[n].shape)) for n, a in at.items()}
        k, v, gates = jax.tree.map(lambda a: a[:, None], (k, v, gates))
    else:
        at = weights
    threshold = gates.threshold
    if threshold is not None and threshold.ndim < k.ndim:
        threshold = threshold[..., None]
    slope = parts.bias.slope(apply_memory(parts.memory, at, k) - v, v, threshold)
    if isinstance(parts.algorithm, ImplicitDescent):
        step = gates.step if gates.step.ndim == k.ndim else gates.step[..., None]
        slope = slope / (1 + parts.bias.factor * step * jnp.sum(k * k, axis=-1, keepdims=True))
    # Back-propagation of the slope: the loss with this slope at the prediction is a product with it.
    inputs, errors = token_gradients(parts.memory, at, k, slope, lambda y, u: jnp.sum(y * u))
    found = {}
    for name, h in inputs.items():
        delta = errors[name]
        if k.ndim > 2:
            h, delta = h[:, 0], delta[:, 0]
        found[name] = h[:, :, None] * delta[:, None] if weights[name].ndim == 2 else h * delta
    return found


def _step(parts, size, state, k, v, gates, fresh):
    """One update; ``fresh``: it begins a chunk. Returns (memory, momentum, anchor); a "lag" chunk's end is the caller's."""
    z, momentum, anchor = state
    lag = _lags(parts, size)
    weights = z if lag else {n: parts.retention.primal(a) for n, a in z.items()}
    if size > 1:
        weights = {n: jnp.where(fresh, w, anchor[n]) for n, w in weights.items()}
    row = jax.tree.map(lambda a: a[None], (k, v, gates))
    gradients = {n: g[0] for n, g in _gradients(parts, weights, *row).items()}
    decay, step, keep = _meet(parts, gates, weights, False)
    change = {n: -step[n] * g for n, g in gradients.items()}
    if momentum is not None:
        change = momentum = {n: keep[n] * momentum[n] + change[n] for n in change}
    dual = _logarithms(z, fresh) if lag else z
    new = {n: parts.retention.update(dual[n], change[n], decay[n], step[n]) for n in z}
    if size == 1:
        return new, momentum, None
    if lag:
        first = {n: parts.retention.primal(a) for n, a in new.items()}
        rates = {n: parts.retention.rates(decay[n], step[n]) for n in z}
        linear = {n: rates[n][0] * z[n] + rates[n][1] * change[n] for n in z}
        weights = {n: jnp.where(fresh, first[n], weights[n]) for n in z}
        new = {n: jnp.where(fresh, first[n], linear[n]) for n in z}
    return new, momentum, weights


def _logarithms(weights, fresh):
    """log W where a chunk begins; inside one W may be negative, and its logarithm is not used."""
    return {n: jnp.log(jnp.where(fresh, w, 1)) for n, w in weights.items()}


def _read_weights(parts, size, z):
    """The weights that are read right after a step, before a "lag" chunk's end; ``z`` as ``_step`` returns it."""
    if _lags(parts, size):
        return z
    return {n: parts.retention.primal(a) for n, a in z.items()}


def _renewed_where(parts, memory, done):
    """At the end of a "lag" chunk: weights on the simplex again, for the rows [B] that are ``done``."""
    renewed = {n: _by_head(parts.retention.renewed)(w) for n, w in memory.items()}
    return {n: jnp.where(done.reshape(-1, *(1,) * (w.ndim - 1)), renewed[n], w) for n, w in memory.items()}


def _restart(parts, start, carried, begin):
    """State of rows that ``begin`` [B] a document: ``start`` [H, ...] for the memory, no momentum."""

    def chosen(new, old):
        return jnp.where(begin.reshape(-1, *(1,) * (old.ndim - 1)), new, old)

    memory, momentum, anchor = carried
    memory = {n: chosen(start[n][None], z) for n, z in memory.items()}
    return memory, None if momentum is None else {n: chosen(0, s) for n, s in momentum.items()}, anchor


def _by_steps(parts, size, inputs, start, state, reset):
    """One token after another."""
    steps = inputs[0].shape[1]

    def step(carry, now):
        (q, k, v, gates), begin = now
        if begin is not None:
            carried = _restart(parts, start, carry[:3], begin)
            carry = MirasState(*carried, jnp.where(begin, 0, carry.place))
        one = jax.vmap(_step, (None, None, 0, 0, 0, 0, None))
        one = jax.vmap(one, (None, None, 0, 0, 0, 0, 0))
        memory, momentum, anchor = one(parts, size, carry[:3], k, v, gates, carry.place == 0)
        read = _by_head(lambda z: _read_weights(parts, size, z))(memory)
        y = apply_memory(parts.memory, read, q[:, :, None])[:, :, 0]
        place = (carry.place + 1) % size
        if _lags(parts, size):
            memory = _renewed_where(parts, memory, place == 0)
        return MirasState(memory, momentum, anchor, place), y

    moved = jax.tree.map(lambda a: jnp.moveaxis(a, 1, 0), (inputs, reset))
    block = max(1, math.isqrt(steps))
    whole = steps // block * block

    def run(state, part):
        return lax.scan(step, state, part)

    if steps == 1:
        state, y = step(state, jax.tree.map(lambda a: a[0], moved))
        return y[:, None], state
    blocks = jax.tree.map(lambda a: a[:whole].reshape(-1, block, *a.shape[1:]), moved)
    state, y = lax.scan(jax.checkpoint(run, prevent_cse=False), state, blocks)
    y = y.reshape(whole, *y.shape[2:])
    if whole < steps:
        state, rest = jax.checkpoint(run)(state, jax.tree.map(lambda a: a[whole:], moved))
        y = jnp.concatenate([y, rest])
    return jnp.moveaxis(y, 0, 1), state


def _chunk(parts, size, state, q, k, v, gates, fresh, valid):
    """At most ``size`` steps of one head of one row; returns (y [C, V], memory, momentum, anchor).

    ``fresh``: the first step begins a chunk. ``valid`` [C]: the steps that there are, a prefix.
    """
    z, momentum, anchor = state
    lag = _lags(parts, size)
    weights = z if lag else {n: parts.retention.primal(a) for n, a in z.items()}
    if size > 1:
        weights = {n: jnp.where(fresh, w, anchor[n]) for n, w in weights.items()}
    decay, step, keep = _meet(parts, gates, weights, True)

    def where(name, a, b):
        return jnp.where(valid.reshape(-1, *(1,) * weights[name].ndim), a, b)

    def gathered(gradients, first_momentum):
        """(changes [C, ...], S after the last step)."""
        change = {n: where(n, -step[n] * g, 0) for n, g in gradients.items()}
        if first_momentum is None:
            return change, None
        change = {n: _run(where(n, keep[n], 1), c, first_momentum[n]) for n, c in change.items()}
        return {n: where(n, c, 0) for n, c in change.items()}, {n: c[-1] for n, c in change.items()}

    gradients = _gradients(parts, weights, k, v, gates)
    if lag:
        head = jax.tree.map(lambda a: a[0], (gradients, decay, step, keep))
        change = {n: -head[2][n] * g for n, g in head[0].items()}
        if momentum is not None:
            change = {n: head[3][n] * momentum[n] + c for n, c in change.items()}
        dual = _logarithms(z, fresh)
        exact = {n: parts.retention.update(dual[n], c, head[1][n], head[2][n]) for n, c in change.items()}
        first = {n: parts.retention.primal(a) for n, a in exact.items()}
        weights = {n: jnp.where(fresh, first[n], w) for n, w in weights.items()}
        running = {n: jnp.where(fresh, first[n], z[n]) for n in z}
        later = _gradients(parts, weights, k, v, gates)
        # the step that was exact keeps its gradient, for the momentum, and moves the weights no more
        is_lag = fresh & (jnp.arange(k.shape[0]) == 0)
        gradients = {n: jnp.where(_column(is_lag, g), gradients[n], g) for n, g in later.items()}
        change, momentum = gathered(gradients, momentum)
        states = {}
        for n in z:
            a, factor = parts.retention.rates(decay[n], step[n])
            moving = valid & ~is_lag
            a = jnp.where(_column(moving, change[n]), a, 1)
            states[n] = _run(a, jnp.where(_column(moving, change[n]), factor * change[n], 0), running[n])
        read = states
    else:
        change, momentum = gathered(gradients, momentum)
        states = {n: _states(parts, z[n], change[n], decay[n], step[n], valid) for n in z}
        read = {n: jax.vmap(parts.retention.primal)(s) for n, s in states.items()}
    y = apply_memory(parts.memory, read, q[:, None])[:, 0]
    return y, {n: s[-1] for n, s in states.items()}, momentum, weights if size > 1 else None


def _column(flags, like):
    """``flags`` [C] with axes of size 1 up to the rank of ``like`` [C, ...]."""
    return flags.reshape(-1, *(1,) * (like.ndim - 1))


def _run(a, inputs, initial):
    """h_i = a_i h_{i-1} + inputs_i over axis 0."""
    a = jnp.asarray(a, inputs.dtype)
    return linear_scan(a[None] if a.ndim == inputs.ndim else a, inputs[None], initial[None])[0][0]


def _states(parts, z, change, decay, step, valid):
    """Z after every step of a chunk, [C, ...]."""
    retention = parts.retention
    keep = _column(valid, change)
    if retention.chunk == "linear":
        a, factor = retention.rates(decay, step)
        return _run(jnp.where(keep, a, 1), factor * change, z)

    def one(z, now):
        change, decay, step, there = now
        z = jnp.where(there, retention.update(z, change, decay, step), z)
        return z, z

    return lax.scan(one, z, (change, decay, step, valid))[1]


def _by_chunks(parts, size, inputs, start, state, reset):
    """In segments of at most ``size`` steps that end where a chunk or a document ends, every row its own."""
    batch, steps = inputs[0].shape[:2]
    rows = jnp.arange(batch)[:, None]
    time = jnp.arange(steps)
    if reset is None:
        since = state.place[:, None] + time
        begins = jnp.zeros((batch, steps), bool)
    else:
        begun = lax.cummax(jnp.where(reset, time, -1), axis=1)
        since = jnp.where(begun >= 0, time - begun, state.place[:, None] + time)
        begins = reset
    border = (since % size == 0).at[:, 0].set(True)
    most = 1 + (steps + size - 2) // size  # segments without a reset
    total = most if reset is None else -(-steps // most) * most
    number = jnp.cumsum(border, axis=1) - 1
    starts = jnp.full((batch, total + 1), steps).at[rows, jnp.where(border, number, total + 1)].set(
        jnp.broadcast_to(time, border.shape), mode="drop"
    )  # fmt: skip

    def segment(state, now):
        first, stop = now
        places = jnp.minimum(first[:, None] + jnp.arange(size), steps - 1)
        valid = first[:, None] + jnp.arange(size) < stop[:, None]
        part = jax.tree.map(lambda a: a[rows, places], inputs)
        there = first < steps
        carried, place = state[:3], state.place
        if reset is not None:
            begin = there & begins[rows[:, 0], places[:, 0]]
            carried = _restart(parts, start, carried, begin)
            place = jnp.where(begin, 0, place)
        one = jax.vmap(_chunk, (None, None, 0, 1, 1, 1, 1, None, None), (1, 0, 0, 0))
        one = jax.vmap(one, (None, None, 0, 0, 0, 0, 0, 0, 0))
        y, *carried = one(parts, size, carried, *part, place == 0, valid)
        place = (place + stop - first) % size
        if _lags(parts, size):
            carried[0] = _renewed_where(parts, carried[0], place == 0)
        new = MirasState(*carried, place)
        kept = jax.tree.map(lambda a, b: jnp.where(there.reshape(-1, *(1,) * (a.ndim - 1)), a, b), new, state)
        return kept, y

    segment = jax.checkpoint(segment, prevent_cse=False)
    turns = jnp.stack([starts[:, :-1].T, starts[:, 1:].T], axis=1)  # [segments, 2, B]
    output = jax.eval_shape(segment, state, tuple(turns[0]))[1]
    offsets = time - jnp.take_along_axis(starts, number, axis=1)
    if reset is None:
        state, ys = lax.scan(segment, state, (turns[:, 0], turns[:, 1]))
        return ys[number, rows, offsets], state

    def skip(state, now):
        return state, jnp.zeros(output.shape, output.dtype)

    def one(state, now):
        return lax.cond(jnp.any(now[0] < steps), segment, skip, state, now)

    def group(state, now):
        return lax.scan(one, state, now)

    def skip_group(state, now):
        return state, jnp.zeros((most, *output.shape), output.dtype)

    group = jax.checkpoint(group, prevent_cse=False)

    def groups(carry, now):
        state, y = carry
        state, ys = lax.cond(jnp.any(now[0] < steps), group, skip_group, state, now)
        places = now[0][..., None] + jnp.arange(size)  # [segments, B, C]
        places = jnp.where(places < now[1][..., None], places, steps)
        return (state, y.at[rows, places].set(ys, mode="drop")), None

    y = jnp.zeros((batch, steps, *output.shape[2:]), output.dtype)
    turns = turns.reshape(-1, most, 2, batch)
    (state, y), _ = lax.scan(groups, (state, y), (turns[:, :, 0], turns[:, :, 1]))
    return y, state


def _softmax(scores, seen):
    """Softmax over the last axis where ``seen``."""
    return jax.nn.softmax(jnp.where(seen, scores, -jnp.inf), axis=-1)


def _non_parametric(parts, q, k, v, state, reset):
    """Attention over the last N = ``max_length`` tokens of the document: the pairs of the state, then those of the call."""
    length, steps = parts.algorithm.max_length, q.shape[1]
    time, slots = jnp.arange(steps), jnp.arange(length)
    count = state.place[:, None]
    if reset is None:
        document = jnp.zeros(q.shape[:2], jnp.int32)
        age = count + time
    else:
        document = jnp.cumsum(reset, axis=1)
        begun = lax.cummax(jnp.where(reset, time, -1), axis=1)
        age = jnp.where(begun >= 0, time - begun, count + time)
    kept_age = count - 1 - (count - 1 - slots) % length  # the newest token of each slot, negative: none yet
    before = (document == 0)[:, :, None] & (kept_age >= 0)[:, None] & (age[:, :, None] - kept_age[:, None] < length)
    lag = time[:, None] - time
    within = (lag >= 0) & (lag < length) & (document[:, :, None] == document[:, None])
    keys = jnp.concatenate([state.memory["keys"], jnp.moveaxis(k, 1, 2).astype(state.memory["keys"].dtype)], axis=2)
    values = jnp.concatenate(
        [state.memory["values"], jnp.moveaxis(v, 1, 2).astype(state.memory["values"].dtype)], axis=2
    )
    scores = jnp.einsum("bthk,bhnk->bhtn", q, keys, precision=lax.Precision.HIGHEST)
    share = _softmax(scores, jnp.concatenate([before, within], axis=2)[:, None])
    y = jnp.einsum("bhtn,bhnv->bthv", share, values, precision=lax.Precision.HIGHEST)
    last = (document == document[:, -1:]) & (time >= steps - length)
    place = jnp.where(last, age % length, length)
    rows = jnp.arange(q.shape[0])[:, None]
    new = {"keys": k, "values": v}
    kept = {n: a.at[rows, :, place].set(new[n].astype(a.dtype), mode="drop") for n, a in state.memory.items()}
    return y, MirasState(kept, None, None, age[:, -1] + 1)
