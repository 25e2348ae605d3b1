"""Krylov sequences ``K = [b, A b, ..., A^{L-1} b]`` and impulse responses ``C A^l b`` of linear systems.

Shapes, with ``...`` any leading axes (features):

    matrix   [..., N, N]
    vector   [..., N]
    K        [..., N, L]

By doubling: from X = [b], P = A, X <- [X, P X], P <- P P until X has L columns: ceil(log2 L) products with X, together as
much work as L products of matrix by vector but in dense pieces, and one squaring less than that. The sequential form makes
L - 1 dependent products.

An impulse response does not need K: with l = i S + j, C A^l b = (C A^{iS}) (A^j b), two Krylov sequences of about
sqrt(M L) columns each for M rows of C, so that memory is O(N sqrt(M L) + M L) in place of O(N L).

At least float32: in half precision the powers of a stable matrix underflow. Products run in the highest precision of the
platform. Powers of matrices that are far from normal (HiPPO) grow before they shrink: float32 needs steps of an A-stable
discretisation.
"""

import functools
import math

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Inexact

from zoo.checks import check_choice, check_floating, check_positive
from zoo.dtypes import accumulator

METHODS = ("doubling", "sequential")

_einsum = functools.partial(jnp.einsum, precision=lax.Precision.HIGHEST)
_multiply = functools.partial(jnp.matmul, precision=lax.Precision.HIGHEST)


def krylov(
    matrix: Inexact[Array, "... N N"],
    vector: Inexact[Array, "... N"],
    length: int,
    *,
    transpose: bool = False,
    method: str = "doubling",
) -> Inexact[Array, "... N L"]:
    """``[b, A b, ..., A^{L-1} b]`` for every system.

    Args:
      matrix: A [..., N, N].
      vector: b [..., N]; leading axes broadcast.
      length: L >= 1.
      transpose: take A^T in place of A: with a row of C for b, the rows C A^l.
      method: "doubling" or "sequential".

    Returns:
      K [..., N, L] in at least float32.

    Raises:
      TypeError: an argument is not floating-point.
      ValueError: shapes do not fit, L < 1, or an unknown method.
    """
    return _krylov(*_checked(matrix, vector, length, transpose, method), length, method)[0]


def krylov_and_power(
    matrix: Inexact[Array, "... N N"],
    vector: Inexact[Array, "... N"],
    length: int,
    *,
    transpose: bool = False,
    method: str = "doubling",
) -> tuple[Inexact[Array, "... N L"], Inexact[Array, "... N N"]]:
    """``krylov`` and A^L (or its transpose), which carries the state on by L steps; arguments as there."""
    matrix, vector = _checked(matrix, vector, length, transpose, method)
    sequence, squares = _krylov(matrix, vector, length, method)
    while len(squares) < length.bit_length():
        squares.append(_multiply(squares[-1], squares[-1]))
    factors = [square for bit, square in enumerate(squares) if length >> bit & 1]
    return sequence, functools.reduce(_multiply, factors)


def impulse_response(
    matrix: Inexact[Array, "... N N"],
    vector: Inexact[Array, "... N"],
    readout: Inexact[Array, "... M N"],
    length: int,
) -> Inexact[Array, "... M L"]:
    """``C A^l b`` for l = 0 .. L-1.

    Args:
      matrix: A [..., N, N].
      vector: b [..., N].
      readout: C [..., M, N].
      length: L >= 1.

    Returns:
      [..., M, L] in at least float32.

    Raises:
      TypeError: an argument is not floating-point.
      ValueError: shapes do not fit or L < 1.
    """
    left, right, _ = impulse_factors(matrix, vector, readout, length)
    return merge_factors(left, right, length)


def impulse_factors(
    matrix: Inexact[Array, "... N N"],
    vector: Inexact[Array, "... N"],
    readout: Inexact[Array, "... M N"],
    length: int,
) -> tuple[Inexact[Array, "... M N I"], Inexact[Array, "... N S"], Inexact[Array, "... N N"]]:
    """The parts of ``impulse_response``, for those who need A^j b as well: I blocks of S steps, I S >= L.

    Arguments as there.

    Returns:
      (C A^{iS} [..., M, N, I], A^j b [..., N, S], A^S [..., N, N]).
    """
    check_floating("readout", readout)
    if readout.ndim < 2 or readout.shape[-1] != matrix.shape[-1]:
        raise ValueError(
            f"readout must have shape [..., outputs, {matrix.shape[-1]}] like matrix, got {list(readout.shape)}"
        )
    check_positive("length", length)
    stride = min(length, 1 << (math.isqrt(readout.shape[-2] * length).bit_length() - 1))
    right, power = krylov_and_power(matrix, vector, stride)
    left = krylov(power[..., None, :, :], readout, -(-length // stride), transpose=True)
    return left, right, power


def merge_factors(
    left: Inexact[Array, "... M N I"], right: Inexact[Array, "... N S"], length: int
) -> Inexact[Array, "... M L"]:
    """``C A^l b`` for l < ``length`` from C A^{iS} and A^j b; leading axes broadcast."""
    response = _einsum("...mni,...nj->...mij", left, right)
    return response.reshape(*response.shape[:-2], -1)[..., :length]


def _krylov(matrix, vector, length, method):
    """(K, [A, A^2, A^4, ...] as far as they were needed)."""
    columns = vector[..., None]
    leading = jnp.broadcast_shapes(matrix.shape[:-2], vector.shape[:-1])
    columns = jnp.broadcast_to(columns, (*leading, *columns.shape[-2:]))
    if method == "sequential":

        def step(column, _):
            return _einsum("...ij,...j->...i", matrix, column), column

        _, columns = lax.scan(step, columns[..., 0], length=length)
        return jnp.moveaxis(columns, 0, -1), [matrix]
    squares = [matrix]
    while columns.shape[-1] < length:
        if columns.shape[-1] > 1:
            squares.append(_multiply(squares[-1], squares[-1]))
        more = columns[..., : length - columns.shape[-1]]
        columns = jnp.concatenate([columns, _multiply(squares[-1], more)], axis=-1)
    return columns, squares


def _checked(matrix, vector, length, transpose, method):
    """Checks the arguments of ``krylov``; returns matrix (transposed if wanted) and vector in one dtype."""
    check_choice("method", method, METHODS)
    check_positive("length", length)
    check_floating("matrix", matrix)
    check_floating("vector", vector)
    if matrix.ndim < 2 or matrix.shape[-1] != matrix.shape[-2]:
        raise ValueError(f"matrix must have shape [..., N, N], got {list(matrix.shape)}")
    if vector.ndim < 1 or vector.shape[-1] != matrix.shape[-1]:
        raise ValueError(f"vector must have shape [..., {matrix.shape[-1]}] like matrix, got {list(vector.shape)}")
    dtype = accumulator(jnp.result_type(matrix, vector))
    matrix = jnp.asarray(matrix, dtype)
    return jnp.swapaxes(matrix, -1, -2) if transpose else matrix, jnp.asarray(vector, dtype)
