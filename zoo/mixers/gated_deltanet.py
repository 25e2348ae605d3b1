"""Gated DeltaNet: a matrix memory written by the gated delta rule, after a short convolution, with a gated norm.

Yang, Kautz and Hatamizadeh (2024), Gated Delta Networks: Improving Mamba2 with Delta Rule, arXiv 2412.06464; in the form
of Qwen3-Next.

With x_t [D] the (normalised) input, G heads of queries and keys of width K, H heads of values of width V (head h uses
queries and keys of h // (H / G)):

    u_t = [W_q x_t, W_k x_t, W_v x_t]                    G K, G K and H V numbers
    [q_t, k_t, v_t] = silu(sum_j K_j * u_{t-j})          causal depthwise convolution, K [taps, 2 G K + H V]
    q_t, k_t                                             scaled to length 1, q_t then over sqrt(K)
    beta_t = sigmoid(W_b x_t),  g_t = -exp(A_log) softplus(W_a x_t + b_a)     [H]
    S_t = exp(g_t) S_{t-1} + beta_t k_t (v_t - k_t exp(g_t) S_{t-1})^T        [K, V] per head
    y_t = W_o (rms_norm(q_t S_t) * scale * silu(W_z x_t))                     norm of every head on its own, scale [V]

``allow_neg_eigval`` doubles beta (Grazzi et al. 2025, arXiv 2411.12537), and the convolution and the gate W_z can be left
out. The recurrence is ``zoo.scans.gated_delta_rule``: sequential and chunkwise forms with the same numbers. ``deltaproduct``
takes several steps of it per token; with one it is this layer, but for the names and initial values of
flash-linear-attention.

Initialisation: A_log the logarithm of numbers drawn uniformly from ``a_range``; b_a as the step sizes of Mamba. Gates,
lengths, decays and memory are float32 whatever ``dtype``. Time O(B T (D (G K + H V) + H K V)), parallel over time by
chunks; state: H K V numbers per row, and the last taps - 1 values of u.
"""

from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from zoo.checks import check_divides, check_positive, check_sequence, check_state
from zoo.dtypes import accumulator
from zoo.layers.attention import document_positions
from zoo.layers.delta_rule import (
    decay_initializers,
    forget_gate,
    kernel_initializer,
    normed_output,
    short_convolutions,
    unit_length,
    write_strength,
)
from zoo.layers.step_sizes import check_step_sizes
from zoo.registry import register
from zoo.scans import gated_delta_rule


@struct.dataclass
class GatedDeltaNetState:
    """Carried state: ``memory`` [B, H, K, V]; ``history`` [B, taps - 1, 2 G K + H V] of u; ``age`` [B], tokens so far."""

    memory: Float[Array, "B H K V"]
    history: Float[Array, "B J C"]
    age: Int[Array, " B"]


