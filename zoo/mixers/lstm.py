"""Long Short-Term Memory: a gated recurrence whose cell carries values, and gradients, over many steps.

Hochreiter and Schmidhuber (1997), Long Short-Term Memory; forget gate: Gers, Schmidhuber, Cummins (2000), Learning to
Forget; peepholes: Gers and Schmidhuber (2000), Recurrent Nets that Time and Count.

With x_t [D] the input, h_t and c_t [H] hidden state and cell, both zero at the start:

    i = sigmoid(W_i x_t + U_i h_{t-1} + p_i * c_{t-1} + b_i)      input gate
    f = sigmoid(W_f x_t + U_f h_{t-1} + p_f * c_{t-1} + b_f)      forget gate
    g = tanh   (W_g x_t + U_g h_{t-1} + b_g)                      input node
    c_t = f * c_{t-1} + i * g
    o = sigmoid(W_o x_t + U_o h_{t-1} + p_o * c_t + b_o)          output gate: its peephole sees the new cell
    h_t = o * act(c_t)                                            act = tanh or identity
    y_t = h_t, or V h_t with V [H, D] when ``hidden_dim`` is given

W [D, H] and U [H, H] of every gate, stored side by side as ``input_kernel`` [D, 4H] and ``recurrent_kernel`` [H, 4H] in the
order i, f, g, o; p [H] exist with ``peephole`` only. ``forget_gate=False`` is the cell of 1997: f = 1 (the constant error
carousel: dc_t/dc_{t-1} is exactly one on the direct path), and the order is i, g, o.

``forget_bias`` is the initial b_f. A cell with gate f forgets in 1/(1-f) steps, so a bias of 1 (f = 0.73) remembers for
about 4 steps at the start of training, 4 (f = 0.98) for about 55.

Time O(B T (D H + H^2)) in T dependent steps; state: 2 H numbers per row.
"""

import functools
from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float

from zoo.checks import check_choice, check_positive, check_sequence, check_state
from zoo.dtypes import accumulator
from zoo.layers.initializers import recurrent_kernel, symmetric_uniform
from zoo.registry import register
from zoo.scans import gate_kernels, gate_products, recurrent_scan

OUTPUT_ACTIVATIONS = ("tanh", "identity")


@struct.dataclass
class LSTMState:
    """Carried state: ``hidden`` [B, H] and ``cell`` [B, H]."""

    hidden: Float[Array, "B H"]
    cell: Float[Array, "B H"]


def lstm(
    params: Mapping[str, Array],
    x: Float[Array, "B T D"],
    state: LSTMState,
    *,
    forget_gate: bool = True,
    output_activation: str = "tanh",
    reset: Bool[Array, "B T"] | None = None,
) -> tuple[Float[Array, "B T H"], LSTMState]:
    """The hidden states of the module docstring.

    Args:
      params: ``input_kernel`` [D, G H], ``recurrent_kernel`` [H, G H], ``bias`` [G H], gates i, f, g, o (G = 4) or i, g, o
        (G = 3, without a forget gate); for peepholes ``peephole_input``, ``peephole_forget``, ``peephole_output`` [H].
      x: inputs; products run in their dtype.
      state: state before the first token.
      forget_gate: False for the cell of 1997.
      output_activation: "tanh" or "identity".
      reset: True at the first token of a new document.

    Returns:
      (h [B, T, H] in at least float32, state after the last token).
    """
    states, last = lstm_states(
        params, x, state, forget_gate=forget_gate, output_activation=output_activation, reset=reset
    )
    return states.hidden, last


def lstm_states(
    params: Mapping[str, Array],
    x: Float[Array, "B T D"],
    state: LSTMState,
    *,
    forget_gate: bool = True,
    output_activation: str = "tanh",
    reset: Bool[Array, "B T"] | None = None,
) -> tuple[LSTMState, LSTMState]:
    """As ``lstm``, but returns (the states of all steps: ``hidden`` and ``cell`` [B, T, H], the last state)."""
    check_choice("output_activation", output_activation, OUTPUT_ACTIVATIONS)
    gates = 4 if forget_gate else 3
    weights = {k: v for k, v in params.items() if k.startswith("peephole_")}
    for name in ("input_kernel", "recurrent_kernel"):
        weights[name] = gate_kernels(params[name].astype(x.dtype), gates)
    weights["bias"] = jnp.split(params["bias"], gates)
    state = jax.tree.map(lambda s: s.astype(accumulator(x.dtype)), state)
    step = _step(forget_gate, output_activation)
    return recurrent_scan(step, x, state, weights, project=_project, reset=reset)


