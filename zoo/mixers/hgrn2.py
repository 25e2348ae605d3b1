"""HGRN2: HGRN with a matrix as state, by an outer product in place of the elementwise one.

Qin, Yang, Sun, Shen, Li, Sun, Zhong (2024), HGRN2: Gated Linear RNNs with State Expansion, arXiv 2404.07904.

With x_t [D], H heads of width K = N / H for gates and V = D / H for values, gamma [N] in [0, 1) the lower bound:

    f_t = gamma + (1 - gamma) sigmoid(W_f x_t + b_f)      [H, K]
    i_t = silu(W_i x_t + b_i)                             [H, V]
    o_t = sigmoid(W_q x_t + b_q)                          [H, K]
    S_t = diag(f_t) S_{t-1} + (1 - f_t) i_t^T             [K, V] per head
    y_t = W_o layer_norm([o_t S_t]) + b_o                 the norm over all heads

The key of the written value is what the forget gate leaves free, 1 - f, and the output gate is the query: linear attention
with a decay per key channel (``zoo.scans.linear_attention``) and no parameters for the expansion. K is the expansion ratio;
with K = V = 1 in every head this is the real HGRN with the norm behind the gate.

``input_activation`` and ``output_activation`` are for later published code, which has "identity" and "silu".
Lower bounds: see ``zoo.mixers.hgrn``. Gates, memory and norm are at least float32 whatever ``dtype``. Time
O(B T (D N + N V)), parallel over time by chunks; state: N V numbers per row.
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
from zoo.layers.lower_bounds import lower_bound
from zoo.layers.nonlinearities import nonlinearity
from zoo.layers.norms import layer_norm
from zoo.layers.projections import linear
from zoo.registry import register
from zoo.scans import linear_attention


@struct.dataclass
class HGRN2State:
    """Carried state: ``memory`` [B, H, K, V]."""

    memory: Float[Array, "B H K V"]


def hgrn2(
    params: Mapping[str, Array],
    x: Float[Array, "B T D"],
    state: HGRN2State,
    *,
    input_activation: str = "silu",
    output_activation: str = "sigmoid",
    norm_eps: float = 1e-5,
    reset: Bool[Array, "B T"] | None = None,
    method: str = "auto",
    chunk_size: int | None = None,
) -> tuple[Float[Array, "B T D"], HGRN2State]:
    """The layer of the module docstring.

    Args:
      params: ``forget``, ``query`` [D, N], ``input``, ``output`` [D, D], each with a bias such as ``forget_bias``;
        ``lower_bound`` [N]; ``norm_scale``, ``norm_bias`` [D].
      x: inputs; projections run in their dtype.
      state: state before the first token.
      input_activation, output_activation: of i_t and o_t, names of ``zoo.layers.NONLINEARITIES``.
      norm_eps: of the norm.
      reset: True at the first token of a new document.
      method: how the scan is computed, see ``zoo.scans.linear_attention``.
      chunk_size: steps per chunk, likewise.

    Returns:
      (y, state after the last token); y has x's dtype.
    """
    wide = accumulator(x.dtype)
    heads = state.memory.shape[1]

    def project(name):
        return linear(x, params, name).astype(wide).reshape(*x.shape[:2], heads, -1)

    bound = params["lower_bound"].astype(wide).reshape(heads, -1)
    rough = project("forget")
    # 1 - f = (1 - gamma) sigmoid(-rough) keeps its digits where f is near 1
    free = (1 - bound) * jax.nn.sigmoid(-rough)
    decay = jnp.log1p(-free)
    values = nonlinearity(input_activation).function(project("input"))
    queries = nonlinearity(output_activation).function(project("query"))
    if reset is not None:
        decay = jnp.where(reset[..., None, None], -jnp.inf, decay)
    y, memory = linear_attention(queries, free, values, decay, state.memory, method=method, chunk_size=chunk_size)
    y = layer_norm(y.reshape(x.shape), params["norm_scale"], params["norm_bias"], norm_eps)
    return linear(y.astype(x.dtype), params, "output"), HGRN2State(memory)


@register(
    "hgrn2",
    variants={
        "default": {"heads": 2, "expansion": 3, "lower_bound": 0.25},
        "learned_bound": {
            "heads": 4, "expansion": 2, "lower_bound": 0.5, "learn_lower_bound": True,
            "input_activation": "identity", "output_activation": "silu",
        },
    },
)  # fmt: skip
class HGRN2(nn.Module):
    """HGRN2: a matrix memory whose forget gates, above a lower bound, also say what is written.

    Attributes:
      dim: width D of input and output.
      heads: number of heads H; divides ``dim``.
      expansion: width K of a head's gates, the expansion ratio; None: ``dim / heads``.
      lower_bound: gamma, of all channels.
      learn_lower_bound: gamma is a parameter per channel that begins at ``lower_bound`` > 0.
      input_activation, output_activation: of i_t and o_t.
      norm_eps: of the norm.
      chunk_size: steps per chunk; None: chosen from the shape.
      dtype: compute dtype of the projections; the recurrence runs in at least float32.
    """

    dim: int
    heads: int = 4
    expansion: int | None = None
    lower_bound: float = 0.0
    learn_lower_bound: bool = False
    input_activation: str = "silu"
    output_activation: str = "sigmoid"
    norm_eps: float = 1e-5
    chunk_size: int | None = None
    dtype: str = "float32"

    causal: ClassVar[bool] = True
    paper: ClassVar[str] = "Qin et al. 2024, HGRN2: Gated Linear RNNs with State Expansion"

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], state: HGRN2State | None = None, *, reset: Bool[Array, "B T"] | None = None
    ) -> tuple[Float[Array, "B T D"], HGRN2State]:
        check_sequence(x, self.dim, reset)
        initial = self.initial_state(x.shape[0])
        if state is not None:
            check_state(state, initial)
        width = self.heads * initial.memory.shape[2]
        dense, zeros = nn.initializers.lecun_normal(), nn.initializers.zeros
        params = {}
        for name, size in {"forget": width, "query": width, "input": self.dim, "output": self.dim}.items():
            params[name] = self.param(name, dense, (self.dim, size))
            params[f"{name}_bias"] = self.param(f"{name}_bias", zeros, (size,))
        params["norm_scale"] = self.param("norm_scale", nn.initializers.ones, (self.dim,))
        params["norm_bias"] = self.param("norm_bias", zeros, (self.dim,))
        params["lower_bound"] = lower_bound(self, width, self.lower_bound, self.learn_lower_bound)
        return hgrn2(
            params, x.astype(self.dtype), initial if state is None else state, input_activation=self.input_activation,
            output_activation=self.output_activation, norm_eps=self.norm_eps, reset=reset, chunk_size=self.chunk_size,
        )  # fmt: skip

    def initial_state(self, batch_size: int, dtype: str | None = None) -> HGRN2State:
        """Zeros, at least float32 whatever ``dtype``."""
        check_positive("heads", self.heads)
        check_divides("heads", self.heads, "dim", self.dim)
        values = self.dim // self.heads
        keys = values if self.expansion is None else self.expansion
        check_positive("expansion", keys)
        return HGRN2State(jnp.zeros((batch_size, self.heads, keys, values), accumulator(self.dtype)))
