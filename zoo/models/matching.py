"""Matching classifier: two sequences, each encoded by itself by the same encoder; what holds between them?

The two-tower model of the retrieval task of Long Range Arena (Tay et al. 2021), with the features of Mou et al. (2016),
Natural Language Inference by Tree-Based Convolution and Heuristic Matching. With a, b [D] the pooled outputs of the encoder
for the two sequences:

    f = [a, b, a * b, a - b]                                          [4 D]
    logits = W3 relu(W2 relu(W1 f + b1) + b2) + b3,  W1 [4 D, M], W2 [M, M/2], W3 [M/2, num_outputs]

Neither sequence sees the other before f. Cost is twice the encoder's.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Num

from zoo.checks import check_positive
from zoo.models.classifier import SequenceClassifier
from zoo.registry import register


@register(
    "matching_classifier",
    kind="model",
    variants={"default": {"num_outputs": 2, "encoder": {"dim": 8, "vocab_size": 5}}},
)
class MatchingClassifier(nn.Module):
    """Maps a pair of sequences to logits.

    Attributes:
      num_outputs: number of classes.
      encoder: options of ``SequenceClassifier`` ("dim", "vocab_size", "pattern", ...), which reads both sequences.
      hidden_dim: width M of the first hidden layer; None for the encoder's "dim".
      dtype: compute dtype, also of the encoder unless its options say otherwise.
    """

    num_outputs: int
    encoder: Mapping[str, Any]
    hidden_dim: int | None = None
    dtype: str = "float32"

    paper: ClassVar[str] = "Tay et al. 2021, Long Range Arena; Mou et al. 2016"

    @nn.compact
    def __call__(
        self,
        inputs: Num[Array, "B 2 T *F"],
        lengths: Int[Array, "B 2"] | None = None,
        *,
        deterministic: bool = True,
    ) -> Float[Array, "B C"]:
        """Returns logits [B, num_outputs].

        Args:
          inputs: pairs of sequences, tokens or features.
          lengths: valid steps of each.
          deterministic: no dropout.
        """
        check_positive("num_outputs", self.num_outputs)
        if inputs.ndim not in (3, 4) or inputs.shape[1] != 2:
            raise ValueError(
                f"inputs must have shape [batch, 2, time] or [batch, 2, time, features], got {list(inputs.shape)}"
            )
        if lengths is not None and lengths.shape != inputs.shape[:2]:
            raise ValueError(f"lengths must have shape {list(inputs.shape[:2])}, got {list(lengths.shape)}")
        options = {"dtype": self.dtype, **self.encoder}
        for name in ("num_outputs", "name"):
            if name in options:
                raise ValueError(f"encoder must not set {name!r}; its outputs are the features that are matched")
        if options.get("pooling") == "none":
            raise ValueError("encoder must pool: pooling='none' leaves no vector to match")
        encoder = SequenceClassifier(num_outputs=None, **options, name="encoder")
        hidden = encoder.dim if self.hidden_dim is None else self.hidden_dim
        if hidden < 2:
            raise ValueError(f"hidden_dim must be at least 2, got {hidden}")

        # One call on all sequences, so that both have the same parameters and one compiled program.
        rows = inputs.reshape(-1, *inputs.shape[2:])
        encoded = encoder(rows, None if lengths is None else lengths.reshape(-1), deterministic=deterministic)
        a, b = jnp.moveaxis(encoded.reshape(-1, 2, encoder.dim), 1, 0)
        y = jnp.concatenate([a, b, a * b, a - b], axis=-1)
        for i, width in enumerate((hidden, hidden // 2)):
            y = jax.nn.relu(nn.Dense(width, dtype=self.dtype, name=f"hidden_{i}")(y))
        return nn.Dense(self.num_outputs, dtype=self.dtype, name="head")(y).astype(jnp.float32)
