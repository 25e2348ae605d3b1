"""Losses and means over masked positions, in at least float32."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from zoo.dtypes import accumulator


def masked_mean(values: Float[Array, "*B"], mask: Bool[Array, "*B"] | None = None) -> Float[Array, ""]:
    """Mean of ``values`` where ``mask`` is True; 0 when nothing is selected."""
    values = values.astype(accumulator(values.dtype))
    if mask is None:
        return jnp.mean(values)
    return jnp.sum(jnp.where(mask, values, 0)) / jnp.maximum(jnp.sum(mask), 1)


def cross_entropy(
    logits: Float[Array, "*B V"], targets: Int[Array, "*B"], mask: Bool[Array, "*B"] | None = None
) -> Float[Array, ""]:
    """Mean negative log-likelihood, in nats, of integer ``targets`` under softmax(``logits``)."""
    logits = logits.astype(accumulator(logits.dtype))
    picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return masked_mean(jax.nn.logsumexp(logits, axis=-1) - picked, mask)


def z_loss(logits: Float[Array, "*B V"], mask: Bool[Array, "*B"] | None = None) -> Float[Array, ""]:
    """Mean of log(sum exp(``logits``))^2, which keeps the softmax normaliser near 1 (used with a weight such as 1e-4)."""
    logits = logits.astype(accumulator(logits.dtype))
    return masked_mean(jax.nn.logsumexp(logits, axis=-1) ** 2, mask)


def accuracy(
    logits: Float[Array, "*B V"], targets: Int[Array, "*B"], mask: Bool[Array, "*B"] | None = None
) -> Float[Array, ""]:
    """Share of positions whose largest logit is the target."""
    return masked_mean((jnp.argmax(logits, axis=-1) == targets).astype(jnp.float32), mask)
