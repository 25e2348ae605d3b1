"""Recurrence over depth: one block, the same weights at every step, iterated on all positions at once.

The recurrence types of the Universal Transformer (Dehghani et al. 2018), as functions of arrays and of a ``DepthStep``,
which says what one step does. They share the signature

    recurrence(params, x, step, caches, *, steps, own options) -> (y, traces)

``x`` [B, T, D] is the state s_0, in the precision that states are kept in; ``caches`` has a leading axis of ``steps``, slice
t is handed to step t; ``traces`` is what the steps returned, stacked likewise. The loop is a ``lax.scan``: compile time does
not depend on ``steps``. The equations stand in zoo/mixers/universal_transformer.py.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from zoo.checks import check_choice, check_positive
from zoo.layers.norms import layer_norm
from zoo.scans import Halting, adaptive_halting

ACT_TYPES = ("basic", "accumulated", "global", "random")
Params = Mapping[str, Any]


class DepthStep(NamedTuple):
    """One step of depth.

    Attributes:
      signal: (s, t) -> s with the coordinate signal of step t.
      block: (s, t, cache) -> (Block(s), trace).
      attend: (s, t, cache) -> (attention sublayer of s, without residual, normalised; trace).
      linear: (params with "weight" and "bias", list of inputs) -> [inputs] weight + bias.
    """

    signal: Callable[[Array, Array], Array]
    block: Callable[[Array, Array, Any], tuple[Array, Any]]
    attend: Callable[[Array, Array, Any], tuple[Array, Any]]
    linear: Callable[[Params, list[Array]], Array]


def basic(params: Params, x: Float[Array, "B T D"], step: DepthStep, caches: Any, *, steps: int):
    """s' = Block(s + P), a fixed number of times."""

    def turn(s, t, cache):
        return step.block(step.signal(s, t), t, cache)

    return _iterate(turn, x, steps, caches)


def highway(
    params: Params,
    x: Float[Array, "B T D"],
    step: DepthStep,
    caches: Any,
    *,
    steps: int,
    gate_inputs: str,
    couple_gates: bool,
    carried: str = "s",
):
    """A gate between the transformed state and the state (``carried="s"``) or the input of the recurrence ("i")."""

    def turn(s, t, cache):
        new, trace = step.block(step.signal(s, t), t, cache)
        sources = {"s": s, "t": new, "i": x}
        inputs = [sources[letter] for letter in gate_inputs]
        gate = jax.nn.sigmoid(step.linear(params["gate"], inputs))
        carry = 1 - gate if couple_gates else jax.nn.sigmoid(step.linear(params["carry"], inputs))
        return gate * new + carry * sources[carried], trace

    return _iterate(turn, x, steps, caches)


def skip(params: Params, x: Float[Array, "B T D"], step: DepthStep, caches: Any, **options: Any):
    """A gate between the transformed state and the input of the recurrence."""
    return highway(params, x, step, caches, carried="i", **options)


def depth_attention(
    params: Params, x: Float[Array, "B T D"], step: DepthStep, caches: Any, *, steps: int, dwa_axis: str
):
    """Every step starts from a learned mixture of all earlier states."""
    memory = jnp.zeros((steps + 1, *x.shape), x.dtype).at[0].set(x)
    embedding = params["dwa"]["embedding"][:steps].astype(x.dtype)

    def turn(memory, t, cache):
        past = jnp.arange(steps) <= t  # [steps]; later rows are still empty
        scores = step.linear(params["dwa"], [memory[:-1] + embedding[:, None, None]])
        seen = past[:, None, None, None]
        if dwa_axis == "depth":
            weights = jax.nn.softmax(jnp.where(seen, scores, jnp.finfo(scores.dtype).min), axis=0)
        else:
            weights = jnp.where(seen, jax.nn.softmax(scores, axis=-1), 0)
        mixture = jnp.sum(weights * memory[:-1], axis=0)
        new, trace = step.block(step.signal(mixture, t), t, cache)
        return lax.dynamic_update_index_in_dim(memory, new, t + 1, 0), trace

    memory, traces = _iterate(turn, memory, steps, caches)
    return memory[-1], traces


def gru(params: Params, x: Float[Array, "B T D"], step: DepthStep, caches: Any, *, steps: int):
    """Attention, then a gated recurrent unit over depth in the place of the transition."""

    def turn(s, t, cache):
        a, trace = step.attend(step.signal(s, t), t, cache)
        update = jax.nn.sigmoid(step.linear(params["update"], [a, s]))
        reset = jax.nn.sigmoid(step.linear(params["reset"], [a, s]))
        candidate = jnp.tanh(step.linear(params["candidate"], [a, reset * s]))
        new = (1 - update) * a + update * candidate
        return layer_norm(new, params["gru_norm"]["scale"], params["gru_norm"]["bias"]), trace

    return _iterate(turn, x, steps, caches)


