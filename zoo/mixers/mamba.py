"""Mamba: a diagonal state space model whose step size, input and output matrices depend on the input (S6).

Gu and Dao (2023), Mamba: Linear-Time Sequence Modeling with Selective State Spaces, arXiv 2312.00752.

With x_t [D] the (normalised) input, E the inner width, N the states of a channel, R the rank of the step sizes:

    [u_t, z_t] = W_in x_t                              W_in [D, 2E]
    v_t = silu(sum_k K_k * u_{t-k} + b)                causal depthwise convolution, K [taps, E], b [E]
    [d_t, B_t, C_t] = W_x v_t                          R, N and N numbers, W_x [E, R + 2N]
    delta_t = softplus(W_dt d_t + b_dt)                [E]
    h_t = exp(delta_t A) h_{t-1} + delta_t v_t B_t     h_t [E, N], A = -exp(A_log) [E, N]
    y_t = W_out ((h_t C_t + skip * v_t) * silu(z_t))   W_out [E, D]

With ``norms`` d_t, B_t and C_t each go through an RMS norm of their own: with learned scales in Jamba (Lieber et al. 2024,
arXiv 2403.19887), without in Falcon Mamba (Zuo et al. 2024, arXiv 2410.05355).

Initialisation: A_log = log(1 .. N); b_dt the inverse softplus of step sizes drawn log-uniformly from [dt_min, dt_max], at
least ``dt_floor``; W_dt uniform within +-R^-1/2; skip = 1. Norm before and residual after are those of
``zoo.models.Block``. Step sizes, A and the states are float32 whatever ``dtype``.

Time O(B T (D E + E N)), parallel over time by chunks (``zoo.scans.selective_scan``); state: E N numbers per row, and the
last taps - 1 values of u.
"""

from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from zoo.checks import check_choice, check_positive, check_sequence, check_state
from zoo.dtypes import accumulator
from zoo.layers.attention import document_positions
from zoo.layers.convolution import depthwise_convolution, recent
from zoo.layers.initializers import symmetric_uniform
from zoo.layers.norms import rms_norm
from zoo.layers.projections import linear
from zoo.layers.step_sizes import check_step_sizes, step_size_bias
from zoo.registry import register
from zoo.scans import selective_scan


@struct.dataclass
class MambaState:
    """Carried state: ``hidden`` [B, E, N]; ``history`` [B, taps - 1, E] of u; ``age`` [B], tokens of the document so far."""

    hidden: Float[Array, "B E N"]
    history: Float[Array, "B K E"]
    age: Int[Array, " B"]


def mamba(
    params: Mapping[str, Array],
    x: Float[Array, "B T D"],
    state: MambaState,
    *,
    norms: str = "none",
    norm_eps: float = 1e-6,
    reset: Bool[Array, "B T"] | None = None,
    method: str = "auto",
) -> tuple[Float[Array, "B T D"], MambaState]:
    """The layer of the module docstring.

    Args:
      params: ``input`` [D, 2E]; ``kernel`` [taps, E], ``bias`` [E] of the convolution; ``project`` [E, R + 2N];
        ``dt`` [R, E], ``dt_bias`` [E]; ``A_log`` [E, N]; ``skip`` [E]; ``output`` [E, D]; with learned norms also
        ``dt_norm`` [R], ``B_norm`` [N], ``C_norm`` [N]. ``bias`` may be left out, and ``input_bias`` [2E] and
        ``output_bias`` [D] added.
      x: inputs; projections run in their dtype.
      state: state before the first token.
      norms: "none", "learned" or "plain", see the module docstring.
      norm_eps: of the norms, if there are any.
      reset: True at the first token of a new document.
      method: how the scan is computed, see ``zoo.scans.selective_scan``.

    Returns:
      (y, state after the last token); y has x's dtype.
    """
    u, gate = jnp.split(linear(x, params, "input"), 2, axis=-1)
    age = document_positions(reset, state.age, shape=x.shape[:2])
    v = depthwise_convolution(u, params["kernel"], age, history=state.history)
    v = jax.nn.silu(v + params["bias"].astype(x.dtype) if "bias" in params else v)
    rank, size = params["dt"].shape[0], params["A_log"].shape[1]
    rough, b, c = jnp.split(v @ params["project"].astype(x.dtype), (rank, rank + size), axis=-1)
    if norms != "none":
        scales = {n: params[f"{n}_norm"] if norms == "learned" else 1.0 for n in ("dt", "B", "C")}
        rough, b, c = (rms_norm(a, scales[n], norm_eps) for n, a in (("dt", rough), ("B", b), ("C", c)))
    wide = accumulator(x.dtype)
    delta = (rough @ params["dt"].astype(x.dtype)).astype(wide)
    delta = jax.nn.softplus(delta + params["dt_bias"])
    a = -jnp.exp(params["A_log"].astype(wide))
    y, hidden = selective_scan(v, delta, a, b, c, params["skip"], state.hidden, reset=reset, method=method)
    y = linear(y * jax.nn.silu(gate), params, "output")
    history = recent(u, params["kernel"].shape[0] - 1, state.history)
    return y, MambaState(hidden, history, age[:, -1] + 1)


