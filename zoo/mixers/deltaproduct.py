"""DeltaProduct: a matrix memory that takes several steps of the delta rule per token, with or without a forget gate.

Siems, Carstensen, Zela, Hutter, Pontil and Grazzi (2025), DeltaProduct: Improving State-Tracking in Linear RNNs via
Householder Products, arXiv 2502.10297; in the form of the layer GatedDeltaProduct of flash-linear-attention.

With x_t [D] the (normalised) input, n steps (Householder factors) per token, G heads of queries and keys of width K, H heads
of values of width V = expand_v K (head h uses queries and keys of h // (H / G)), and for j = 1 .. n

    u_t = [W_q x_t, W_k x_t, W_v x_t]                    G K, n G K and n H V numbers, in the order step, head, channel
    [q_t, k_tj, v_tj] = silu(sum_i K_i * u_{t-i})        causal depthwise convolutions, K [taps, G K + n G K + n H V]
    q_t, k_tj                                            scaled to length 1, q_t then over sqrt(K)
    beta_tj = c sigmoid(W_b x_t)_j                       [n, H], c = 2 with ``allow_neg_eigval``, else 1
    g_t = -exp(A_log) softplus(W_a x_t + b_a)            [H], 0 without the forget gate
    S <- exp(g_t) S_{t-1}                                [K, V] per head
    S <- S + beta_tj k_tj (v_tj - k_tj S)^T              for j = 1 .. n; then S_t = S
    y_t = W_o (rms_norm(q_t S_t) * scale * silu(W_z x_t))    norm of every head on its own, scale [V], silu only with the
                                                         gate

This is gradient descent, n steps of size beta per token, on the error |S^T k - v|^2 / 2. The transition is a product of n
matrices I - beta k k^T with eigenvalues 1 and 1 - beta: with c = 2 they include reflections, products of two are rotations,
and every orthogonal matrix of K rows is a product of K. So one layer with n = 2 and c = 2 tracks products of permutations of
three things, and not with n = 1 or c = 1. n = 1 is DeltaNet, and with the forget gate Gated DeltaNet.

The recurrence is ``zoo.scans.delta_product``. Initialisation: Glorot's, uniform, times 2^-2.5; exp(A_log) uniform in
``a_range``, b_a as the step sizes of Mamba, at least ``dt_floor``. Gates, lengths, decays and memory are float32 whatever
``dtype``. Time O(B T (D n (G K + H V) + n H K V)), parallel over time by chunks; state: H K V numbers per row, whatever n,
and the last taps - 1 values of u.
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
    decay_initializers,
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
from zoo.layers.step_sizes import check_step_sizes
from zoo.registry import register
from zoo.scans import delta_product


@struct.dataclass
class DeltaProductState:
    """Carried state: ``memory`` [B, H, K, V]; ``history`` [B, taps - 1, G K + n G K + n H V] of u, no steps without
    convolutions; ``age`` [B], tokens so far."""

    memory: Float[Array, "B H K V"]
    history: Float[Array, "B J C"]
    age: Int[Array, " B"]


def deltaproduct(
    params: Mapping[str, Array],
    x: Float[Array, "B T D"],
    state: DeltaProductState,
    *,
    householders: int,
    heads: int,
    allow_neg_eigval: bool = True,
    norm_eps: float = 1e-5,
    reset: Bool[Array, "B T"] | None = None,
    method: str = "auto",
    chunk_size: int | None = None,
) -> tuple[Float[Array, "B T D"], DeltaProductState]:
    """The layer of the module docstring.

    Args:
      params: ``query`` [D, G K], ``key`` [D, n G K], ``value`` [D, n H V], ``beta`` [D, n H]; ``query_kernel``,
        ``key_kernel``, ``value_kernel`` [taps, as many], missing without convolutions; ``dt`` [D, H], ``dt_bias``, ``A_log``
        [H], missing without a forget gate; ``gate`` [D, H V], missing without an output gate; ``scale`` [V]; ``output``
        [H V, D].
      x: inputs; projections run in their dtype.
      state: state before the first token.
      householders: n.
      heads: number G of heads of queries and keys.
      allow_neg_eigval: c = 2.
      norm_eps: of the norm.
      reset: True at the first token of a new document.
      method: how the scan is computed, see ``zoo.scans.delta_product``.
      chunk_size: tokens per chunk, likewise.

    Returns:
      (y, state after the last token); y has x's dtype.
    """
    batch, time = x.shape[:2]
    steps, value_heads = (batch, time, householders), params["beta"].shape[1] // householders
    age = document_positions(reset, state.age, shape=(batch, time))
    (q, k, v), history = short_convolutions(params, x, state.history, age)
    q, k = unit_length(q.reshape(batch, time, heads, -1)), unit_length(k.reshape(*steps, heads, -1))
    y, memory = delta_product(
        q * q.shape[-1] ** -0.5, k, v.reshape(*steps, value_heads, -1),
        write_strength(params, x, allow_neg_eigval).reshape(*steps, value_heads),
        forget_gate(params, x, value_heads, reset), state.memory, method=method, chunk_size=chunk_size,
    )  # fmt: skip
    return normed_output(params, y, x, norm_eps), DeltaProductState(memory, history, age[:, -1] + 1)


@register(
    "deltaproduct",
    variants={
        "default": {"heads": 2, "head_dim": 3},
        "ungated": {
            "householders": 3, "heads": 1, "value_heads": 2, "head_dim": 2, "expand_v": 1.5, "conv_size": None,
            "use_forget_gate": False, "use_output_gate": False, "allow_neg_eigval": False, "chunk_size": 4,
        },
    },
)  # fmt: skip
class DeltaProduct(nn.Module):
    """DeltaProduct: several steps of the delta rule per token, with or without decay, after short convolutions.

    Attributes:
      dim: width D of input and output.
      householders: n, steps of the delta rule per token, and factors of its transition.
      heads: number G of heads of queries and keys.
      value_heads: number H of heads of values, a multiple of ``heads``; None: ``heads``.
      head_dim: width K of a query or key head; None: ``dim / heads``.
      expand_v: V / K; must make V an integer.
      conv_size: taps of the convolutions; None: no convolutions.
      use_forget_gate: the memory decays.
      use_output_gate: the norm is gated.
      allow_neg_eigval: beta is twice the sigmoid, so that eigenvalues lie in [-1, 1] and not in [0, 1].
      dt_min, dt_max: softplus(b_a) at initialisation is drawn between these,
      dt_floor: ... and is at least this.
      a_range: exp(A_log) at initialisation is drawn uniformly between these.
      norm_eps: of the norm.
      chunk_size: tokens per chunk; None: chosen from the shape.
      dtype: compute dtype of the projections; the recurrence runs in at least float32.
    """

    dim: int
    householders: int = 2
    heads: int = 4
    value_heads: int | None = None
    head_dim: int | None = None
    expand_v: float = 2.0
    conv_size: int | None = 4
    use_forget_gate: bool = True
    use_output_gate: bool = True
    allow_neg_eigval: bool = True
    dt_min: float = 0.001
    dt_max: float = 0.1
    dt_floor: float = 1e-4
    a_range: tuple[float, float] = (0.0, 16.0)
    norm_eps: float = 1e-5
    chunk_size: int | None = None
    dtype: str = "float32"

    causal: ClassVar[bool] = True
    paper: ClassVar[str] = "Siems et al. 2025, DeltaProduct: Improving State-Tracking via Householder Products"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        state: DeltaProductState | None = None,
        *,
        reset: Bool[Array, "B T"] | None = None,
    ) -> tuple[Float[Array, "B T D"], DeltaProductState]:
        check_sequence(x, self.dim, reset)
        check_step_sizes(self.dt_min, self.dt_max)
        initial = self.initial_state(x.shape[0])
        if state is not None:
            check_state(state, initial)
        return deltaproduct(
            self._params(), x.astype(self.dtype), initial if state is None else state, householders=self.householders,
            heads=self.heads, allow_neg_eigval=self.allow_neg_eigval, norm_eps=self.norm_eps, reset=reset,
            chunk_size=self.chunk_size,
        )  # fmt: skip

    def widths(self) -> tuple[int, int, int]:
        """(H, K, V): heads of values, widths of a key and a value; ValueError for sizes that do not fit."""
        check_positive("householders", self.householders)
        if self.conv_size is not None:
            check_positive("conv_size", self.conv_size)
        keys = default_head_dim(self.dim, self.heads) if self.head_dim is None else self.head_dim
        value_heads, values = head_widths(self.heads, self.value_heads, keys, self.expand_v)
        return value_heads, keys, values

    def _params(self) -> dict[str, Array]:
        value_heads, keys, values = self.widths()
        n, inner, dense = self.householders, value_heads * values, small_xavier()
        sizes = {"query": self.heads * keys, "key": n * self.heads * keys, "value": n * inner, "beta": n * value_heads}
        declared = {name: (dense, (self.dim, size)) for name, size in sizes.items()}
        if self.conv_size is not None:
            taps = kernel_initializer(self.conv_size)
            for name in ("query", "key", "value"):
                declared[f"{name}_kernel"] = (taps, (self.conv_size, sizes[name]))
        if self.use_forget_gate:
            ranges = (self.a_range, (self.dt_min, self.dt_max), self.dt_floor)
            declared |= decay_initializers(value_heads, self.dim, dense, *ranges)
        if self.use_output_gate:
            declared["gate"] = (dense, (self.dim, inner))
        declared |= {"scale": (nn.initializers.ones, (values,)), "output": (dense, (inner, self.dim))}
        return {name: self.param(name, *how) for name, how in declared.items()}

    def initial_state(self, batch_size: int, dtype: str | None = None) -> DeltaProductState:
        """Zeros; ``dtype`` is the storage dtype of the convolutions' history."""
        value_heads, keys, values = self.widths()
        n = self.householders
        channels = (1 + n) * self.heads * keys + n * value_heads * values
        return DeltaProductState(
            jnp.zeros((batch_size, value_heads, keys, values), accumulator(self.dtype)),
            jnp.zeros((batch_size, (self.conv_size or 1) - 1, channels), dtype or self.dtype),
            jnp.zeros(batch_size, jnp.int32),
        )
