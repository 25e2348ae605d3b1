"""Models made of Universal Transformers: sequence to sequence, language model, reader.

Dehghani, Gouws, Vinyals, Uszkoreit, Kaiser (2018), Universal Transformers, arXiv 1807.03819. Tokens are embedded by a table
N(0, 1/D), times sqrt(D); the output matrix is the transposed table. ``encoder`` and ``decoder`` are options of
``zoo.mixers.UniversalTransformerEncoder`` and ``zoo.mixers.UniversalTransformer``; with ``{"shared": False}`` the same
models are plain Transformers with as many layers of their own weights as there were steps, the baseline::

    model = UniversalTransformerSeq2Seq(vocab_size=32, dim=64, encoder={"steps": 6}, decoder={"steps": 6, "window": 128})
    baseline = model.clone(encoder={"steps": 6, "shared": False}, decoder={"steps": 6, "window": 128, "shared": False})

Every model has a method ``run`` that also returns the ``Depth`` of its parts, from which ``zoo.mixers.ponder_cost`` makes
the ponder cost under adaptive halting.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
from flax import struct
from flax.core import FrozenDict
from jaxtyping import Array, Bool, Float, Int, Num

from zoo.checks import check_choice, check_floating, check_positive, check_reset, check_tokens, nearest
from zoo.mixers import UniversalTransformer, UniversalTransformerEncoder, UniversalTransformerState
from zoo.mixers.universal_transformer import Depth
from zoo.models.classifier import POOLINGS, pool
from zoo.registry import register

PAPER = "Dehghani et al. 2018, Universal Transformers"


@struct.dataclass
class Seq2SeqState:
    """What decoding carries.

    Attributes:
      decoder: caches of the decoder.
      memory: keys and values of the encoder's output, by group of decoder layers.
      mask: [B, S] where the source is real.
    """

    decoder: UniversalTransformerState
    memory: Any
    mask: Bool[Array, "B S"]


def _part(cls: type, options: Mapping[str, Any], argument: str, **given: Any) -> Any:
    """``cls(**given, **options)``; ``options`` are checked."""
    fields = [f for f in cls.__dataclass_fields__ if f not in ("parent", "name", *given)]
    for option in options:
        if option in given:
            raise ValueError(f"{argument} may not set {option!r}: it is set by the model")
        if option not in fields:
            raise ValueError(
                f"{argument} has no option {option!r}{nearest(option, fields)} (options: {', '.join(fields)})"
            )
    return cls(**given, **options)


def _freeze(module: nn.Module, *names: str) -> None:
    """Makes the mappings among a module's fields hashable, so that the module can be a static argument of jit."""
    for name in names:
        options = {k: tuple(v) if isinstance(v, list) else v for k, v in getattr(module, name).items()}
        object.__setattr__(module, name, FrozenDict(options))


def _table(module: nn.Module, name: str, rows: int, dim: int) -> Float[Array, "V D"]:
    return module.param(name, nn.initializers.normal(dim**-0.5), (rows, dim))


def _embed(table: Float[Array, "V D"], tokens: Int[Array, "*B"], dtype: str) -> Float[Array, "*B D"]:
    return (table[tokens] * table.shape[1] ** 0.5).astype(dtype)


def _valid(shape: tuple[int, ...], lengths: Int[Array, " B"] | None) -> Bool[Array, "B T"]:
    """True at the first ``lengths`` steps of every row; everywhere when None."""
    if lengths is None:
        return jnp.ones(shape[:2], bool)
    if lengths.shape != shape[:1]:
        raise ValueError(f"lengths must have shape {list(shape[:1])}, got {list(lengths.shape)}")
    return jnp.arange(shape[1]) < lengths[:, None]


