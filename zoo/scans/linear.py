"""Linear recurrence with a diagonal transition: ``h_t = decay_t * h_{t-1} + inputs_t`` along axis 1.

This is the recurrence inside diagonal state space layers, gated linear RNNs, exponential moving averages and the
backward pass of all of them.

Shapes, with ``...`` any trailing axes:

    inputs   [B, T, ...]     real or complex
    decay    broadcasts to inputs; [1, 1, N] is a decay that is constant in time, never expanded to T steps
    initial  [B, ...]        h_{-1}, zero when None
    states   [B, T, ...]     h_0 .. h_{T-1}
    last     [B, ...]        the state to carry on from: h_{T-1}, or h_0 with ``reverse=True``

A document reset is ``decay = 0`` at the first token of the document; no scan knows about documents.

Forms, all with the same numbers up to rounding:

    sequential   T steps over [B, ...]; the least work and memory
    chunked      K chunks side by side: every chunk's affine map carry -> P * carry + s by C = T/K steps over
                 [B, K, ...], the K carries by a short scan, then the C steps again from the right carries.
                 Twice the reads, but K times the vector width
    associative  ``lax.associative_scan``: O(T) work in O(log T) levels, several passes over memory
    pallas       the kernel ``pallas_kernels.linear_scan``: every array once through memory; interpreted (slow) on a CPU

Derivatives. The recurrence is the triangular system ``(I - shift * decay) h = inputs`` and its transpose is the same
recurrence run backwards, ``g_t = c_t + decay_{t+1} g_{t+1}``. It is stated to JAX through
``lax.custom_linear_solve``: reverse mode stores nothing but the states and runs one backward scan, forward mode runs
one more forward scan, and higher derivatives follow. No form is ever differentiated through.

Cost: O(T) time and memory; reverse mode keeps the states and the decay.
"""

import operator

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Inexact

from pallas_kernels import operation
from zoo.checks import check_choice, check_floating, check_positive
from zoo.dtypes import accumulator
from zoo.scans import _auto, _recurrence
from zoo.scans._recurrence import pad_time

METHODS = ("auto", "sequential", "chunked", "associative", "pallas")
_ELEMENTWISE = _recurrence.Operator(apply=operator.mul, compose=operator.mul, identity=jnp.ones_like)


def linear_scan(
    decay: Inexact[Array, "..."],
    inputs: Inexact[Array, "B T ..."],
    initial: Inexact[Array, "B ..."] | None = None,
    *,
    reverse: bool = False,
    method: str = "auto",
    chunk_size: int | None = None,
) -> tuple[Inexact[Array, "B T ..."], Inexact[Array, "B ..."]]:
    """Runs ``h_t = decay_t * h_{t-1} + inputs_t`` over axis 1.

    Args:
      decay: broadcasts to the shape of ``inputs``, real or complex; axes of size 1 are not expanded.
      inputs: [B, T, ...], real or complex, T >= 1.
      initial: [B, ...], the state before the first step (after the last with ``reverse``); zeros when None.
      reverse: run from the end: ``h_t = decay_t * h_{t+1} + inputs_t``.
      method: one of ``METHODS``; "auto" chooses from platform and shape by the table in ``zoo.scans._auto``.
      chunk_size: steps per chunk of the chunked form (any T is allowed); chosen from the shape when None.

    Returns:
      states: [B, T, ...] in the result type of ``decay`` and ``inputs``.
      last: [B, ...], the state after the last step run, in the accumulation type (at least float32), so that
        handing it on as ``initial`` loses nothing.

    Raises:
      TypeError: an argument is not floating-point or complex.
      ValueError: shapes do not fit, T = 0 or an unknown method.
    """
    decay, inputs, initial = _checked(decay, inputs, initial, method, chunk_size)
    dtype = jnp.result_type(decay, inputs)
    carried = accumulator(dtype) if initial is None else accumulator(dtype, initial.dtype)
    steps = inputs.shape[1]
    decay = decay.astype(carried) if jnp.iscomplexobj(decay) else decay.astype(jnp.finfo(carried).dtype)
    inputs = inputs.astype(carried)
    edge = steps - 1 if reverse else 0
    if initial is not None:
        # one more input at the first step; as a padded sum it fuses with whatever made the inputs
        first = decay[:, edge if decay.shape[1] > 1 else 0] * initial.astype(carried)
        inputs = inputs + pad_time(first[:, None], edge, steps - 1 - edge)
    if steps == 1:
        return inputs.astype(dtype), inputs[:, 0]
    form, size = _auto.linear_form(method, chunk_size, inputs.shape, carried)
    states = _solve(decay, inputs, reverse, form, size)
    return states.astype(dtype), states[:, 0 if reverse else -1]


def _checked(decay, inputs, initial, method, chunk_size):
    """Checks every argument of ``linear_scan``; returns arrays, ``decay`` with the rank of ``inputs``."""
    check_choice("method", method, METHODS)
    if chunk_size is not None:
        check_positive("chunk_size", chunk_size)
    for name, array in (("decay", decay), ("inputs", inputs)):
        check_floating(name, array)
    if inputs.ndim < 2:
        raise ValueError(f"inputs must have shape [batch, time, ...], got {list(inputs.shape)}")
    if inputs.shape[1] == 0:
        raise ValueError("inputs has no time steps (T = 0); a scan needs at least one")
    decay_shape = (1,) * (inputs.ndim - decay.ndim) + tuple(decay.shape)
    if len(decay_shape) != inputs.ndim or any(d not in (1, n) for d, n in zip(decay_shape, inputs.shape, strict=True)):
        raise ValueError(
            f"decay of shape {list(decay.shape)} does not broadcast to the shape of inputs {list(inputs.shape)}"
        )
    if initial is not None:
        check_floating("initial", initial)
        wanted = (inputs.shape[0], *inputs.shape[2:])
        if tuple(initial.shape) != wanted:
            raise ValueError(
                f"initial must have shape {list(wanted)} like one step of inputs, got {list(initial.shape)}"
            )
        initial = jnp.asarray(initial)
    return jnp.asarray(decay).reshape(decay_shape), jnp.asarray(inputs), initial


def _solve(decay, inputs, reverse, form, size):
    """States of the recurrence from a zero state, as a linear solve so that JAX knows its derivatives."""

    def run(values, backwards, after):
        if form == "pallas":
            options = _auto.kernel_options()
            return operation("linear_scan")(decay, values, reverse=backwards, after=after, **options)[0]
        return _recurrence.run(_ELEMENTWISE, decay, values, backwards, after, form, size)

    def matvec(states):
        before = pad_time(states[:, 1:], 0, 1) if reverse else pad_time(states[:, :-1], 1, 0)
        return states - decay * before

    return lax.custom_linear_solve(
        matvec,
        inputs,
        solve=lambda _, right: run(right, reverse, False),
        transpose_solve=lambda _, right: run(right, not reverse, True),
    )
