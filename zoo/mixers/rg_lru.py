"""Real-gated linear recurrent unit (RG-LRU): a diagonal real recurrence with a gate on its decay and one on its input.

De, Smith, Fernando, Botev et al. (2024), Griffin: Mixing Gated Linear Recurrences with Local Attention for Efficient
Language Models, arXiv 2402.19427 (the layer of Hawk, Griffin and RecurrentGemma).

With x_t [D] cut into H heads, c = 8, everything but the two matrices elementwise:

    r_t = sigmoid(blockdiag_H(W_r) x_t + b_r)       recurrence gate
    i_t = sigmoid(blockdiag_H(W_i) x_t + b_i)       input gate
    a_t = exp(-c softplus(p) r_t)                   p [D]
    h_t = a_t h_{t-1} + sqrt(1 - a_t^2 + epsilon) i_t x_t
    y_t = h_t

``unit_start``: the first token of a document comes in with factor 1 in place of the root, as in RecurrentGemma. At the
start exp(-c softplus(p)) is uniform by area on the ring [r_min, r_max]. The root has no slope at a = 1: where 1 - a^2
underflows its gradient is taken as zero. Time O(B T D^2 / H), parallel over time by a scan; state: D numbers per row.
"""

from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from zoo.checks import check_divides, check_positive, check_sequence, check_state
from zoo.dtypes import accumulator
from zoo.layers.attention import document_positions
from zoo.layers.real_gates import SHARPNESS, check_ring, decay_initializer, input_scale
from zoo.registry import register
from zoo.scans import linear_scan


@struct.dataclass
class RGLRUState:
    """Carried state: ``hidden`` [B, D]; ``age`` [B], tokens of the document so far."""

    hidden: Float[Array, "B D"]
    age: Int[Array, " B"]


def rg_lru_gate(
    x: Float[Array, "*B D"], weight: Float[Array, "H I I"], bias: Float[Array, " D"] | None = None
) -> Float[Array, "*B D"]:
    """sigmoid(blockdiag(weight) x + bias), in at least float32."""
    heads, width = weight.shape[:2]
    blocks = x.reshape(*x.shape[:-1], heads, width)
    p = jnp.einsum("...hi,hij->...hj", blocks, weight.astype(x.dtype)).reshape(x.shape).astype(accumulator(x.dtype))
    return jax.nn.sigmoid(p if bias is None else p + bias)


def rg_lru_system(
    params: Mapping[str, Array], x: Float[Array, "*B D"], epsilon: float
) -> tuple[Float[Array, "*B D"], Float[Array, "*B D"], Float[Array, "*B D"]]:
    """(log a, sqrt(1 - a^2 + epsilon), i) of the module docstring."""
    r = rg_lru_gate(x, params["recurrence_gate"], params.get("recurrence_gate_bias"))
    i = rg_lru_gate(x, params["input_gate"], params.get("input_gate_bias"))
    log_decay = -SHARPNESS * jax.nn.softplus(params["decay"].astype(r.dtype)) * r
    return log_decay, input_scale(log_decay, epsilon), i


def rg_lru(
    params: Mapping[str, Array],
    x: Float[Array, "B T D"],
    state: RGLRUState,
    *,
    epsilon: float = 0.0,
    unit_start: bool = False,
    reset: Bool[Array, "B T"] | None = None,
    method: str = "auto",
) -> tuple[Float[Array, "B T D"], RGLRUState]:
    """The layer of the module docstring.

    Args:
      params: ``decay`` [D], p; ``recurrence_gate``, ``input_gate`` [H, D/H, D/H] (in, out), and, where there are biases,
        ``recurrence_gate_bias``, ``input_gate_bias`` [D].
      x: inputs; the gates' products run in their dtype.
      state: state before the first token.
      epsilon: under the root.
      unit_start: factor 1 at the first token of a document.
      reset: True at the first token of a new document.
      method: how the scan is computed, see ``zoo.scans.linear_scan``.

    Returns:
      (y, state after the last token); y has x's dtype.
    """
    log_decay, scale, gate = rg_lru_system(params, x, epsilon)
    age = document_positions(reset, state.age, shape=x.shape[:2])
    decay = jnp.exp(log_decay)
    if reset is not None:
        decay = jnp.where(reset[..., None], 0, decay)
    if unit_start:
        scale = jnp.where((age == 0)[..., None], 1, scale)
    y, last = linear_scan(decay, scale * gate * x, state.hidden, method=method)
    return y.astype(x.dtype), RGLRUState(last, age[:, -1] + 1)


@register(
    "rg_lru",
    variants={
        "default": {"heads": 2},
        "recurrent_gemma": {"unit_start": True, "heads": 2},
        "one_block": {"gate_bias": False, "epsilon": 1e-6},
    },
)
class RGLRU(nn.Module):
    """Real-gated linear recurrent unit: the recurrence of Hawk, Griffin and RecurrentGemma.

    Attributes:
      dim: width D of input and output.
      heads: blocks H of the gates' block-diagonal matrices; divides ``dim``.
      gate_bias: biases of the gates.
      epsilon: under the root of the input's factor.
      unit_start: factor 1 at the first token of a document, as in RecurrentGemma.
      r_min, r_max: range of the decay with an open recurrence gate at initialisation.
      dtype: compute dtype of the gates' products; the recurrence runs in at least float32.
    """

    dim: int
    heads: int = 1
    gate_bias: bool = True
    epsilon: float = 0.0
    unit_start: bool = False
    r_min: float = 0.9
    r_max: float = 0.999
    dtype: str = "float32"

    causal: ClassVar[bool] = True
    paper: ClassVar[str] = "De et al. 2024, Griffin: Mixing Gated Linear Recurrences with Local Attention"

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], state: RGLRUState | None = None, *, reset: Bool[Array, "B T"] | None = None
    ) -> tuple[Float[Array, "B T D"], RGLRUState]:
        check_sequence(x, self.dim, reset)
        check_positive("heads", self.heads)
        check_divides("heads", self.heads, "dim", self.dim)
        check_ring(self.r_min, self.r_max)
        initial = self.initial_state(x.shape[0])
        if state is not None:
            check_state(state, initial)
        width = self.dim // self.heads
        dense = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal", batch_axis=0)
        declared = {"decay": (decay_initializer(self.r_min, self.r_max), (self.dim,))}
        for gate in ("recurrence_gate", "input_gate"):
            declared[gate] = (dense, (self.heads, width, width))
            if self.gate_bias:
                declared[f"{gate}_bias"] = (nn.initializers.zeros, (self.dim,))
        params = {name: self.param(name, *how) for name, how in declared.items()}
        return rg_lru(
            params, x.astype(self.dtype), initial if state is None else state, epsilon=self.epsilon,
            unit_start=self.unit_start, reset=reset,
        )  # fmt: skip

    def initial_state(self, batch_size: int, dtype: str | None = None) -> RGLRUState:
        """Zeros, at least float32 whatever ``dtype``."""
        hidden = jnp.zeros((batch_size, self.dim), accumulator(self.dtype))
        return RGLRUState(hidden, jnp.zeros(batch_size, jnp.int32))
