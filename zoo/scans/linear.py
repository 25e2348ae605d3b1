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
    pallas       a kernel of ``pallas_kernels``, where there is one for the platform

Derivatives. The recurrence is the triangular system ``(I - shift * decay) h = inputs`` and its transpose is the same
recurrence run backwards, ``g_t = c_t + decay_{t+1} g_{t+1}``. It is stated to JAX through
``lax.custom_linear_solve``: reverse mode stores nothing but the states and runs one backward scan, forward mode runs
one more forward scan, and higher derivatives follow. No form is ever differentiated through.

Cost: O(T) time and memory; reverse mode keeps the states and the decay.
"""

import functools

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Inexact

from zoo.checks import check_choice, check_floating, check_positive
from zoo.dtypes import accumulator
from zoo.scans import _auto

METHODS = ("auto", "sequential", "chunked", "associative", "pallas")


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
      ValueError: shapes do not fit, T = 0, an unknown method, or no kernel for ``method="pallas"``.
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
        inputs = inputs + _pad_time(first[:, None], edge, steps - 1 - edge)
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
    if len(decay_shape) != inputs.ndim or any(
        d not in (1, n) for d, n in zip(decay_shape, inputs.shape, strict=True)
    ):
        raise ValueError(
            f"decay of shape {list(decay.shape)} does not broadcast to the shape of inputs {list(inputs.shape)}"
        )
    if initial is not None:
        check_floating("initial", initial)
        wanted = (inputs.shape[0], *inputs.shape[2:])
        if tuple(initial.shape) != wanted:
            raise ValueError(f"initial must have shape {list(wanted)} like one step of inputs, got "
                             f"{list(initial.shape)}")
        initial = jnp.asarray(initial)
    return jnp.asarray(decay).reshape(decay_shape), jnp.asarray(inputs), initial


def _solve(decay, inputs, reverse, form, size):
    """States of the recurrence from a zero state, as a linear solve so that JAX knows its derivatives."""
    zero = jnp.zeros_like(inputs[:, 0])

    def matvec(states):
        before = _pad_time(states[:, 1:], 0, 1) if reverse else _pad_time(states[:, :-1], 1, 0)
        return states - decay * before

    def solve(_, right):
        return run_form(decay, right, zero, reverse, False, form, size)[0]

    def transpose_solve(_, right):
        return run_form(decay, right, zero, not reverse, True, form, size)[0]

    return lax.custom_linear_solve(matvec, inputs, solve, transpose_solve)


def _pad_time(array, before, after):
    """Zeros before and after along axis 1: unlike a concatenation, fused into the operation that reads it."""
    config = [(0, 0, 0), (before, after, 0)] + [(0, 0, 0)] * (array.ndim - 2)
    return lax.pad(array, jnp.zeros((), array.dtype), config)


def run_form(decay, inputs, carry, reverse, after, form, size):
    """Runs the recurrence in one form; not differentiable, and the place where forms differ.

    Args:
      decay: [B or 1, T or 1, ...].
      inputs: [B, T, ...].
      carry: [B, ...].
      reverse: from the end.
      after: False for ``h = decay * carry + input``, output and carry h; True for the transposed recurrence,
        ``h = carry + input``, output h, carry ``decay * h``.
      form: "sequential", "chunked", "associative" or "pallas".
      size: steps per chunk, for "chunked".

    Returns:
      (outputs [B, T, ...], last carry [B, ...]).
    """
    if form == "sequential":
        return _sequential(decay, inputs, carry, reverse, after)
    if form == "chunked":
        return _chunked(decay, inputs, carry, reverse, after, size)
    if after:
        # as the plain recurrence with the decays moved one step, the carry standing for decay * state
        if decay.shape[1] == 1:
            decay = jnp.broadcast_to(decay, (decay.shape[0], inputs.shape[1], *decay.shape[2:]))
        one = jnp.ones_like(decay[:, :1])
        moved = [decay[:, 1:], one] if reverse else [one, decay[:, :-1]]
        run = _associative if form == "associative" else _pallas
        states = run(jnp.concatenate(moved, axis=1), inputs, carry, reverse)
        edge = 0 if reverse else -1
        return states, decay[:, edge] * states[:, edge]
    states = (_associative if form == "associative" else _pallas)(decay, inputs, carry, reverse)
    return states, states[:, 0 if reverse else -1]


def _step(decay, value, carry, after):
    """One step: (output, carry)."""
    if after:
        out = value + carry
        return out, decay * out
    out = decay * carry + value
    return out, out


def _sequential(decay, inputs, carry, reverse, after):
    """One loop over T that reads and writes the batch-major arrays in place (no transposed copies)."""
    steps = inputs.shape[1]
    constant = decay.shape[1] == 1

    def body(i, loop):
        carry, outputs = loop
        t = steps - 1 - i if reverse else i
        step_decay = decay[:, 0] if constant else lax.dynamic_index_in_dim(decay, t, 1, keepdims=False)
        out, carry = _step(step_decay, lax.dynamic_index_in_dim(inputs, t, 1, keepdims=False), carry, after)
        return carry, lax.dynamic_update_index_in_dim(outputs, out, t, 1)

    carry, outputs = lax.fori_loop(0, steps, body, (carry, jnp.zeros_like(inputs)))
    return outputs, carry


def _chunked(decay, inputs, carry, reverse, after, size):
    """Chunks side by side: their affine maps, the carries between them, then the steps from the right carries."""
    steps = inputs.shape[1]
    count = steps // size
    whole = count * size
    if count < 2:
        return _sequential(decay, inputs, carry, reverse, after)
    if whole < steps:
        # the steps that fill no chunk are run first or last, one by one
        constant = decay.shape[1] == 1
        split = [whole]
        parts = [(d, x) for d, x in zip([decay, decay] if constant else jnp.split(decay, split, 1),
                                        jnp.split(inputs, split, 1), strict=True)]
        outputs = [None, None]
        for part in (1, 0) if reverse else (0, 1):
            run = _sequential if part else functools.partial(_chunked, size=size)
            outputs[part], carry = run(*parts[part], carry, reverse, after)
        return jnp.concatenate(outputs, 1), carry

    def split_chunks(array):
        return array.reshape(array.shape[0], count, size, *array.shape[2:])

    blocks = split_chunks(inputs)
    constant = decay.shape[1] == 1
    decays = decay[:, :, None] if constant else split_chunks(decay)

    def at(i):
        t = size - 1 - i if reverse else i
        step_decay = decays[:, :, 0] if constant else lax.dynamic_index_in_dim(decays, t, 2, keepdims=False)
        return t, step_decay, lax.dynamic_index_in_dim(blocks, t, 2, keepdims=False)

    def summarise(i, loop):
        product, local = loop
        _, step_decay, value = at(i)
        return step_decay * product, _step(step_decay, value, local, after)[1]

    product, local = lax.fori_loop(
        0, size, summarise, (jnp.ones_like(decays[:, :, 0]), jnp.zeros_like(blocks[:, :, 0]))
    )
    product = jnp.broadcast_to(product, (product.shape[0], count, *product.shape[2:]))
    ends, carry = _sequential(product, local, carry_in := carry, reverse, False)
    start = carry_in[:, None]
    carries = jnp.concatenate([ends[:, 1:], start] if reverse else [start, ends[:, :-1]], axis=1)

    def fill(i, loop):
        carries, outputs = loop
        t, step_decay, value = at(i)
        out, carries = _step(step_decay, value, carries, after)
        return carries, lax.dynamic_update_index_in_dim(outputs, out, t, 2)

    _, outputs = lax.fori_loop(0, size, fill, (carries, jnp.zeros_like(blocks)))
    return outputs.reshape(inputs.shape), carry


def _associative(decay, inputs, carry, reverse):
    """``lax.associative_scan`` over the pairs (decay, input), composed as affine maps."""
    steps = inputs.shape[1]
    decay = jnp.broadcast_to(decay, (decay.shape[0], steps, *decay.shape[2:]))

    def compose(first, second):
        return first[0] * second[0], second[0] * first[1] + second[1]

    product, local = lax.associative_scan(compose, (decay, inputs), axis=1, reverse=reverse)
    return product * carry[:, None] + local


def _pallas(decay, inputs, carry, reverse):
    """The kernel of ``pallas_kernels``; ``_auto`` has made sure that there is one."""
    from pallas_kernels import operation

    return operation("linear_scan")(decay, inputs, carry, reverse=reverse)