def lstm(params: Params, x: Float[Array, "B T D"], step: DepthStep, caches: Any, *, steps: int):
    """Attention, then an LSTM over depth, with a memory that starts at zero, in the place of the transition."""

    def turn(carry, t, cache):
        s, memory = carry
        a, trace = step.attend(step.signal(s, t), t, cache)
        i, f, o, g = (step.linear(params[name], [a, s]) for name in ("input", "forget", "out", "cell"))
        memory = jax.nn.sigmoid(f) * memory + jax.nn.sigmoid(i) * jnp.tanh(g)
        return (jax.nn.sigmoid(o) * jnp.tanh(memory), memory), trace

    (s, _), traces = _iterate(turn, (x, jnp.zeros_like(x)), steps, caches)
    return s, traces


def adaptive(
    params: Params,
    x: Float[Array, "B T D"],
    step: DepthStep,
    caches: Any,
    *,
    steps: int,
    act_type: str,
    epsilon: float,
    freeze_halted: bool,
    method: str,
    halted: Bool[Array, "B T"] | None = None,
    document: Bool[Array, "B T T"] | None = None,
    key: Any = None,
) -> tuple[Halting, Any]:
    """Adaptive computation time: every position decides when it has had enough.

    Args:
      params: ``halting``: weight [D], bias [1].
      x, step, caches, steps: as for the others; ``steps`` is the most any position may take.
      act_type: one of ``ACT_TYPES``.
      epsilon: see ``zoo.scans.adaptive_halting``, like ``freeze_halted``.
      freeze_halted: halted positions keep their state.
      method: "scan" or "while", as in ``zoo.scans.adaptive_halting``; or "trace": all positions take all steps and the
        traces are returned, with the same numbers.
      halted: True where a position (padding) halts at once.
      document: which positions p is averaged over, for "global".
      key: randomness for "random".
    """

    def halt(state, t):
        if act_type == "random":
            return jax.random.uniform(jax.random.fold_in(key, t), state.shape[:-1], state.dtype)
        # A sum, not a matrix product: one number per position deserves full precision everywhere.
        p = jax.nn.sigmoid(jnp.sum(state * params["halting"]["weight"], axis=-1) + params["halting"]["bias"][0])
        if act_type == "global":
            p = jnp.sum(jnp.where(document, p[:, None], 0), axis=-1) / jnp.sum(document, axis=-1)
        return p

    mix = {
        "max_steps": steps,
        "epsilon": epsilon,
        "variant": "accumulated" if act_type == "accumulated" else "basic",
        "halted": halted,
    }
    if method != "trace":
        end = adaptive_halting(
            lambda s, t: step.block(s, t, None)[0], halt, x, prepare=step.signal, freeze_halted=freeze_halted,
            method=method, **mix,
        )  # fmt: skip
        return end, None

    def turn(carry, t, cache):
        s, total, stopped = carry
        before = step.signal(s, t)
        p = halt(before, t)
        after, trace = step.block(before, t, cache)
        if freeze_halted:
            after = jnp.where(stopped[..., None], s, after)
            stopped = stopped | (total + p > 1 - epsilon)
        return (after, total + p, stopped), (p, after, trace)

    nobody = jnp.zeros(x.shape[:-1], bool)
    start = (x, jnp.zeros(x.shape[:-1], x.dtype), nobody if halted is None else halted)
    _, (ps, states, traces) = _iterate(turn, start, steps, caches)
    return adaptive_halting(lambda s, t: states[t], lambda s, t: ps[t], x, **mix), traces


def _iterate(turn: Callable[..., tuple[Any, Any]], carry: Any, steps: int, caches: Any) -> tuple[Any, Any]:
    """Scans ``turn(carry, t, cache) -> (carry, trace)`` over the depth steps."""
    return lax.scan(lambda c, at: turn(c, *at), carry, (jnp.arange(steps, dtype=jnp.int32), caches))


def ponder_cost(
    steps: Int[Array, "*B"], remainder: Float[Array, "*B"], mask: Bool[Array, "*B"] | None = None
) -> Float[Array, ""]:
    """mean(n + R) over the positions in ``mask``: the number of steps, with a gradient through the remainder alone."""
    cost = lax.stop_gradient(steps.astype(remainder.dtype)) + remainder
    if mask is None:
        return jnp.mean(cost)
    return jnp.sum(jnp.where(mask, cost, 0)) / jnp.maximum(jnp.sum(mask), 1)


