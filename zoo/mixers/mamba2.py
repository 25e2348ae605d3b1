"""Mamba-2: a state space model with one decay per head, whose state is a matrix (state space duality, SSD).

Dao and Gu (2024), Transformers are SSMs: Generalized Models and Efficient Algorithms Through Structured State Space
Duality, arXiv 2405.21060.

With x_t [D] the (normalised) input, E = H P the inner width of H heads, N the state size, G groups of heads:

    [z_t, u_t, d_t] = W_in x_t                         E, E + 2 G N and H numbers
    [v_t, B_t, C_t] = silu(sum_k K_k * u_{t-k} + b)    causal depthwise convolution; v_t [H, P], B_t and C_t [G, N]
    delta_t = clip(softplus(d_t + b_dt))               [H], between the limits
    S_t = exp(delta_t A) S_{t-1} + B_t (delta_t v_t)^T S_t [N, P] per head, A = -exp(A_log) [H]; head h is in group
                                                       h // (H / G)
    y_t = W_out (rms_norm(w_t) * scale)                w_t = (C_t S_t + skip v_t) * silu(z_t) [E], normed by groups of E / G

The norm comes after the gate. This is linear attention with queries C, keys B, values delta v and a decay:
``zoo.scans.linear_attention`` has its sequential, chunkwise and kernel forms, all with the same numbers.

Initialisation: A_log the logarithm of numbers drawn uniformly from ``a_range``; b_dt as in Mamba; skip = 1, scale = 1.
Norm before and residual after are those of ``zoo.models.Block``. Step sizes, decays and states are float32 whatever
``dtype``.

Time O(B T (D E + E N)), parallel over time by chunks; state: E N numbers per row, and the last taps - 1 values of u.
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
from zoo.layers.norms import rms_norm
from zoo.layers.projections import linear
from zoo.layers.step_sizes import check_step_sizes, step_size_bias, symmetric_uniform
from zoo.registry import register
from zoo.scans import linear_attention


@struct.dataclass
class Mamba2State:
    """Carried state: ``hidden`` [B, H, N, P]; ``history`` [B, taps - 1, E + 2 G N] of u; ``age`` [B], tokens so far."""

    hidden: Float[Array, "B H N P"]
    history: Float[Array, "B K C"]
    age: Int[Array, " B"]


def mamba2(
    params: Mapping[str, Array],
    x: Float[Array, "B T D"],
    state: Mamba2State,
    *,
    groups: int = 1,
    dt_limits: tuple[float, float] = (0.0, float("inf")),
    norm_eps: float = 1e-5,
    reset: Bool[Array, "B T"] | None = None,
    method: str = "auto",
    chunk_size: int | None = None,
) -> tuple[Float[Array, "B T D"], Mamba2State]:
    """The layer of the module docstring.

    Args:
      params: ``input`` [D, 2E + 2GN + H], columns z, v, B, C, d; ``kernel`` [taps, E + 2GN], ``bias`` of the convolution;
        ``dt_bias``, ``A_log``, ``skip`` [H]; ``scale`` [E]; ``output`` [E, D]. ``bias`` may be left out, and
        ``input_bias`` and ``output_bias`` added.
      x: inputs; projections run in their dtype.
      state: state before the first token.
      groups: number G of groups of heads that share B and C.
      dt_limits: step sizes are kept between these.
      norm_eps: of the norm.
      reset: True at the first token of a new document.
      method: how the scan is computed, see ``zoo.scans.linear_attention``.
      chunk_size: steps per chunk, likewise.

    Returns:
      (y, state after the last token); y has x's dtype.
    """
    inner, heads = params["scale"].shape[0], params["A_log"].shape[0]
    channels = params["kernel"].shape[1]
    wide = accumulator(x.dtype)
    gate, u, rough = jnp.split(linear(x, params, "input"), (inner, inner + channels), axis=-1)
    age = document_positions(reset, state.age, shape=x.shape[:2])
    mixed = depthwise_convolution(u, params["kernel"], age, history=state.history)
    if "bias" in params:
        mixed = mixed + params["bias"].astype(x.dtype)
    v, b, c = jnp.split(jax.nn.silu(mixed), (inner, (inner + channels) // 2), axis=-1)
    v = v.reshape(*v.shape[:2], heads, -1)
    b, c = (a.reshape(*a.shape[:2], groups, -1) for a in (b, c))
    delta = jnp.clip(jax.nn.softplus(rough.astype(wide) + params["dt_bias"]), *dt_limits)
    decay = -jnp.exp(params["A_log"].astype(wide)) * delta
    if reset is not None:
        decay = jnp.where(reset[..., None], -jnp.inf, decay)
    values = (delta[..., None] * v).astype(x.dtype)
    y, hidden = linear_attention(c, b, values, decay, state.hidden, method=method, chunk_size=chunk_size)
    y = y.astype(wide) + params["skip"][:, None] * v
    y = y.reshape(*y.shape[:2], groups, -1) * jax.nn.silu(gate.astype(wide)).reshape(*y.shape[:2], groups, -1)
    y = rms_norm(y, jnp.ones(y.shape[-1], y.dtype), norm_eps).reshape(*y.shape[:2], inner) * params["scale"]
    history = recent(u, params["kernel"].shape[0] - 1, state.history)
    return linear(y.astype(x.dtype), params, "output"), Mamba2State(hidden, history, age[:, -1] + 1)


@register(
    "mamba2",
    variants={
        "default": {"state_dim": 4, "head_dim": 4},
        "grouped": {"state_dim": 3, "head_dim": 2, "groups": 2, "expand": 1, "dt_limits": (0.01, 0.05), "conv_size": 3},
    },
)
class Mamba2(nn.Module):
    """Mamba-2: matrix-state space model with one decay per head, after a short convolution, with a gated norm.

    Attributes:
      dim: width D of input and output.
      state_dim: state size N.
      head_dim: width P of a head; divides ``expand * dim``.
      groups: groups G of heads that share B and C; divides the number of heads.
      expand: inner width E over D.
      conv_size: taps of the convolution.
      dt_min, dt_max: step sizes at initialisation are drawn between these.
      dt_floor: and are at least this.
      dt_limits: step sizes are kept between these.
      a_range: -A at initialisation is drawn uniformly between these.
      norm_eps: of the gated norm.
      use_bias: the first and the last projection have biases.
      conv_bias: the convolution has one.
      chunk_size: steps per chunk; None: chosen from the shape.
      dtype: compute dtype of the projections; the recurrence runs in at least float32.
    """

    dim: int
    state_dim: int = 128
    head_dim: int = 64
    groups: int = 1
    expand: int = 2
    conv_size: int = 4
    dt_min: float = 0.001
    dt_max: float = 0.1
    dt_floor: float = 1e-4
    dt_limits: tuple[float, float | None] = (0.0, None)
    a_range: tuple[float, float] = (1.0, 16.0)
    norm_eps: float = 1e-5
    use_bias: bool = False
    conv_bias: bool = True
    chunk_size: int | None = None
    dtype: str = "float32"

    causal: ClassVar[bool] = True
    paper: ClassVar[str] = "Dao and Gu 2024, Transformers are SSMs: Structured State Space Duality"

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], state: Mamba2State | None = None, *, reset: Bool[Array, "B T"] | None = None
    ) -> tuple[Float[Array, "B T D"], Mamba2State]:
        check_sequence(x, self.dim, reset)
        for name in ("state_dim", "head_dim", "groups", "expand", "conv_size"):
            check_positive(name, getattr(self, name))
        check_divides("head_dim", self.head_dim, "expand * dim", self.expand * self.dim)
        check_divides("groups", self.groups, "the number of heads", self.expand * self.dim // self.head_dim)
        check_step_sizes(self.dt_min, self.dt_max)
        low, high = self.dt_limits
        if not 0 <= low < (float("inf") if high is None else high):
            raise ValueError(
                f"dt_limits must be two numbers 0 <= low < high (or None for no limit), got {self.dt_limits}"
            )
        if not 0 < self.a_range[0] <= self.a_range[1]:
            raise ValueError(f"a_range must be two numbers 0 < low <= high, got {self.a_range}")
        initial = self.initial_state(x.shape[0])
        if state is not None:
            check_state(state, initial)
        return mamba2(
            self._params(), x.astype(self.dtype), initial if state is None else state, groups=self.groups,
            dt_limits=(low, float("inf") if high is None else high), norm_eps=self.norm_eps, reset=reset,
            chunk_size=self.chunk_size,
        )  # fmt: skip

    def _params(self) -> dict[str, Array]:
        inner, channels, heads = self._sizes()
        dense = nn.initializers.lecun_normal()

        def a_log(key, shape):
            return jnp.log(jax.random.uniform(key, shape, minval=self.a_range[0], maxval=self.a_range[1]))

        declared = {
            "input": (dense, (self.dim, inner + channels + heads)),
            "kernel": (symmetric_uniform(self.conv_size**-0.5), (self.conv_size, channels)),
            "bias": (nn.initializers.zeros, (channels,)),
            "dt_bias": (step_size_bias(self.dt_min, self.dt_max, self.dt_floor), (heads,)),
            "A_log": (a_log, (heads,)),
            "skip": (nn.initializers.ones, (heads,)),
            "scale": (nn.initializers.ones, (inner,)),
            "output": (dense, (inner, self.dim)),
        }
        if not self.conv_bias:
            del declared["bias"]
        if self.use_bias:
            widths = {"input": inner + channels + heads, "output": self.dim}
            declared |= {f"{name}_bias": (nn.initializers.zeros, (width,)) for name, width in widths.items()}
        return {name: self.param(name, *how) for name, how in declared.items()}

    def _sizes(self) -> tuple[int, int, int]:
        """(E, channels of the convolution, heads)."""
        inner = self.expand * self.dim
        return inner, inner + 2 * self.groups * self.state_dim, inner // self.head_dim

    def initial_state(self, batch_size: int, dtype: str | None = None) -> Mamba2State:
        """Zeros; ``dtype`` is the storage dtype of the convolution's history."""
        _, channels, heads = self._sizes()
        return Mamba2State(
            jnp.zeros((batch_size, heads, self.state_dim, self.head_dim), accumulator(self.dtype)),
            jnp.zeros((batch_size, self.conv_size - 1, channels), dtype or self.dtype),
            jnp.zeros(batch_size, jnp.int32),
        )
