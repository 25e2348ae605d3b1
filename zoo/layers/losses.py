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


def prefix_lm_loss(
    logits: Float[Array, "B T V"],
    targets: Int[Array, "B T"],
    *,
    prefix_length: int,
    masked: Bool[Array, "B T"] | None = None,
    weight: float = 0.25,
    normalise: bool = False,
    mask: Bool[Array, "B T"] | None = None,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Loss of a model whose first tokens see each other: next tokens after them, masked tokens among them.

    Arora et al. (2024), Just Read Twice, arXiv 2407.05483. A next-token loss inside the prefix would leak: what is to be
    predicted has been read. Without ``masked`` this is the plain prefix language model's loss, and with ``prefix_length`` 0
    the ordinary causal one.

    Args:
      logits: of every position.
      targets: before ``prefix_length`` the token of the position itself, from there on the next one
        (``zoo.tasks.mask_prefix``).
      prefix_length: M.
      masked: True where the model was shown the mask token instead of the token; only those before M count. None: there is
        no such loss.
      weight: w of the loss L_MLM, the mean over masked positions; L_NTP is the mean over positions from M on.
      normalise: False: L_NTP + w L_MLM (released code); True: over 1 + w as well (the paper's text).
      mask: False where nothing counts; None: everything does.

    Returns:
      (loss, {"next_token": L_NTP, "masked": L_MLM, "accuracy": of the next tokens}), in nats, at least float32.
    """
    inside = jnp.arange(logits.shape[1]) < prefix_length
    counts = jnp.ones(targets.shape, bool) if mask is None else mask
    later = counts & ~inside
    found = {
        "next_token": cross_entropy(logits, targets, later),
        "accuracy": accuracy(logits, targets, later),
    }
    total = found["next_token"]
    if masked is not None:
        found["masked"] = cross_entropy(logits, targets, counts & inside & masked)
        total = total + weight * found["masked"]
        total = total / (1 + weight) if normalise else total
    return total, found
