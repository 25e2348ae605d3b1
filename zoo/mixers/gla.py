"""Gated linear attention (GLA): linear attention whose every key channel forgets at a rate that the input says.

Yang, Wang, Shen, Panda, Kim (2023), Gated Linear Attention Transformers with Hardware-Efficient Training, arXiv 2312.06635.

With x_t [D], H heads, keys of width K, values of width V:

    q_t = W_q x_t / sqrt(K),  k_t = W_k x_t  [H, K]      v_t = W_v x_t  [H, V]
    g_t = log sigmoid(W_2 W_1 x_t + b) / tau             [H, K], W_1 to ``gate_rank`` numbers, tau = 16
    S_t = diag(exp(g_t)) S_{t-1} + k_t v_t^T             [K, V] per head
    y_t = W_o (rms_norm(q_t S_t) * scale * silu(W_r x_t))        norm of every head on its own, scale [V]

Dividing by tau keeps the forget gates near 1. Gates, memory and norm are at least float32 whatever ``dtype``.

Time O(B T (D (H K + H V) + H K V)), parallel over time by chunks (``zoo.scans.linear_attention`` with a decay per channel);
state: H K V numbers per row.
"""

from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float

from zoo.checks import check_positive, check_sequence, check_state
from zoo.dtypes import accumulator
from zoo.layers.attention import merge_heads, project_heads
from zoo.layers.linear_attention import expanded_widths
from zoo.layers.norms import rms_norm
from zoo.registry import register
from zoo.scans import linear_attention


@struct.dataclass
class GLAState:
    """Carried state: ``memory`` [B, H, K, V]."""

    memory: Float[Array, "B H K V"]


def gla(
    params: Mapping[str, Array],
    x: Float[Array, "B T D"],
    state: GLAState,
    *,
    gate_divisor: float = 16.0,
    gate_min: float | None = None,
    norm_eps: float = 1e-6,
    reset: Bool[Array, "B T"] | None = None,
    method: str = "auto",
    chunk_size: int | None = None,
) -> tuple[Float[Array, "B T D"], GLAState]:
    """The layer of the module docstring.

    Args:
      params: ``query``, ``key`` [D, H, K], ``value`` [D, H, V], ``output`` [H, V, D], ``scale`` [V]; ``forget_down`` [D, R],
        ``forget_up`` [R, H, K], ``forget_bias`` [H, K]; where there is an output gate ``gate`` [D, H, V].
      x: inputs; projections run in their dtype.
      state: state before the first token.
      gate_divisor: tau.
      gate_min: least g_t, None for none.
      norm_eps: of the norm.
      reset: True at the first token of a new document.
      method: how the scan is computed, see ``zoo.scans.linear_attention``.
      chunk_size: steps per chunk, likewise.

    Returns:
      (y, state after the last token); y has x's dtype.
    """
    wide = accumulator(x.dtype)
    q, k, v = (a.astype(wide) for a in project_heads(params, x, None, 0.0))
    low = x @ params["forget_down"].astype(x.dtype)
    rough = jnp.einsum("btr,rhk->bthk", low, params["forget_up"].astype(x.dtype)).astype(wide) + params["forget_bias"]
    decay = jax.nn.log_sigmoid(rough) / gate_divisor
    if gate_min is not None:
        decay = jnp.maximum(decay, gate_min)
    if reset is not None:
        decay = jnp.where(reset[..., None, None], -jnp.inf, decay)
    y, memory = linear_attention(
        q * q.shape[-1] ** -0.5, k, v, decay, state.memory, method=method, chunk_size=chunk_size
    )
    y = rms_norm(y, params["scale"], norm_eps)
    if "gate" in params:
        gate = jnp.einsum("btd,dhv->bthv", x, params["gate"].astype(x.dtype))
        y = y * jax.nn.silu(gate.astype(wide))
    return merge_heads(params, y.astype(x.dtype)), GLAState(memory)


@register(
    "gla",
    variants={
        "default": {"heads": 2, "gate_rank": 3},
        "no_output_gate": {
            "heads": 2, "key_expansion": 1.0, "value_expansion": 0.5, "gate_rank": 2, "gate_divisor": 1.0,
            "gate_min": -0.5, "output_gate": False,
        },
    },
)  # fmt: skip
class GLA(nn.Module):
    """Gated linear attention: a matrix memory with a forget gate for every key channel, a norm per head and a gate.

    Attributes:
      dim: width D of input and output.
      heads: number of heads H.
      key_expansion: H K over D.
      value_expansion: H V over D.
      gate_rank: width between the two maps of the forget gates.
      gate_divisor: tau, by which their logarithms are divided.
      gate_min: least logarithm of a forget gate; None: any.
      output_gate: the output is gated.
      norm_eps: of the norm.
      chunk_size: steps per chunk; None: chosen from the shape.
      dtype: compute dtype of the projections; the recurrence runs in at least float32.
    """

    dim: int
    heads: int = 4
    key_expansion: float = 0.5
    value_expansion: float = 1.0
    gate_rank: int = 16
    gate_divisor: float = 16.0
    gate_min: float | None = None
    output_gate: bool = True
    norm_eps: float = 1e-6
    chunk_size: int | None = None
    dtype: str = "float32"

    causal: ClassVar[bool] = True
    paper: ClassVar[str] = "Yang et al. 2023, Gated Linear Attention Transformers with Hardware-Efficient Training"

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], state: GLAState | None = None, *, reset: Bool[Array, "B T"] | None = None
    ) -> tuple[Float[Array, "B T D"], GLAState]:
        check_sequence(x, self.dim, reset)
        check_positive("gate_rank", self.gate_rank)
        if not self.gate_divisor > 0:
            raise ValueError(f"gate_divisor must be positive, got {self.gate_divisor}")
        initial = self.initial_state(x.shape[0])
        if state is not None:
            check_state(state, initial)
        keys, values = self.widths()
        dense = nn.initializers.lecun_normal()
        into = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal", in_axis=0, out_axis=(1, 2))
        out_of = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal", in_axis=(0, 1), out_axis=2)
        declared = {
            "query": (into, (self.dim, self.heads, keys)),
            "key": (into, (self.dim, self.heads, keys)),
            "value": (into, (self.dim, self.heads, values)),
            "forget_down": (dense, (self.dim, self.gate_rank)),
            "forget_up": (into, (self.gate_rank, self.heads, keys)),
            "forget_bias": (nn.initializers.zeros, (self.heads, keys)),
            "scale": (nn.initializers.ones, (values,)),
            "output": (out_of, (self.heads, values, self.dim)),
        }
        if self.output_gate:
            declared["gate"] = (into, (self.dim, self.heads, values))
        params = {name: self.param(name, *how) for name, how in declared.items()}
        return gla(
            params, x.astype(self.dtype), initial if state is None else state, gate_divisor=self.gate_divisor,
            gate_min=self.gate_min, norm_eps=self.norm_eps, reset=reset, chunk_size=self.chunk_size,
        )  # fmt: skip

    def widths(self) -> tuple[int, int]:
        """(K, V): width of a head's queries and keys, and of its values."""
        return expanded_widths(self.dim, self.heads, self.key_expansion, self.value_expansion)

    def initial_state(self, batch_size: int, dtype: str | None = None) -> GLAState:
        """Zeros, at least float32 whatever ``dtype``."""
        return GLAState(jnp.zeros((batch_size, self.heads, *self.widths()), accumulator(self.dtype)))
