"""Sums over paths of a hidden Markov model, in logarithms: the forward and backward recursions.

With log A [S, S] (from, to), log pi [S], and l_t [S] the log likelihood of the observation at t in every state:

    a_0 = log pi + l_0,   a_t[j] = l_t[j] + logsumexp_i (a_{t-1}[i] + log A[i, j])
    b_{L-1} = 0,          b_t[i] = logsumexp_j (log A[i, j] + l_{t+1}[j] + b_{t+1}[j])

Both are products in the semiring (logsumexp, +), which is associative: with M_t = log A + l_t the forward recursion is
a_0 M_1 ... M_t. Forms, with the same numbers up to rounding:

    sequential    T steps of O(S^2) each
    associative   a parallel prefix product of matrices: O(T S^3) work, O(log T) steps. Worth it for few states on a wide
                  machine only; "auto" takes the sequential form
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from zoo.checks import check_choice

METHODS = ("auto", "sequential", "associative")


def log_matmul(a: Float[Array, "*B I K"], b: Float[Array, "*B K J"]) -> Float[Array, "*B I J"]:
    """Matrix product in the semiring (logsumexp, +)."""
    return jax.nn.logsumexp(a[..., :, :, None] + b[..., None, :, :], axis=-2)


def forward_backward(
    log_initial: Float[Array, " S"],
    log_transition: Float[Array, "S S"],
    log_likelihood: Float[Array, "B T S"],
    lengths: Int[Array, " B"] | None = None,
    *,
    method: str = "auto",
) -> tuple[Float[Array, "B T S"], Float[Array, "B T S"], Float[Array, " B"]]:
    """Forward and backward log sums of the module docstring, for rows of unequal length.

    Args:
      log_initial: log pi.
      log_transition: log A.
      log_likelihood: l_t.
      lengths: valid steps of every row, at least 1; None: all.
      method: one of ``METHODS``.

    Returns:
      (forward, backward, log likelihood of every row); -inf at steps that are not valid.
    """
    check_choice("method", method, METHODS)
    batch, time, _ = log_likelihood.shape
    lengths = jnp.full(batch, time) if lengths is None else lengths
    steps = jnp.arange(time)
    valid = (steps < lengths[:, None])[..., None]
    # A step behind the end multiplies by the identity.
    identity = jnp.where(jnp.eye(len(log_initial), dtype=bool), 0, -jnp.inf)
    if method == "associative":
        factors = jnp.where(valid[..., None], log_transition + log_likelihood[:, :, None], identity)
        first = jnp.where(steps[:, None, None] == 0, identity, factors)
        forwards = lax.associative_scan(log_matmul, first, axis=1)
        start = (log_initial + log_likelihood[:, 0])[:, None, None]
        forward = log_matmul(jnp.broadcast_to(start, (batch, time, 1, len(log_initial))), forwards)[:, :, 0]
        after = jnp.concatenate([factors[:, 1:], jnp.broadcast_to(identity, factors[:, :1].shape)], axis=1)
        backwards = lax.associative_scan(lambda late, early: log_matmul(early, late), after, reverse=True, axis=1)
        backward = jax.nn.logsumexp(backwards, axis=-1)
    else:

        def ahead(a, now):
            likelihood, keep = now
            new = likelihood + jax.nn.logsumexp(a[:, :, None] + log_transition, axis=1)
            a = jnp.where(keep, new, a)
            return a, a

        def back(b, now):
            likelihood, keep = now
            new = jax.nn.logsumexp(log_transition + (likelihood + b)[:, None], axis=2)
            b = jnp.where(keep, new, b)
            return b, b

        start = log_initial + log_likelihood[:, 0]
        rest = (jnp.moveaxis(log_likelihood[:, 1:], 1, 0), jnp.moveaxis(valid[:, 1:], 1, 0))
        _, forward = lax.scan(ahead, start, rest)
        _, backward = lax.scan(back, jnp.zeros_like(start), rest, reverse=True)
        forward = jnp.concatenate([start[:, None], jnp.moveaxis(forward, 0, 1)], axis=1)
        backward = jnp.concatenate([jnp.moveaxis(backward, 0, 1), jnp.zeros_like(start)[:, None]], axis=1)
    last = jnp.take_along_axis(forward, (lengths - 1)[:, None, None], axis=1)[:, 0]
    return jnp.where(valid, forward, -jnp.inf), jnp.where(valid, backward, -jnp.inf), jax.nn.logsumexp(last, axis=-1)
