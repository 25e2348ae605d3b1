"""The recurrent block of Griffin: a short convolution and the RG-LRU, times a GELU branch.

De, Smith, Fernando, Botev et al. (2024), Griffin: Mixing Gated Linear Recurrences with Local Attention for Efficient
Language Models, arXiv 2402.19427 (its "recurrent block"; the layers of RecurrentGemma that do not attend).

With x_t [D] the (normalised) input and inner width E:

    u_t = W_x x_t + b_x                            [E]
    v_t = sum_k K_k * u_{t-k} + b                  causal depthwise convolution, K [taps, E], inside the document
    h_t = rg_lru(v)_t                              [E], see ``zoo.mixers.rg_lru``
    y_t = W_o (h_t * gelu(W_g x_t + b_g)) + b_o    [D], GELU in its tanh form

Norm before and residual after are those of ``zoo.models.Block``. Time O(B T (D E + E^2 / H)) with H blocks in the gates
of the RG-LRU, parallel over time by a scan; state: E numbers per row, and the last taps - 1 values of u.
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
from zoo.layers.convolution import depthwise_convolution, recent
from zoo.layers.initializers import symmetric_uniform
from zoo.layers.projections import linear
from zoo.layers.real_gates import check_ring, decay_initializer
from zoo.mixers.rg_lru import RGLRUState, rg_lru
from zoo.registry import register


@struct.dataclass
class GriffinRecurrentState:
    """Carried state: ``hidden`` [B, E]; ``history`` [B, taps - 1, E] of u; ``age`` [B], tokens of the document so far."""

    hidden: Float[Array, "B E"]
    history: Float[Array, "B K E"]
    age: Int[Array, " B"]


def griffin_recurrent(
    params: Mapping[str, Array],
    x: Float[Array, "B T D"],
    state: GriffinRecurrentState,
    *,
    unit_start: bool = False,
    reset: Bool[Array, "B T"] | None = None,
    method: str = "auto",
) -> tuple[Float[Array, "B T D"], GriffinRecurrentState]:
    """The block of the module docstring.

    Args:
      params: ``gate``, ``input`` [D, E], ``output`` [E, D], their biases ``gate_bias``, ``input_bias`` [E],
        ``output_bias`` [D]; ``kernel`` [taps, E], ``bias`` [E]; and those of ``zoo.mixers.rg_lru`` for width E.
      x: inputs; projections run in their dtype.
      state: state before the first token.
      unit_start: see ``zoo.mixers.rg_lru``.
      reset: True at the first token of a new document.
      method: how the scan is computed, see ``zoo.scans.linear_scan``.

    Returns:
      (y, state after the last token); y has x's dtype.
    """
    age = document_positions(reset, state.age, shape=x.shape[:2])
    u = linear(x, params, "input")
    v = depthwise_convolution(u, params["kernel"], age, history=state.history) + params["bias"].astype(x.dtype)
    h, carried = rg_lru(
        params, v, RGLRUState(state.hidden, state.age), unit_start=unit_start, reset=reset, method=method
    )
    y = linear(h * jax.nn.gelu(linear(x, params, "gate"), approximate=True), params, "output")
    history = recent(u, params["kernel"].shape[0] - 1, state.history)
    return y, GriffinRecurrentState(carried.hidden, history, carried.age)


@register(
    "griffin_recurrent",
    variants={
        "default": {"heads": 2},
        "recurrent_gemma": {"unit_start": True, "heads": 2, "inner_dim": 4, "conv_size": 3},
    },
)
class GriffinRecurrent(nn.Module):
    """Griffin's recurrent block: a short convolution and the real-gated linear recurrent unit, gated by a GELU branch.

    Attributes:
      dim: width D of input and output.
      inner_dim: width E of the recurrence; None: ``dim``.
      heads: blocks of the RG-LRU's gates; divides the inner width.
      conv_size: taps of the convolution.
      unit_start: the first token of a document enters with factor 1, as in RecurrentGemma.
      r_min, r_max: range of the decay with an open recurrence gate at initialisation.
      dtype: compute dtype of the projections; the recurrence runs in at least float32.
    """

    dim: int
    inner_dim: int | None = None
    heads: int = 1
    conv_size: int = 4
    unit_start: bool = False
    r_min: float = 0.9
    r_max: float = 0.999
    dtype: str = "float32"

    causal: ClassVar[bool] = True
    paper: ClassVar[str] = "De et al. 2024, Griffin: Mixing Gated Linear Recurrences with Local Attention"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        state: GriffinRecurrentState | None = None,
        *,
        reset: Bool[Array, "B T"] | None = None,
    ) -> tuple[Float[Array, "B T D"], GriffinRecurrentState]:
        check_sequence(x, self.dim, reset)
        inner = self.dim if self.inner_dim is None else self.inner_dim
        for name, value in (("inner_dim", inner), ("heads", self.heads), ("conv_size", self.conv_size)):
            check_positive(name, value)
        check_divides("heads", self.heads, "inner_dim", inner)
        check_ring(self.r_min, self.r_max)
        initial = self.initial_state(x.shape[0])
        if state is not None:
            check_state(state, initial)
        return griffin_recurrent(
            self._params(inner), x.astype(self.dtype), initial if state is None else state, unit_start=self.unit_start,
            reset=reset,
        )  # fmt: skip

    def _params(self, inner: int) -> dict[str, Array]:
        dense, zeros = nn.initializers.lecun_normal(), nn.initializers.zeros
        blocks = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal", batch_axis=0)
        declared = {
            "gate": (dense, (self.dim, inner)),
            "gate_bias": (zeros, (inner,)),
            "input": (dense, (self.dim, inner)),
            "input_bias": (zeros, (inner,)),
            "kernel": (symmetric_uniform(self.conv_size**-0.5), (self.conv_size, inner)),
            "bias": (zeros, (inner,)),
            "decay": (decay_initializer(self.r_min, self.r_max), (inner,)),
            "output": (dense, (inner, self.dim)),
            "output_bias": (zeros, (self.dim,)),
        }
        for name in ("recurrence_gate", "input_gate"):
            declared[name] = (blocks, (self.heads, inner // self.heads, inner // self.heads))
            declared[f"{name}_bias"] = (zeros, (inner,))
        return {name: self.param(name, *how) for name, how in declared.items()}

    def initial_state(self, batch_size: int, dtype: str | None = None) -> GriffinRecurrentState:
        """Zeros; ``dtype`` is the storage dtype of the convolution's history."""
        inner = self.dim if self.inner_dim is None else self.inner_dim
        return GriffinRecurrentState(
            jnp.zeros((batch_size, inner), accumulator(self.dtype)),
            jnp.zeros((batch_size, self.conv_size - 1, inner), dtype or self.dtype),
            jnp.zeros(batch_size, jnp.int32),
        )
