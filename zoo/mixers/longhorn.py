"""Longhorn: a matrix memory that solves every step's regression implicitly, in a Mamba block.

Liu, Wang, Wu, Feng, Stone, Liu (2024), Longhorn: State Space Models are Amortized Online Learners, arXiv 2407.14207.

With x_t [D], E = ``expand`` D channels, N numbers of state per channel:

    [u_t, z_t] = W_in x_t                                            [E] each
    c_t = silu(sum_j K_j * u_{t-j} + b)                              causal depthwise convolution
    q_t = W_q c_t, k_t = W_k c_t  [N],   beta_t = sigmoid(W_up W_down c_t + b_beta)  [E]
    S_t = argmin_S |S - S_{t-1}|^2 + sum_i beta_{t,i} (S_i . k_t - c_{t,i})^2       per channel i
        = S_{t-1} - d_t * (S_{t-1} k_t - c_t) k_t^T,  d_t = beta_t / (1 + beta_t |k_t|^2)
    y_t = W_out ((S_t q_t + skip * c_t) * silu(z_t))

``transition`` "exact" is this, the delta rule with the step d_t: ``zoo.scans.gated_delta_rule`` with every channel a head
of one value. "diagonal" is what the paper trains, the diagonal of k k^T in its place, for an elementwise recurrence:

    S_t = (1 - d_t k_t^2) * S_{t-1} + d_t c_t k_t^T                  ``zoo.scans.linear_scan``

There is no forgetting gate: 0 < d_t |k_t|^2 < 1 keeps both stable. In Miras the exact form is l2 bias, no retention,
implicit
descent. Chosen here: b_beta at initialisation gives ``beta_init``. Time O(B T (D E + E N)), the exact form in chunks
O(B T E (N + C)); state: E N numbers per row, and the last taps - 1 values of u.
"""

import math
from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from zoo.checks import check_choice, check_positive, check_sequence, check_state
from zoo.dtypes import accumulator
from zoo.layers.attention import document_positions
from zoo.layers.convolution import depthwise_convolution, recent
from zoo.layers.initializers import symmetric_uniform
from zoo.layers.projections import linear
from zoo.registry import register
from zoo.scans import gated_delta_rule, linear_scan

TRANSITIONS = ("exact", "diagonal")


@struct.dataclass
class LonghornState:
    """Carried state: ``hidden`` [B, E, N]; ``history`` [B, taps - 1, E] of u; ``age`` [B], tokens so far."""

    hidden: Float[Array, "B E N"]
    history: Float[Array, "B J E"]
    age: Int[Array, " B"]


def longhorn(
    params: Mapping[str, Array],
    x: Float[Array, "B T D"],
    state: LonghornState,
    *,
    transition: str = "diagonal",
    reset: Bool[Array, "B T"] | None = None,
    method: str = "auto",
    chunk_size: int | None = None,
) -> tuple[Float[Array, "B T D"], LonghornState]:
    """The block of the module docstring.

    Args:
      params: ``input`` [D, 2 E]; ``kernel`` [taps, E], ``kernel_bias``, ``skip`` [E]; ``query``, ``key`` [E, N];
        ``beta_down`` [E, R], ``beta_up`` [R, E], ``beta_bias`` [E]; ``output`` [E, D].
      x: inputs; projections run in their dtype.
      state: state before the first token.
      transition: "exact" or "diagonal".
      reset: True at the first token of a new document.
      method: how the scan is computed, see ``zoo.scans.gated_delta_rule`` or ``zoo.scans.linear_scan``.
      chunk_size: steps per chunk, likewise.

    Returns:
      (y, state after the last token); y has x's dtype.
    """
    wide = accumulator(x.dtype)
    age = document_positions(reset, state.age, shape=x.shape[:2])
    u, z = jnp.split(linear(x, params, "input"), 2, axis=-1)
    c = depthwise_convolution(u, params["kernel"], age, history=state.history)
    c = jax.nn.silu(c + params["kernel_bias"].astype(x.dtype))
    q, k = (linear(c, params, name).astype(wide) for name in ("query", "key"))
    rough = linear(c, params, "beta_down") @ params["beta_up"].astype(x.dtype)
    beta = jax.nn.sigmoid(rough.astype(wide) + params["beta_bias"])
    step = beta / (1 + beta * jnp.sum(k * k, axis=-1, keepdims=True))
    c = c.astype(wide)
    if transition == "exact":
        decay = None if reset is None else jnp.broadcast_to(jnp.where(reset[..., None], -jnp.inf, 0.0), step.shape)
        y, hidden = gated_delta_rule(
            q[:, :, None], k[:, :, None], c[..., None], step, decay, state.hidden[..., None], method=method,
            chunk_size=chunk_size,
        )  # fmt: skip
        y, hidden = y[..., 0], hidden[..., 0]
    else:
        keep = 1 - step[..., None] * (k * k)[:, :, None]
        if reset is not None:
            keep = jnp.where(reset[..., None, None], 0, keep)
        states, hidden = linear_scan(
            keep, (step * c)[..., None] * k[:, :, None], state.hidden, method=method, chunk_size=chunk_size
        )
        y = jnp.einsum("bten,btn->bte", states, q, precision=lax.Precision.HIGHEST)
    y = ((y + params["skip"] * c) * jax.nn.silu(z.astype(wide))).astype(x.dtype)
    history = recent(u, params["kernel"].shape[0] - 1, state.history)
    return linear(y, params, "output"), LonghornState(hidden, history, age[:, -1] + 1)


