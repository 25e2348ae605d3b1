"""What recurrent cells that are solved in parallel over time share: projection by heads, and the ways to run them.

Modes, all with the same numbers:

    sequential   one step after another
    parallel     Newton iterations on all steps at once (``zoo.scans.solve_recurrence``), in plain JAX
    kernel       the same with the linear recurrences run by Pallas kernels
    fused        Newton iterations, Jacobians and reduction in one Pallas kernel, chunk by chunk for long sequences
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from zoo.checks import check_choice, check_divides
from zoo.dtypes import accumulator
from zoo.scans import fused_newton, recurrent_scan, solve_recurrence

MODES = ("sequential", "parallel", "kernel", "fused")
LINEARISATIONS = ("step", "iterate")


class CellSolver(NamedTuple):
    """How a cell is run: ``mode``, and for all but "sequential" the options of ``zoo.scans.solve_recurrence``.

    ``iterations`` alone is a fixed number of them; with ``tolerance`` it is the most; with neither the residual falls to
    rounding. A fixed number is exactly causal; with a stopping rule a later input can change how many iterations there
    are, and with them the last digits of earlier outputs. "fused" knows ``iterations`` and ``tolerance`` only.
    """

    mode: str = "parallel"
    method: str = "newton"
    iterations: int | None = None
    tolerance: float | None = None
    relative_tolerance: float | None = None
    relaxation: float = 1.0
    damping: float = 0.1
    fallback: str | None = None

    @property
    def exactly_causal(self) -> bool:
        """False where a later input may change the last digits of earlier outputs: it stops by its residual."""
        return self.mode == "sequential" or (
            self.iterations is not None and self.tolerance is None and self.relative_tolerance is None
        )


DEFAULT_SOLVER = CellSolver()


def head_projection(
    x: Float[Array, "B T D"], kernel: Float[Array, "H I G M"], bias: Float[Array, "G N"]
) -> Float[Array, "B T G N"]:
    """G gates of width N = H M from D = H I inputs: head i of ``x`` feeds head i of the state. At least float32.

    Raises:
      ValueError: the kernel does not fit ``x``.
    """
    heads, inputs, gates, width = kernel.shape
    if heads * inputs != x.shape[-1]:
        raise ValueError(f"x has width {x.shape[-1]}, but B has {heads} heads of {inputs} inputs")
    rows = x.reshape(*x.shape[:-1], heads, inputs)
    p = jnp.einsum("bthi,higm->btghm", rows, kernel.astype(x.dtype), preferred_element_type=accumulator(x.dtype))
    return p.reshape(*x.shape[:-1], gates, heads * width) + bias


def check_heads(heads: int, dim: int, state_dim: int) -> None:
    """Raises ValueError unless ``heads`` divides the width of input and state."""
    check_divides("heads", heads, "dim", dim)
    check_divides("heads", heads, "hidden_dim", state_dim)


def bounded(weights: Float[Array, "..."], bound: float | None) -> Float[Array, "..."]:
    """``weights`` cut to +-bound, which keeps Jacobians small; unchanged for None."""
    return weights if bound is None else jnp.clip(weights, -bound, bound)


def run_cell(
    step: Callable,
    derivative: Callable,
    params: Any,
    p: Float[Array, "B T G N"],
    initial: Float[Array, "B S"],
    *,
    blocks: int | None = None,
    linearise: Callable | None = None,
    reset: Bool[Array, "B T"] | None = None,
    solver: CellSolver = DEFAULT_SOLVER,
    fused: str | None = None,
) -> tuple[Float[Array, "B T S"], Float[Array, "B S"], Any]:
    """Runs ``state_t = step(params, state_{t-1}, p_t)``.

    Args:
      step: (params, state [..., S], p [..., G, N]) -> state, elementwise over the leading axes. It and ``derivative``
        should be the same objects in every call.
      derivative: its Jacobian: [..., S], or with ``blocks`` [K, K, ..., S / K].
      params: handed to both.
      p: what drives the gates.
      initial: state before the first step.
      blocks: number of groups of the state; None for a diagonal Jacobian.
      linearise: see ``zoo.scans.solve_recurrence``; ``derivative`` then takes the iterate as well.
      reset: True where the state that comes in is replaced by zeros.
      solver: how it is run. A single step is always run as it is. The fused kernel knows no resets: with them, mode
        "kernel" does its work.
      fused: name of the cell in the fused kernel; None when this form of it has none.

    Returns:
      (states, last state, ``SolveDiagnostics``, those of the fused kernel, or None for a sequential run).
    """
    check_choice("mode", solver.mode, MODES)
    if solver.mode == "sequential" or p.shape[1] == 1:
        states, last = recurrent_scan(_plain_step(step), p, initial, params, reset=reset)
        return states, last, None
    if solver.mode == "fused" and fused is None:
        raise ValueError("mode='fused' has sigmoid gates and tanh only; other activations run in the other modes")
    if solver.mode == "fused":
        plain = CellSolver("fused", iterations=solver.iterations, tolerance=solver.tolerance)
        unknown = [name for name in CellSolver._fields if getattr(solver, name) != getattr(plain, name)]
        if unknown:
            raise ValueError(f"mode='fused' knows iterations and tolerance only, got {unknown[0]} as well")
    if solver.mode == "fused" and reset is None:
        return fused_newton(fused, p, params, initial, iterations=solver.iterations, tolerance=solver.tolerance)
    return solve_recurrence(
        _resettable(step), params, (p, reset), initial,
        jacobian="diagonal" if blocks is None else "block", blocks=blocks,
        derivative=_resettable(derivative, True), linearise=linearise and _resettable(linearise),
        guess="step", verify=False,
        reduction="auto" if solver.mode == "parallel" else "pallas",
        method=solver.method, iterations=solver.iterations, absolute_tolerance=solver.tolerance,
        relative_tolerance=solver.relative_tolerance, relaxation=solver.relaxation, damping=solver.damping,
        fallback=solver.fallback,
    )  # fmt: skip


@functools.cache
def _plain_step(step):
    return lambda params, state, p, keep: step(params, state, p)


@functools.cache
def _resettable(function, to_zero=False):
    """``function`` of x = (p, begin): where ``begin`` is True its state is zero, and with ``to_zero`` its result too."""

    def resettable(params, state, x, *now):
        p, begin = x
        if begin is None:
            return function(params, state, p, *now)
        result = function(params, jnp.where(begin, 0, state), p, *now)
        return jnp.where(begin, 0, result) if to_zero else result

    return resettable
