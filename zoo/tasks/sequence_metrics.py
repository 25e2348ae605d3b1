"""How many characters, and how many whole answers, of a sequence-to-sequence problem are right."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def sequence_scores(
    predictions: Int[Array, "B T"], targets: Int[Array, "B T"], mask: Bool[Array, "B T"]
) -> dict[str, Float[Array, ""]]:
    """Scores of predicted answers, written by teacher forcing or freely.

    Args:
      predictions: predicted tokens; whatever lies outside the mask is not looked at.
      targets: answers, with the token that ends them.
      mask: True where ``targets`` counts, the end included (so that an answer that goes on is wrong).

    Returns:
      ``character_accuracy``: share of all counted tokens that are right; ``sequence_accuracy``: share of rows without a
      mistake.
    """
    hits = predictions == targets
    return {
        "character_accuracy": jnp.sum(hits & mask) / jnp.maximum(jnp.sum(mask), 1),
        "sequence_accuracy": jnp.mean(jnp.all(hits | ~mask, axis=1)),
    }


def position_accuracy(
    predictions: Int[Array, "B T"], targets: Int[Array, "B T"], mask: Bool[Array, "B T"] | None = None
) -> Float[Array, " T"]:
    """Share of rows that are right at every position, of those that count there; 0 where none does.

    Where ``targets`` is the state of something that is followed over time, this shows how far a model can follow it.
    """
    mask = jnp.ones(targets.shape, bool) if mask is None else mask
    return jnp.sum((predictions == targets) & mask, axis=0) / jnp.maximum(jnp.sum(mask, axis=0), 1)