@register(
    "longhorn",
    variants={
        "default": {"state_dim": 3, "rank": 2},
        "exact": {"state_dim": 3, "rank": 2, "expand": 1, "transition": "exact", "chunk_size": 4},
    },
)
class Longhorn(nn.Module):
    """Longhorn: a matrix memory that solves every step's regression implicitly.

    Attributes:
      dim: width D of input and output.
      expand: E / D.
      state_dim: numbers N of state per channel.
      rank: R of beta's projection; None: D / 16, rounded up.
      conv_size: taps of the convolution.
      transition: "diagonal" (as trained in the paper) or "exact".
      beta_init: beta at initialisation, where its input is 0.
      chunk_size: steps per chunk; None: chosen from the shape.
      dtype: compute dtype of the projections; the recurrence runs in at least float32.
    """

    dim: int
    expand: int = 2
    state_dim: int = 16
    rank: int | None = None
    conv_size: int = 4
    transition: str = "diagonal"
    beta_init: float = 0.5
    chunk_size: int | None = None
    dtype: str = "float32"

    causal: ClassVar[bool] = True
    paper: ClassVar[str] = "Liu et al. 2024, Longhorn: State Space Models are Amortized Online Learners"

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], state: LonghornState | None = None, *, reset: Bool[Array, "B T"] | None = None
    ) -> tuple[Float[Array, "B T D"], LonghornState]:
        check_sequence(x, self.dim, reset)
        check_choice("transition", self.transition, TRANSITIONS)
        rank = -(-self.dim // 16) if self.rank is None else self.rank
        for name, value in {
            "expand": self.expand, "state_dim": self.state_dim, "rank": rank, "conv_size": self.conv_size
        }.items():  # fmt: skip
            check_positive(name, value)
        if not 0 < self.beta_init < 1:
            raise ValueError(f"beta_init must lie in (0, 1), got {self.beta_init}")
        initial = self.initial_state(x.shape[0])
        if state is not None:
            check_state(state, initial)
        return longhorn(
            self._params(rank), x.astype(self.dtype), initial if state is None else state, transition=self.transition,
            reset=reset, chunk_size=self.chunk_size,
        )  # fmt: skip

    def _params(self, rank: int) -> dict[str, Array]:
        dim, inner, size = self.dim, self.expand * self.dim, self.state_dim
        dense = nn.initializers.lecun_normal()
        taps = symmetric_uniform(self.conv_size**-0.5)
        bias = nn.initializers.constant(math.log(self.beta_init / (1 - self.beta_init)))
        declared = {
            "input": (dense, (dim, 2 * inner)),
            "kernel": (taps, (self.conv_size, inner)),
            "kernel_bias": (taps, (inner,)),
            "query": (dense, (inner, size)),
            "key": (dense, (inner, size)),
            "beta_down": (dense, (inner, rank)),
            "beta_up": (dense, (rank, inner)),
            "beta_bias": (bias, (inner,)),
            "skip": (nn.initializers.ones, (inner,)),
            "output": (dense, (inner, dim)),
        }
        return {name: self.param(name, *how) for name, how in declared.items()}

    def initial_state(self, batch_size: int, dtype: str | None = None) -> LonghornState:
        """Zeros; ``dtype`` is the storage dtype of the convolution's history."""
        inner = self.expand * self.dim
        return LonghornState(
            jnp.zeros((batch_size, inner, self.state_dim), accumulator(self.dtype)),
            jnp.zeros((batch_size, self.conv_size - 1, inner), dtype or self.dtype),
            jnp.zeros(batch_size, jnp.int32),
        )
