"""Choosing the next token from logits."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key


class Sampling(NamedTuple):
    """How tokens are drawn. Filters apply in this order; None switches one off.

    Attributes:
      temperature: divides the logits; 0 takes the most likely token.
      top_k: keep the k most likely tokens.
      top_p: keep the smallest set of most likely tokens whose probabilities reach p (Holtzman et al. 2020).
      min_p: keep tokens with at least min_p times the largest probability (Nguyen et al. 2024).
    """

    temperature: Any = 1.0
    top_k: Any = None
    top_p: Any = None
    min_p: Any = None

    def check(self) -> None:
        """Raises ValueError for a value out of range."""
        if self.temperature < 0:
            raise ValueError(f"temperature must be at least 0, got {self.temperature}")
        if self.top_k is not None and (self.top_k < 1 or int(self.top_k) != self.top_k):
            raise ValueError(f"top_k must be a positive integer, got {self.top_k}")
        for name in ("top_p", "min_p"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise ValueError(f"{name} must be in (0, 1], got {value}")


def sample(keys: Key[Array, " B"], logits: Float[Array, "B V"], how: Sampling = Sampling()) -> Int[Array, " B"]:  # noqa: B008
    """Draws one token per row; row i depends on ``keys[i]`` and ``logits[i]`` alone.

    Args:
      keys: one random key per row.
      logits: unnormalised log-probabilities.
      how: temperature and filters; its values may be traced.
    """

    def likeliest():
        return jnp.argmax(logits, axis=-1)

    def drawn():
        scaled = logits / how.temperature
        return jax.vmap(jax.random.categorical)(keys, jnp.where(_allowed(scaled, how), scaled, -jnp.inf))

    # A branch, not a choice of two results: random numbers for a large vocabulary cost as much as a small model's step.
    return jax.lax.cond(jnp.asarray(how.temperature == 0), likeliest, drawn)


def _allowed(scaled, how):
    """Mask [B, V] of the tokens that the filters leave; the likeliest one always stays."""
    if how.top_k is None and how.top_p is None and how.min_p is None:
        return jnp.ones_like(scaled, bool)
    # sorting costs more than a small model's step, so it is done for filters only
    order = jnp.argsort(-scaled, axis=-1)
    ordered = jnp.take_along_axis(scaled, order, axis=-1)
    rank = jnp.arange(scaled.shape[-1])[None]
    allowed = jnp.ones_like(ordered, bool)
    if how.top_k is not None:
        allowed &= rank < how.top_k
    if how.top_p is not None:
        probability = jax.nn.softmax(jnp.where(allowed, ordered, -jnp.inf), axis=-1)
        allowed &= jnp.cumsum(probability, axis=-1) - probability < how.top_p
    if how.min_p is not None:
        probability = jax.nn.softmax(jnp.where(allowed, ordered, -jnp.inf), axis=-1)
        allowed &= probability >= how.min_p * probability[:, :1]
    return jnp.take_along_axis(allowed | (rank == 0), jnp.argsort(order, axis=-1), axis=-1)