@register(
    "universal_transformer_seq2seq",
    kind="model",
    variants={
        "default": {
            "vocab_size": 9, "dim": 8, "encoder": {"heads": 2, "steps": 2}, "decoder": {"heads": 2, "steps": 2, "window": 8},
        }
    },
)  # fmt: skip
class UniversalTransformerSeq2Seq(nn.Module):
    """Universal Transformer, encoder and decoder: each one block iterated over depth, with its own weights and steps.

    The decoder's block attends to what it has written, then to the encoder's final state. ``encode`` reads the source in
    one call, ``decode`` reads target tokens (all of them for teacher forcing, one for generation, with caches).

    Attributes:
      vocab_size: tokens of the target, and of the source unless ``source_vocab`` says otherwise.
      dim: width D.
      source_vocab: tokens of the source, with a table of their own; None: source, target and output share one table.
      encoder: options of the encoder (``zoo.mixers.UniversalTransformerEncoder``).
      decoder: options of the decoder (``zoo.mixers.UniversalTransformer``); its ``window`` bounds the target's caches.
      dropout: rate on embeddings and every residual branch.
      dtype: compute dtype; logits are float32.
    """

    vocab_size: int
    dim: int
    source_vocab: int | None = None
    encoder: Mapping[str, Any] = FrozenDict()
    decoder: Mapping[str, Any] = FrozenDict()
    dropout: float = 0.0
    dtype: str = "float32"

    paper: ClassVar[str] = PAPER

    def __post_init__(self):
        _freeze(self, "encoder", "decoder")
        super().__post_init__()

    def _decoder(self, **placing: Any) -> UniversalTransformer:
        given = {"dim": self.dim, "dtype": self.dtype, "dropout": self.dropout, "cross": True, **placing}
        return _part(UniversalTransformer, self.decoder, "decoder", **given)

    def setup(self):
        check_positive("vocab_size", self.vocab_size)
        given = {"dim": self.dim, "dtype": self.dtype, "dropout": self.dropout}
        self.reader = _part(UniversalTransformerEncoder, self.encoder, "encoder", **given)
        self.writer = self._decoder()
        self.embedding = _table(self, "embedding", self.vocab_size, self.dim)
        if self.source_vocab is not None:
            check_positive("source_vocab", self.source_vocab)
            self.source_embedding = _table(self, "source_embedding", self.source_vocab, self.dim)
        self.drop = nn.Dropout(self.dropout)

    def __call__(
        self,
        source: Int[Array, "B S"],
        target: Int[Array, "B T"],
        lengths: Int[Array, " B"] | None = None,
        *,
        deterministic: bool = True,
    ) -> Float[Array, "B T V"]:
        """Teacher-forced logits [B, T, vocab_size]: position t has read target[:, :t+1] and the whole source."""
        return self.run(source, target, lengths, deterministic=deterministic)[0]

    def run(
        self,
        source: Int[Array, "B S"],
        target: Int[Array, "B T"],
        lengths: Int[Array, " B"] | None = None,
        *,
        target_mask: Bool[Array, "B T"] | None = None,
        deterministic: bool = True,
    ) -> tuple[Float[Array, "B T V"], Depth, Depth]:
        """Returns (logits, depth of the encoder, depth of the decoder); padding of the source, and of the target where
        ``target_mask`` is False, takes no steps."""
        state, read = self._read(source, lengths, deterministic)
        logits, _, written = self._write(target, state, target_mask, deterministic)
        return logits, read, written

    def encode(
        self, source: Int[Array, "B S"], lengths: Int[Array, " B"] | None = None, *, deterministic: bool = True
    ) -> Seq2SeqState:
        """Reads right-padded ``source`` rows of ``lengths`` (None: all full) and returns the state decoding starts from."""
        return self._read(source, lengths, deterministic)[0]

    def decode(
        self, target: Int[Array, "B T"], state: Seq2SeqState, *, deterministic: bool = True
    ) -> tuple[Float[Array, "B T V"], Seq2SeqState]:
        """Reads ``target`` tokens after ``state``; returns (logits for the next token, new state)."""
        return self._write(target, state, None, deterministic)[:2]

    def _read(self, source, lengths, deterministic) -> tuple[Seq2SeqState, Depth]:
        check_tokens("source", source)
        mask = _valid(source.shape, lengths)
        table = self.embedding if self.source_vocab is None else self.source_embedding
        x = self.drop(_embed(table, source, self.dtype), deterministic=deterministic)
        y, _, depth = self.reader.run(x, valid=mask, deterministic=deterministic)
        start = self._decoder(parent=None).initial_state(source.shape[0])
        return Seq2SeqState(start, self.writer.project(y), mask), depth

    def _write(self, target, state, valid, deterministic) -> tuple[Float[Array, "B T V"], Seq2SeqState, Depth]:
        check_tokens("target", target)
        x = self.drop(_embed(self.embedding, target, self.dtype), deterministic=deterministic)
        y, caches, depth = self.writer.run(
            x, state.decoder, valid=valid, memory=state.memory, memory_mask=state.mask, deterministic=deterministic
        )
        logits = (y @ self.embedding.T.astype(y.dtype)).astype(jnp.float32)
        return logits, state.replace(decoder=caches), depth


