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

Derivatives. Let k_t be the values that step t keeps. A perturbation of inputs, parameters and initial state makes a direct
change e_t of k_t and f_t of state_t, and what follows from it is a linear recurrence:

    dk_t     = A_t dstate_{t-1} + e_t                  (each kept value may also depend on the ones kept before it)
    dstate_t = B_t dstate_{t-1} + C_t dk_t + f_t

It is stated to JAX through ``lax.custom_linear_solve``: reverse mode runs its transpose backwards in time, forward mode
runs it forwards, and higher derivatives follow. All e_t and f_t are one batched call outside the loop. So the backward
loop yields the cotangents of all kept products, and the gradient of a weight matrix is ONE large product over batch and
time, never accumulated step by step. The loops start from the recorded k_t and compute no product for its value.

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
        now, begin = jax.tree.map(lambda a: a[:, 0], (inputs, reset))
        last, _ = _Recurrence(step, project, reverse, 1, 1).at(params, initial, now, begin)
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
    # As a product of two matrices: for more axes, XLA's CPU compiler copies before it computes the gradient of the weight.
    rows = values.reshape(-1, values.shape[-1]).astype(weight.dtype)
    product = jnp.matmul(rows, weight, preferred_element_type=accumulator(weight.dtype))
    return product.reshape(*values.shape[:-1], -1)


def gate_kernels(kernel: Float[Array, "N M"], gates: int) -> tuple[Float[Array, "N _"], ...]:
    """The weights of ``gates`` gates, stored side by side, cut into the matrices that ``gate_products`` multiplies with."""
    # One product for all gates, but for wide ones on CPU: measured on two cores, four products of 256 columns take 15 % less
    # time than one of 1024, while below that width the calls cost more than they save.
    apart = jax.default_backend() == "cpu" and kernel.shape[1] >= 256 * gates
    return tuple(jnp.split(kernel, gates, axis=1)) if apart else (kernel,)


def gate_products(values: Float[Array, "... N"], kernels: tuple[Array, ...], gates: int) -> list[Float[Array, "... H"]]:
    """``values @ kernel`` for every gate; ``kernels`` come from ``gate_kernels``."""
    if len(kernels) == gates:
        return [matmul(values, kernel) for kernel in kernels]
    return jnp.split(matmul(values, kernels[0]), gates, axis=-1)


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


@jax.custom_jvp
def _replay(value, record):
    """``value``, known beforehand to equal ``record``: its computation becomes dead code, its derivative stays."""
    return record


@_replay.defjvp
def _replay_jvp(primals, tangents):
    return primals[1], tangents[0]


class _Recurrence(NamedTuple):
    """The static part of a scan; ``axis`` is that of time in every array of T steps."""

    step: Callable
    project: Callable | None
    reverse: bool
    axis: int
    steps: int

    def at(self, params, state, inputs, reset, treat=lambda value, j: value):
        """One step, in which ``keep(value)`` number j returns ``treat(value, j)``. Returns (state, values kept)."""
        kept = []

        def keep(value):
            kept.append(treat(value, len(kept)))
            return kept[-1]

        if reset is not None:
            state = jax.tree.map(lambda s: jnp.where(reset.reshape(-1, *[1] * (s.ndim - 1)), 0, s), state)
        drive = inputs if self.project is None else self.project(params, inputs)
        new = self.step(params, state, drive, keep)
        return jax.tree.map(lambda n, s: n.astype(s.dtype), new, state), tuple(kept)

    def everywhere(self, params, inputs, before, kept, reset):
        """All steps at once, as one batch of rows, each from what it starts from and with its ``kept`` values given.

        Returns (states, the values that the steps computed for ``kept``).
        """
        computed = []

        def treat(value, j):
            computed.append(value)
            return rows[2][j]

        shape = jax.tree.leaves(before)[0].shape[:2]
        rows = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), (inputs, before, kept, reset))
        states, _ = self.at(params, rows[1], rows[0], rows[3], treat)
        return jax.tree.map(lambda a: a.reshape(*shape, *a.shape[1:]), (states, tuple(computed)))

    def loop(self, body, carry, tables, reverse):
        """``carry, out = body(carry, tables at t)`` for every t. Returns (the last carry, the outs of all steps)."""

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
        carry, _, outs = lax.fori_loop(0, self.steps, iteration, (carry, now, outs))
        return carry, outs

    def shift(self, first, rest):
        """What each step starts from: ``first`` and all but the last of ``rest``, in running order."""

        def join(a, b):
            a = jnp.expand_dims(a, self.axis)
            b = lax.slice_in_dim(b, *((1, None) if self.reverse else (0, -1)), axis=self.axis)
            return jnp.concatenate([b, a] if self.reverse else [a, b], self.axis)

        return jax.tree.map(join, first, rest)


