"""DeltaNet: a matrix memory written by the delta rule, without decay, after short convolutions.

Yang, Wang, Zhang, Shen and Kim (2024), Parallelizing Linear Transformers with the Delta Rule over Sequence Length, arXiv
2406.06484; the rule is that of Schlag, Irie and Schmidhuber (2021), Linear Transformers Are Secretly Fast Weight
Programmers. In the form of the layer DeltaNet of flash-linear-attention.

With x_t [D] the (normalised) input, H heads with keys of width K and values of width V:

    u_t = [W_q x_t, W_k x_t, W_v x_t]                    H K, H K and H V numbers
    [q_t, k_t, v_t] = silu(sum_i K_i * u_{t-i})          causal depthwise convolutions, K [taps, 2 H K + H V]
    q_t, k_t                                             scaled to length 1, q_t then over sqrt(K)
    beta_t = c sigmoid(W_b x_t)                          [H], c = 2 with ``allow_neg_eigval``, else 1
    S_t = S_{t-1} + beta_t k_t (v_t - k_t S_{t-1})^T     [K, V] per head
    y_t = W_o (rms_norm(q_t S_t) * scale * silu(W_z x_t))    norm of every head on its own, scale [V], silu only with the
                                                         gate

The transition I - beta k k^T has the eigenvalues 1 and 1 - beta; with c = 2 the latter may be negative, and a head can count
modulo 2 (Grazzi et al. 2025, arXiv 2411.12537). ``gated_deltanet`` adds a decay, ``deltaproduct`` more steps per token.

The recurrence is ``zoo.scans.gated_delta_rule`` without decay. Initialisation: Glorot's, uniform, times 2^-2.5. Lengths,
gate and memory are float32 whatever ``dtype``. Time O(B T (D H (K + V) + H K V)), parallel over time by chunks; state:
H K V numbers per row, and the last taps - 1 values of u.
"""

from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from zoo.checks import check_positive, check_sequence, check_state
from zoo.dtypes import accumulator
from zoo.layers.attention import document_positions
from zoo.layers.delta_rule import (
    default_head_dim,
    forget_gate,
    head_widths,
    kernel_initializer,
    normed_output,
    short_convolutions,
    small_xavier,
    unit_length,
    write_strength,
)
from zoo.registry import register
from zoo.scans import gated_delta_rule


@struct.dataclass
class DeltaNetState:
    """Carried state: ``memory`` [B, H, K, V]; ``history`` [B, taps - 1, 2 H K + H V] of u, no steps without convolutions;
    ``age`` [B], tokens so far."""

    memory: Float[Array, "B H K V"]
    history: Float[Array, "B J C"]
    age: Int[Array, " B"]


def deltanet(
    params: Mapping[str, Array],
    x: Float[Array, "B T D"],
    state: DeltaNetState,
    *,
    allow_neg_eigval: bool = False,
    norm_eps: float = 1e-5,
    reset: Bool[Array, "B T"] | None = None,
    method: str = "auto",
    chunk_size: int | None = None,
) -> tuple[Float[Array, "B T D"], DeltaNetState]:
    """The layer of the module docstring.

    Args:
      params: ``query``, ``key`` [D, H K], ``value`` [D, H V], ``beta`` [D, H]; ``query_kernel``, ``key_kernel``,
        ``value_kernel`` [taps, as many], missing without convolutions; ``gate`` [D, H V], missing without an output gate;
        ``scale`` [V]; ``output`` [H V, D].
      x: inputs; projections run in their dtype.
      state: state before the first token.
      allow_neg_eigval: c = 2.
      norm_eps: of the norm.
      reset: True at the first token of a new document.
      method: how the scan is computed, see ``zoo.scans.gated_delta_rule``.
      chunk_size: tokens per chunk, likewise.

    Returns:
      (y, state after the last token); y has x's dtype.
    """
    heads = params["beta"].shape[1]
    age = document_positions(reset, state.age, shape=x.shape[:2])
    mixed, history = short_convolutions(params, x, state.history, age)
    q, k, v = (a.reshape(*a.shape[:2], heads, -1) for a in mixed)
    y, memory = gated_delta_rule(
        unit_length(q) * q.shape[-1] ** -0.5, unit_length(k), v, write_strength(params, x, allow_neg_eigval),
        forget_gate(params, x, heads, reset), state.memory, method=method, chunk_size=chunk_size,
    )  # fmt: skip
    return normed_output(params, y, x, norm_eps), DeltaNetState(memory, history, age[:, -1] + 1)