@register(
    "universal_transformer_lm",
    kind="model",
    variants={"default": {"vocab_size": 9, "dim": 8, "decoder": {"heads": 2, "steps": 2, "window": 8}}},
)
class UniversalTransformerLM(nn.Module):
    """Language model: the causal Universal Transformer between an embedding and its transpose.

    It is called like ``zoo.LanguageModel``: prefill, decoding and whole sequences are one call.

    Attributes:
      vocab_size: number V of tokens.
      dim: width D.
      decoder: options of ``zoo.mixers.UniversalTransformer``; its ``window`` bounds the caches.
      dropout: rate on embeddings and every residual branch.
      dtype: compute dtype; logits are float32.
    """

    vocab_size: int
    dim: int
    decoder: Mapping[str, Any] = FrozenDict()
    dropout: float = 0.0
    dtype: str = "float32"

    causal: ClassVar[bool] = True
    paper: ClassVar[str] = PAPER

    def __post_init__(self):
        _freeze(self, "decoder")
        super().__post_init__()

    def mixer(self, **placing: Any) -> UniversalTransformer:
        """The Universal Transformer of this model."""
        given = {"dim": self.dim, "dtype": self.dtype, "dropout": self.dropout, **placing}
        return _part(UniversalTransformer, self.decoder, "decoder", **given)

    def setup(self):
        check_positive("vocab_size", self.vocab_size)
        self.writer = self.mixer()
        self.embedding = _table(self, "embedding", self.vocab_size, self.dim)
        self.drop = nn.Dropout(self.dropout)

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        state: UniversalTransformerState | None = None,
        *,
        reset: Bool[Array, "B T"] | None = None,
        deterministic: bool = True,
    ) -> tuple[Float[Array, "B T V"], UniversalTransformerState]:
        """Returns (logits [B, T, V] float32 for the next token, state after the last token)."""
        return self.run(tokens, state, reset=reset, deterministic=deterministic)[:2]

    def run(
        self,
        tokens: Int[Array, "B T"],
        state: UniversalTransformerState | None = None,
        *,
        reset: Bool[Array, "B T"] | None = None,
        valid: Bool[Array, "B T"] | None = None,
        deterministic: bool = True,
    ) -> tuple[Float[Array, "B T V"], UniversalTransformerState, Depth]:
        """Returns (logits, state, depth); tokens where ``valid`` is False take no steps under ACT."""
        check_tokens("tokens", tokens)
        check_reset(reset, tokens.shape)
        x = self.drop(_embed(self.embedding, tokens, self.dtype), deterministic=deterministic)
        y, state, depth = self.writer.run(x, state, reset=reset, valid=valid, deterministic=deterministic)
        return (y @ self.embedding.T.astype(y.dtype)).astype(jnp.float32), state, depth

    def initial_state(self, batch_size: int, dtype: str | None = None) -> UniversalTransformerState:
        """State before the first token; ``dtype`` is the storage dtype of caches."""
        return self.mixer(parent=None).initial_state(batch_size, dtype)


