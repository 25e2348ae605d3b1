"""Language model: embedding, a stack of mixers, softmax over the vocabulary.

Whole sequences, prefill and decoding are one call: ``logits, state = model.apply(params, tokens, state)``.
"""

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from zoo.checks import check_choice, check_positive, check_reset, check_state, check_tokens
from zoo.dtypes import accumulator
from zoo.layers.norms import make_norm
from zoo.layers.positions import sinusoidal_positions
from zoo.models.stack import Spec, Stack, freeze_specs
from zoo.registry import register

POSITIONS = ("none", "sinusoidal", "learned")


@struct.dataclass
class LanguageModelState:
    """Carried state: ``layers`` (as ``Stack.initial_state``), ``position`` [B] int32, tokens since the document began."""

    layers: Any
    position: Int[Array, " B"]


@register("language_model", kind="model", variants={"default": {"vocab_size": 16, "dim": 8}})
class LanguageModel(nn.Module):
    """Language model over any pattern of mixers.

    A mixer that reads a prefix without its order (``prefix_linear_attention``) is welcome: the model is then causal from
    token ``model.stack().prefix_length`` of a document on, and the logits before it are no predictions.

    Attributes:
      vocab_size: number V of tokens.
      dim: width D.
      pattern, depth, mlp, mlp_dim, norm, norm_eps, norm_position, final_norm, residual_scale, dropout, remat: see
        ``zoo.models.Stack``; norm="batch", whose training mode sees the future, is refused.
      positions: "none", "sinusoidal" or "learned" position signal added to the embeddings (mixers that know order by
        themselves need none); positions count from the start of the document.
      max_positions: size of the learned table; later positions reuse its last row.
      tie_embeddings: output matrix = embedding matrix transposed.
      embedding_scale: factor on the embeddings; None: sqrt(D), for a table drawn with standard deviation 1 / sqrt(D).
      embedding_norm: embeddings and position signal go through a norm before the first layer.
      embedding_dropout: rate on what the first layer reads; None: as ``dropout``.
      logit_cap: logits z become cap tanh(z / cap); None: they stay.
      dtype: compute dtype; logits are at least float32.
    """

    vocab_size: int
    dim: int
    pattern: tuple[Spec, ...] = ("lru",)
    depth: int | None = None
    mlp: Spec | tuple[Spec, ...] = "swiglu"
    mlp_dim: int | None = None
    norm: str = "rms"
    norm_eps: float | None = None
    norm_position: str = "pre"
    final_norm: bool = True
    residual_scale: bool = False
    dropout: float = 0.0
    remat: bool = False
    positions: str = "none"
    max_positions: int = 1024
    tie_embeddings: bool = False
    embedding_scale: float | None = None
    embedding_norm: bool = False
    embedding_dropout: float | None = None
    logit_cap: float | None = None
    dtype: str = "float32"

    causal: ClassVar[bool] = True
    paper: ClassVar[str] = "Mikolov et al. 2010, Recurrent neural network based language model"

    def __post_init__(self):
        freeze_specs(self)
        super().__post_init__()

    def stack(self, name: str | None = None) -> Stack:
        """The stack of this model, as a module of its own."""
        fields = ("dim", "pattern", "depth", "mlp", "mlp_dim", "norm", "norm_eps", "norm_position", "final_norm",
                  "residual_scale", "dropout", "remat", "dtype")  # fmt: skip
        # Without a name it stands alone, so that states can be made outside of init and apply.
        options = {"name": name} if name else {"parent": None}
        return Stack(**{f: getattr(self, f) for f in fields}, **options)

    @nn.compact
    def __call__(
        self,
        tokens: Int[Array, "B T"],
        state: LanguageModelState | None = None,
        *,
        reset: Bool[Array, "B T"] | None = None,
        deterministic: bool = True,
    ) -> tuple[Float[Array, "B T V"], LanguageModelState]:
        """Returns (logits [B, T, V], at least float32, for the next token, state after the last token).

        ``reset`` marks the first token of a document inside a row. Tokens outside [0, V) are not checked.
        """
        check_tokens("tokens", tokens)
        check_reset(reset, tokens.shape)
        check_positive("vocab_size", self.vocab_size)
        check_choice("positions", self.positions, POSITIONS)
        if self.norm == "batch":
            raise ValueError("norm='batch' averages over the future, which a language model must not see")
        if self.logit_cap is not None and not self.logit_cap > 0:
            raise ValueError(f"logit_cap must be positive, got {self.logit_cap}")
        if state is not None:
            check_state(state, jax.eval_shape(lambda: self.initial_state(tokens.shape[0])))
        scale = self.dim**0.5 if self.embedding_scale is None else self.embedding_scale
        embedding = self.param("embedding", nn.initializers.normal(self.dim**-0.5), (self.vocab_size, self.dim))
        x = (embedding[tokens] * scale).astype(self.dtype)
        start = jnp.zeros(tokens.shape[0], jnp.int32) if state is None else state.position
        position = count_positions(start, tokens.shape[1], reset)
        if self.positions == "sinusoidal":
            x = x + sinusoidal_positions(position, self.dim).astype(x.dtype)
        elif self.positions == "learned":
            table = self.param("positions", nn.initializers.normal(1.0), (self.max_positions, self.dim))
            x = x + table[jnp.minimum(position, self.max_positions - 1)].astype(x.dtype)
        if self.embedding_norm:
            x = make_norm(self.norm, eps=self.norm_eps, name="embedding_norm")(x)
        stack = self.stack("stack")
        if not stack.keeps_state:
            raise ValueError("a language model needs causal layers, but the stack has one that sees the future")
        rate = self.dropout if self.embedding_dropout is None else self.embedding_dropout
        x = nn.Dropout(rate, deterministic=deterministic)(x)
        layers = None if state is None else state.layers
        x, layers = stack(x, layers, reset=reset, tokens=tokens, deterministic=deterministic)
        if self.tie_embeddings:
            logits = x @ embedding.T.astype(x.dtype)
        else:
            logits = nn.Dense(self.vocab_size, use_bias=False, dtype=self.dtype, name="output")(x)
        logits = logits.astype(accumulator(logits.dtype))
        if self.logit_cap is not None:
            logits = self.logit_cap * jnp.tanh(logits / self.logit_cap)
        return logits, LanguageModelState(layers, position[:, -1] + 1)

    def initial_state(self, batch_size: int, dtype: str | None = None) -> LanguageModelState:
        """State before the first token; ``dtype`` is the storage dtype of caches."""
        return LanguageModelState(self.stack().initial_state(batch_size, dtype), jnp.zeros(batch_size, jnp.int32))


def count_positions(start: Int[Array, " B"], time: int, reset: Bool[Array, "B T"] | None = None) -> Int[Array, "B T"]:
    """Position of every token in its document: ``start``, start + 1, ..., and again from 0 at each reset."""
    steps = jnp.arange(time, dtype=jnp.int32)
    position = start[:, None] + steps
    if reset is None:
        return position
    latest = jax.lax.cummax(jnp.where(reset, steps, -1), axis=1)
    return jnp.where(latest >= 0, steps - latest, position)
