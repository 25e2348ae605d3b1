"""Gated slot attention: softmax attention over a fixed number of slots, which forget by gates.

Zhang, Yang, Zhu, Zhang, Cui, Wang, Wang, Shi, Wang, Bi, Zhou, Fu (2024), Gated Slot Attention for Efficient Linear-Time
Sequence Modeling, arXiv 2409.07146.

With x_t [D], H heads of width P = D / H, M slots per head:

    q_t, k_t, v_t = silu(W_q x_t), silu(W_k x_t), silu(W_v x_t)          [H, P]
    a_t = sigmoid(W_a x_t)^(1 / temperature)                             [H, M]
    K_t = Diag(a_t) K_{t-1} + (1 - a_t) k_t^T                            [H, M, P], the keys of the slots
    V_t = Diag(a_t) V_{t-1} + (1 - a_t) v_t^T                            [H, M, P], their values
    y_t = W_o (rms_norm(silu(softmax(K_t q_t) V_t)) * scale)

Both recurrences are ``zoo.scans.linear_attention``: the first with every slot as a head that shares the keys of its own (a
decay each, one value 1 - a_t), the second with the slots as keys. Nothing is scaled in the softmax, as in the paper. Time
O(B T (D^2 + D M)), parallel over time by chunks; state: 2 D M numbers per row.
"""

from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float

from zoo.checks import check_divides, check_positive, check_sequence, check_state
from zoo.dtypes import accumulator
from zoo.layers.norms import rms_norm
from zoo.layers.projections import linear
from zoo.registry import register
from zoo.scans import linear_attention


@struct.dataclass
class GSAState:
    """Carried state: ``keys`` and ``values`` [B, H, M, P] of the slots."""

    keys: Float[Array, "B H M P"]
    values: Float[Array, "B H M P"]


def gsa(
    params: Mapping[str, Array],
    x: Float[Array, "B T D"],
    state: GSAState,
    *,
    temperature: float = 8.0,
    norm_eps: float = 1e-6,
    reset: Bool[Array, "B T"] | None = None,
    method: str = "auto",
    chunk_size: int | None = None,
) -> tuple[Float[Array, "B T D"], GSAState]:
    """The layer of the module docstring.

    Args:
      params: ``query``, ``key``, ``value`` [D, H P]; ``forget`` [D, H M]; ``scale`` [H P]; ``output`` [H P, D].
      x: inputs; projections run in their dtype.
      state: state before the first token.
      temperature: of the gates: larger ones forget less.
      norm_eps: of the norm.
      reset: True at the first token of a new document.
      method: how the scans are computed, see ``zoo.scans.linear_attention``.
      chunk_size: steps per chunk, likewise.

    Returns:
      (y, state after the last token); y has x's dtype.
    """
    batch, heads, slots, width = state.keys.shape
    steps, wide = x.shape[1], accumulator(x.dtype)
    q, k, v = (
        jax.nn.silu(linear(x, params, name)).astype(wide).reshape(batch, steps, heads, width)
        for name in ("query", "key", "value")
    )
    decay = jax.nn.log_sigmoid(linear(x, params, "forget").astype(wide)) / temperature
    written = -jnp.expm1(decay)
    if reset is not None:
        decay = jnp.where(reset[..., None], -jnp.inf, decay)
    options = {"method": method, "chunk_size": chunk_size}
    scores, keys = linear_attention(
        q, k, written[..., None], decay, state.keys.reshape(batch, heads * slots, width, 1), **options
    )
    share = jax.nn.softmax(scores.reshape(batch, steps, heads, slots), axis=-1)
    written, decay = (a.reshape(batch, steps, heads, slots) for a in (written, decay))
    y, values = linear_attention(share, written, v, decay, state.values, **options)
    y = rms_norm(jax.nn.silu(y.reshape(batch, steps, -1)), params["scale"], norm_eps).astype(x.dtype)
    return linear(y, params, "output"), GSAState(keys.reshape(state.keys.shape), values)


@register("gsa", variants={"default": {"heads": 2, "slots": 3}})
class GSA(nn.Module):
    """Gated slot attention: softmax attention over slots that forget by gates.

    Attributes:
      dim: width D of input and output.
      heads: number of heads H; divides ``dim``.
      slots: M, per head.
      temperature: of the gates; larger ones forget less.
      norm_eps: of the norm.
      chunk_size: steps per chunk; None: chosen from the shape.
      dtype: compute dtype of the projections; the recurrences run in at least float32.
    """

    dim: int
    heads: int = 4
    slots: int = 64
    temperature: float = 8.0
    norm_eps: float = 1e-6
    chunk_size: int | None = None
    dtype: str = "float32"

    causal: ClassVar[bool] = True
    paper: ClassVar[str] = "Zhang et al. 2024, Gated Slot Attention for Efficient Linear-Time Sequence Modeling"

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], state: GSAState | None = None, *, reset: Bool[Array, "B T"] | None = None
    ) -> tuple[Float[Array, "B T D"], GSAState]:
        check_sequence(x, self.dim, reset)
        check_positive("heads", self.heads)
        check_positive("slots", self.slots)
        check_divides("heads", self.heads, "dim", self.dim)
        if not self.temperature > 0:
            raise ValueError(f"temperature must be positive, got {self.temperature}")
        initial = self.initial_state(x.shape[0])
        if state is not None:
            check_state(state, initial)
        dense = nn.initializers.lecun_normal()
        declared = {
            "query": (dense, (self.dim, self.dim)),
            "key": (dense, (self.dim, self.dim)),
            "value": (dense, (self.dim, self.dim)),
            "forget": (dense, (self.dim, self.heads * self.slots)),
            "scale": (nn.initializers.ones, (self.dim,)),
            "output": (dense, (self.dim, self.dim)),
        }
        params = {name: self.param(name, *how) for name, how in declared.items()}
        return gsa(
            params, x.astype(self.dtype), initial if state is None else state, temperature=self.temperature,
            norm_eps=self.norm_eps, reset=reset, chunk_size=self.chunk_size,
        )  # fmt: skip

    def initial_state(self, batch_size: int, dtype: str | None = None) -> GSAState:
        """Zeros in at least float32, whatever ``dtype``."""
        shape = (batch_size, self.heads, self.slots, self.dim // self.heads)
        return GSAState(*(jnp.zeros(shape, accumulator(self.dtype)) for _ in range(2)))
