"""RetNet's multi-scale retention: linear attention with rotated queries and keys and a fixed decay per head.

Sun et al. (2023), Retentive Network: A Successor to Transformer for Large Language Models, arXiv 2307.08621.

With x_t [D], H heads, keys of width K, values of width V, p_t the position in the document, gamma_h = 1 - 2^(-5 - h):

    q_t = rot(W_q x_t, p_t) / sqrt(K),  k_t = rot(W_k x_t, p_t)  [H, K]        v_t = W_v x_t  [H, V]
    S_t = gamma_h S_{t-1} + k_t v_t^T                                          [K, V] per head
    o_t = q_t S_t
    y_t = W_o (norm(o_t) * scale * silu(W_g x_t))                              norm of every head on its own, scale [V]

The rotation with the decay is the paper's complex exponential gamma^n e^(i n theta) (xPos); the released code rotates as
rotary positions do. The norm is the paper's GroupNorm with one group per head: "rms" without the mean (as released), or
"layer". It forgets the scale of o_t, and so the sums by which the released parallel form divides. One scale for all heads
(flash-linear-attention) or none (``norm_scale`` False, as released).

Decays, memory and norm are at least float32 whatever ``dtype``. Time O(B T (D (H K + H V) + H K V)), parallel over time by
chunks (``zoo.scans.linear_attention``); state: H K V numbers per row and the position.
"""

from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from zoo.checks import check_choice, check_sequence, check_state
from zoo.dtypes import accumulator
from zoo.layers.attention import document_positions, merge_heads, project_heads
from zoo.layers.linear_attention import expanded_widths, retention_decays
from zoo.layers.norms import layer_norm, rms_norm
from zoo.registry import register
from zoo.scans import linear_attention

NORMS = ("rms", "layer")


@struct.dataclass
class RetNetState:
    """Carried state: ``memory`` [B, H, K, V]; ``age`` [B], tokens of the document so far."""

    memory: Float[Array, "B H K V"]
    age: Int[Array, " B"]


def retnet(
    params: Mapping[str, Array],
    x: Float[Array, "B T D"],
    state: RetNetState,
    *,
    base: float = 10_000.0,
    norm: str = "rms",
    norm_eps: float = 1e-6,
    reset: Bool[Array, "B T"] | None = None,
    method: str = "auto",
    chunk_size: int | None = None,
) -> tuple[Float[Array, "B T D"], RetNetState]:
    """The layer of the module docstring.

    Args:
      params: ``query``, ``key`` [D, H, K], ``value``, ``gate`` [D, H, V], ``output`` [H, V, D]; ``scale`` [V] where the norm
        has one.
      x: inputs; projections run in their dtype.
      state: state before the first token.
      base: base of the rotary wavelengths.
      norm: "rms" or "layer".
      norm_eps: of the norm.
      reset: True at the first token of a new document.
      method: how the scan is computed, see ``zoo.scans.linear_attention``.
      chunk_size: steps per chunk, likewise.

    Returns:
      (y, state after the last token); y has x's dtype.
    """
    wide = accumulator(x.dtype)
    age = document_positions(reset, state.age, shape=x.shape[:2])
    q, k, v = (a.astype(wide) for a in project_heads(params, x, age, base))
    gate = jnp.einsum("btd,dhv->bthv", x, params["gate"].astype(x.dtype))
    decay = jnp.broadcast_to(retention_decays(v.shape[2], -5.0).astype(wide), v.shape[:3])
    if reset is not None:
        decay = jnp.where(reset[..., None], -jnp.inf, decay)
    y, memory = linear_attention(
        q * q.shape[-1] ** -0.5, k, v, decay, state.memory, method=method, chunk_size=chunk_size
    )
    scale = params.get("scale", jnp.ones(v.shape[-1]))
    y = rms_norm(y, scale, norm_eps) if norm == "rms" else layer_norm(y, scale, eps=norm_eps)
    y = y * jax.nn.silu(gate.astype(wide))
    return merge_heads(params, y.astype(x.dtype)), RetNetState(memory, age[:, -1] + 1)


@register(
    "retnet",
    variants={
        "default": {"heads": 2},
        "layer_norm": {"heads": 2, "key_expansion": 0.5, "value_expansion": 1.0, "norm": "layer", "norm_scale": False},
    },
)
class RetNet(nn.Module):
    """RetNet's retention: linear attention with rotary positions, a fixed decay per head, a norm per head and a gate.

    Attributes:
      dim: width D of input and output.
      heads: number of heads H.
      key_expansion: H K over D.
      value_expansion: H V over D.
      base: base of the rotary wavelengths.
      norm: of every head: "rms" or "layer".
      norm_scale: the norm has a learned scale, one for all heads.
      norm_eps: of the norm.
      chunk_size: steps per chunk; None: chosen from the shape.
      dtype: compute dtype of the projections; the recurrence runs in at least float32.
    """

    dim: int
    heads: int = 8
    key_expansion: float = 1.0
    value_expansion: float = 2.0
    base: float = 10_000.0
    norm: str = "rms"
    norm_scale: bool = True
    norm_eps: float = 1e-6
    chunk_size: int | None = None
    dtype: str = "float32"

    causal: ClassVar[bool] = True
    paper: ClassVar[str] = "Sun et al. 2023, Retentive Network: A Successor to Transformer for Large Language Models"

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], state: RetNetState | None = None, *, reset: Bool[Array, "B T"] | None = None
    ) -> tuple[Float[Array, "B T D"], RetNetState]:
        check_sequence(x, self.dim, reset)
        check_choice("norm", self.norm, NORMS)
        initial = self.initial_state(x.shape[0])
        if state is not None:
            check_state(state, initial)
        keys, values = self.widths()
        into = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal", in_axis=0, out_axis=(1, 2))
        out_of = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal", in_axis=(0, 1), out_axis=2)
        declared = {
            "query": (into, (self.dim, self.heads, keys)),
            "key": (into, (self.dim, self.heads, keys)),
            "value": (into, (self.dim, self.heads, values)),
            "gate": (into, (self.dim, self.heads, values)),
            "output": (out_of, (self.heads, values, self.dim)),
        }
        if self.norm_scale:
            declared["scale"] = (nn.initializers.ones, (values,))
        params = {name: self.param(name, *how) for name, how in declared.items()}
        return retnet(
            params, x.astype(self.dtype), initial if state is None else state, base=self.base, norm=self.norm,
            norm_eps=self.norm_eps, reset=reset, chunk_size=self.chunk_size,
        )  # fmt: skip

    def widths(self) -> tuple[int, int]:
        """(K, V): width of a head's queries and keys, and of its values."""
        keys, values = expanded_widths(self.dim, self.heads, self.key_expansion, self.value_expansion)
        if keys % 2:
            raise ValueError(f"rotary positions need an even key width per head, got {keys}")
        return keys, values

    def initial_state(self, batch_size: int, dtype: str | None = None) -> RetNetState:
        """Zeros, at least float32 whatever ``dtype``."""
        memory = jnp.zeros((batch_size, self.heads, *self.widths()), accumulator(self.dtype))
        return RetNetState(memory, jnp.zeros(batch_size, jnp.int32))
