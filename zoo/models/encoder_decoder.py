"""Encoder-decoder: one stack reads the source, another writes the target.

Sutskever, Vinyals, Le (2014): the encoder's final recurrent states become the decoder's initial states.
Bahdanau, Cho, Bengio (2015): the decoder attends over all encoder outputs. Both bridges are available, alone or together.
"""

from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from zoo.checks import check_choice, check_positive, check_tokens
from zoo.layers.positions import sinusoidal_positions
from zoo.models.stack import Spec, Stack
from zoo.registry import register

BRIDGES = ("state", "attention", "both")


@struct.dataclass
class EncoderDecoderState:
    """What decoding carries: decoder ``layers``, ``memory`` [B, S, D] with its ``mask`` [B, S], ``position`` [B]."""

    layers: Any
    memory: Float[Array, "B S D"] | None
    mask: Bool[Array, "B S"] | None
    position: Int[Array, " B"]


@register(
    "encoder_decoder",
    kind="model",
    variants={"default": {"source_vocab": 9, "target_vocab": 7, "dim": 8, "bridge": "state"}},
)
class EncoderDecoder(nn.Module):
    """Sequence-to-sequence model.

    ``encode`` reads the source in one call, ``decode`` reads target tokens (all of them for teacher forcing, one for
    generation); ``__call__`` does both.

    Attributes:
      source_vocab: number of source tokens.
      target_vocab: number of target tokens.
      dim: width D.
      encoder: pattern of the encoder; with bridge "attention" it may be bidirectional.
      decoder: pattern of the decoder; None takes the encoder's.
      depth: layers on each side; None takes one of each in the pattern.
      bridge: "state" (final encoder states start the decoder), "attention" (cross-attention), or "both".
      heads: heads of the cross-attention.
      reverse_source: read the source backwards (Sutskever et al. 2014).
      positions: "none" or "sinusoidal", on both sides.
      mlp, mlp_dim, norm, norm_position, dropout, remat, dtype: see ``zoo.models.Stack``.
    """

    source_vocab: int
    target_vocab: int
    dim: int
    encoder: tuple[Spec, ...] = ("lru",)
    decoder: tuple[Spec, ...] | None = None
    depth: int | None = None
    bridge: str = "attention"
    heads: int = 1
    reverse_source: bool = False
    positions: str = "none"
    mlp: str = "swiglu"
    mlp_dim: int | None = None
    norm: str = "rms"
    norm_position: str = "pre"
    dropout: float = 0.0
    remat: bool = False
    dtype: str = "float32"

    paper: ClassVar[str] = "Sutskever et al. 2014, Sequence to Sequence Learning with Neural Networks"

    def setup(self):
        check_positive("source_vocab", self.source_vocab)
        check_positive("target_vocab", self.target_vocab)
        check_choice("bridge", self.bridge, BRIDGES)
        check_choice("positions", self.positions, ("none", "sinusoidal"))
        decoder = self.encoder if self.decoder is None else self.decoder
        if self.bridge != "attention" and decoder != self.encoder:
            raise ValueError(f"bridge={self.bridge!r} hands states over layer by layer, so both patterns must be equal")
        names = ("dim", "depth", "mlp", "mlp_dim", "norm", "norm_position", "dropout", "remat", "dtype")
        shared = {f: getattr(self, f) for f in names}
        self.source_embedding = nn.Embed(self.source_vocab, self.dim, dtype=self.dtype)
        self.target_embedding = nn.Embed(self.target_vocab, self.dim, dtype=self.dtype)
        self.encoder_stack = Stack(pattern=self.encoder, **shared)
        cross = 0 if self.bridge == "state" else self.heads
        self.decoder_stack = Stack(pattern=decoder, cross_heads=cross, **shared)
        self.output = nn.Dense(self.target_vocab, dtype=self.dtype)

    def __call__(
        self,
        source: Int[Array, "B S"],
        target: Int[Array, "B T"],
        lengths: Int[Array, " B"] | None = None,
        *,
        deterministic: bool = True,
    ) -> Float[Array, "B T V"]:
        """Teacher-forced logits [B, T, target_vocab]: position t has read target[:, :t+1] and the whole source."""
        state = self.encode(source, lengths, deterministic=deterministic)
        return self.decode(target, state, deterministic=deterministic)[0]

    def encode(
        self, source: Int[Array, "B S"], lengths: Int[Array, " B"] | None = None, *, deterministic: bool = True
    ) -> EncoderDecoderState:
        """Reads right-padded ``source`` rows of ``lengths`` (None: all full) and returns the state decoding starts from."""
        check_tokens("source", source)
        batch, time = source.shape
        if lengths is None:
            lengths = jnp.full(batch, time, jnp.int32)
        # Rows are shifted to end together, so that every row's final state is the one at the last step; the padding
        # before them is cut off by a reset at the first real token.
        steps = jnp.arange(time)[None]
        start = time - lengths[:, None]
        offset = time - 1 - steps if self.reverse_source else steps - start
        aligned = jnp.take_along_axis(source, jnp.clip(offset, 0, time - 1), axis=1)
        x = self.source_embedding(aligned)
        if self.positions == "sinusoidal":
            x = x + sinusoidal_positions(jnp.clip(steps - start, 0, None), self.dim).astype(x.dtype)
        memory, layers = self.encoder_stack(x, reset=steps == start, deterministic=deterministic)
        if self.bridge == "attention":
            layers = self.decoder_stack.initial_state(batch)
        keep = self.bridge != "state"
        mask = steps >= start
        return EncoderDecoderState(
            layers, memory if keep else None, mask if keep else None, jnp.zeros(batch, jnp.int32)
        )

    def decode(
        self, target: Int[Array, "B T"], state: EncoderDecoderState, *, deterministic: bool = True
    ) -> tuple[Float[Array, "B T V"], EncoderDecoderState]:
        """Reads ``target`` tokens after ``state``; returns (logits for the next token, new state)."""
        check_tokens("target", target)
        x = self.target_embedding(target)
        position = state.position[:, None] + jnp.arange(target.shape[1])
        if self.positions == "sinusoidal":
            x = x + sinusoidal_positions(position, self.dim).astype(x.dtype)
        x, layers = self.decoder_stack(
            x, state.layers, memory=state.memory, memory_mask=state.mask, deterministic=deterministic
        )
        return self.output(x).astype(jnp.float32), state.replace(layers=layers, position=position[:, -1] + 1)
