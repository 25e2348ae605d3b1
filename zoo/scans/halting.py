"""Adaptive computation time: repeat a step until every position has decided to halt.

Graves 2016 (arXiv 1603.08983) as used position by position in the Universal Transformer (Dehghani et al. 2018, arXiv
1807.03819). State s [..., d]; the positions are its leading axes; per position a halting sum h = 0, a remainder
R = 0, a count n = 0, an output o = 0, a flag halted, and the threshold th = 1 - epsilon. While any position runs:

    s   = prepare(s, t)                        coordinate signal first
    p   = halt(s, t)                           from the state before this step's block
    new = running and h + p >  th              halts in this step
    run = running and h + p <= th              carries on
    h  += p * run;  R += new * (1 - h);  h += new * R;  n += run + new
    u   = p * run + new * R                    weight of this step
    s   = block(s, t)                          all positions, halted ones too
    o   = u * s + (1 - u) * o                  "basic";   "accumulated": o = u * s + o

"basic" is a running interpolation, "accumulated" the weighted sum of Graves. A position that reaches ``max_steps``
without crossing the threshold gets no remainder (its weights sum to less than 1). By default halted positions keep
evolving inside s and are still seen by the others; ``freeze_halted`` keeps s from the step where it halted, the step
included.

Whether a position has halted is carried as a flag, not read off ``h < 1``: after ``h += R`` rounding can leave
h = 0.99999994 and the position would run again.

Two forms with identical numbers: "scan" takes ``max_steps`` turns, of which those after everyone has halted do
nothing (``lax.cond``), and is differentiable in every mode; "while" is a ``lax.while_loop``, without reverse mode.
Gradients reach p through u and R only: counts and comparisons have none.

Cost: as many blocks as the slowest position takes steps, at most ``max_steps``; memory of "scan" under reverse mode
grows with ``max_steps``, of "while" not at all.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from zoo.checks import check_choice, check_floating, check_positive
from zoo.dtypes import accumulator

METHODS = ("scan", "while")
VARIANTS = ("basic", "accumulated")


class Halting(NamedTuple):
    """What ``adaptive_halting`` returns; ``*P`` are the positions.

    Attributes:
      output: o, the mixture over steps, in the dtype of the state.
      state: s after the last step.
      steps: n, the number of steps each position took; no gradient.
      remainder: R; ``mean(steps + remainder)`` is the ponder cost.
      loops: how many steps were run at all.
      halting: h, the sum of weights given.
    """

    output: Float[Array, "*P d"]
    state: Float[Array, "*P d"]
    steps: Int[Array, "*P"]
    remainder: Float[Array, "*P"]
    loops: Int[Array, ""]
    halting: Float[Array, "*P"]


class _Loop(NamedTuple):
    state: Array
    output: Array
    steps: Array
    remainder: Array
    loops: Array
    halting: Array
    halted: Array


def adaptive_halting(
    block: Callable[[Array, Array], Array],
    halt: Callable[[Array, Array], Array],
    state: Float[Array, "*P d"],
    *,
    max_steps: int,
    epsilon: float = 0.01,
    prepare: Callable[[Array, Array], Array] | None = None,
    variant: str = "basic",
    freeze_halted: bool = False,
    halted: Bool[Array, "*P"] | None = None,
    method: str = "scan",
) -> Halting:
    """Repeats ``block`` until every position has halted or ``max_steps`` are done.

    Args:
      block: (state, t) -> state, the step; t is an int32 scalar from 0.
      halt: (state, t) -> probabilities in [0, 1], of the shape of the positions or broadcasting to it: [B, 1] halts
        whole sequences, drawing them from a key folded with t halts at random.
      state: [..., d], the initial state; its leading axes are the positions.
      max_steps: the most steps any position may take.
      epsilon: a position halts once its probabilities sum to more than 1 - epsilon.
      prepare: (state, t) -> state, applied before ``halt`` and ``block`` (the step signal); nothing when None.
      variant: "basic" or "accumulated", how outputs mix.
      freeze_halted: halted positions keep their state instead of being transformed further.
      halted: bool, True for positions that are halted from the start (padding): 0 steps, output 0.
      method: "scan" (differentiable) or "while".

    Returns:
      A ``Halting`` with the output and the diagnostics.

    Raises:
      TypeError: the state is not real floating-point, or halted is not bool.
      ValueError: unknown method or variant, max_steps < 1, epsilon outside [0, 1), shapes that do not fit.
    """
    check_choice("method", method, METHODS)
    check_choice("variant", variant, VARIANTS)
    check_positive("max_steps", max_steps)
    check_floating("state", state)
    if jnp.issubdtype(state.dtype, jnp.complexfloating):
        raise TypeError(f"state must be real, got {state.dtype}")
    if state.ndim < 1:
        raise ValueError("state must have shape [..., width], got a scalar")
    if not 0 <= epsilon < 1:
        raise ValueError(f"epsilon must lie in [0, 1), got {epsilon!r}")
    state = jnp.asarray(state)
    positions = state.shape[:-1]
    if halted is None:
        halted = jnp.zeros(positions, bool)
    if getattr(halted, "dtype", None) != jnp.bool_:
        raise TypeError(f"halted must be a bool array, got {getattr(halted, 'dtype', type(halted).__name__)}")
    if tuple(halted.shape) != positions:
        raise ValueError(f"halted must have shape {list(positions)} like the positions of state, got "
                         f"{list(halted.shape)}")  # fmt: skip
    dtype = accumulator(state.dtype)
    threshold = 1 - epsilon

    def runs(loop):
        return jnp.any(~loop.halted & (loop.halting < threshold)) & (loop.loops < max_steps)

    def turn(loop):
        t = loop.loops
        before = loop.state if prepare is None else prepare(loop.state, t)
        p = jnp.asarray(halt(before, t), dtype)
        try:
            p = jnp.broadcast_to(p, positions)
        except ValueError:
            raise ValueError(f"halt must return probabilities that broadcast to {list(positions)}, got "
                             f"{list(p.shape)}") from None  # fmt: skip
        running = ~loop.halted
        crosses = lax.stop_gradient(loop.halting + p) > threshold
        new, run = running & crosses, running & ~crosses
        halting = loop.halting + jnp.where(run, p, 0)
        rest = jnp.where(new, 1 - halting, 0)
        weight = jnp.where(run, p, rest)[..., None]
        after = block(before, t)
        if (after.shape, after.dtype) != (state.shape, state.dtype):
            raise ValueError(f"block must keep the state {state.dtype}{list(state.shape)}, got "
                             f"{after.dtype}{list(after.shape)}")  # fmt: skip
        if freeze_halted:
            after = jnp.where(loop.halted[..., None], loop.state, after)
        kept = loop.output if variant == "accumulated" else (1 - weight) * loop.output
        return _Loop(
            state=after,
            output=weight * after.astype(dtype) + kept,
            steps=loop.steps + running,
            remainder=loop.remainder + rest,
            loops=t + 1,
            halting=halting + rest,
            halted=loop.halted | new,
        )

    start = _Loop(
        state=state,
        output=jnp.zeros(state.shape, dtype),
        steps=jnp.zeros(positions, jnp.int32),
        remainder=jnp.zeros(positions, dtype),
        loops=jnp.zeros((), jnp.int32),
        halting=jnp.zeros(positions, dtype),
        halted=jnp.asarray(halted),
    )
    if method == "while":
        end = lax.while_loop(runs, turn, start)
    else:
        end, _ = lax.scan(
            lambda loop, _: (lax.cond(runs(loop), turn, lambda same: same, loop), None), start, length=max_steps
        )
    return Halting(end.output.astype(state.dtype), end.state, end.steps, end.remainder, end.loops, end.halting)
