"""SEaHawk: RG-LRU with state expansion, N states for every channel, written and read by vectors that see the input.

Sieber, Amo Alonso, Didier, Zeilinger, Orvieto (2024), Understanding the Differences in Foundation Models: Attention, State
Space Models, and Recurrent Neural Networks, arXiv 2405.15731.

With x_t [D], N the state expansion, c = 8:

    r_t = sigmoid(W_r x_t)  [D]      b_t = W_b x_t,  c_t = W_c x_t  [N]
    a_t = exp(-c softplus(P) r_t)                                      P [N, D], r_t by channels
    h_t = a_t h_{t-1} + sqrt(1 - a_t^2 + epsilon) b_t x_t^T            h_t [N, D]
    y_t = c_t h_t                                                      [D]

For one state per channel, b_t the input gate and c_t = 1 this is RG-LRU (``zoo.mixers.rg_lru``). Time O(B T D (D + N)),
parallel over time by a scan over states that are all in memory, [B, T, N, D]; state: N D numbers per row.
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
from zoo.layers.real_gates import SHARPNESS, check_ring, decay_initializer, input_scale
from zoo.registry import register
from zoo.scans import linear_scan


@struct.dataclass
class SEaHawkState:
    """Carried state: ``hidden`` [B, N, D]."""

    hidden: Float[Array, "B N D"]


def seahawk_decay(params: Mapping[str, Array], x: Float[Array, "*B D"]) -> Float[Array, "*B N D"]:
    """log a of the module docstring, in at least float32."""
    r = jax.nn.sigmoid((x @ params["recurrence_gate"].astype(x.dtype)).astype(accumulator(x.dtype)))
    return -SHARPNESS * jax.nn.softplus(params["decay"].astype(r.dtype)) * r[..., None, :]


def seahawk(
    params: Mapping[str, Array],
    x: Float[Array, "B T D"],
    state: SEaHawkState,
    *,
    epsilon: float = 1e-6,
    reset: Bool[Array, "B T"] | None = None,
    method: str = "auto",
) -> tuple[Float[Array, "B T D"], SEaHawkState]:
    """The layer of the module docstring.

    Args:
      params: ``decay`` [N, D], P; ``recurrence_gate`` [D, D]; ``input``, ``output`` [D, N], W_b and W_c.
      x: inputs; projections run in their dtype.
      state: state before the first token.
      epsilon: under the root.
      reset: True at the first token of a new document.
      method: how the scan is computed, see ``zoo.scans.linear_scan``.

    Returns:
      (y, state after the last token); y has x's dtype.
    """
    log_decay = seahawk_decay(params, x)
    b, c = ((x @ params[name].astype(x.dtype)).astype(log_decay.dtype) for name in ("input", "output"))
    decay = jnp.exp(log_decay)
    if reset is not None:
        decay = jnp.where(reset[..., None, None], 0, decay)
    inputs = input_scale(log_decay, epsilon) * b[..., None] * x[..., None, :]
    states, last = linear_scan(decay, inputs, state.hidden, method=method)
    return jnp.einsum("btn,btnd->btd", c, states).astype(x.dtype), SEaHawkState(last)


@register("seahawk", variants={"default": {"state_dim": 3}, "narrow": {"state_dim": 1, "epsilon": 0.0}})
class SEaHawk(nn.Module):
    """SEaHawk: RG-LRU with several states for every channel.

    Attributes:
      dim: width D of input and output.
      state_dim: states N of a channel.
      epsilon: under the root of the input's factor.
      r_min, r_max: range of the decay with an open recurrence gate at initialisation.
      dtype: compute dtype of the projections; the recurrence runs in at least float32.
    """

    dim: int
    state_dim: int = 16
    epsilon: float = 1e-6
    r_min: float = 0.9
    r_max: float = 0.999
    dtype: str = "float32"

    causal: ClassVar[bool] = True
    paper: ClassVar[str] = "Sieber et al. 2024, Understanding the Differences in Foundation Models"

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], state: SEaHawkState | None = None, *, reset: Bool[Array, "B T"] | None = None
    ) -> tuple[Float[Array, "B T D"], SEaHawkState]:
        check_sequence(x, self.dim, reset)
        check_positive("state_dim", self.state_dim)
        check_ring(self.r_min, self.r_max)
        initial = self.initial_state(x.shape[0])
        if state is not None:
            check_state(state, initial)
        dense = nn.initializers.lecun_normal()
        declared = {
            "decay": (decay_initializer(self.r_min, self.r_max), (self.state_dim, self.dim)),
            "recurrence_gate": (dense, (self.dim, self.dim)),
            "input": (dense, (self.dim, self.state_dim)),
            "output": (dense, (self.dim, self.state_dim)),
        }
        params = {name: self.param(name, *how) for name, how in declared.items()}
        x = x.astype(self.dtype)
        return seahawk(params, x, initial if state is None else state, epsilon=self.epsilon, reset=reset)

    def initial_state(self, batch_size: int, dtype: str | None = None) -> SEaHawkState:
        """Zeros, at least float32 whatever ``dtype``."""
        return SEaHawkState(jnp.zeros((batch_size, self.state_dim, self.dim), accumulator(self.dtype)))
