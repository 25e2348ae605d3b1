"""Early stopping: keep the parameters that did best on held-out data, stop when they have not been beaten for a while."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from zoo.checks import check_positive


class EarlyStopping(NamedTuple):
    """State of early stopping; all functions on it are pure and can be compiled.

    Attributes:
      params: the best parameters so far.
      best: their validation loss.
      evaluations: evaluations so far.
      since_best: evaluations since the best one.
    """

    params: Any
    best: jax.Array
    evaluations: jax.Array
    since_best: jax.Array


def early_stopping(params: Any) -> EarlyStopping:
    """The state before the first evaluation."""
    return EarlyStopping(params, jnp.asarray(jnp.inf), jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))


def update_early_stopping(
    state: EarlyStopping, params: Any, loss: Any, *, patience: int, min_delta: float = 0.0
) -> tuple[EarlyStopping, jax.Array]:
    """Takes an evaluation into account.

    Args:
      state: from ``early_stopping`` or the last update.
      params: the parameters that were evaluated.
      loss: their validation loss; NaN never counts as better.
      patience: stop after this many evaluations without improvement.
      min_delta: improvement that counts.

    Returns:
      (new state, bool: stop now).
    """
    check_positive("patience", patience)
    if min_delta < 0:
        raise ValueError(f"min_delta must be at least 0, got {min_delta}")
    loss = jnp.asarray(loss, state.best.dtype)
    better = loss < state.best - min_delta
    since = jnp.where(better, 0, state.since_best + 1)
    kept = jax.tree.map(lambda new, old: jnp.where(better, new, old), params, state.params)
    new = EarlyStopping(kept, jnp.where(better, loss, state.best), state.evaluations + 1, since)
    return new, since >= patience
