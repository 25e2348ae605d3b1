"""mLSTM: LSTM with a matrix memory, exponential input gate and soft-capped gates, as in xLSTM 7B.

Beck et al. (2024), xLSTM: Extended Long Short-Term Memory, arXiv 2405.04517; Beck et al. (2025), xLSTM 7B, arXiv
2503.13427, whose block this is: gates from the block's input, no convolution.

With x_t [D] the (normalised) input, H heads, queries and keys of K / H channels and values of V / H per head,
cap(z) = c tanh(z / c) (or z):

    q_t, k_t, v_t = W_q x_t, W_k x_t, W_v x_t          [H, K/H], [H, K/H], [H, V/H]; q_t over sqrt(K/H)
    i_t = cap(w_i x_t + b_i),  f_t = cap(w_f x_t + b_f)   [H]
    C_t = sigmoid(f_t) C_{t-1} + e^{i_t} k_t v_t^T     [K/H, V/H] per head
    n_t = sigmoid(f_t) n_{t-1} + e^{i_t} k_t           [K/H]
    h_t = q_t C_t / max(|q_t n_t|, 1)                  [V/H]
    y_t = W_o (sigmoid(W_g x_t) * layer_norm(h_t) * scale)   layer norm of every head on its own

Memory and normaliser are kept times e^{-m_t}, m_t the running maximum of ``zoo.scans.stabilized_gates``; the lower bound
of the denominator becomes e^{-m_t}, and epsilon is added to it, as the published kernels do. What is left is linear
attention with a decay per head: ``zoo.scans.linear_attention`` has its sequential, chunkwise and kernel forms; n is one
more column of C.

Initialisation: gates see nothing but their biases, b_i = ``input_bias``, b_f from 3 to 6 over the heads. Time
O(B T (D^2 + K V / H)), parallel over time by chunks; state: K (V / H + 1) + H numbers per row.
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
from zoo.layers.norms import layer_norm
from zoo.layers.projections import linear
from zoo.registry import register
from zoo.scans import linear_attention, stabilized_gates


@struct.dataclass
class MLSTMState:
    """Carried state.

    Attributes:
      memory: [B, H, K/H, V/H + 1], C and in its last column n, times exp(-maximum).
      maximum: [B, H], the log of the largest weight; -inf at the start of a document.
    """

    memory: Float[Array, "B H K V"]
    maximum: Float[Array, "B H"]


def mlstm(
    params: Mapping[str, Array],
    x: Float[Array, "B T D"],
    state: MLSTMState,
    *,
    gate_cap: float | None = 15.0,
    epsilon: float = 1e-6,
    norm_eps: float = 1e-6,
    reset: Bool[Array, "B T"] | None = None,
    method: str = "auto",
    chunk_size: int | None = None,
) -> tuple[Float[Array, "B T D"], MLSTMState]:
    """The layer of the module docstring.

    Args:
      params: ``query``, ``key`` [D, K], ``value``, ``output_gate`` [D, V], ``input_gate``, ``forget_gate`` [D, H] with
        ``input_gate_bias``, ``forget_gate_bias`` [H]; ``scale`` [V], ``output`` [V, D].
      x: inputs; projections run in their dtype.
      state: state before the first token.
      gate_cap: c; None: gates are not capped.
      epsilon: added to the stabilised denominator.
      norm_eps: of the layer norm.
      reset: True at the first token of a new document.
      method: how the scan is computed, see ``zoo.scans.linear_attention``.
      chunk_size: steps per chunk, likewise.

    Returns:
      (y, state after the last token); y has x's dtype.
    """
    heads = params["input_gate"].shape[1]
    wide = accumulator(x.dtype)

    def gate(name):
        z = linear(x, params, name).astype(wide)
        return z if gate_cap is None else gate_cap * jnp.tanh(z / gate_cap)

    q, k, v = (linear(x, params, name).reshape(*x.shape[:2], heads, -1) for name in ("query", "key", "value"))
    log_forget = jax.nn.log_sigmoid(gate("forget_gate"))
    if reset is not None:
        log_forget = jnp.where(reset[..., None], -jnp.inf, log_forget)
    log_decay, log_input, maximum = stabilized_gates(log_forget, gate("input_gate"), state.maximum)
    values = jnp.concatenate([v, jnp.ones_like(v[..., :1])], axis=-1) * jnp.exp(log_input)[..., None]
    both, memory = linear_attention(
        q * q.shape[-1] ** -0.5, k, values, log_decay, state.memory, method=method, chunk_size=chunk_size
    )
    bound = jnp.maximum(jnp.abs(both[..., -1:]), jnp.exp(-maximum)[..., None])
    h = both[..., :-1] / (bound + epsilon)
    h = layer_norm(h, jnp.ones(h.shape[-1], h.dtype), eps=norm_eps).reshape(*x.shape[:2], -1) * params["scale"]
    y = jax.nn.sigmoid(linear(x, params, "output_gate")) * h.astype(x.dtype)
    return linear(y, params, "output"), MLSTMState(memory, maximum[:, -1])


@register(
    "mlstm",
    variants={
        "default": {"heads": 2, "input_bias": 0.0},
        "uncapped": {"heads": 1, "key_dim": 3, "value_dim": 4, "gate_cap": None, "input_bias": -1.0},
    },
)
class MLSTM(nn.Module):
    """mLSTM: a matrix memory with exponential gates per head, normalised, behind an output gate (xLSTM 7B).

    Attributes:
      dim: width D of input and output.
      heads: number H of heads; divides the widths of keys and values.
      key_dim: width K of queries and keys, all heads together; None: D / 2.
      value_dim: width V of values, all heads together; None: D.
      gate_cap: input and forget gates are capped softly at plus and minus this; None: they are not.
      input_bias: bias of the input gates at initialisation.
      epsilon: added to the denominator.
      norm_eps: of the layer norm of the heads.
      chunk_size: steps per chunk; None: chosen from the shape.
      dtype: compute dtype of the projections; the recurrence runs in at least float32.
    """

    dim: int
    heads: int = 4
    key_dim: int | None = None
    value_dim: int | None = None
    gate_cap: float | None = 15.0
    input_bias: float = -10.0
    epsilon: float = 1e-6
    norm_eps: float = 1e-6
    chunk_size: int | None = None
    dtype: str = "float32"

    causal: ClassVar[bool] = True
    paper: ClassVar[str] = "Beck et al. 2024, xLSTM: Extended Long Short-Term Memory; Beck et al. 2025, xLSTM 7B"

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], state: MLSTMState | None = None, *, reset: Bool[Array, "B T"] | None = None
    ) -> tuple[Float[Array, "B T D"], MLSTMState]:
        check_sequence(x, self.dim, reset)
        check_positive("heads", self.heads)
        for name, width in zip(("key_dim", "value_dim"), self._widths()):
            check_positive(name, width)
            check_divides("heads", self.heads, name, width)
        if self.gate_cap is not None and not self.gate_cap > 0:
            raise ValueError(f"gate_cap must be positive or None, got {self.gate_cap}")
        initial = self.initial_state(x.shape[0])
        if state is not None:
            check_state(state, initial)
        return mlstm(
            self._params(), x.astype(self.dtype), initial if state is None else state, gate_cap=self.gate_cap,
            epsilon=self.epsilon, norm_eps=self.norm_eps, reset=reset, chunk_size=self.chunk_size,
        )  # fmt: skip

    def _params(self) -> dict[str, Array]:
        dense, zeros = nn.initializers.lecun_normal(), nn.initializers.zeros
        keys, values = self._widths()
        declared = {
            "query": (dense, (self.dim, keys)),
            "key": (dense, (self.dim, keys)),
            "value": (dense, (self.dim, values)),
            "input_gate": (zeros, (self.dim, self.heads)),
            "input_gate_bias": (nn.initializers.constant(self.input_bias), (self.heads,)),
            "forget_gate": (zeros, (self.dim, self.heads)),
            "forget_gate_bias": (lambda _, shape: jnp.linspace(3.0, 6.0, *shape), (self.heads,)),
            "output_gate": (dense, (self.dim, values)),
            "scale": (nn.initializers.ones, (values,)),
            "output": (dense, (values, self.dim)),
        }
        return {name: self.param(name, *how) for name, how in declared.items()}

    def _widths(self) -> tuple[int, int]:
        """(K, V)."""
        return (
            self.dim // 2 if self.key_dim is None else self.key_dim,
            self.dim if self.value_dim is None else self.value_dim,
        )

    def initial_state(self, batch_size: int, dtype: str | None = None) -> MLSTMState:
        """The empty memory, at least float32 whatever ``dtype``."""
        wide = accumulator(self.dtype)
        keys, values = (width // self.heads for width in self._widths())
        return MLSTMState(
            jnp.zeros((batch_size, self.heads, keys, values + 1), wide),
            jnp.full((batch_size, self.heads), -jnp.inf, wide),
        )
