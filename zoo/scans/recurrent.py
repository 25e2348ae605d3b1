"""Nonlinear recurrence, one dependent step after another: LSTM, GRU, Elman and Jordan networks and their kin.

    drive_t = project(params, inputs_t)                        [B, T, ...], needs no state
    state_t = step(params, state_{t-1}, drive_t, keep)

``step`` is an ordinary function of one step of a batch, written with ``matmul`` and elementwise operations. ``keep(value)``
returns ``value``; it says that this value (a matrix product, as a rule) is worth storing for the backward pass rather than
computing again. Shapes:

    params    any pytree of arrays
    inputs    pytree of [B, T, ...]
    initial   pytree of [B, ...], the state; it may hold values that are not fed back, when all their steps are wanted
    states    pytree of [B, T, ...]

Derivatives. With J_t = d state_t / d state_{t-1} and f_t the effect of the perturbed inputs and parameters on step t alone,
the tangents obey the linear recurrence

    dstate_t = J_t dstate_{t-1} + f_t.

All f_t are one batched call outside the loop, so that the gradient of a weight matrix is ONE large product over batch and
time, never accumulated step by step. The linear recurrence is stated to JAX through ``lax.custom_linear_solve``: reverse
mode runs g_{t-1} = J_t^T g_t backwards in time, forward mode runs it forwards, and higher derivatives follow. The forward
loop records what ``keep`` was given; the linearisations start from these records and compute no product for values.

Cost: T dependent steps, each with the products that ``step`` makes; the backward pass makes the transposed ones, and one
large product per weight matrix. Reverse mode stores states, inputs and records; without it only the states are stored.

On CPU the loop reads the batch-major arrays in place and projects step by step: small products that stay in the cache beat a
large one that writes [B, T, gates] to memory. Elsewhere time is the leading axis and the projection is one large product.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from zoo.checks import check_floating, check_reset
from zoo.dtypes import accumulator


def recurrent_scan(
    step: Callable,
    inputs: Any,
    initial: Any,
    params: Any = None,
    *,
    project: Callable | None = None,
    reset: Bool[Array, "B T"] | None = None,
    reverse: bool = False,
) -> tuple[Any, Any]:
    """Runs ``state_t = step(params, state_{t-1}, project(params, inputs_t), keep)`` over axis 1 of ``inputs``.

    ``step`` and ``project`` must be hashable and should be the same objects in every call (module-level functions, or made
    by a cached factory): outside ``jax.jit``, a new object means a new compilation.

    Args:
      step: one step of a batch: (params, state, drive, keep) -> new state.
      inputs: pytree of [B, T, ...].
      initial: pytree of [B, ...], the state before the first step (after the last with ``reverse``).
      params: differentiable pytree, handed to ``step`` and ``project``.
      project: (params, inputs) -> drive for inputs [B, ...] of one step; it must act on every step alone. None: inputs
        drive the steps as they are.
      reset: True where the state that comes in is replaced by zeros.
      reverse: run from the end.

    Returns:
      (states, last): the states after every step, pytree of [B, T, ...], and the one after the last step run.

    Raises:
      TypeError: a leaf of inputs or initial is not floating-point.
      ValueError: T = 0, or the axes B and T of inputs, initial and reset do not fit.
    """
    steps = _check(inputs, initial, reset)
    if steps == 1:
        drive, begin = jax.tree.map(lambda a: a[:, 0], (inputs, reset))
        drive = drive if project is None else project(params, drive)
        last, _ = _recorded(step, params, initial, drive, begin)
        return jax.tree.map(lambda a: a[:, None], last), last
    on_cpu = jax.default_backend() == "cpu"
    axis = 1 if on_cpu else 0
    if not on_cpu:
        inputs, reset = jax.tree.map(lambda a: jnp.swapaxes(a, 0, 1), (inputs, reset))
        if project is not None:
            inputs, project = jax.vmap(project, (None, 0))(params, inputs), None
    states = _run(_Recurrence(step, project, reverse, axis, steps), params, inputs, initial, reset)
    last = jax.tree.map(lambda a: lax.index_in_dim(a, 0 if reverse else steps - 1, axis, keepdims=False), states)
    return states if on_cpu else jax.tree.map(lambda a: jnp.swapaxes(a, 0, 1), states), last


def matmul(values: Float[Array, "... N"], weight: Float[Array, "N M"]) -> Float[Array, "... M"]:
    """``values @ weight`` with operands in the dtype of ``weight``, accumulated and returned in at least float32."""
    return jnp.matmul(values.astype(weight.dtype), weight, preferred_element_type=accumulator(weight.dtype))


def _check(inputs, initial, reset) -> int:
    """Checks the arguments and returns T."""
    for name, tree in (("inputs", inputs), ("initial", initial)):
        if not jax.tree.leaves(tree):
            raise ValueError(f"{name} has no arrays")
        for leaf in jax.tree.leaves(tree):
            check_floating(name, leaf)
    shapes = [leaf.shape for leaf in jax.tree.leaves(inputs)]
    if any(len(shape) < 2 for shape in shapes) or len({shape[:2] for shape in shapes}) != 1:
        raise ValueError(f"inputs must be arrays [batch, time, ...] of equal batch and time, got {shapes}")
    batch, steps = shapes[0][:2]
    if steps == 0:
        raise ValueError("inputs has no time steps (T = 0); a scan needs at least one")
    for leaf in jax.tree.leaves(initial):
        if leaf.shape[:1] != (batch,):
            raise ValueError(f"initial must be arrays [batch={batch}, ...], got {list(leaf.shape)}")
    check_reset(reset, (batch, steps))
    return steps


def _recorded(step, params, state, drive, reset, records=None):
    """One step. Returns (state, records): what ``keep`` was given, or the ``records`` of an earlier run replayed."""
    kept = []

    def keep(value):
        kept.append(value if records is None else _replay(value, records[len(kept)]))
        return kept[-1]

    if reset is not None:
        state = jax.tree.map(lambda s: jnp.where(reset.reshape(-1, *[1] * (s.ndim - 1)), 0, s), state)
    new = step(params, state, drive, keep)
    return jax.tree.map(lambda n, s: n.astype(s.dtype), new, state), tuple(kept)


@jax.custom_jvp
def _replay(value, record):
    """``value``, known beforehand to equal ``record``: its computation becomes dead code, its derivative stays."""
    return record


@_replay.defjvp
def _replay_jvp(primals, tangents):
    return _replay(*primals), tangents[0]  # again a replay, so that second derivatives see the value's computation


class _Recurrence(NamedTuple):
    """The static part of a scan; ``axis`` is that of time in every array of T steps."""

    step: Callable
    project: Callable | None
    reverse: bool
    axis: int
    steps: int

    def at(self, params, state, inputs, reset, records=None):
        """One step from raw inputs: (state, records)."""
        drive = inputs if self.project is None else self.project(params, inputs)
        return _recorded(self.step, params, state, drive, reset, records)

    def loop(self, body, carry, tables, reverse):
        """``carry, out = body(carry, tables at t)`` for every t; returns the outs of all steps."""

        def fetch(i):
            t = jnp.clip(self.steps - 1 - i if reverse else i, 0, self.steps - 1)
            return jax.tree.map(lambda a: lax.dynamic_index_in_dim(a, t, self.axis, keepdims=False), tables)

        def iteration(i, loop):
            # What the step reads was fetched one iteration ahead. A slice taken here would be fused into the elementwise
            # loops of the step, and XLA's CPU compiler does not vectorise loops that contain a dynamic slice.
            carry, now, outs = loop
            carry, out = body(carry, now)
            t = self.steps - 1 - i if reverse else i
            outs = jax.tree.map(lambda a, o: lax.dynamic_update_index_in_dim(a, o, t, self.axis), outs, out)
            return carry, fetch(i + 1), outs

        now = fetch(0)
        shapes = jax.eval_shape(body, carry, now)[1]
        outs = jax.tree.map(
            lambda s: jnp.zeros((*s.shape[: self.axis], self.steps, *s.shape[self.axis :]), s.dtype), shapes
        )
        return lax.fori_loop(0, self.steps, iteration, (carry, now, outs))[2]

    def shift(self, first, rest):
        """What each step starts from: ``first`` and all but the last of ``rest``, in running order."""

        def join(a, b):
            a = jnp.expand_dims(a, self.axis)
            b = (
                lax.slice_in_dim(b, 1, None, axis=self.axis)
                if self.reverse
                else lax.slice_in_dim(b, 0, -1, axis=self.axis)
            )
            return jnp.concatenate([b, a] if self.reverse else [a, b], self.axis)

        return jax.tree.map(join, first, rest)


@partial(jax.jit, static_argnums=0)
def _run(scan, params, inputs, initial, reset):
    return _solve(scan, params, inputs, initial, reset)[0]


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _solve(scan, params, inputs, initial, reset):
    """Returns (states, records) of all steps; the records count as constants."""

    def body(state, now):
        state, records = scan.at(params, state, *now)
        return state, (state, records)

    return scan.loop(body, initial, (inputs, reset), scan.reverse)


@_solve.defjvp
def _solve_jvp(scan, primals, tangents):
    params, inputs, initial, reset = primals
    dparams, dinputs, dinitial, _ = tangents
    states, records = _solve(scan, *primals)
    records = lax.stop_gradient(records)
    before = scan.shift(initial, states)

    def at(params, inputs, state, now):
        return scan.at(params, state, inputs, *now)[0]

    def everywhere(params, inputs, before):
        axis = scan.axis
        return jax.vmap(at, (None, axis, axis, axis), axis)(params, inputs, before, (reset, records))

    _, forcing = jax.jvp(lambda p, x: everywhere(p, x, before), (params, inputs), (dparams, dinputs))
    # The initial state acts on the first step only.
    edge = scan.steps - 1 if scan.reverse else 0
    x, now = jax.tree.map(lambda a: lax.index_in_dim(a, edge, scan.axis, keepdims=False), (inputs, (reset, records)))
    _, first = jax.jvp(lambda s: at(params, x, s, now), (initial,), (dinitial,))
    where = (slice(None),) * scan.axis + (edge,)
    forcing = jax.tree.map(lambda f, d: f.at[where].add(d), forcing, first)

    zero = jax.tree.map(jnp.zeros_like, initial)
    _, apply = jax.linearize(lambda b: everywhere(params, inputs, b), before)
    tables = (before, inputs, (reset, records))

    def matvec(dstates):
        return jax.tree.map(jnp.subtract, dstates, apply(scan.shift(zero, dstates)))

    def solve(_, right):
        def body(dstate, args):
            (state, x, now), force = args
            _, effect = jax.jvp(lambda s: at(params, x, s, now), (state,), (dstate,))
            dstate = jax.tree.map(jnp.add, effect, force)
            return dstate, dstate

        return scan.loop(body, zero, (tables, right), scan.reverse)

    def transpose_solve(_, right):
        def body(carry, args):
            (state, x, now), force = args
            total = jax.tree.map(jnp.add, carry, force)
            _, pullback = jax.vjp(lambda s: at(params, x, s, now), state)
            return pullback(total)[0], total

        return scan.loop(body, zero, (tables, right), not scan.reverse)

    dstates = lax.custom_linear_solve(matvec, forcing, solve=solve, transpose_solve=transpose_solve)
    return (states, records), (dstates, jax.tree.map(jnp.zeros_like, records))
