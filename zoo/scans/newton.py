"""Nonlinear recurrence ``state_t = step(params, state_{t-1}, x_t)``, solved for all steps at once.

Danieli et al. (2025), ParaRNN; Lim et al. (2023), Parallelizing non-linear sequential models over the sequence length
(DEER); Gonzalez et al. (2024), Towards scalable and stable parallelization of nonlinear RNNs (quasi-DEER, ELK).

The unknowns are all states h_1 .. h_T. Around iterate h^k, with J_t = d step / d state at (h^k_{t-1}, x_t) and residual
r_t = step(h^k_{t-1}, x_t) - h^k_t, a Newton iteration is a linear recurrence, run by ``linear_scan`` or ``affine_scan``:

    d_t = J_t d_{t-1} + r_t,  d_0 = 0,        h^{k+1} = h^k + relaxation * d

Iterate k is exact on the first k steps, whatever the guess, so T iterations always suffice; where the states contract, a
handful does. Structure of J, for a state of N numbers, which decides what an iteration costs:

    "diagonal"   J [B, T, N]                     one forward-mode derivative, O(T N)
    "block"      K groups of M = N / K numbers; number m of a group depends on the numbers m of all groups:
                 J [B, T, M, K, K]               K forward-mode derivatives, O(T M K^2), K^3 in parallel
    "dense"      J [B, T, N, N]                  N forward-mode derivatives, O(T N^2), N^3 in parallel

Methods:

    newton       the iteration above
    deer         the same with DEER's rules: it stops when the iterates change by at most 1e-4 (float32) or 1e-7 (float64),
                 iterates are clipped to +-1e8, at most 10,000 iterations
    quasi_deer   deer that keeps the diagonal of J only: linear instead of quadratic convergence, O(T N) per iteration
    elk          Newton with a trust region: iterates are the means of a Kalman filter with transitions J_t, process noise
                 I, and the last iterate observed with variance 1 / damping; damping 0 is newton
    quasi_elk    elk on the diagonal of J
    jacobi       zero J (Picard): one more step exact per iteration
    sequential   one step after another: the reference

Derivatives of any order, forwards and backwards, by the implicit function theorem at the states that were found; the
iterations are never differentiated. Reverse mode is one linear scan backwards in time and one batched VJP of ``step``. If
the states are not a solution (too few iterations), this is not the gradient of anything: look at the diagnostics.

Cost: memory O(B T) times the size of J; reverse mode keeps J at the solution.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from pallas_kernels import operation
from zoo.checks import check_choice, check_divides, check_floating, check_positive
from zoo.dtypes import accumulator
from zoo.scans import _auto
from zoo.scans._kalman import filter_in_parallel, kalman_filter, matrix_filter, matrix_filter_in_parallel
from zoo.scans.affine import affine_scan
from zoo.scans.linear import linear_scan

STRUCTURES = ("diagonal", "block", "dense")
METHODS = ("newton", "deer", "quasi_deer", "elk", "quasi_elk", "jacobi", "sequential")
REDUCTIONS = ("auto", "sequential", "chunked", "associative", "pallas")
CRITERIA = ("residual", "change")
ON_FAILURE = ("raise", "nan", "flag")
MAX_ITERATIONS, ABSOLUTE, RELATIVE, NON_FINITE = range(4)  # values of SolveDiagnostics.flag
_UNROLLED = 8  # this many fixed iterations are written out, so that what nobody reads of the last one is not computed
_matmul = functools.partial(jnp.matmul, precision=lax.Precision.HIGHEST)


class SolveDiagnostics(NamedTuple):
    """What a solve has come to, for every sequence of the batch by itself. No derivative passes through it.

    Attributes:
      flag: why it ended: 0 all iterations done, 1 absolute tolerance, 2 relative tolerance, 3 a non-finite residual.
      iterations: iterations done.
      residuals: norm of the residual of the guess and of every iterate, NaN after the last.
      residual: the last of them.
      converged: the tolerance was reached (with a fixed number of iterations: the default tolerance).
      finite: no iterate had an infinity or NaN (which ``reset_nonfinite`` replaces by zero).
      structure_error: largest difference between the declared and the true action of J on one vector, relative; 0 when
        not looked at.
      fallback: the states come from the sequential fallback.
      failed: the states are not to be trusted: a tolerance was not reached, something is not finite, or the declared
        structure is wrong.
    """

    flag: Int[Array, "*batch"]
    iterations: Int[Array, "*batch"]
    residuals: Float[Array, "*batch K"]
    residual: Float[Array, "*batch"]
    converged: Bool[Array, "*batch"]
    finite: Bool[Array, "*batch"]
    structure_error: Float[Array, "*batch"]
    fallback: Bool[Array, "*batch"]
    failed: Bool[Array, "*batch"]


class NonConvergenceError(ArithmeticError):
    """The solver did not reach its tolerance, or met non-finite values."""


def solve_recurrence(
    step: Callable,
    params: Any,
    xs: Any,
    initial: Float[Array, "*batch N"],
    *,
    jacobian: str = "diagonal",
    blocks: int | None = None,
    derivative: Callable | None = None,
    linearise: Callable | None = None,
    method: str = "newton",
    guess: str | Float[Array, "*batch T N"] = "zeros",
    iterations: int | None = None,
    absolute_tolerance: float | None = None,
    relative_tolerance: float | None = None,
    norm: float = math.inf,
    criterion: str | None = None,
    relaxation: float = 1.0,
    damping: float = 0.1,
    clip: float | None = None,
    reset_nonfinite: bool = True,
    reduction: str = "auto",
    chunk_size: int | None = None,
    fallback: str | None = None,
    on_failure: str = "raise",
    verify: bool = True,
    output: Callable | None = None,
) -> tuple[Any, Float[Array, "*batch N"], SolveDiagnostics]:
    """Runs ``state_t = step(params, state_{t-1}, x_t)`` for all t at once.

    ``step`` sees one step of one sequence, without batch or time axes, and what it differentiates must come in through
    ``params``, ``xs`` and ``initial``. Outside ``jax.jit`` it should be the same object in every call: a new one means a new
    compilation.

    Args:
      step: (params, state [N], x) -> state [N].
      params: any pytree.
      xs: pytree of [*batch, T, ...]; ``step`` gets it without these axes.
      initial: state before the first step; its leading axes are the batch axes, any number of them.
      jacobian: structure of d step / d state, one of ``STRUCTURES``.
      blocks: number K of groups for ``jacobian="block"``.
      derivative: hand-written (params, state, x) -> J of one step: [N], [K, K, N / K] (row group, column group, member), or
        [N, N]; None takes forward-mode derivatives of ``step``.
      linearise: (params, state, x, now) -> state: what is differentiated in place of ``step``, with ``now`` the iterate at
        this very step; it must equal ``step`` where ``now`` is the new state. ``derivative`` then gets ``now`` as well.
      method: one of ``METHODS``.
      guess: "zeros", "step" (``step`` from zero states everywhere), or the states to start from, e.g. an earlier solution.
      iterations: most iterations. Without any tolerance: exactly so many. None: as many as it can take (T; for elk
        1000 if T is less; for deer 10,000).
      absolute_tolerance: stop when the norm of the residual is at most this. None: 64 roundings of the largest state when
        neither ``iterations`` nor the other tolerance is given (deer: its own rule), else 0.
      relative_tolerance: stop when it is at most this times that of the guess.
      norm: p of the p-norm over the steps and numbers of a sequence.
      criterion: "residual", or "change" of the iterates; None takes that of the method.
      relaxation: factor on every update.
      damping: weight of the last iterate in elk and quasi_elk.
      clip: bound on the entries of iterates; None takes that of the method.
      reset_nonfinite: replace infinities and NaN in an iterate by zero and go on; the exact first steps still grow.
      reduction: form of the linear scans, one of ``REDUCTIONS``; elk has sequential and associative.
      chunk_size: steps per chunk of the chunked form.
      fallback: "sequential": where the tolerance is not reached, the states are computed one after another instead.
      on_failure: what happens to states that are not to be trusted (see ``SolveDiagnostics.failed``): "raise" raises an
        error, and inside of a transformation, where nothing can be raised, fills them with NaN; "nan" always fills; "flag"
        hands them out.
      verify: compare the declared structure with the true derivative along one vector at the solution.
      output: what to return of every state, state [N] -> any pytree, e.g. a slice; None for the state.

    Returns:
      (states [*batch, T, N] or their outputs, last state, diagnostics); states are at least float32.

    Raises:
      TypeError: ``initial`` is not floating-point.
      ValueError: T = 0, shapes that do not fit, an unknown name, a wrong structure (seen only outside of transformations).
      NonConvergenceError: with ``on_failure="raise"``, outside of transformations.
    """
    batch, steps = _check_arrays(step, params, xs, initial)
    _check_options(jacobian, blocks, initial.shape[-1], method, reduction, norm, iterations, damping, relaxation)
    check_choice("on_failure", on_failure, ON_FAILURE)
    if fallback is not None:
        check_choice("fallback", fallback, ("sequential",))
    deer = method in ("deer", "quasi_deer")
    criterion = criterion or ("change" if deer else "residual")
    check_choice("criterion", criterion, CRITERIA)
    dtype = accumulator(initial.dtype)
    automatic = iterations is None and not absolute_tolerance and not relative_tolerance
    scaled = automatic and not deer
    if automatic:
        absolute_tolerance = float(64 * jnp.finfo(dtype).eps)
        if deer:
            absolute_tolerance = 1e-7 if dtype == jnp.float64 else 1e-4
    if iterations is None:
        iterations = 10_000 if deer else max(steps, 1000) if "elk" in method else steps
    tolerances = absolute_tolerance or 0.0, relative_tolerance or 0.0
    if min(tolerances) < 0:
        raise ValueError(f"tolerances must be at least 0, got {tolerances}")
    if fallback and not max(tolerances):
        raise ValueError("fallback='sequential' needs a tolerance, but the number of iterations is fixed")

    rows = jax.tree.map(lambda a: a.reshape(-1, *a.shape[len(batch) :]), xs)
    start = initial.reshape(-1, initial.shape[-1]).astype(dtype)
    if not isinstance(guess, str):
        wanted = (*batch, steps, initial.shape[-1])
        if tuple(jnp.shape(guess)) != wanted:
            raise ValueError(f"guess must be a name or states of shape {list(wanted)}, got {list(jnp.shape(guess))}")
        guess = jnp.asarray(guess).reshape(-1, *wanted[-2:]).astype(dtype)
    else:
        check_choice("guess", guess, ("zeros", "step"))
    system = _System(step, jacobian, blocks, derivative, linearise, reduction, chunk_size)
    options = _Options(
        method, iterations, *tolerances, scaled, float(norm), criterion, float(relaxation), float(damping),
        1e8 if clip is None and deer else clip, reset_nonfinite, fallback is not None,
        verify and linearise is None and (jacobian != "dense" or derivative is not None),
    )  # fmt: skip
    named = guess if isinstance(guess, str) else None
    states, diagnostics = _run(system, options, named, params, rows, start, None if named else guess)
    states = _judged(states, diagnostics, on_failure, options)
    last = states[:, -1].reshape(initial.shape)
    if output is not None:
        states = jax.vmap(jax.vmap(output))(states)
    states, diagnostics = jax.tree.map(lambda a: a.reshape(*batch, *a.shape[1:]), (states, diagnostics))
    return states, last, diagnostics


def fused_newton(
    cell: str,
    p: Float[Array, "B T G N"],
    params: Any,
    initial: Float[Array, "B S"],
    *,
    iterations: int | None = None,
    tolerance: float | None = None,
) -> tuple[Float[Array, "B T S"], Float[Array, "B S"], Any]:
    """The Newton iterations of a known cell in one kernel, see ``pallas_kernels.newton``.

    Args:
      cell: name of a cell that the kernel knows, "paragru" or "paralstm".
      p: what drives its gates.
      params: its recurrent weights.
      initial: state before the first step.
      iterations: as in ``solve_recurrence``, for every chunk of time by itself.
      tolerance: largest residual that ends the iterations of a chunk.

    Returns:
      (states, last state, diagnostics of the kernel); NaN in the rows that did not reach a tolerance or are not finite.

    Raises:
      ValueError: there is no such kernel.
    """
    if iterations is None:
        tolerance = float(64 * jnp.finfo(p.dtype).eps) if tolerance is None else tolerance
        iterations = p.shape[1]
    states, last, diagnostics = operation("newton")(
        cell, p, params, initial, iterations=iterations, tolerance=tolerance, **_auto.kernel_options()
    )
    worst = jnp.max(diagnostics.residuals, axis=(1, 2))
    good = (jnp.isfinite(worst) if tolerance is None else worst <= tolerance)[:, None]
    return jnp.where(good[..., None], states, jnp.nan), jnp.where(good, last, jnp.nan), diagnostics


def check_structure(
    step: Callable,
    params: Any,
    xs: Any,
    initial: Float[Array, "*batch N"],
    *,
    jacobian: str,
    blocks: int | None = None,
    derivative: Callable | None = None,
    points: int = 8,
    seed: int = 0,
) -> None:
    """Compares the declared structure of d step / d state with the whole Jacobian at random points.

    Args:
      step, params, xs, initial, jacobian, blocks, derivative: as in ``solve_recurrence``; not under ``jit``.
      points: number of points: states drawn from N(0, 1), with x of a random step of a random row.
      seed: of the draw.

    Raises:
      ValueError: an entry outside of the structure is not zero, or ``derivative`` differs from the true Jacobian.
    """
    batch, steps = _check_arrays(step, params, xs, initial)
    width = initial.shape[-1]
    _check_options(jacobian, blocks, width)
    check_positive("points", points)
    generator = np.random.default_rng(seed)
    rows = jax.tree.map(lambda a: jnp.asarray(a).reshape(-1, *a.shape[len(batch) + 1 :]), xs)
    chosen = generator.integers(0, steps * math.prod(batch), points)
    rows = jax.tree.map(lambda a: a[chosen][None], rows)
    dtype = accumulator(initial.dtype)
    states = jnp.asarray(generator.standard_normal((1, points, width)), dtype)
    full = np.asarray(_System(step, "dense").linearised(params, states, rows)[1][0])
    system = _System(step, jacobian, blocks, derivative)
    declared = np.asarray(system.dense(system.linearised(params, states, rows)[1])[0])
    error = np.abs(full - declared)
    bound = 64 * np.finfo(full.dtype).eps * max(1.0, np.max(np.abs(full)))
    if not np.all(error <= bound):
        error = np.where(np.isnan(error), np.inf, error)
        outside = np.where(declared == 0, error, 0)  # what lies outside of the structure is the cause, if anything does
        largest = np.argmax(outside if np.any(outside > bound) else error)
        point, row, column = np.unravel_index(largest, error.shape)
        kind = jacobian if blocks is None else f"{jacobian} with blocks={blocks}"
        raise ValueError(
            f"step does not have the declared Jacobian structure ({kind}): d state[{row}] / d state[{column}] is "
            f"{full[point, row, column]:.3g}, declared {declared[point, row, column] + 0:.3g}"
        )


def lyapunov_exponent(
    step: Callable, params: Any, xs: Any, initial: Float[Array, "*batch N"], *, seed: int = 0
) -> Float[Array, "*batch"]:
    """Largest Lyapunov exponent along the trajectory: mean log growth per step of a vector under the product of the J_t.

    Below 0, states that start apart come together and Newton iterations converge fast; above 0 the linear scans are badly
    conditioned, and elk or the sequential method are the ones to use. The vector starts in a random direction.

    Args:
      step, params, xs, initial: as in ``solve_recurrence``.
      seed: of the direction.
    """
    batch, _ = _check_arrays(step, params, xs, initial)
    dtype = accumulator(initial.dtype)
    rows = jax.tree.map(lambda a: jnp.moveaxis(a.reshape(-1, *a.shape[len(batch) :]), 1, 0), xs)
    start = initial.reshape(-1, initial.shape[-1]).astype(dtype)
    direction = jnp.asarray(np.random.default_rng(seed).standard_normal(start.shape[-1]), dtype)
    tiny = jnp.finfo(dtype).tiny

    def body(carry, x):
        state, vector = carry
        size = jnp.maximum(jnp.linalg.norm(vector, axis=-1, keepdims=True), tiny)
        move = jax.vmap(step, (None, 0, 0))
        carry = jax.jvp(lambda h: move(params, h, x).astype(dtype), (state,), (vector / size,))
        growth = jnp.log(jnp.maximum(jnp.linalg.norm(carry[1], axis=-1), tiny))
        return carry, growth

    growth = lax.scan(body, (start, jnp.broadcast_to(direction, start.shape)), rows)[1]
    return jnp.mean(growth, axis=0).reshape(batch)


class _Options(NamedTuple):
    """The static part of the iteration; see ``solve_recurrence``."""

    method: str
    iterations: int
    absolute: float
    relative: float
    scaled: bool  # the absolute tolerance is in units of the largest state, at least 1
    norm: float
    criterion: str
    relaxation: float
    damping: float
    clip: float | None
    reset: bool
    fallback: bool
    verify: bool

    @property
    def fixed(self) -> bool:
        return not (self.absolute or self.relative)


class _System(NamedTuple):
    """The static part of the equations. Arrays here have one batch axis: states [B, T, N]."""

    step: Callable
    jacobian: str
    blocks: int | None = None
    derivative: Callable | None = None
    linearise: Callable | None = None
    reduction: str = "auto"
    chunk_size: int | None = None

    def values(self, params, before, xs):
        """``step`` everywhere, from the states ``before`` each step."""
        return _everywhere(self.step, params, before, xs).astype(before.dtype)

    def differentiated(self, params, before, xs, now):
        """What is differentiated: the same, or ``linearise`` around the iterate ``now``."""
        if self.linearise is None:
            return self.values(params, before, xs)
        return _everywhere(self.linearise, params, before, xs, now).astype(before.dtype)

    def linearised(self, params, before, xs, now=None):
        """(values, J); J in the layout of the module docstring."""
        if self.derivative is not None:
            extra = () if self.linearise is None else (now,)
            table = _everywhere(self.derivative, params, before, xs, *extra).astype(before.dtype)
            return self.values(params, before, xs), jnp.moveaxis(table, -1, 2) if self.jacobian == "block" else table
        values, table = self._tables(lambda states: self.differentiated(params, states, xs, now), before)
        return values if self.linearise is None else self.values(params, before, xs), table

    def _tables(self, function, before):
        if self.jacobian == "diagonal":
            return jax.jvp(function, (before,), (jnp.ones_like(before),))
        values, push = jax.linearize(function, before)
        width = before.shape[-1]
        rank = width if self.jacobian == "dense" else self.blocks
        basis = np.repeat(np.eye(rank), width // rank, axis=1)
        columns = jax.vmap(lambda v: push(jnp.broadcast_to(v, before.shape)))(jnp.asarray(basis, before.dtype))
        if self.jacobian == "dense":
            return values, jnp.moveaxis(columns, 0, -1)
        columns = columns.reshape(*columns.shape[:-1], rank, width // rank)  # [column group, B, T, row group, M]
        return values, jnp.transpose(columns, (1, 2, 4, 3, 0))

    def diagonal(self, table):
        """The diagonal of J, [B, T, N]."""
        if self.jacobian == "diagonal":
            return table
        return self.ungroup(jnp.diagonal(table, axis1=-2, axis2=-1))

    def dense(self, table):
        """J as matrices [B, T, N, N]."""
        if self.jacobian == "dense":
            return table
        if self.jacobian == "diagonal":
            return table[..., None] * jnp.eye(table.shape[-1], dtype=table.dtype)
        size = table.shape[2]
        spread = jnp.einsum("btmij,mn->btimjn", table, jnp.eye(size, dtype=table.dtype))
        return spread.reshape(*table.shape[:2], self.blocks * size, self.blocks * size)

    def product(self, table, vectors):
        """J times ``vectors`` [B, T, N]."""
        if self.jacobian == "diagonal":
            return table * vectors
        return self.ungroup(_matmul(table, self.group(vectors)[..., None])[..., 0])

    def group(self, states):
        """[..., N] -> [..., M, K] for blocks."""
        if self.jacobian != "block":
            return states
        return jnp.swapaxes(states.reshape(*states.shape[:-1], self.blocks, -1), -1, -2)

    def ungroup(self, states):
        """[..., M, K] -> [..., N] for blocks."""
        if self.jacobian != "block":
            return states
        return jnp.swapaxes(states, -1, -2).reshape(*states.shape[:-2], -1)

    def scan(self, table, right, initial=None):
        """Solves ``d_t = J_t d_{t-1} + right_t``."""
        if self.jacobian == "diagonal":
            return linear_scan(table, right, initial, method=self.reduction, chunk_size=self.chunk_size)[0]
        initial = None if initial is None else self.group(initial)
        states, _ = affine_scan(table, self.group(right), initial, method=self.reduction, chunk_size=self.chunk_size)
        return self.ungroup(states)


def _check_arrays(step, params, xs, initial) -> tuple[tuple[int, ...], int]:
    """Checks shapes and types; returns (batch axes, T)."""
    check_floating("initial", initial)
    if jnp.issubdtype(initial.dtype, jnp.complexfloating):
        raise TypeError(f"initial must be real, got {initial.dtype}; keep real and imaginary parts as blocks")
    if initial.ndim < 1 or initial.shape[-1] == 0:
        raise ValueError(f"initial must have shape [*batch, N] with N >= 1, got {list(initial.shape)}")
    batch = tuple(initial.shape[:-1])
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(xs)]
    rank = len(batch) + 1
    if (
        not shapes
        or any(len(s) < rank or s[: rank - 1] != batch for s in shapes)
        or len({s[:rank] for s in shapes}) > 1
    ):
        raise ValueError(
            f"xs must be arrays [*batch, T, ...] of equal T, with the batch axes {list(batch)} of initial; got {shapes}"
        )
    steps = shapes[0][rank - 1]
    if steps == 0:
        raise ValueError("xs has no time steps (T = 0); a recurrence needs at least one")
    one = jax.tree.map(lambda a: jax.ShapeDtypeStruct(jnp.shape(a)[rank:], a.dtype), xs)
    state = jax.ShapeDtypeStruct(initial.shape[-1:], accumulator(initial.dtype))
    new = jax.eval_shape(step, params, state, one)
    if getattr(new, "shape", None) != state.shape:
        raise ValueError(f"step must return a state of shape {list(state.shape)} like the one it gets, returned {new}")
    return batch, steps


def _check_options(
    jacobian, blocks, width, method="newton", reduction="auto", norm=1, iterations=None, damping=0.0, relaxation=1.0
) -> None:
    check_choice("jacobian", jacobian, STRUCTURES)
    check_choice("method", method, METHODS)
    check_choice("reduction", reduction, REDUCTIONS)
    if (blocks is not None) != (jacobian == "block"):
        raise ValueError(
            f"blocks goes with jacobian='block', and only with it; got jacobian={jacobian!r}, blocks={blocks}"
        )
    if blocks is not None:
        check_positive("blocks", blocks)
        check_divides("blocks", blocks, "state size", width)
    if "elk" in method and reduction in ("chunked", "pallas"):
        raise ValueError(f"method={method!r} has reduction 'sequential', 'associative' or 'auto', got {reduction!r}")
    if reduction == "pallas" and jacobian == "dense":
        raise ValueError(
            "reduction='pallas' is for jacobian='diagonal' and 'block'; there is no kernel for dense matrices"
        )
    if not norm >= 1:
        raise ValueError(f"norm must be at least 1 (or infinity), got {norm}")
    if iterations is not None and (not isinstance(iterations, int) or iterations < 0):
        raise ValueError(f"iterations must be an integer of at least 0, or None, got {iterations!r}")
    if damping < 0 or relaxation <= 0:
        raise ValueError(f"damping must be at least 0 and relaxation above 0, got {damping} and {relaxation}")


def _judged(states, diagnostics, on_failure, options):
    """Applies ``on_failure`` to rows [T, N] that are not to be trusted."""
    failed = diagnostics.failed
    if on_failure == "flag":
        return states
    if on_failure == "nan" or isinstance(failed, jax.core.Tracer):
        return jnp.where(failed[:, None, None], jnp.nan, states)
    if not np.any(failed):
        return states
    worst = int(np.argmax(failed))
    found = jax.tree.map(lambda a: np.asarray(a)[worst], diagnostics)
    if found.structure_error > _structure_bound(states.dtype):
        raise ValueError(
            "step does not have the declared Jacobian structure: along a vector its derivative is off by "
            f"{found.structure_error:.1e} (relative); zoo.scans.check_structure names the entry"
        )
    raise NonConvergenceError(
        f"{options.method} has not converged: residual {found.residual:.2e} after {found.iterations} iterations"
        f"{'' if found.finite else ', with non-finite iterates'}; allow more iterations, or try method='elk', "
        "relaxation below 1, or fallback='sequential'"
    )


def _structure_bound(dtype) -> float:
    return 8 * float(jnp.finfo(dtype).eps) ** 0.5


def _everywhere(function, params, *tables):
    """``function`` of one step at all steps of all rows."""
    axes = (None, *[0] * len(tables))
    return jax.vmap(jax.vmap(function, axes), axes)(params, *tables)


def _vary(array, *others):
    """``array``, over whatever mesh axes ``others`` vary as well: under ``shard_map`` a loop carries one type."""
    for leaf in jax.tree.leaves(others):
        if leaf.size and not jnp.issubdtype(leaf.dtype, jax.dtypes.extended):
            array = jnp.where(False, leaf.reshape(-1)[0].astype(array.dtype), array)
    return array


def _shift(initial, states):
    """The state before each step."""
    return jnp.concatenate([initial[:, None], states[:, :-1]], axis=1)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _run(system, options, named, params, xs, initial, guess):
    """Returns (states [B, T, N], diagnostics)."""
    initial = _vary(initial, params, xs)
    if options.method == "sequential":
        states = _sequential(system, params, xs, initial)
        return states, _sequential_diagnostics(states)
    fixed = jax.tree.map(lax.stop_gradient, (params, xs, initial, guess))
    solution, diagnostics = _iterate(system, options, named, *fixed)
    return _attach(system, params, xs, initial, lax.stop_gradient(solution)), diagnostics


def _sequential(system, params, xs, initial):
    def body(state, x):
        state = jax.vmap(system.step, (None, 0, 0))(params, state, x).astype(state.dtype)
        return state, state

    rows = jax.tree.map(lambda a: jnp.moveaxis(a, 1, 0), xs)
    return jnp.moveaxis(lax.scan(body, initial, rows)[1], 0, 1)


def _sequential_diagnostics(states):
    finite = jnp.all(jnp.isfinite(lax.stop_gradient(states)), axis=(1, 2))
    zero = jnp.zeros(len(finite), states.dtype)
    return SolveDiagnostics(
        flag=jnp.where(finite, ABSOLUTE, NON_FINITE), iterations=jnp.zeros(len(finite), jnp.int32),
        residuals=zero[:, None], residual=zero, converged=finite, finite=finite, structure_error=zero,
        fallback=jnp.zeros_like(finite), failed=~finite,
    )  # fmt: skip


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _attach(system, params, xs, initial, solution):
    """``solution``, with the derivative that the implicit function theorem gives it."""
    return solution


@_attach.defjvp
def _attach_jvp(system, primals, tangents):
    params, xs, initial, _ = primals
    dparams, dxs, dinitial, _ = tangents
    states = _attach(system, *primals)
    before = _shift(initial, states)
    forcing = jax.jvp(lambda p, x: system.differentiated(p, before, x, states), (params, xs), (dparams, dxs))[1]
    table = system.linearised(params, before, xs, states)[1]
    return states, system.scan(table, forcing, dinitial)


class _Loop(NamedTuple):
    """Carried through the iterations; ``values`` and ``table`` are the linearisation at ``states``, the rest is per row."""

    count: Array
    states: Array
    values: Array
    table: Array | None
    residual: Array
    change: Array
    iterations: Array
    finite: Array
    history: Array


def _iterate(system, options, named, params, xs, initial, guess):
    """Runs the iterations, every row until it has converged. Returns (states, diagnostics)."""

    def evaluate(states):
        before = _shift(initial, states)
        if options.method == "jacobi":
            return system.values(params, before, xs), None
        values, table = system.linearised(params, before, xs, states)
        return values, system.diagonal(table) if options.method.startswith("quasi") else table

    def size(errors):
        errors = jnp.abs(errors)
        if math.isinf(options.norm):
            return jnp.max(errors, axis=(1, 2))
        return jnp.sum(errors**options.norm, axis=(1, 2)) ** (1 / options.norm)

    def scale(states):
        return jnp.maximum(1, jnp.max(jnp.abs(states), axis=(1, 2)))

    def reached(loop):
        """The flag of every row at this iterate."""
        measure = loop.change if options.criterion == "change" else loop.residual
        flag = jnp.where(measure <= options.relative * loop.history[:, 0], RELATIVE, MAX_ITERATIONS)
        flag = jnp.where(measure <= options.absolute * (scale(loop.states) if options.scaled else 1), ABSOLUTE, flag)
        return jnp.where(jnp.isfinite(loop.residual), flag, NON_FINITE)

    def going(loop):
        """Rows that need more iterations."""
        if options.fixed:
            return jnp.ones(len(loop.residual), bool)
        flag = reached(loop)
        # an iterate that is not finite ends it, unless it is mended in the next one
        return (flag == MAX_ITERATIONS) | (options.reset & (flag == NON_FINITE))

    def advance(loop):
        rows = going(loop)
        states = _update(system, options, initial, loop.states, loop.values, loop.table)
        if options.relaxation != 1:
            states = loop.states + options.relaxation * (states - loop.states)
        good = jnp.isfinite(states)
        if options.reset:
            states = jnp.where(good, states, 0)
        if options.clip is not None:
            states = jnp.clip(states, -options.clip, options.clip)
        states = jnp.where(rows[:, None, None], states, loop.states)
        values, table = evaluate(states)
        residual = size(values - states)
        return _Loop(
            loop.count + 1, states, values, table, residual,
            change=jnp.where(rows, size(states - loop.states), loop.change),
            iterations=loop.iterations + rows,
            finite=loop.finite & (jnp.all(good, axis=(1, 2)) | ~rows),
            history=loop.history.at[:, loop.count + 1].set(jnp.where(rows, residual, jnp.nan)),
        )  # fmt: skip

    if guess is None:
        zeros = jnp.zeros((*jax.tree.leaves(xs)[0].shape[:2], initial.shape[-1]), initial.dtype)
        guess = zeros if named == "zeros" else system.values(params, zeros, xs)
    guess = _vary(guess, initial)
    values, table = evaluate(guess)
    first = size(values - guess)
    history = jnp.full((len(first), options.iterations + 1), jnp.nan, first.dtype).at[:, 0].set(first)
    loop = _Loop(
        jnp.zeros((), jnp.int32), guess, values, table, first, change=_vary(jnp.full_like(first, jnp.inf), first),
        iterations=_vary(jnp.zeros(len(first), jnp.int32), first),
        finite=jnp.all(jnp.isfinite(guess), axis=(1, 2)), history=history,
    )  # fmt: skip

    if not options.fixed:
        loop = lax.while_loop(lambda loop: (loop.count < options.iterations) & jnp.any(going(loop)), advance, loop)
        flag = reached(loop)
        converged = (flag == ABSOLUTE) | (flag == RELATIVE)
        failed = ~converged
    else:
        if options.iterations <= _UNROLLED:
            for _ in range(options.iterations):
                loop = advance(loop)
        else:
            loop = lax.fori_loop(0, options.iterations, lambda _, carry: advance(carry), loop)
        flag = jnp.where(jnp.isfinite(loop.residual), MAX_ITERATIONS, NON_FINITE)
        converged = loop.residual <= 64 * jnp.finfo(first.dtype).eps * scale(loop.states)
        failed = (flag == NON_FINITE) | ~loop.finite & ~converged

    states, fallback = loop.states, jnp.zeros_like(failed)
    if options.fallback:
        fallback = failed

        def sequential():
            return jnp.where(failed[:, None, None], _sequential(system, params, xs, initial), loop.states)

        states = lax.cond(jnp.any(failed), sequential, lambda: loop.states)
        failed = failed & ~jnp.all(jnp.isfinite(states), axis=(1, 2))
    error = jnp.zeros_like(first)
    if options.verify:
        error = _structure_error(system, params, _shift(initial, states), xs)
        failed = failed | (error > _structure_bound(states.dtype))
    diagnostics = SolveDiagnostics(
        flag, loop.iterations, loop.history, loop.residual, converged, loop.finite, error, fallback, failed
    )
    return states, diagnostics


def _structure_error(system, params, before, xs):
    """Largest difference between the true derivative along one vector and what the declared J makes of it, relative."""
    vector = np.random.default_rng(0).standard_normal(before.shape[-1])
    vectors = jnp.broadcast_to(jnp.asarray(vector, before.dtype), before.shape)
    true = jax.jvp(lambda h: system.values(params, h, xs), (before,), (vectors,))[1]
    declared = system.product(system.linearised(params, before, xs)[1], vectors)
    true, declared, error = (jnp.max(jnp.abs(a), axis=(1, 2)) for a in (true, declared, true - declared))
    scale = jnp.maximum(true, declared)
    return error / jnp.where(scale > 0, scale, 1)


def _update(system, options, initial, states, values, table):
    """The next iterate, before relaxation."""
    method = options.method
    if method == "jacobi":
        return values
    quasi = method.startswith("quasi")
    system = system._replace(jacobian="diagonal") if quasi else system
    if "elk" not in method:
        return states + system.scan(table, values - states)
    # J_1 acts on the initial state, which is known: the first step is predicted by its value alone
    later = (jnp.arange(states.shape[1]) > 0).astype(states.dtype)
    table = table * later.reshape(1, -1, *[1] * (table.ndim - 2))
    offsets = values - system.product(table, _shift(initial, states))
    sequential = _filter_form(system.reduction) == "sequential"
    if system.jacobian == "diagonal":
        return (kalman_filter if sequential else filter_in_parallel)(table, offsets, states, options.damping)
    run = matrix_filter if sequential else matrix_filter_in_parallel
    return system.ungroup(run(table, system.group(offsets), system.group(states), options.damping))


def _filter_form(reduction: str) -> str:
    """Form of the Kalman filters: sequential or associative."""
    return _auto.affine_form(reduction, None, (1, 2, 1))[0]
