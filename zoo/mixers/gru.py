"""Gated Recurrent Unit: a gated recurrence with one state, which each step mixes with a candidate.

Cho et al. (2014), Learning Phrase Representations using RNN Encoder-Decoder for Statistical Machine Translation.

With x_t [D] the input and h_t [H] the state, zero at the start, h = h_{t-1}:

    r = sigmoid(W_r x_t + U_r h + b_r)                            reset gate
    z = sigmoid(W_z x_t + U_z h + b_z)                            update gate: 1 keeps the old state
    n = tanh(W_n x_t + b_n + r * (U_n h + c_n))                   candidate, ``reset_gate="after"`` the product (v3 of the
                                                                  paper, and the form of torch and cuDNN)
    n = tanh(W_n x_t + b_n + U_n (r * h))                         ``reset_gate="before"`` the product (the 2014 form)
    h_t = z * h + (1 - z) * n
    y_t = h_t, or V h_t with V [H, D] when ``hidden_dim`` is given

W [D, H] and U [H, H] of every gate, stored side by side as ``input_kernel`` [D, 3H] and ``recurrent_kernel`` [H, 3H] in the
order r, z, n; c_n [H] (``candidate_bias``) exists in the "after" form only. ``update_bias`` is the initial b_z: like the
forget bias of an LSTM, a large one remembers for long at the start of training.

Time O(B T (D H + H^2)) in T dependent steps, with one product each ("after") or two, one behind the other ("before");
state: H numbers per row.
"""

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

RESET_GATES = ("after", "before")


@struct.dataclass
class GRUState:
    """Carried state: ``hidden`` [B, H]."""

    hidden: Float[Array, "B H"]


def gru(
    params: Mapping[str, Array],
    x: Float[Array, "B T D"],
    state: GRUState,
    *,
    reset_gate: str = "after",
    reset: Bool[Array, "B T"] | None = None,
) -> tuple[Float[Array, "B T H"], GRUState]:
    """The states of the module docstring.

    Args:
      params: ``input_kernel`` [D, 3H], ``recurrent_kernel`` [H, 3H], ``bias`` [3H], gates in the order r, z, n; with
        ``reset_gate="after"`` also ``candidate_bias`` [H].
      x: inputs; products run in their dtype.
      state: state before the first token.
      reset_gate: "after" or "before" the recurrent product of the candidate.
      reset: True at the first token of a new document.

    Returns:
      (h [B, T, H] in at least float32, state after the last token).
    """
    check_choice("reset_gate", reset_gate, RESET_GATES)
    weights = {"bias": jnp.split(params["bias"], 3)}
    weights["input_kernel"] = gate_kernels(params["input_kernel"].astype(x.dtype), 3)
    recurrent = params["recurrent_kernel"].astype(x.dtype)
    if reset_gate == "after":
        weights |= {"recurrent_kernel": gate_kernels(recurrent, 3), "candidate_bias": params["candidate_bias"]}
    else:
        split = 2 * params["recurrent_kernel"].shape[0]
        weights["recurrent_kernel"] = gate_kernels(recurrent[:, :split], 2)
        weights["candidate_kernel"] = gate_kernels(recurrent[:, split:], 1)
    hidden = state.hidden.astype(accumulator(x.dtype))
    step = _step_after if reset_gate == "after" else _step_before
    hidden, last = recurrent_scan(step, x, hidden, weights, project=_project, reset=reset)
    return hidden, GRUState(last)


def _project(params, x):
    products = gate_products(x, params["input_kernel"], 3)
    return [product + bias for product, bias in zip(products, params["bias"], strict=True)]


def _step_after(params, hidden, drive, keep):
    r, z, n = gate_products(hidden, params["recurrent_kernel"], 3)
    r = jax.nn.sigmoid(keep(drive[0] + r))
    z = jax.nn.sigmoid(keep(drive[1] + z))
    n = jnp.tanh(keep(drive[2]) + r * keep(n + params["candidate_bias"]))
    return z * hidden + (1 - z) * n


def _step_before(params, hidden, drive, keep):
    r, z = gate_products(hidden, params["recurrent_kernel"], 2)
    r = jax.nn.sigmoid(keep(drive[0] + r))
    z = jax.nn.sigmoid(keep(drive[1] + z))
    (n,) = gate_products(r * hidden, params["candidate_kernel"], 1)
    n = jnp.tanh(keep(drive[2] + n))
    return z * hidden + (1 - z) * n


@register(
    "gru",
    variants={
        "default": {},
        "before": {"reset_gate": "before"},
        "hidden": {"hidden_dim": 6, "update_bias": 4.0, "recurrent_init": "orthogonal"},
    },
)
class GRU(nn.Module):
    """Gated Recurrent Unit.

    Attributes:
      dim: width D of input and output.
      hidden_dim: width H of the state; None takes ``dim`` and no output projection.
      reset_gate: "after" the recurrent product of the candidate (torch's form) or "before" it (the 2014 form).
      update_bias: initial bias of the update gate.
      recurrent_init: "uniform" (U(-1/sqrt(H), 1/sqrt(H))) or "orthogonal", for each gate.
      dtype: compute dtype of the products; the state is at least float32.
    """

    dim: int
    hidden_dim: int | None = None
    reset_gate: str = "after"
    update_bias: float = 0.0
    recurrent_init: str = "uniform"
    dtype: str = "float32"

    causal: ClassVar[bool] = True
    paper: ClassVar[str] = "Cho et al. 2014, Learning Phrase Representations using RNN Encoder-Decoder"

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], state: GRUState | None = None, *, reset: Bool[Array, "B T"] | None = None
    ) -> tuple[Float[Array, "B T D"], GRUState]:
        check_sequence(x, self.dim, reset)
        initial = self.initial_state(x.shape[0])
        if state is not None:
            check_state(state, initial)
        x = x.astype(self.dtype)
        params = self._params(initial.hidden.shape[-1])
        y, state = gru(params, x, initial if state is None else state, reset_gate=self.reset_gate, reset=reset)
        y = y.astype(x.dtype)
        if self.hidden_dim is not None:
            y = nn.Dense(self.dim, use_bias=False, dtype=self.dtype, name="output")(y)
        return y, state

    def initial_state(self, batch_size: int, dtype: str | None = None) -> GRUState:
        """Zeros, at least float32 whatever ``dtype``."""
        width = self.dim if self.hidden_dim is None else self.hidden_dim
        check_positive("hidden_dim", width)
        return GRUState(jnp.zeros((batch_size, width), accumulator(self.dtype)))

    def _params(self, width: int) -> dict[str, Array]:
        uniform = symmetric_uniform(width**-0.5)

        def bias(_, shape):
            return jnp.zeros(shape).at[width : 2 * width].set(self.update_bias)

        params = {
            "input_kernel": self.param("input_kernel", uniform, (self.dim, 3 * width)),
            "recurrent_kernel": self.param(
                "recurrent_kernel", recurrent_kernel(self.recurrent_init), (width, 3 * width)
            ),
            "bias": self.param("bias", bias, (3 * width,)),
        }
        if self.reset_gate == "after":
            params["candidate_bias"] = self.param("candidate_bias", nn.initializers.zeros, (width,))
        return params