def step_histogram(steps: Int[Array, "*B"], max_steps: int, mask: Bool[Array, "*B"] | None = None) -> Int[Array, " N"]:
    """How many positions took 0, 1, ..., max_steps steps."""
    weights = None if mask is None else mask.reshape(-1).astype(jnp.int32)
    return jnp.bincount(steps.reshape(-1), weights, length=max_steps + 1)


RECURRENCES = {
    "basic": (basic, ()),
    "highway": (highway, ("gate_inputs", "couple_gates")),
    "skip": (skip, ("gate_inputs", "couple_gates")),
    "dwa": (depth_attention, ("dwa_axis",)),
    "gru": (gru, ()),
    "lstm": (lstm, ()),
    "act": (adaptive, ("act_type", "epsilon", "freeze_halted")),
}
"""Name -> (function, the options that are its own)."""


@dataclasses.dataclass(frozen=True)
class Options:
    """What a Universal Transformer computes, apart from its parameters: see ``zoo.mixers.UniversalTransformer``."""

    heads: int = 4
    steps: int = 6
    recurrence: str = "basic"
    norm: str = "pre"
    transition: str = "fc"
    position_signal: str = "sinusoid"
    position_start: str = "none"
    step_signal: str = "learned"
    sinusoid: str = "interleaved"
    combine: str = "add"
    act_type: str = "basic"
    epsilon: float = 0.01
    freeze_halted: bool = False
    act_method: str = "scan"
    gate_inputs: str = "i"
    couple_gates: bool = True
    dwa_axis: str = "depth"
    inner_layers: int = 1
    mix_before: int = 0
    mix_after: int = 0
    shared: bool = True
    window: int | None = None

    def __post_init__(self):
        for name, choices in {
            "recurrence": RECURRENCES, "norm": ("pre", "post"), "transition": ("fc", "sepconv"),
            "position_signal": ("sinusoid", "none"), "position_start": ("none", "random", "step"),
            "step_signal": ("learned", "sinusoid", "none"), "sinusoid": ("interleaved", "concatenated"),
            "combine": ("add", "concat"), "act_type": ACT_TYPES, "act_method": ("scan", "while"),
            "dwa_axis": ("depth", "channel"),
        }.items():  # fmt: skip
            check_choice(name, getattr(self, name), choices)
        for name in ("heads", "steps", "inner_layers"):
            check_positive(name, getattr(self, name))
        for name in ("mix_before", "mix_after"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 0:
                raise ValueError(f"{name} must be a number of layers, 0 or more, got {getattr(self, name)!r}")
        if not 0 <= self.epsilon < 1:
            raise ValueError(f"epsilon must lie in [0, 1), got {self.epsilon!r}")
        if not self.gate_inputs or set(self.gate_inputs) - set("sti"):
            raise ValueError(
                f"gate_inputs must be letters of 's' (state), 't' (transformed state), 'i' (input), got {self.gate_inputs!r}"
            )
        if self.recurrence in ("gru", "lstm"):
            if self.step_signal != "none":
                raise ValueError(
                    f"recurrence={self.recurrence!r} counts its steps itself: it needs step_signal='none', "
                    f"got {self.step_signal!r}"
                )
            if self.inner_layers != 1:
                raise ValueError(
                    f"recurrence={self.recurrence!r} has one inner layer, got inner_layers={self.inner_layers}"
                )
            if self.transition != "fc":
                raise ValueError(f"recurrence={self.recurrence!r} has gates, no transition, got transition='sepconv'")
        if self.window is not None:
            check_positive("window", self.window)
            for name in ("random", "step"):
                if self.position_start == name:
                    raise ValueError(
                        f"position_start={name!r} cannot be streamed: it needs the whole sequence; "
                        "universal_transformer_encoder has it, the causal mixer only 'none'"
                    )
            if self.recurrence == "act" and self.act_type == "global":
                raise ValueError(
                    "act_type='global' averages over the future and cannot be causal; universal_transformer_encoder has "
                    "it, the causal mixer has 'basic', 'accumulated' and 'random'"
                )

    @property
    def causal(self) -> bool:
        """Whether there is a window of earlier tokens, instead of the whole document."""
        return self.window is not None

    @property
    def applications(self) -> int:
        """Layers applied to a token: each has a cache of its own."""
        return self.mix_before + self.steps * self.inner_layers + self.mix_after
