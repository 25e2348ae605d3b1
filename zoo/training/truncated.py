"""Backpropagation through time: full, truncated in chunks, and over a sliding window.

Williams and Peng (1990); Werbos (1990). All three take the same loss::

    loss_fn(params, chunk, state) -> (loss, state)

where ``chunk`` is a pytree of arrays [B, K, ...] (inputs and targets of K steps) and ``loss`` is a SUM over its steps,
so that losses of chunks add up. For a mixer that is two lines::

    def loss_fn(params, chunk, state):
        y, state = mixer.apply(params, chunk["x"], state)
        return jnp.sum((y - chunk["target"]) ** 2), state

With h_t the state and L = sum_t L_t, the gradients are, for parameters theta seen at step u:

    full     sum_t sum_{u <= t}                                    dL_t/dh_t dh_t/dh_u d+h_u/dtheta     memory O(T)
    chunks   u from the start of t's chunk: k (t // k) <= u <= t   states are carried, gradients are not   O(k)
    sliding  t - k < u <= t: every loss looks back k steps         k times the time of the others        O(T + k)
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from zoo.checks import check_positive

LossFn = Callable[[Any, Any, Any], tuple[jax.Array, Any]]


def full_bptt(loss_fn: LossFn, params: Any, inputs: Any, state: Any) -> tuple[jax.Array, Any, Any]:
    """Gradient through the whole sequence; returns (loss, gradients, last state).

    Args:
      loss_fn: see the module docstring.
      params: any pytree.
      inputs: pytree of arrays [B, T, ...].
      state: state before the first step.
    """
    sequence_length(inputs)
    (loss, state), grads = jax.value_and_grad(loss_fn, has_aux=True)(params, inputs, state)
    return loss, grads, state


def truncated_bptt(loss_fn: LossFn, params: Any, inputs: Any, state: Any, k: int) -> tuple[jax.Array, Any, Any]:
    """Truncated BPTT in chunks of ``k`` steps: the state is carried from chunk to chunk, the gradient is cut there.

    The chunk that is left over when k does not divide T is shorter. Parameters stay the same for all chunks; to
    update them after each, call ``full_bptt`` chunk by chunk with the carried state.

    Args:
      loss_fn: see the module docstring; it is traced for a chunk of k steps, and again for a shorter rest.
      params: any pytree.
      inputs: pytree of arrays [B, T, ...].
      state: state before the first step; no gradient flows into it.
      k: steps per chunk.

    Returns:
      (loss over all steps, gradients, last state).

    Raises:
      ValueError: k is not a positive integer, or ``inputs`` have no or unequal time axes.
    """
    time = sequence_length(inputs)
    check_positive("k", k)
    whole = time // k
    gradient = jax.value_and_grad(loss_fn, has_aux=True)
    total = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, params))

    def add(total, chunk, state):
        (loss, state), grads = gradient(params, chunk, jax.lax.stop_gradient(state))
        return jax.tree.map(jnp.add, total, (loss, grads)), state

    if whole:
        chunks = jax.tree.map(lambda a: _split(a, whole, k), inputs)
        (total, state), _ = jax.lax.scan(lambda c, chunk: (add(c[0], chunk, c[1]), None), (total, state), chunks)
    if time % k:
        total, state = add(total, jax.tree.map(lambda a: a[:, whole * k :], inputs), state)
    return *total, state


def _split(array, count, k):
    """[B, T, ...] -> [count, B, k, ...]."""
    return jnp.moveaxis(array[:, : count * k].reshape(array.shape[0], count, k, *array.shape[2:]), 1, 0)


def sliding_bptt(loss_fn: LossFn, params: Any, inputs: Any, state: Any, k: int) -> tuple[jax.Array, Any, Any]:
    """Truncated BPTT over a sliding window (k1 = 1, k2 = k): the loss of step t reaches steps t - k + 1 .. t.

    The states are those of one forward pass with the present parameters; inside a window the gradient is exact, the
    state before the window is a constant. Same arguments and result as ``truncated_bptt``; ``loss_fn`` is called on
    chunks of one step.
    """
    time = sequence_length(inputs)
    check_positive("k", k)
    k = min(k, time)

    def step(state, t):
        loss, new = loss_fn(params, _window(inputs, t, 1), state)
        return new, (state, loss)

    last, (states, losses) = jax.lax.scan(step, state, jnp.arange(time))

    def loss_at(params, t):
        start = jnp.maximum(t - k + 1, 0)

        def inner(state, i):
            loss, state = loss_fn(params, _window(inputs, start + i, 1), state)
            return state, loss

        before = jax.lax.stop_gradient(jax.tree.map(lambda s: s[start], states))
        # Windows at the start are filled up with later steps, whose losses are not picked.
        return jax.lax.scan(inner, before, jnp.arange(k))[1][t - start]

    def add(grads, t):
        return jax.tree.map(jnp.add, grads, jax.grad(loss_at)(params, t)), None

    grads, _ = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, params), jnp.arange(time))
    return jnp.sum(losses), grads, last


def _window(inputs, start, size):
    return jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(a, start, size, axis=1), inputs)


def sequence_length(inputs: Any) -> int:
    """Number T of steps of a pytree of arrays [B, T, ...]; ValueError unless all agree on a T >= 1."""
    shapes = [jnp.shape(a) for a in jax.tree.leaves(inputs)]
    if not shapes or any(len(s) < 2 for s in shapes):
        raise ValueError(f"inputs must be arrays [batch, time, ...], got shapes {[list(s) for s in shapes]}")
    times = {s[1] for s in shapes}
    if len(times) > 1 or times == {0}:
        raise ValueError(f"inputs must share one number of time steps >= 1, got {sorted(times)}")
    return times.pop()
