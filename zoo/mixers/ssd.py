"""SSD: the state space model at the core of Mamba-2, one decay per head, without convolution, gate and norm.

Dao and Gu (2024), Transformers are SSMs, arXiv 2405.21060; as a layer of its own in Sieber et al. (2024), Understanding the
Differences in Foundation Models, arXiv 2405.15731.

With u_t [D], H heads of width P = D / H, N the state size shared by all channels:

    B_t = W_B u_t,  C_t = W_C u_t  [N]      v_t = W_v u_t  [H, P]      delta_t = softplus(w u_t + b)  [H]
    S_t = exp(-exp(A_log) delta_t) S_{t-1} + B_t (delta_t v_t)^T      [N, P] per head, A_log [H]
    y_t = C_t S_t

With one head the step size is a number of rank one for all channels. With A_log = -inf and delta = 1 this is linear
attention without features and normaliser; ``zoo.mixers.mamba2`` is this and what is around it. Time O(B T D (D + N)),
parallel over time by chunks (``zoo.scans.linear_attention``); state: D N numbers per row.
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
from zoo.layers.step_sizes import check_step_sizes, step_size_bias
from zoo.registry import register
from zoo.scans import linear_attention


@struct.dataclass
class SSDState:
    """Carried state: ``hidden`` [B, H, N, P]."""

    hidden: Float[Array, "B H N P"]


def ssd(
    params: Mapping[str, Array],
    x: Float[Array, "B T D"],
    state: SSDState,
    *,
    reset: Bool[Array, "B T"] | None = None,
    method: str = "auto",
    chunk_size: int | None = None,
) -> tuple[Float[Array, "B T D"], SSDState]:
    """The layer of the module docstring.

    Args:
      params: ``B``, ``C`` [D, N]; ``value`` [D, H, P]; ``dt`` [D, H], ``dt_bias`` [H]; ``A_log`` [H].
      x: inputs; projections run in their dtype.
      state: state before the first token.
      reset: True at the first token of a new document.
      method: how the scan is computed, see ``zoo.scans.linear_attention``.
      chunk_size: steps per chunk, likewise.

    Returns:
      (y, state after the last token); y has x's dtype.
    """
    wide = accumulator(x.dtype)
    b, c = ((x @ params[name].astype(x.dtype))[:, :, None] for name in ("B", "C"))
    v = jnp.einsum("btd,dhp->bthp", x, params["value"].astype(x.dtype))
    delta = jax.nn.softplus((x @ params["dt"].astype(x.dtype)).astype(wide) + params["dt_bias"])
    decay = -jnp.exp(params["A_log"].astype(wide)) * delta
    if reset is not None:
        decay = jnp.where(reset[..., None], -jnp.inf, decay)
    values = (delta[..., None] * v).astype(x.dtype)
    y, hidden = linear_attention(c, b, values, decay, state.hidden, method=method, chunk_size=chunk_size)
    return y.reshape(x.shape), SSDState(hidden)


@register("ssd", variants={"default": {"state_dim": 4}, "heads": {"state_dim": 3, "heads": 2}})
class SSD(nn.Module):
    """SSD: a state space model with one decay per head, the core of Mamba-2 by itself.

    Attributes:
      dim: width D of input and output.
      state_dim: state size N.
      heads: number of heads H, each with a decay and a step size; divides ``dim``.
      dt_min, dt_max: step sizes at initialisation are drawn between these.
      chunk_size: steps per chunk; None: chosen from the shape.
      dtype: compute dtype of the projections; the recurrence runs in at least float32.
    """

    dim: int
    state_dim: int = 64
    heads: int = 1
    dt_min: float = 0.001
    dt_max: float = 0.1
    chunk_size: int | None = None
    dtype: str = "float32"

    causal: ClassVar[bool] = True
    paper: ClassVar[str] = "Dao and Gu 2024, Transformers are SSMs: Structured State Space Duality"

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], state: SSDState | None = None, *, reset: Bool[Array, "B T"] | None = None
    ) -> tuple[Float[Array, "B T D"], SSDState]:
        check_sequence(x, self.dim, reset)
        for name in ("state_dim", "heads"):
            check_positive(name, getattr(self, name))
        check_divides("heads", self.heads, "dim", self.dim)
        check_step_sizes(self.dt_min, self.dt_max)
        initial = self.initial_state(x.shape[0])
        if state is not None:
            check_state(state, initial)
        dense = nn.initializers.lecun_normal()
        into = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal", in_axis=0, out_axis=(1, 2))
        declared = {
            "B": (dense, (self.dim, self.state_dim)),
            "C": (dense, (self.dim, self.state_dim)),
            "value": (into, (self.dim, self.heads, self.dim // self.heads)),
            "dt": (dense, (self.dim, self.heads)),
            "dt_bias": (step_size_bias(self.dt_min, self.dt_max), (self.heads,)),
            "A_log": (nn.initializers.zeros, (self.heads,)),
        }
        params = {name: self.param(name, *how) for name, how in declared.items()}
        x = x.astype(self.dtype)
        return ssd(params, x, initial if state is None else state, reset=reset, chunk_size=self.chunk_size)

    def initial_state(self, batch_size: int, dtype: str | None = None) -> SSDState:
        """Zeros, at least float32 whatever ``dtype``."""
        shape = (batch_size, self.heads, self.state_dim, self.dim // self.heads)
        return SSDState(jnp.zeros(shape, accumulator(self.dtype)))