def gated_deltanet(
    params: Mapping[str, Array],
    x: Float[Array, "B T D"],
    state: GatedDeltaNetState,
    *,
    key_heads: int,
    allow_neg_eigval: bool = False,
    norm_eps: float = 1e-6,
    reset: Bool[Array, "B T"] | None = None,
    method: str = "auto",
    chunk_size: int | None = None,
) -> tuple[Float[Array, "B T D"], GatedDeltaNetState]:
    """The layer of the module docstring.

    Args:
      params: ``query``, ``key`` [D, G K], ``value``, ``gate`` [D, H V], ``beta``, ``dt`` [D, H]; ``kernel``
        [taps, 2 G K + H V]; ``dt_bias``, ``A_log`` [H]; ``scale`` [V]; ``output`` [H V, D]. ``gate`` and ``kernel`` may be
        missing: no gate, no convolution.
      x: inputs; projections run in their dtype.
      state: state before the first token.
      key_heads: number G of heads of queries and keys.
      allow_neg_eigval: beta is twice the sigmoid.
      norm_eps: of the norm.
      reset: True at the first token of a new document.
      method: how the scan is computed, see ``zoo.scans.gated_delta_rule``.
      chunk_size: steps per chunk, likewise.

    Returns:
      (y, state after the last token); y has x's dtype.
    """
    heads, keys = params["beta"].shape[1], params["key"].shape[1]
    age = document_positions(reset, state.age, shape=x.shape[:2])
    (q, k, v), history = short_convolutions(params, x, state.history, age)
    q, k = (unit_length(a.reshape(*a.shape[:2], key_heads, -1)) for a in (q, k))
    v = v.reshape(*v.shape[:2], heads, -1)
    y, memory = gated_delta_rule(
        q * (keys // key_heads) ** -0.5, k, v, write_strength(params, x, allow_neg_eigval),
        forget_gate(params, x, heads, reset), state.memory, method=method, chunk_size=chunk_size,
    )  # fmt: skip
    return normed_output(params, y, x, norm_eps), GatedDeltaNetState(memory, history, age[:, -1] + 1)


@register(
    "gated_deltanet",
    variants={
        "default": {"heads": 2, "head_dim": 4, "key_dim": 3},
        "grouped": {"heads": 4, "key_heads": 2, "head_dim": 2, "key_dim": 2, "conv_size": 3, "chunk_size": 4,
                    "allow_neg_eigval": True, "use_output_gate": False},
    },
)  # fmt: skip
class GatedDeltaNet(nn.Module):
    """Gated DeltaNet: a matrix memory with decay and delta rule, after a short convolution, with a gated norm.

    Attributes:
      dim: width D of input and output.
      heads: number H of heads of values.
      key_heads: number G of heads of queries and keys; divides ``heads``; None: ``heads``.
      head_dim: width V of a value head; None: ``dim / heads``.
      key_dim: width K of a query or key head; None: as ``head_dim``.
      conv_size: taps of the convolution; None: no convolution.
      allow_neg_eigval: beta is twice the sigmoid.
      use_output_gate: the norm is gated.
      dt_min, dt_max: softplus(b_a) at initialisation is drawn between these.
      a_range: exp(A_log) at initialisation is drawn uniformly between these.
      norm_eps: of the gated norm.
      chunk_size: steps per chunk; None: chosen from the shape.
      dtype: compute dtype of the projections; the recurrence runs in at least float32.
    """

    dim: int
    heads: int = 4
    key_heads: int | None = None
    head_dim: int | None = None
    key_dim: int | None = None
    conv_size: int | None = 4
    allow_neg_eigval: bool = False
    use_output_gate: bool = True
    dt_min: float = 0.001
    dt_max: float = 0.1
    a_range: tuple[float, float] = (0.01, 16.0)
    norm_eps: float = 1e-6
    chunk_size: int | None = None
    dtype: str = "float32"

    causal: ClassVar[bool] = True
    paper: ClassVar[str] = "Yang, Kautz and Hatamizadeh 2024, Gated Delta Networks: Improving Mamba2 with Delta Rule"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        state: GatedDeltaNetState | None = None,
        *,
        reset: Bool[Array, "B T"] | None = None,
    ) -> tuple[Float[Array, "B T D"], GatedDeltaNetState]:
        check_sequence(x, self.dim, reset)
        check_positive("heads", self.heads)
        if self.head_dim is None:
            check_divides("heads", self.heads, "dim", self.dim)
        groups, keys, values = self.widths()
        for name, value in (
            ("key_heads", groups),
            ("key_dim", keys),
            ("head_dim", values),
            ("conv_size", 1 if self.conv_size is None else self.conv_size),
        ):
            check_positive(name, value)
        check_divides("key_heads", groups, "heads", self.heads)
        check_step_sizes(self.dt_min, self.dt_max)
        initial = self.initial_state(x.shape[0])
        if state is not None:
            check_state(state, initial)
        return gated_deltanet(
            self._params(), x.astype(self.dtype), initial if state is None else state, key_heads=groups,
            allow_neg_eigval=self.allow_neg_eigval, norm_eps=self.norm_eps, reset=reset, chunk_size=self.chunk_size,
        )  # fmt: skip

    def widths(self) -> tuple[int, int, int]:
        """(G, K, V): heads of queries and keys, width of each, width of a value head."""
        values = self.dim // self.heads if self.head_dim is None else self.head_dim
        keys = values if self.key_dim is None else self.key_dim
        return self.heads if self.key_heads is None else self.key_heads, keys, values

    def _params(self) -> dict[str, Array]:
        groups, keys, values = self.widths()
        keys, inner = groups * keys, self.heads * values
        dense = nn.initializers.lecun_normal()

        declared = {
            "query": (dense, (self.dim, keys)),
            "key": (dense, (self.dim, keys)),
            "value": (dense, (self.dim, inner)),
            "beta": (dense, (self.dim, self.heads)),
            **decay_initializers(self.heads, self.dim, dense, self.a_range, (self.dt_min, self.dt_max)),
            "scale": (nn.initializers.ones, (values,)),
            "output": (dense, (inner, self.dim)),
        }
        if self.use_output_gate:
            declared["gate"] = (dense, (self.dim, inner))
        if self.conv_size is not None:
            declared["kernel"] = (kernel_initializer(self.conv_size), (self.conv_size, 2 * keys + inner))
        return {name: self.param(name, *how) for name, how in declared.items()}

    def initial_state(self, batch_size: int, dtype: str | None = None) -> GatedDeltaNetState:
        """Zeros; ``dtype`` is the storage dtype of the convolution's history."""
        groups, keys, values = self.widths()
        channels = 2 * groups * keys + self.heads * values
        return GatedDeltaNetState(
            jnp.zeros((batch_size, self.heads, keys, values), accumulator(self.dtype)),
            jnp.zeros((batch_size, (self.conv_size or 1) - 1, channels), dtype or self.dtype),
            jnp.zeros(batch_size, jnp.int32),
        )
