"""Bidirectional softmax self-attention: every token attends to every token of its document.

Vaswani et al. (2017), Attention Is All You Need (the encoder's self-attention); Su et al. (2021), RoFormer.

With x_t [D], H query heads, G key/value heads (head h reads group h // (H/G)), K = D / H, p_t the position in the
document from 0:

    q_t = rot(W_q x_t, p_t) [H, K]      k_t = rot(W_k x_t, p_t) [G, K]      v_t = W_v x_t [G, K]
    y_t = W_o (sum_s softmax over s of (q_t . k_s / sqrt(K)) v_s)           s over the document of t

Time O(T^2 D + T D^2) and memory O(H T^2): quadratic by definition. It keeps no state.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from zoo.checks import check_sequence
from zoo.layers.attention import (
    attention_parameters,
    document_positions,
    grouped_attention,
    merge_heads,
    project_heads,
)
from zoo.registry import register


def bidirectional_attention(
    params: Mapping[str, Array],
    x: Float[Array, "B T D"],
    *,
    positions: str = "rotary",
    base: float = 10_000.0,
    reset: Bool[Array, "B T"] | None = None,
) -> Float[Array, "B T D"]:
    """The attention of the module docstring.

    Args:
      params: ``query`` [D, H, K], ``key`` and ``value`` [D, G, K], ``output`` [H, K, D].
      x: inputs; their dtype is the compute dtype.
      positions: "rotary" or "none".
      base: base of the rotary wavelengths.
      reset: True at the first token of a new document.
    """
    where = document_positions(reset, shape=x.shape[:2]) if positions == "rotary" else None
    q, k, v = project_heads(params, x, where, base)
    mask = None
    if reset is not None:
        document = jnp.cumsum(reset, axis=1)
        mask = document[:, :, None] == document[:, None, :]
    return merge_heads(params, grouped_attention(q, k, v, mask))


@register(
    "bidirectional_attention",
    variants={"default": {"heads": 2}, "grouped": {"heads": 4, "kv_heads": 2, "positions": "none"}},
)
class BidirectionalAttention(nn.Module):
    """Bidirectional self-attention: softmax over the whole document.

    Attributes:
      dim: width D of input and output.
      heads: number of query heads H; divides ``dim``.
      kv_heads: number of key/value heads G; divides ``heads``; None for ``heads``.
      positions: "rotary" (counted within the document) or "none".
      base: base of the rotary wavelengths.
      dtype: compute dtype; scores and softmax in at least float32.
    """

    dim: int
    heads: int = 4
    kv_heads: int | None = None
    positions: str = "rotary"
    base: float = 10_000.0
    dtype: str = "float32"

    causal: ClassVar[bool] = False
    quadratic: ClassVar[bool] = True
    paper: ClassVar[str] = "Vaswani et al. 2017, Attention Is All You Need; Su et al. 2021, RoFormer"

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], state: Any = None, *, reset: Bool[Array, "B T"] | None = None
    ) -> tuple[Float[Array, "B T D"], None]:
        check_sequence(x, self.dim, reset)
        if state is not None:
            raise ValueError("bidirectional_attention keeps no state (it reads the whole sequence), but got one")
        params = attention_parameters(
            self, dim=self.dim, heads=self.heads, kv_heads=self.kv_heads, positions=self.positions
        )
        y = bidirectional_attention(params, x.astype(self.dtype), positions=self.positions, base=self.base, reset=reset)
        return y, None

    def initial_state(self, batch_size: int, dtype: str | None = None) -> None:
        """None: there is no state."""
        return None
