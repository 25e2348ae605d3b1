"""Penalties on parameters and on the flow of gradients."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from zoo.layers import split_floating
from zoo.training.truncated import sequence_length


def l2_penalty(params: Any) -> jax.Array:
    """Half the sum of squares of all weight matrices; vectors (biases, gains) are left alone.

    Added to a loss with a factor it is L2 regularisation; for Adam prefer decoupled decay (``optax.adamw``).
    """
    return 0.5 * sum((jnp.sum(p**2) for p in jax.tree.leaves(params) if jnp.ndim(p) >= 2), start=jnp.zeros(()))


def pascanu_regularizer(
    step: Callable[[Any, Any, Any], Any],
    loss: Callable[[Any, Any, Any], jax.Array],
    params: Any,
    inputs: Any,
    state: Any,
) -> jax.Array:
    """Penalty on error signals that shrink or grow from one step to the one before (Pascanu, Mikolov, Bengio 2013).

        Omega = sum_t ( ||v_{t+1} J_{t+1}|| / ||v_{t+1}|| - 1 )^2,    v_t = dL/dh_t,  J_{t+1} = dh_{t+1}/dh_t

    Its gradient is the immediate one of the paper: states h_t, inputs and error signals v_t are constants, parameters
    act only inside the one step h_t -> h_{t+1}. Norms are taken row by row over all floating leaves of the state;
    Omega is the mean over rows. Steps that no error signal reaches do not count.

    Args:
      step: ``step(params, x_t, state) -> state`` with x_t a pytree of arrays [B, ...]; rows must be independent.
      loss: ``loss(params, x_t, state) -> scalar``: the loss of a step as a function of the state after it.
      params: any pytree.
      inputs: pytree of arrays [B, T, ...], handed step by step to both functions.
      state: state before the first step, leaves [B, ...].

    Returns:
      Omega, a scalar that can be differentiated by ``params``.
    """
    time = sequence_length(inputs)
    steps = jax.tree.map(lambda a: jnp.moveaxis(a, 1, 0), inputs)
    floating, others, join = split_floating(state)

    def move(params, x, floating, others):
        return split_floating(step(params, x, join(floating, others)))[:2]

    def total(shifts):
        """The loss when every state is shifted: its derivative by the shifts is v."""
        fixed = jax.lax.stop_gradient(params)

        def body(carry, xs):
            x, shift = xs
            new, new_others = move(fixed, x, *carry)
            new = [s + d for s, d in zip(new, shift)]
            return (new, new_others), (loss(fixed, x, join(new, new_others)), carry)

        losses, before = jax.lax.scan(body, (floating, others), (steps, shifts))[1]
        return jnp.sum(losses), before

    shifts = [jnp.zeros((time, *s.shape), s.dtype) for s in floating]
    signals, before = jax.lax.stop_gradient(jax.grad(total, has_aux=True)(shifts))

    def term(signal, before, x):
        pulled = jax.vjp(lambda h: move(params, x, h, before[1])[0], before[0])[1](signal)[0]
        earlier, later = _row_squares(pulled), _row_squares(signal)
        reached = (later > 0) & (earlier > 0)
        # Both square roots stay away from zero, where their derivative is infinite.
        ratio = jnp.where(reached, jnp.sqrt(jnp.where(reached, earlier, 1) / jnp.where(reached, later, 1)), 0)
        return jnp.where(later > 0, (ratio - 1) ** 2, 0)

    # The first step leads back to the given initial state, a constant: it does not count.
    terms = jax.vmap(term)(*jax.tree.map(lambda a: a[1:], (signals, before, steps)))
    return jnp.sum(jnp.mean(terms, axis=-1))


def _row_squares(leaves):
    """Sum of squares over all leaves, row by row: [B]."""
    return sum(jnp.sum(jnp.abs(leaf.reshape(leaf.shape[0], -1)) ** 2, axis=-1) for leaf in leaves)
