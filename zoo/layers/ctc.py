"""Connectionist temporal classification: the loss of an unsegmented labelling (Graves et al. 2006)."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from zoo.dtypes import accumulator


def ctc_loss(
    logits: Float[Array, "B T V"],
    lengths: Int[Array, " B"],
    labels: Int[Array, "B N"],
    label_lengths: Int[Array, " B"],
    *,
    blank: int = 0,
) -> Float[Array, " B"]:
    """-log of the probability that a row's frames spell its labels, summed over all alignments, in nats.

    An alignment gives every frame a label or the blank; it spells what is left after equal neighbours are merged and
    blanks are removed. A row with too few frames for its labels (one per label, one more between equal neighbours)
    has no alignment; its loss is finite and about 1e5.

    Args:
      logits: unnormalised scores of every frame.
      lengths: valid frames per row.
      labels: label strings, right-padded; ``blank`` must not occur in them.
      label_lengths: valid labels per row.
      blank: class of the blank.
    """
    import optax

    logits = logits.astype(accumulator(logits.dtype))
    frame_padding = (jnp.arange(logits.shape[1]) >= lengths[:, None]).astype(logits.dtype)
    label_padding = (jnp.arange(labels.shape[1]) >= label_lengths[:, None]).astype(logits.dtype)
    return optax.ctc_loss(logits, frame_padding, labels, label_padding, blank_id=blank)
