"""The forms of a linear recurrence, for any kind of transition: ``carry' = transition_t carry + input_t``.

``linear_scan`` (transitions multiply elementwise) and ``affine_scan`` (transitions are matrices) share these loops.
Nothing here is differentiated: both state their recurrence through ``lax.custom_linear_solve``, whose transpose is
the recurrence run backwards with the product taken after the output (``after=True`` below).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Inexact


class Operator(NamedTuple):
    """What the loops need to know about a transition.

    Attributes:
      apply: (transition, state) -> transition applied to state.
      compose: (first, second) -> the transition that applies ``first``, then ``second``.
      identity: one time slice of transitions -> as many identities.
    """

    apply: Callable
    compose: Callable
    identity: Callable


def run(
    operator: Operator,
    transitions: Inexact[Array, "..."],
    inputs: Inexact[Array, "..."],
    reverse: bool,
    after: bool,
    form: str,
    size: int,
) -> Inexact[Array, "..."]:
    """Runs the recurrence from a zero state.

    Args:
      operator: how transitions apply and compose.
      transitions: [B or 1, T or 1, ...].
      inputs: [B, T, ...].
      reverse: from the end.
      after: False for ``h = A_t carry + b_t``, output h, carry h; True for ``h = b_t + carry``, output h, carry
        ``A_t h``, which is the transposed recurrence when run the other way round.
      form: "sequential", "chunked" or "associative".
      size: steps per chunk of the chunked form.

    Returns:
      The outputs [B, T, ...].
    """
    zero = jnp.zeros_like(inputs[:, 0])
    if form == "sequential":
        return _sequential(operator, transitions, inputs, zero, reverse, after)[0]
    if form == "chunked":
        return _chunked(operator, transitions, inputs, zero, reverse, after, size)[0]
    if after:
        transitions = shift(operator, transitions, inputs.shape[1], reverse)
    return _associative(operator, transitions, inputs, reverse)


def pad_time(array: Inexact[Array, "..."], before: int, after: int) -> Inexact[Array, "..."]:
    """Zeros before and after along axis 1: unlike a concatenation, XLA fuses it into the operation that reads it."""
    config = [(0, 0, 0), (before, after, 0)] + [(0, 0, 0)] * (array.ndim - 2)
    return lax.pad(array, jnp.zeros((), array.dtype), config)


def shift(operator: Operator, transitions: Inexact[Array, "..."], steps: int, reverse: bool) -> Inexact[Array, "..."]:
    """Moves transitions one step, which turns the ``after=True`` recurrence into the plain one."""
    transitions = jnp.broadcast_to(transitions, (transitions.shape[0], steps, *transitions.shape[2:]))
    edge = operator.identity(transitions[:, :1])
    moved = [transitions[:, 1:], edge] if reverse else [edge, transitions[:, :-1]]
    return jnp.concatenate(moved, axis=1)


def _step(operator, transition, value, carry, after):
    """One step: (output, carry)."""
    if after:
        out = value + carry
        return out, operator.apply(transition, out)
    out = operator.apply(transition, carry) + value
    return out, out


def _sequential(operator, transitions, inputs, carry, reverse, after):
    """One loop over T that reads and writes the batch-major arrays in place, without transposed copies.

    Outputs get a buffer of their own: reusing that of the inputs saves little, and made XLA copy the whole buffer at
    every step of the transposed recurrence (measured on CPU: quadratic in T).
    """
    steps = inputs.shape[1]
    constant = transitions.shape[1] == 1

    def body(i, loop):
        carry, outputs = loop
        t = steps - 1 - i if reverse else i
        transition = transitions[:, 0] if constant else lax.dynamic_index_in_dim(transitions, t, 1, keepdims=False)
        value = lax.dynamic_index_in_dim(inputs, t, 1, keepdims=False)
        out, carry = _step(operator, transition, value, carry, after)
        return carry, lax.dynamic_update_index_in_dim(outputs, out, t, 1)

    carry, outputs = lax.fori_loop(0, steps, body, (carry, jnp.zeros_like(inputs)))
    return outputs, carry


def _chunked(operator, transitions, inputs, carry, reverse, after, size):
    """Chunks side by side: their affine maps, the carries between them, then the steps from the right carries."""
    steps = inputs.shape[1]
    count = steps // size
    whole = count * size
    constant = transitions.shape[1] == 1
    if count < 2:
        return _sequential(operator, transitions, inputs, carry, reverse, after)
    if whole < steps:
        # the steps at the end that fill no chunk are run one by one, first or last
        parts = [slice(0, whole), slice(whole, steps)]
        outputs = [None, None]
        for i in (1, 0) if reverse else (0, 1):
            here = transitions if constant else transitions[:, parts[i]]
            if i == 0:
                outputs[i], carry = _chunked(operator, here, inputs[:, parts[i]], carry, reverse, after, size)
            else:
                outputs[i], carry = _sequential(operator, here, inputs[:, parts[i]], carry, reverse, after)
        return jnp.concatenate(outputs, axis=1), carry

    blocks = inputs.reshape(inputs.shape[0], count, size, *inputs.shape[2:])
    if constant:
        tables = transitions[:, :, None]
    else:
        tables = transitions.reshape(transitions.shape[0], count, size, *transitions.shape[2:])

    def at(i):
        t = size - 1 - i if reverse else i
        transition = tables[:, :, 0] if constant else lax.dynamic_index_in_dim(tables, t, 2, keepdims=False)
        return t, transition, lax.dynamic_index_in_dim(blocks, t, 2, keepdims=False)

    def summarise(i, loop):
        product, local = loop
        _, transition, value = at(i)
        return operator.compose(product, transition), _step(operator, transition, value, local, after)[1]

    start = (operator.identity(tables[:, :, 0]), jnp.zeros_like(blocks[:, :, 0]))
    product, local = lax.fori_loop(0, size, summarise, start)
    ends, last = _sequential(operator, product, local, carry, reverse, False)
    first = carry[:, None]
    carries = jnp.concatenate([ends[:, 1:], first] if reverse else [first, ends[:, :-1]], axis=1)

    def fill(i, loop):
        carries, outputs = loop
        t, transition, value = at(i)
        out, carries = _step(operator, transition, value, carries, after)
        return carries, lax.dynamic_update_index_in_dim(outputs, out, t, 2)

    _, outputs = lax.fori_loop(0, size, fill, (carries, jnp.zeros_like(blocks)))
    return outputs.reshape(inputs.shape), last


def _associative(operator, transitions, inputs, reverse):
    """``lax.associative_scan`` over the affine maps (transition, input)."""
    steps = inputs.shape[1]
    transitions = jnp.broadcast_to(transitions, (transitions.shape[0], steps, *transitions.shape[2:]))

    def combine(first, second):
        return operator.compose(first[0], second[0]), operator.apply(second[0], first[1]) + second[1]

    return lax.associative_scan(combine, (transitions, inputs), axis=1, reverse=reverse)[1]
