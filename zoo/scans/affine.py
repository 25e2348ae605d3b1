"""Linear recurrence with matrix transitions: ``h_t = A_t h_{t-1} + b_t`` along axis 1.

The recurrence of dense and block-diagonal linear RNNs, and one Newton step of a nonlinear recurrence solved in
parallel.

Shapes, with ``...`` any middle axes (blocks, heads):

    matrices  broadcasts to [B, T, ..., N, N]; any of B, T and the middle axes may be 1 and is not expanded
    inputs    [B, T, ..., N]
    initial   [B, ..., N]      h_{-1}, zero when None
    states    [B, T, ..., N]   h_0 .. h_{T-1}
    last      [B, ..., N]      the state to carry on from: h_{T-1}, or h_0 with ``reverse=True``

Forms, the same numbers up to rounding: sequential (T products matrix by vector), chunked (chunks side by side, see
``zoo.scans.linear``), associative, and pallas (real 2 x 2 matrices only: the kernel ``pallas_kernels.block_scan``,
interpreted on a CPU). Chunked and associative multiply matrices by matrices, N times the arithmetic of the
sequential form, in exchange for fewer dependent steps: T/K + K for K chunks, 2 log2 T for the associative form.

Derivatives as in ``zoo.scans.linear``: a linear solve whose transpose is the recurrence
``g_t = c_t + A_{t+1}^T g_{t+1}``. Products of matrices run in the highest precision of the platform.

Cost: time O(T N^2) sequential, O(T N^3) chunked and associative; memory O(T N^2) for the matrices, O(T N) else.
"""

import functools

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Inexact

from pallas_kernels import operation
from zoo.checks import check_choice, check_floating, check_positive
from zoo.dtypes import accumulator
from zoo.scans import _auto, _recurrence
from zoo.scans._recurrence import Operator, pad_time

METHODS = ("auto", "sequential", "chunked", "associative", "pallas")

_einsum = functools.partial(jnp.einsum, precision=lax.Precision.HIGHEST)


def _identity(matrices):
    return jnp.broadcast_to(jnp.eye(matrices.shape[-1], dtype=matrices.dtype), matrices.shape)


_MATRIX = Operator(
    apply=lambda a, h: _einsum("...ij,...j->...i", a, h),
    compose=lambda first, second: _einsum("...ij,...jk->...ik", second, first),
    identity=_identity,
)
# the same matrices, acting transposed
_TRANSPOSED = Operator(
    apply=lambda a, h: _einsum("...ji,...j->...i", a, h),
    compose=lambda first, second: _einsum("...ij,...jk->...ik", first, second),
    identity=_identity,
)