def _project(params, x):
    products = gate_products(x, params["input_kernel"], len(params["bias"]))
    return [product + bias for product, bias in zip(products, params["bias"], strict=True)]


@functools.cache
def _step(forget_gate, output_activation):
    def step(params, state, drive, keep):
        products = gate_products(state.hidden, params["recurrent_kernel"], len(drive))
        i, *f, g, o = (keep(d + p) for d, p in zip(drive, products, strict=True))
        peephole = "peephole_output" in params
        if peephole:
            i = i + params["peephole_input"] * state.cell
        cell = jax.nn.sigmoid(i) * jnp.tanh(g)
        if forget_gate:
            f = f[0] + params["peephole_forget"] * state.cell if peephole else f[0]
            cell = cell + jax.nn.sigmoid(f) * state.cell
        else:
            cell = cell + state.cell
        if peephole:
            o = o + params["peephole_output"] * cell
        squashed = jnp.tanh(cell) if output_activation == "tanh" else cell
        return LSTMState(jax.nn.sigmoid(o) * squashed, cell)

    return step


@register(
    "lstm",
    variants={
        "default": {},
        "1997": {"forget_gate": False},
        "peephole": {"peephole": True, "hidden_dim": 6},
        "peephole_1997": {"peephole": True, "forget_gate": False, "recurrent_init": "orthogonal"},
        "identity_output": {"output_activation": "identity", "forget_bias": 4.0},
    },
)
class LSTM(nn.Module):
    """Long Short-Term Memory.

    Attributes:
      dim: width D of input and output.
      hidden_dim: width H of hidden state and cell; None takes ``dim`` and no output projection.
      forget_gate: False for the cell of 1997, which never forgets.
      peephole: gates see the cell.
      output_activation: "tanh" or "identity", applied to the cell on its way out.
      forget_bias: initial bias of the forget gate.
      recurrent_init: "uniform" (U(-1/sqrt(H), 1/sqrt(H))) or "orthogonal", for each gate.
      dtype: compute dtype of the products; the state is at least float32.
    """

    dim: int
    hidden_dim: int | None = None
    forget_gate: bool = True
    peephole: bool = False
    output_activation: str = "tanh"
    forget_bias: float = 1.0
    recurrent_init: str = "uniform"
    dtype: str = "float32"

    causal: ClassVar[bool] = True
    paper: ClassVar[str] = "Hochreiter and Schmidhuber 1997, Long Short-Term Memory"

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], state: LSTMState | None = None, *, reset: Bool[Array, "B T"] | None = None
    ) -> tuple[Float[Array, "B T D"], LSTMState]:
        check_sequence(x, self.dim, reset)
        initial = self.initial_state(x.shape[0])
        if state is not None:
            check_state(state, initial)
        x = x.astype(self.dtype)
        y, state = lstm(
            self._params(initial.hidden.shape[-1]),
            x,
            initial if state is None else state,
            forget_gate=self.forget_gate,
            output_activation=self.output_activation,
            reset=reset,
        )
        y = y.astype(x.dtype)
        if self.hidden_dim is not None:
            y = nn.Dense(self.dim, use_bias=False, dtype=self.dtype, name="output")(y)
        return y, state

    def initial_state(self, batch_size: int, dtype: str | None = None) -> LSTMState:
        """Zeros, at least float32 whatever ``dtype``."""
        width = self.dim if self.hidden_dim is None else self.hidden_dim
        check_positive("hidden_dim", width)
        zeros = jnp.zeros((batch_size, width), accumulator(self.dtype))
        return LSTMState(zeros, zeros)

    def _params(self, width: int) -> dict[str, Array]:
        gates = 4 if self.forget_gate else 3
        uniform = symmetric_uniform(width**-0.5)

        def bias(_, shape):
            values = jnp.zeros(shape)
            return values.at[width : 2 * width].set(self.forget_bias) if self.forget_gate else values

        params = {
            "input_kernel": self.param("input_kernel", uniform, (self.dim, gates * width)),
            "recurrent_kernel": self.param(
                "recurrent_kernel", recurrent_kernel(self.recurrent_init), (width, gates * width)
            ),
            "bias": self.param("bias", bias, (gates * width,)),
        }
        if self.peephole:
            for gate in ("input", "forget", "output") if self.forget_gate else ("input", "output"):
                params[f"peephole_{gate}"] = self.param(f"peephole_{gate}", uniform, (width,))
        return params
