"""How many directions of a matrix-valued state are in use.

Siems et al. (2025), DeltaProduct, arXiv 2502.10297, watch the effective rank of the states along a sequence: it falls when a
model forgets, and a state whose rank only grows fills up past the length of training.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from zoo.analysis.state_collapse import layer_states, stream


def effective_rank(states: Float[Array | np.ndarray, "*B K V"]) -> Float[Array, "*B"]:
    """exp of the entropy of the singular values, scaled to sum 1 (Roy and Vetterli 2007); 0 for a state of zeros.

    Between 1 and min(K, V): equal singular values count fully, small ones hardly.

    Raises:
      ValueError: fewer than two axes.
    """
    if jnp.ndim(states) < 2:
        raise ValueError(f"states must have at least two axes [..., K, V], got {list(jnp.shape(states))}")
    values = jnp.linalg.svd(jnp.asarray(states), compute_uv=False)
    total = jnp.sum(values, axis=-1, keepdims=True)
    share = values / jnp.where(total > 0, total, 1)
    entropy = -jnp.sum(jnp.where(share > 0, share * jnp.log(jnp.where(share > 0, share, 1)), 0), axis=-1)
    return jnp.where(total[..., 0] > 0, jnp.exp(entropy), 0)


def rank_along_sequence(
    model: Any,
    params: Any,
    tokens: Int[Array, "B T"],
    *,
    every: int = 128,
    select: Callable[[Any], Any] = lambda layer: layer.memory,
) -> tuple[Int[np.ndarray, " N"], Float[Array, "N L B H"]]:
    """Effective ranks of the states of a language model's layers every ``every`` tokens: (tokens read, ranks).

    Args:
      model: ``zoo.LanguageModel`` or alike; its mixers' states are matrices of the same shape.
      params: its variables.
      tokens: read all but the last.
      every: tokens between two looks.
      select: from a mixer's state to its matrices [..., B, H, K, V].
    """
    read = stream(model, params, tokens, every=every, measure=lambda state: effective_rank(layer_states(state, select)))
    return read.positions, read.measured
