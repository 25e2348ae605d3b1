"""Real-time recurrent learning: the exact gradient, computed forwards in time.

Williams and Zipser (1989). With state h_t, parameters theta [P] and influence matrix P_t = dh_t/dtheta:

    P_t = J_t P_{t-1} + dF/dtheta,        J_t = dh_t/dh_{t-1},  P_0 = 0
    dL/dtheta = sum_t (dL_t/dh_{t-1}) P_{t-1} + dL_t/dtheta

Nothing of the past is stored, so that gradients are there at every step; but P_t has P columns of the state's size, and
a step costs P times the recurrence. For nets of a few thousand parameters: an exact oracle for the backward pass, and
for online learning. The columns are pushed forward together by one linearised step.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from zoo.layers import split_floating
from zoo.training.truncated import LossFn, sequence_length


def rtrl(loss_fn: LossFn, params: Any, inputs: Any, state: Any) -> tuple[jax.Array, Any, Any]:
    """Exact gradient of the loss of a sequence in forward mode; equals ``full_bptt``.

    Args:
      loss_fn: ``loss_fn(params, chunk, state) -> (loss, state)`` on chunks of one step [B, 1, ...].
      params: pytree of float arrays with P numbers in all.
      inputs: pytree of arrays [B, T, ...].
      state: state before the first step, a constant.

    Returns:
      (loss over all steps, gradients, last state).
    """
    sequence_length(inputs)
    flat, unravel = ravel_pytree(params)
    floating, others, join = split_floating(state)
    influence = jax.tree.map(lambda s: jnp.zeros((flat.size, *s.shape), s.dtype), floating)
    directions = jnp.eye(flat.size, dtype=flat.dtype)

    def step(carry, inputs_t):
        loss, grads, influence, floating, others = carry
        chunk = jax.tree.map(lambda a: a[:, None], inputs_t)

        def run(flat, floating):
            loss, new = loss_fn(unravel(flat), chunk, join(floating, others))
            new_floating, new_others, _ = split_floating(new)
            return (loss, new_floating), new_others

        (loss_t, floating), push, others = jax.linearize(run, flat, floating, has_aux=True)
        slopes, influence = jax.vmap(push)(directions, influence)
        return (loss + loss_t, grads + slopes, influence, floating, others), None

    start = (jnp.zeros((), flat.dtype), jnp.zeros_like(flat), influence, floating, others)
    steps = jax.tree.map(lambda a: jnp.moveaxis(a, 1, 0), inputs)
    (loss, grads, _, floating, others), _ = jax.lax.scan(step, start, steps)
    return loss, unravel(grads), join(floating, others)