@register(
    "universal_transformer_reader",
    kind="model",
    variants={"default": {"num_outputs": 3, "dim": 8, "vocab_size": 9, "encoder": {"heads": 2, "steps": 2}}},
)
class UniversalTransformerReader(nn.Module):
    """Reader: the Universal Transformer encoder, pooling, a linear output.

    Inputs are tokens [B, T], sentences of words [B, T, W] with 0 for no word (needs ``max_words``), or with
    ``vocab_size=None`` features [B, T, F]. A sentence becomes one position: the sum over its words of their embedding times
    a learned mask of the place in the sentence, ones at first (as in memory networks; the paper's bAbI encoding).

    Attributes:
      num_outputs: number of classes.
      dim: width D.
      vocab_size: number of tokens or words; None for real-valued inputs.
      max_words: most words in a sentence; None for tokens.
      pooling: "mean", "last" or "max" over valid positions; "none" labels every position.
      encoder: options of ``zoo.mixers.UniversalTransformerEncoder``.
      dropout: rate on embeddings and every residual branch.
      dtype: compute dtype; logits are float32.
    """

    num_outputs: int
    dim: int
    vocab_size: int | None = None
    max_words: int | None = None
    pooling: str = "mean"
    encoder: Mapping[str, Any] = FrozenDict()
    dropout: float = 0.0
    dtype: str = "float32"

    paper: ClassVar[str] = PAPER

    def __post_init__(self):
        _freeze(self, "encoder")
        super().__post_init__()

    @nn.compact
    def run(
        self,
        inputs: Num[Array, "B T *F"],
        lengths: Int[Array, " B"] | None = None,
        *,
        deterministic: bool = True,
        maps: bool = False,
    ) -> tuple[Float[Array, "B *T C"], Depth]:
        """Returns (logits [B, num_outputs], or [B, T, num_outputs] without pooling, zeros at padding; depth).

        ``lengths`` counts the valid positions of right-padded rows: the rest is neither seen nor takes steps. ``maps``
        asks for attention maps.
        """
        check_positive("num_outputs", self.num_outputs)
        check_choice("pooling", self.pooling, POOLINGS)
        x = nn.Dropout(self.dropout, deterministic=deterministic)(self._embedded(inputs))
        valid = _valid(inputs.shape, lengths)
        given = {"dim": self.dim, "dtype": self.dtype, "dropout": self.dropout, "name": "encoder"}
        reader = _part(UniversalTransformerEncoder, self.encoder, "encoder", **given)
        y, _, depth = reader.run(x, valid=valid, deterministic=deterministic, maps=maps)
        head = nn.Dense(self.num_outputs, dtype=self.dtype, name="output")
        logits = head(pool(y, valid, self.pooling)).astype(jnp.float32)
        return logits * valid[..., None] if self.pooling == "none" else logits, depth

    def __call__(
        self, inputs: Num[Array, "B T *F"], lengths: Int[Array, " B"] | None = None, *, deterministic: bool = True
    ) -> Float[Array, "B *T C"]:
        """Logits alone; see ``run``."""
        return self.run(inputs, lengths, deterministic=deterministic)[0]

    def _embedded(self, inputs: Num[Array, "B T *F"]) -> Float[Array, "B T D"]:
        if inputs.ndim < 2 or inputs.shape[1] == 0:
            raise ValueError(f"inputs must have shape [batch, time >= 1, ...], got {list(inputs.shape)}")
        if self.vocab_size is None:
            check_floating("inputs", inputs)
            if inputs.ndim != 3:
                raise ValueError(f"inputs must have shape [batch, time, features], got {list(inputs.shape)}")
            return nn.Dense(self.dim, dtype=self.dtype, name="input")(inputs)
        check_positive("vocab_size", self.vocab_size)
        table = _table(self, "embedding", self.vocab_size, self.dim)
        if self.max_words is None:
            check_tokens("inputs", inputs)
            return _embed(table, inputs, self.dtype)
        check_positive("max_words", self.max_words)
        if not jnp.issubdtype(inputs.dtype, jnp.integer):
            raise TypeError(f"inputs must be an integer array, got {inputs.dtype}")
        if inputs.ndim != 3 or inputs.shape[2] > self.max_words:
            raise ValueError(
                f"inputs must have shape [batch, time, words <= max_words={self.max_words}], got {list(inputs.shape)}"
            )
        places = self.param("places", nn.initializers.ones_init(), (self.max_words, self.dim))
        words = _embed(table, inputs, self.dtype) * places[: inputs.shape[2]].astype(self.dtype)
        return jnp.sum(jnp.where((inputs != 0)[..., None], words, 0), axis=2)


__all__ = ["Seq2SeqState", "UniversalTransformerLM", "UniversalTransformerReader", "UniversalTransformerSeq2Seq"]
