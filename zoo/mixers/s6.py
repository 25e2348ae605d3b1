"""S6: the selective state space model at the core of Mamba, without its convolution, gate and projections.

Gu and Dao (2023), Mamba: Linear-Time Sequence Modeling with Selective State Spaces, arXiv 2312.00752; as a layer of its own
in Sieber et al. (2024), Understanding the Differences in Foundation Models, arXiv 2405.15731.

With u_t [D], N states of a channel, R the rank of the step sizes:

    [d_t, B_t, C_t] = W u_t                            R, N and N numbers
    delta_t = softplus(W_dt d_t + b_dt)                [D]
    h_t = exp(delta_t A) h_{t-1} + delta_t u_t B_t     h_t [D, N], A = -exp(A_log) [D, N]
    y_t = h_t C_t + skip * u_t

Decay and input scale hang together: both come from delta. Initialisation as in ``zoo.mixers.mamba``, which is this and what
is around it. Time O(B T D (R + N)), parallel over time by chunks (``zoo.scans.selective_scan``); state: D N numbers per row.
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
from zoo.layers.initializers import symmetric_uniform
from zoo.layers.step_sizes import check_step_sizes, step_size_bias
from zoo.registry import register
from zoo.scans import selective_scan


@struct.dataclass
class S6State:
    """Carried state: ``hidden`` [B, D, N]."""

    hidden: Float[Array, "B D N"]


def s6(
    params: Mapping[str, Array],
    x: Float[Array, "B T D"],
    state: S6State,
    *,
    reset: Bool[Array, "B T"] | None = None,
    method: str = "auto",
) -> tuple[Float[Array, "B T D"], S6State]:
    """The layer of the module docstring.

    Args:
      params: ``project`` [D, R + 2N], columns d, B, C; ``dt`` [R, D], ``dt_bias`` [D]; ``A_log`` [D, N]; ``skip`` [D].
      x: inputs; projections run in their dtype.
      state: state before the first token.
      reset: True at the first token of a new document.
      method: how the scan is computed, see ``zoo.scans.selective_scan``.

    Returns:
      (y, state after the last token); y has x's dtype.
    """
    rank, size = params["dt"].shape[0], params["A_log"].shape[1]
    wide = accumulator(x.dtype)
    rough, b, c = jnp.split(x @ params["project"].astype(x.dtype), (rank, rank + size), axis=-1)
    delta = jax.nn.softplus((rough @ params["dt"].astype(x.dtype)).astype(wide) + params["dt_bias"])
    a = -jnp.exp(params["A_log"].astype(wide))
    y, hidden = selective_scan(x, delta, a, b, c, params["skip"], state.hidden, reset=reset, method=method)
    return y, S6State(hidden)


@register("s6", variants={"default": {"state_dim": 4}, "rank": {"state_dim": 3, "dt_rank": 5}})
class S6(nn.Module):
    """S6: a selective diagonal state space model, the core of Mamba by itself.

    Attributes:
      dim: width D of input and output.
      state_dim: states N of a channel.
      dt_rank: rank R of the step sizes; None: D / 16, rounded up.
      dt_min, dt_max: step sizes at initialisation are drawn between these.
      dtype: compute dtype of the projections; the recurrence runs in at least float32.
    """

    dim: int
    state_dim: int = 16
    dt_rank: int | None = None
    dt_min: float = 0.001
    dt_max: float = 0.1
    dtype: str = "float32"

    causal: ClassVar[bool] = True
    paper: ClassVar[str] = "Gu and Dao 2023, Mamba: Linear-Time Sequence Modeling with Selective State Spaces"

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], state: S6State | None = None, *, reset: Bool[Array, "B T"] | None = None
    ) -> tuple[Float[Array, "B T D"], S6State]:
        check_sequence(x, self.dim, reset)
        check_positive("state_dim", self.state_dim)
        if self.dt_rank is not None:
            check_positive("dt_rank", self.dt_rank)
        check_step_sizes(self.dt_min, self.dt_max)
        initial = self.initial_state(x.shape[0])
        if state is not None:
            check_state(state, initial)
        size, rank = self.state_dim, -(-self.dim // 16) if self.dt_rank is None else self.dt_rank
        a_log = jnp.broadcast_to(jnp.log(jnp.arange(1.0, size + 1)), (self.dim, size))
        params = {
            "project": self.param("project", nn.initializers.lecun_normal(), (self.dim, rank + 2 * size)),
            "dt": self.param("dt", symmetric_uniform(rank**-0.5), (rank, self.dim)),
            "dt_bias": self.param("dt_bias", step_size_bias(self.dt_min, self.dt_max), (self.dim,)),
            "A_log": self.param("A_log", lambda _: jnp.array(a_log)),
            "skip": self.param("skip", nn.initializers.ones, (self.dim,)),
        }
        return s6(params, x.astype(self.dtype), initial if state is None else state, reset=reset)

    def initial_state(self, batch_size: int, dtype: str | None = None) -> S6State:
        """Zeros, at least float32 whatever ``dtype``."""
        return S6State(jnp.zeros((batch_size, self.dim, self.state_dim), accumulator(self.dtype)))