@register(
    "mamba",
    variants={
        "default": {"state_dim": 4},
        "jamba": {
            "state_dim": 3,
            "norms": "learned",
            "dt_rank": 3,
            "expand": 1,
            "conv_size": 3,
            "conv_bias": False,
            "use_bias": True,
        },
    },
)
class Mamba(nn.Module):
    """Mamba: a selective diagonal state space model after a short convolution, with a gated output.

    Attributes:
      dim: width D of input and output.
      state_dim: states N of a channel.
      expand: inner width E over D.
      conv_size: taps of the convolution.
      dt_rank: rank R of the step sizes; None: D / 16, rounded up.
      dt_min, dt_max: step sizes at initialisation are drawn between these.
      dt_floor: and are at least this.
      norms: RMS norms on what step sizes, B and C are made from: "none", "learned" (with scales, as in Jamba) or "plain"
        (without, as in Falcon Mamba).
      norm_eps: of these norms.
      use_bias: the first and the last projection have biases.
      conv_bias: the convolution has one.
      dtype: compute dtype of the projections; the recurrence runs in at least float32.
    """

    dim: int
    state_dim: int = 16
    expand: int = 2
    conv_size: int = 4
    dt_rank: int | None = None
    dt_min: float = 0.001
    dt_max: float = 0.1
    dt_floor: float = 1e-4
    norms: str = "none"
    norm_eps: float = 1e-6
    use_bias: bool = False
    conv_bias: bool = True
    dtype: str = "float32"

    causal: ClassVar[bool] = True
    paper: ClassVar[str] = "Gu and Dao 2023, Mamba: Linear-Time Sequence Modeling with Selective State Spaces"

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], state: MambaState | None = None, *, reset: Bool[Array, "B T"] | None = None
    ) -> tuple[Float[Array, "B T D"], MambaState]:
        check_sequence(x, self.dim, reset)
        for name in ("state_dim", "expand", "conv_size"):
            check_positive(name, getattr(self, name))
        if self.dt_rank is not None:
            check_positive("dt_rank", self.dt_rank)
        check_step_sizes(self.dt_min, self.dt_max)
        check_choice("norms", self.norms, ("none", "learned", "plain"))
        initial = self.initial_state(x.shape[0])
        if state is not None:
            check_state(state, initial)
        params = self._params()
        x = x.astype(self.dtype)
        options = {"norms": self.norms, "norm_eps": self.norm_eps}
        return mamba(params, x, initial if state is None else state, reset=reset, **options)

    def _params(self) -> dict[str, Array]:
        inner, size = self.expand * self.dim, self.state_dim
        rank = -(-self.dim // 16) if self.dt_rank is None else self.dt_rank
        dense = nn.initializers.lecun_normal()
        a_log = jnp.broadcast_to(jnp.log(jnp.arange(1.0, size + 1)), (inner, size))
        declared = {
            "input": (dense, (self.dim, 2 * inner)),
            "kernel": (symmetric_uniform(self.conv_size**-0.5), (self.conv_size, inner)),
            "bias": (nn.initializers.zeros, (inner,)),
            "project": (dense, (inner, rank + 2 * size)),
            "dt": (symmetric_uniform(rank**-0.5), (rank, inner)),
            "dt_bias": (step_size_bias(self.dt_min, self.dt_max, self.dt_floor), (inner,)),
            "A_log": (lambda _, __: jnp.array(a_log), (inner, size)),
            "skip": (nn.initializers.ones, (inner,)),
            "output": (dense, (inner, self.dim)),
        }
        if not self.conv_bias:
            del declared["bias"]
        if self.use_bias:
            declared |= {
                f"{n}_bias": (nn.initializers.zeros, (w,)) for n, w in (("input", 2 * inner), ("output", self.dim))
            }
        if self.norms == "learned":
            widths = {"dt_norm": rank, "B_norm": size, "C_norm": size}
            declared |= {name: (nn.initializers.ones, (width,)) for name, width in widths.items()}
        return {name: self.param(name, *how) for name, how in declared.items()}

    def initial_state(self, batch_size: int, dtype: str | None = None) -> MambaState:
        """Zeros; ``dtype`` is the storage dtype of the convolution's history."""
        inner = self.expand * self.dim
        return MambaState(
            jnp.zeros((batch_size, inner, self.state_dim), accumulator(self.dtype)),
            jnp.zeros((batch_size, self.conv_size - 1, inner), dtype or self.dtype),
            jnp.zeros(batch_size, jnp.int32),
        )
