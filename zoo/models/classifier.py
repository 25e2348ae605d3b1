"""Sequence classifier: input projection or embedding, a stack of mixers, pooling, a linear head.

One label per row (pooling "mean", "last", "max") or one per step ("none"); features or tokens; rows of unequal length;
causal or bidirectional mixers alike. Cost is the stack's.
"""

from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num

from zoo.checks import check_choice, check_floating, check_positive, check_tokens
from zoo.layers.positions import sinusoidal_positions
from zoo.models.stack import Spec, Stack, freeze_specs
from zoo.registry import register

POOLINGS = ("mean", "last", "max", "none")


@register("sequence_classifier", kind="model", variants={"default": {"num_outputs": 3, "dim": 8}})
class SequenceClassifier(nn.Module):
    """Maps a sequence to one vector of logits (or to one per step with ``pooling="none"``).

    Rows of unequal length are right-padded and given with ``lengths``: the padding becomes a document of its own (a
    reset at position ``length``), so that it reaches no valid step in either direction of time.

    Attributes:
      num_outputs: number of classes, or of regression targets; None: no head, the pooled features [B, dim] themselves.
      dim: width D.
      vocab_size: None for real-valued inputs [B, T, F]; otherwise inputs are integer tokens [B, T].
      pooling: "mean", "last" or "max" over valid steps; "none" labels every step.
      positions: "none" or "sinusoidal" signal added to the embedded inputs.
      pattern, depth, mlp, mlp_dim, norm, norm_eps, norm_axis, norm_position, final_norm, dropout, remat, dtype: see
        ``zoo.models.Stack``. With norm="batch" the collection "batch_stats" is ``mutable`` when not deterministic.
    """

    num_outputs: int | None
    dim: int
    vocab_size: int | None = None
    pooling: str = "mean"
    positions: str = "none"
    pattern: tuple[Spec, ...] = ("lru",)
    depth: int | None = None
    mlp: Spec | tuple[Spec, ...] = "swiglu"
    mlp_dim: int | None = None
    norm: str = "rms"
    norm_eps: float | None = None
    norm_axis: str | None = None
    norm_position: str = "pre"
    final_norm: bool = True
    dropout: float = 0.0
    remat: bool = False
    dtype: str = "float32"

    paper: ClassVar[str] = "Graves et al. 2006; Gu et al. 2021 (sequence classification with a deep recurrent stack)"

    def __post_init__(self):
        freeze_specs(self)
        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        inputs: Num[Array, "B T *F"],
        lengths: Int[Array, " B"] | None = None,
        *,
        deterministic: bool = True,
    ) -> Float[Array, "B *T C"]:
        """Returns logits [B, num_outputs], or [B, T, num_outputs] without pooling (zeros at padding)."""
        if self.num_outputs is not None:
            check_positive("num_outputs", self.num_outputs)
        check_choice("pooling", self.pooling, POOLINGS)
        check_choice("positions", self.positions, ("none", "sinusoidal"))
        if self.vocab_size is None:
            check_floating("inputs", inputs)
            if inputs.ndim != 3 or inputs.shape[1] == 0:
                raise ValueError(f"inputs must have shape [batch, time >= 1, features], got {list(inputs.shape)}")
            x = nn.Dense(self.dim, dtype=self.dtype, name="input")(inputs)
        else:
            check_tokens("inputs", inputs)
            x = nn.Embed(self.vocab_size, self.dim, dtype=self.dtype, name="embedding")(inputs)
        time = inputs.shape[1]
        if self.positions == "sinusoidal":
            x = x + sinusoidal_positions(jnp.arange(time), self.dim).astype(x.dtype)
        steps = jnp.arange(time)[None]
        reset = None
        valid = jnp.ones(inputs.shape[:2], bool)
        if lengths is not None:
            if lengths.shape != inputs.shape[:1]:
                raise ValueError(f"lengths must have shape {list(inputs.shape[:1])}, got {list(lengths.shape)}")
            reset, valid = steps == lengths[:, None], steps < lengths[:, None]
        fields = ("dim", "pattern", "depth", "mlp", "mlp_dim", "norm", "norm_eps", "norm_axis", "norm_position",
                  "final_norm", "dropout", "remat", "dtype")  # fmt: skip
        stack = Stack(**{f: getattr(self, f) for f in fields}, name="stack")
        tokens = None if self.vocab_size is None else inputs
        x, _ = stack(x, reset=reset, tokens=tokens, deterministic=deterministic)
        y = pool(x, valid, self.pooling)
        if self.num_outputs is not None:
            y = nn.Dense(self.num_outputs, dtype=self.dtype, name="head")(y)
        return y.astype(jnp.float32) * (valid[..., None] if self.pooling == "none" else 1)


def pool(x: Float[Array, "B T D"], valid: Bool[Array, "B T"], kind: str) -> Float[Array, "B *T D"]:
    """Pools ``x`` over the valid steps of each row ("mean", "last", "max"), or returns it unpooled ("none")."""
    mask = valid[..., None]
    if kind == "mean":
        return jnp.sum(jnp.where(mask, x, 0), axis=1) / jnp.maximum(jnp.sum(mask, axis=1), 1)
    if kind == "max":
        return jnp.max(jnp.where(mask, x, jnp.finfo(x.dtype).min), axis=1)
    if kind == "last":
        index = jnp.maximum(jnp.sum(valid, axis=1) - 1, 0)
        return jnp.take_along_axis(x, index[:, None, None], axis=1)[:, 0]
    return x
