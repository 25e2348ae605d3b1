"""Selective scan: a diagonal state space model whose step size, input and output matrices depend on the input (Mamba's S6).

    h_t = exp(delta_t A) h_{t-1} + delta_t B_t x_t        h_t [D, N] per batch row
    y_t = C_t h_t + skip x_t

Gu and Dao (2023), Mamba, arXiv 2312.00752. Shapes:

    x, delta   [B, T, D]     delta > 0
    a          [D, N]        real and negative
    b, c       [B, T, N]     shared by all channels
    skip       [D]
    initial    [B, D, N]

The states of all steps, [B, T, D, N], are never in memory: in every form only those of one chunk are, and reverse mode keeps
the one before each chunk and computes the rest again. Forms, all with the same numbers up to rounding:

    sequential   T steps over [B, N, D]
    chunked      chunk after chunk; the steps of one as a ``linear_scan``
    pallas       a kernel of ``pallas_kernels``, interpreted on CPU; first derivatives in reverse mode only

Cost: O(T D N) time; O(T (D + N) + T/C D N) memory for chunks of C steps.
"""

import math

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from pallas_kernels import operation
from zoo.checks import check_choice, check_floating, check_positive, check_reset
from zoo.dtypes import accumulator
from zoo.scans import _auto
from zoo.scans.linear import linear_scan

METHODS = ("auto", "sequential", "chunked", "pallas")


def selective_scan(
    x: Float[Array, "B T D"],
    delta: Float[Array, "B T D"],
    a: Float[Array, "D N"],
    b: Float[Array, "B T N"],
    c: Float[Array, "B T N"],
    skip: Float[Array, " D"] | None = None,
    initial: Float[Array, "B D N"] | None = None,
    *,
    reset: Bool[Array, "B T"] | None = None,
    method: str = "auto",
    chunk_size: int | None = None,
) -> tuple[Float[Array, "B T D"], Float[Array, "B D N"]]:
    """Runs ``h_t = exp(delta_t a) h_{t-1} + delta_t b_t x_t`` and reads ``y_t = c_t h_t + skip x_t``, along axis 1.

    Args:
      x: [B, T, D], T >= 1.
      delta: [B, T, D], step sizes; softplus and bias are the caller's.
      a: [D, N], the diagonals of the transition matrices, real.
      b: [B, T, N], input matrix.
      c: [B, T, N], output matrix.
      skip: [D]; no such term when None.
      initial: [B, D, N], the state before the first step; zeros when None.
      reset: [B, T], True where the state that comes in is replaced by zeros (no delta can say that).
      method: one of ``METHODS``; "auto" chooses from platform and shape by the table in ``zoo.scans._auto``.
      chunk_size: steps per chunk (any T is allowed); chosen from the shape when None.

    Returns:
      y: [B, T, D] in the dtype of x.
      last: [B, D, N], the state after the last step, in the accumulation type (at least float32).

    Raises:
      TypeError: an argument is not floating-point, or complex.
      ValueError: shapes do not fit, T = 0, or an unknown method.
    """
    _check(x, delta, a, b, c, skip, initial, reset, method, chunk_size)
    carried = accumulator(*(array.dtype for array in (x, delta, a, b, c, initial) if array is not None))
    form, size = _auto.selective_form(method, chunk_size, x.shape[1], a.shape[1], jnp.result_type(x, delta))
    if form == "pallas":
        y, last = operation("selective_scan")(x, delta, a, b, c, initial, reset=reset, **_auto.kernel_options())
    else:
        y, last = _run(form, size, carried, x, delta, a, b, c, initial, reset)
    if skip is not None:
        y = y + skip.astype(carried) * x
    return y.astype(x.dtype), last


def _check(x, delta, a, b, c, skip, initial, reset, method, chunk_size):
    """Checks every argument of ``selective_scan``."""
    check_choice("method", method, METHODS)
    if chunk_size is not None:
        check_positive("chunk_size", chunk_size)
    given = {"x": x, "delta": delta, "a": a, "b": b, "c": c, "skip": skip, "initial": initial}
    for name, array in given.items():
        if array is None and name in ("skip", "initial"):
            continue
        check_floating(name, array)
        if jnp.issubdtype(array.dtype, jnp.complexfloating):
            raise TypeError(f"{name} must be real, got {array.dtype}")
    if x.ndim != 3 or a.ndim != 2:
        raise ValueError(
            f"x must have shape [batch, time, channels] and a [channels, state], got {list(x.shape)} and {list(a.shape)}"
        )
    batch, steps, channels = x.shape
    size = a.shape[1]
    if steps == 0:
        raise ValueError("x has no time steps (T = 0); a scan needs at least one")
    wanted = {
        "delta": (batch, steps, channels), "a": (channels, size), "b": (batch, steps, size), "c": (batch, steps, size),
        "skip": (channels,), "initial": (batch, channels, size),
    }  # fmt: skip
    for name, shape in wanted.items():
        if given[name] is not None and tuple(given[name].shape) != shape:
            raise ValueError(f"{name} must have shape {list(shape)}, got {list(given[name].shape)}")
    check_reset(reset, (batch, steps))


def _run(form, size, carried, x, delta, a, b, c, initial, reset):
    """The sequential and the chunked form; the state is [B, N, D] inside, so that its last axis is wide."""
    batch, steps, channels = x.shape
    a = jnp.swapaxes(a, 0, 1).astype(carried)
    start = jnp.zeros((batch, *a.shape), carried) if initial is None else jnp.swapaxes(initial, 1, 2).astype(carried)
    keep = None if reset is None else jnp.where(reset, 0, 1)[..., None]

    def cut(array):
        """[B, T, X] -> [chunks, C, B, X]; with a step size of zero the state stays as it is."""
        array = jnp.pad(array, [(0, 0), (0, -steps % size), (0, 0)], constant_values=1 if array is keep else 0)
        return jnp.moveaxis(array.reshape(batch, -1, size, array.shape[-1]), 0, 2)

    def discretise(now):
        x, delta, b, keep = now
        decay = jnp.exp(delta[..., None, :] * a)
        return decay if keep is None else decay * keep[..., None], (delta * x)[..., None, :] * b[..., :, None]

    def step(state, now):
        *now, c = (None if array is None else array.astype(carried) for array in now)
        decay, inputs = discretise(now)
        state = decay * state + inputs
        return state, jnp.sum(c[..., None] * state, axis=-2)

    def chunk(state, now):
        if form == "sequential":
            return lax.scan(step, state, now)
        *now, c = (None if array is None else jnp.swapaxes(array.astype(carried), 0, 1) for array in now)
        states, state = linear_scan(*discretise(now), state)
        return state, jnp.swapaxes(jnp.sum(c[..., None] * states, axis=-2), 0, 1)

    last, y = lax.scan(jax.checkpoint(chunk, prevent_cse=False), start, jax.tree.map(cut, (x, delta, b, keep, c)))
    y = jnp.moveaxis(y, 2, 0).reshape(batch, math.prod(y.shape[:2]), channels)[:, :steps]
    return y, jnp.swapaxes(last, 1, 2)
