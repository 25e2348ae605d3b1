"""Image captioning: a language model that has seen the image.

Vinyals, Toshev, Bengio, Erhan (2015), Show and Tell; Karpathy and Fei-Fei (2015); Mao et al. (2015).
With v [F] the features of the image (from a convolutional network):

    first_input     x_{-1} = W v + b is read as the first input, before the first word
    initial_state   every real array of the state starts at tanh(W v + b), one W and b for each

Then the caption is an ordinary language model's text: ``decode(tokens, encode(features))``. Cost and state are those of
the mixers in the pattern.
"""

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from zoo.checks import check_choice, check_floating, check_positive, check_tokens
from zoo.layers import batch_axes, rows_back, rows_first, split_floating
from zoo.models.stack import Spec, Stack, freeze_specs
from zoo.registry import register

FEATURES = ("first_input", "initial_state")


class ConvFeatures(nn.Module):
    """Small convolutional network: 3x3 convolutions with ReLU, each halving the picture, then one dense layer.

    Attributes:
      features: width F of the result.
      channels: channels of each convolution.
      dtype: compute dtype.
    """

    features: int
    channels: tuple[int, ...] = (16, 32)
    dtype: str = "float32"

    @nn.compact
    def __call__(self, images: Float[Array, "B H W C"]) -> Float[Array, "B F"]:
        x = images.astype(self.dtype)
        for i, width in enumerate(self.channels):
            x = nn.relu(nn.Conv(width, (3, 3), strides=2, dtype=self.dtype, name=f"conv_{i}")(x))
        x = x.reshape(x.shape[0], -1)  # where things are matters for a caption: no pooling over places
        return nn.relu(nn.Dense(self.features, dtype=self.dtype, name="dense")(x))


@register(
    "captioner",
    kind="model",
    variants={
        "first_input": {"vocab_size": 9, "dim": 8},
        "initial_state": {"vocab_size": 9, "dim": 8, "mode": "initial_state"},
    },
)
class Captioner(nn.Module):
    """Caption generator: image features start a recurrent language model.

    ``encode(features) -> state`` and ``decode(tokens, state) -> (logits, state)``; ``__call__`` does both.

    Attributes:
      vocab_size: number V of tokens.
      dim: width D.
      mode: how features enter, "first_input" or "initial_state".
      channels: None when the input is features [B, F]; otherwise the input is images [B, height, width, C] and a
        convolutional network with these channels is trained along.
      pattern, depth, mlp, mlp_dim, norm, norm_position, dropout, dtype: see ``zoo.models.Stack``.
    """

    vocab_size: int
    dim: int
    mode: str = "first_input"
    channels: tuple[int, ...] | None = None
    pattern: tuple[Spec, ...] = ("lru",)
    depth: int | None = None
    mlp: str = "swiglu"
    mlp_dim: int | None = None
    norm: str = "rms"
    norm_position: str = "pre"
    dropout: float = 0.0
    dtype: str = "float32"

    paper: ClassVar[str] = "Vinyals et al. 2015, Show and Tell: A Neural Image Caption Generator"

    def __post_init__(self):
        freeze_specs(self)
        super().__post_init__()

    def setup(self):
        check_positive("vocab_size", self.vocab_size)
        check_choice("mode", self.mode, FEATURES)
        fields = ("dim", "pattern", "depth", "mlp", "mlp_dim", "norm", "norm_position", "dropout", "dtype")
        self.stack = Stack(**{f: getattr(self, f) for f in fields})
        self.embedding = nn.Embed(self.vocab_size, self.dim, dtype=self.dtype)
        self.output = nn.Dense(self.vocab_size, dtype=self.dtype)
        if self.channels is not None:
            self.convolutions = ConvFeatures(4 * self.dim, self.channels, self.dtype)
        if self.mode == "first_input":
            self.project = nn.Dense(self.dim, dtype=self.dtype)
        else:
            leaves, _, _ = split_floating(self.stack.initial_state(1))
            self.starts = [nn.Dense(leaf.size * (1 + jnp.iscomplexobj(leaf)), dtype=self.dtype) for leaf in leaves]

    def __call__(
        self, images: Float[Array, "B *F"], tokens: Int[Array, "B T"], *, deterministic: bool = True
    ) -> Float[Array, "B T V"]:
        """Teacher-forced logits [B, T, vocab_size]: position t has seen the image and tokens[:, :t+1]."""
        return self.decode(tokens, self.encode(images, deterministic=deterministic), deterministic=deterministic)[0]

    def encode(self, images: Float[Array, "B *F"], *, deterministic: bool = True) -> Any:
        """The state that captions of ``images`` start from."""
        check_floating("images", images)
        wanted = 2 if self.channels is None else 4
        if images.ndim != wanted:
            kind = "features [batch, F]" if wanted == 2 else "images [batch, height, width, channels]"
            raise ValueError(f"this captioner reads {kind}, got shape {list(images.shape)}")
        features = images if self.channels is None else self.convolutions(images)
        initial = self.stack.initial_state(images.shape[0])
        if self.mode == "first_input":
            return self.stack(self.project(features)[:, None], initial, deterministic=deterministic)[1]
        axes = batch_axes(self.stack.initial_state)
        leaves, others, join = split_floating(rows_first(initial, axes))
        starts = [_start(dense(features), leaf) for dense, leaf in zip(self.starts, leaves)]
        return rows_back(join(starts, others), axes)

    def decode(
        self, tokens: Int[Array, "B T"], state: Any, *, deterministic: bool = True
    ) -> tuple[Float[Array, "B T V"], Any]:
        """Reads ``tokens`` after ``state``; returns (logits for the next token, new state)."""
        check_tokens("tokens", tokens)
        x, state = self.stack(self.embedding(tokens), state, deterministic=deterministic)
        return self.output(x).astype(jnp.float32), state


def _start(values: Float[Array, "B N"], leaf: Array) -> Array:
    """tanh(values) in the shape and dtype of ``leaf`` [B, ...]."""
    values = jnp.tanh(values).astype(jnp.float32)
    if jnp.iscomplexobj(leaf):
        values = jax.lax.complex(*jnp.split(values, 2, axis=-1))
    return values.reshape(leaf.shape).astype(leaf.dtype)