@partial(jax.jit, static_argnums=0)
def _run(scan, params, inputs, initial, reset):
    return _solve(scan, params, inputs, initial, reset)[0]


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _solve(scan, params, inputs, initial, reset):
    """Returns (states, values kept) of all steps."""

    def body(state, now):
        state, kept = scan.at(params, state, *now)
        return state, (state, kept)

    return scan.loop(body, initial, (inputs, reset), scan.reverse)[1]


@_solve.defjvp
def _solve_jvp(scan, primals, tangents):
    params, inputs, initial, reset = primals
    dparams, dinputs, dinitial, _ = tangents
    states, kept = _solve(scan, *primals)
    before = scan.shift(initial, states)

    def direct(params, inputs):
        return scan.everywhere(params, inputs, before, kept, reset)

    def indirect(before, kept):
        return scan.everywhere(params, inputs, before, kept, reset)

    forcing = jax.jvp(direct, (params, inputs), (dparams, dinputs))[1]
    _, follow = jax.linearize(indirect, before, kept)
    tables = (before, inputs, kept, reset)

    def linear(now):
        """The step at one time as a function of its state and of additions to its kept values."""
        state, inputs, records, reset = now

        def function(state, nudges):
            return scan.at(params, state, inputs, reset, lambda value, j: _replay(value + nudges[j], records[j]))

        return function, (state, jax.tree.map(jnp.zeros_like, records))

    def matvec(unknown):
        first, (dstates, dkept) = unknown
        effect = follow(scan.shift(first, dstates), dkept)
        return first, jax.tree.map(jnp.subtract, (dstates, dkept), effect)

    def solve(_, right):
        def body(dstate, args):
            now, (force, nudges) = args
            function, point = linear(now)
            dstate, dkept = jax.jvp(function, point, (dstate, nudges))[1]
            dstate = jax.tree.map(jnp.add, dstate, force)
            return dstate, (dstate, dkept)

        return right[0], scan.loop(body, right[0], (tables, right[1]), scan.reverse)[1]

    def transpose_solve(_, right):
        def body(carry, args):
            now, (cotangent, cotangent_kept) = args
            cotangent = jax.tree.map(jnp.add, carry, cotangent)
            function, point = linear(now)
            carry, nudges = jax.vjp(function, *point)[1]((cotangent, cotangent_kept))
            return carry, (cotangent, nudges)

        zero = jax.tree.map(jnp.zeros_like, right[0])
        carry, outs = scan.loop(body, zero, (tables, right[1]), not scan.reverse)
        return jax.tree.map(jnp.add, right[0], carry), outs

    right = _entangle((dinitial, forcing))
    solution = lax.custom_linear_solve(matvec, right, solve=solve, transpose_solve=transpose_solve)
    return (states, kept), solution[1]


def _entangle(tree):
    """``tree`` unchanged, but with every leaf a function of every other.

    The transpose of ``custom_linear_solve`` refuses a right-hand side of which only some leaves are perturbed. The additions
    are zeros by construction, and the compiler removes them.
    """
    token = sum(leaf.ravel()[0] for leaf in jax.tree.leaves(tree))
    return jax.tree.map(lambda leaf: leaf + jnp.where(False, token, 0).astype(leaf.dtype), tree)