def affine_scan(
    matrices: Inexact[Array, "*A N N"],
    inputs: Inexact[Array, "B T *M N"],
    initial: Inexact[Array, "B *M N"] | None = None,
    *,
    reverse: bool = False,
    method: str = "auto",
    chunk_size: int | None = None,
) -> tuple[Inexact[Array, "B T *M N"], Inexact[Array, "B *M N"]]:
    """Runs ``h_t = A_t h_{t-1} + b_t`` over axis 1.

    Args:
      matrices: broadcasts to [B, T, ..., N, N], real or complex; axes of size 1 are not expanded.
      inputs: [B, T, ..., N], real or complex, T >= 1.
      initial: [B, ..., N], the state before the first step (after the last with ``reverse``); zeros when None.
      reverse: run from the end: ``h_t = A_t h_{t+1} + b_t``.
      method: one of ``METHODS``; "auto" chooses by the table in ``zoo.scans._auto``.
      chunk_size: steps per chunk of the chunked form; chosen from the shape when None.

    Returns:
      states: [B, T, ..., N] in the result type of ``matrices`` and ``inputs``.
      last: [B, ..., N], the state after the last step run, in the accumulation type (at least float32).

    Raises:
      TypeError: an argument is not floating-point or complex.
      ValueError: shapes do not fit, T = 0, or an unknown method.
    """
    matrices, inputs, initial = _checked(matrices, inputs, initial, method, chunk_size)
    dtype = jnp.result_type(matrices, inputs)
    carried = accumulator(dtype) if initial is None else accumulator(dtype, initial.dtype)
    steps = inputs.shape[1]
    edge = steps - 1 if reverse else 0
    matrices = matrices.astype(carried)
    inputs = inputs.astype(carried)
    if initial is not None:
        # one more input at the first step
        first = _MATRIX.apply(matrices[:, edge if matrices.shape[1] > 1 else 0], initial.astype(carried))
        inputs = inputs + pad_time(first[:, None], edge, steps - 1 - edge)
    if steps == 1:
        return inputs.astype(dtype), inputs[:, 0]
    form, size = _auto.affine_form(method, chunk_size, inputs.shape)

    def matvec(states):
        before = pad_time(states[:, 1:], 0, 1) if reverse else pad_time(states[:, :-1], 1, 0)
        return states - _MATRIX.apply(matrices, before)

    if form == "pallas":
        if matrices.shape[-1] != 2 or jnp.iscomplexobj(inputs):
            raise ValueError(
                f"method='pallas' is for real 2 x 2 matrices, got {inputs.dtype} and N = {matrices.shape[-1]}"
            )
        solve, transpose_solve = _kernel_solves(matrices, inputs.shape, reverse)
        states = lax.custom_linear_solve(matvec, inputs, solve, transpose_solve)
        return states.astype(dtype), states[:, 0 if reverse else -1]

    def solve(_, right):
        return _recurrence.run(_MATRIX, matrices, right, reverse, False, form, size)

    def transpose_solve(_, right):
        return _recurrence.run(_TRANSPOSED, matrices, right, not reverse, True, form, size)

    states = lax.custom_linear_solve(matvec, inputs, solve, transpose_solve)
    return states.astype(dtype), states[:, 0 if reverse else -1]


def _kernel_solves(matrices, shape, reverse):
    """The recurrence and its transpose by the kernel, which has one axis of channels for all middle axes."""
    full = jnp.broadcast_to(matrices, (*shape, 2)).reshape(*shape[:2], -1, 2, 2)

    def run(blocks, right, reverse, after):
        options = _auto.kernel_options()
        right = right.reshape(*shape[:2], -1, 2)
        return operation("block_scan")(blocks, right, reverse=reverse, after=after, **options)[0].reshape(shape)

    return (
        lambda _, right: run(full, right, reverse, False),
        lambda _, right: run(jnp.swapaxes(full, -1, -2), right, not reverse, True),
    )


def _checked(matrices, inputs, initial, method, chunk_size):
    """Checks every argument of ``affine_scan``; returns arrays, ``matrices`` with one axis more than ``inputs``."""
    check_choice("method", method, METHODS)
    if chunk_size is not None:
        check_positive("chunk_size", chunk_size)
    check_floating("matrices", matrices)
    check_floating("inputs", inputs)
    if inputs.ndim < 3:
        raise ValueError(f"inputs must have shape [batch, time, ..., N], got {list(inputs.shape)}")
    if inputs.shape[1] == 0:
        raise ValueError("inputs has no time steps (T = 0); a scan needs at least one")
    full = (*inputs.shape, inputs.shape[-1])
    shape = (1,) * (len(full) - matrices.ndim) + tuple(matrices.shape)
    fits = len(shape) == len(full) and shape[-2:] == full[-2:]
    if not fits or any(a not in (1, n) for a, n in zip(shape[:-2], full[:-2], strict=True)):
        raise ValueError(
            f"matrices must broadcast to {list(full)} for inputs of shape {list(inputs.shape)}, "
            f"got {list(matrices.shape)}"
        )
    if initial is not None:
        check_floating("initial", initial)
        wanted = (inputs.shape[0], *inputs.shape[2:])
        if tuple(initial.shape) != wanted:
            raise ValueError(
                f"initial must have shape {list(wanted)} like one step of inputs, got {list(initial.shape)}"
            )
        initial = jnp.asarray(initial)
    return jnp.asarray(matrices).reshape(shape), jnp.asarray(inputs), initial