@register(
    "deltanet",
    variants={
        "default": {"heads": 2, "head_dim": 3},
        "negative": {
            "heads": 2, "head_dim": 2, "expand_v": 1.5, "conv_size": None, "allow_neg_eigval": True,
            "use_output_gate": True, "chunk_size": 4,
        },
    },
)  # fmt: skip
class DeltaNet(nn.Module):
    """DeltaNet: a matrix memory with the delta rule and without decay, after short convolutions.

    Attributes:
      dim: width D of input and output.
      heads: number H of heads.
      head_dim: width K of a query or key head; None: ``dim / heads``.
      expand_v: V / K; must make V an integer.
      conv_size: taps of the convolutions; None: no convolutions.
      allow_neg_eigval: beta is twice the sigmoid, so that eigenvalues lie in [-1, 1] and not in [0, 1].
      use_output_gate: the norm is gated.
      norm_eps: of the norm.
      chunk_size: tokens per chunk; None: chosen from the shape.
      dtype: compute dtype of the projections; the recurrence runs in at least float32.
    """

    dim: int
    heads: int = 4
    head_dim: int | None = None
    expand_v: float = 1.0
    conv_size: int | None = 4
    allow_neg_eigval: bool = False
    use_output_gate: bool = False
    norm_eps: float = 1e-5
    chunk_size: int | None = None
    dtype: str = "float32"

    causal: ClassVar[bool] = True
    paper: ClassVar[str] = (
        "Yang et al. 2024, Parallelizing Linear Transformers with the Delta Rule over Sequence Length"
    )

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], state: DeltaNetState | None = None, *, reset: Bool[Array, "B T"] | None = None
    ) -> tuple[Float[Array, "B T D"], DeltaNetState]:
        check_sequence(x, self.dim, reset)
        initial = self.initial_state(x.shape[0])
        if state is not None:
            check_state(state, initial)
        return deltanet(
            self._params(), x.astype(self.dtype), initial if state is None else state,
            allow_neg_eigval=self.allow_neg_eigval, norm_eps=self.norm_eps, reset=reset, chunk_size=self.chunk_size,
        )  # fmt: skip

    def widths(self) -> tuple[int, int]:
        """(K, V): widths of a key and a value head; ValueError for sizes that do not fit."""
        if self.conv_size is not None:
            check_positive("conv_size", self.conv_size)
        keys = default_head_dim(self.dim, self.heads) if self.head_dim is None else self.head_dim
        return keys, head_widths(self.heads, None, keys, self.expand_v)[1]

    def _params(self) -> dict[str, Array]:
        keys, values = self.widths()
        inner, dense = self.heads * values, small_xavier()
        sizes = {"query": self.heads * keys, "key": self.heads * keys, "value": inner, "beta": self.heads}
        declared = {name: (dense, (self.dim, size)) for name, size in sizes.items()}
        if self.conv_size is not None:
            taps = kernel_initializer(self.conv_size)
            for name in ("query", "key", "value"):
                declared[f"{name}_kernel"] = (taps, (self.conv_size, sizes[name]))
        if self.use_output_gate:
            declared["gate"] = (dense, (self.dim, inner))
        declared |= {"scale": (nn.initializers.ones, (values,)), "output": (dense, (inner, self.dim))}
        return {name: self.param(name, *how) for name, how in declared.items()}

    def initial_state(self, batch_size: int, dtype: str | None = None) -> DeltaNetState:
        """Zeros; ``dtype`` is the storage dtype of the convolutions' history."""
        keys, values = self.widths()
        return DeltaNetState(
            jnp.zeros((batch_size, self.heads, keys, values), accumulator(self.dtype)),
            jnp.zeros((batch_size, (self.conv_size or 1) - 1, self.heads * (2 * keys + values)), dtype or self.dtype),
            jnp.zeros(batch_size, jnp.int32),
        )
