"""Elman network: the simple recurrent network, whose context units hold the previous hidden state.

Elman (1990), Finding Structure in Time; tanh and ReLU forms as in Lipton, Berkowitz, Elkan (2015), A Critical Review of
Recurrent Neural Networks for Sequence Learning.

With x_t [D] the input and h_t [H] the hidden state, h_0 = 0:

    h_t = act(W_x x_t + W_h h_{t-1} + b)         W_x [D, H], W_h [H, H], b [H]
    y_t = h_t                                    or W_o h_t with W_o [H, D], when ``hidden_dim`` is given

act is sigmoid (Elman's own), tanh, relu or identity. The Jacobian of a step is diag(act') W_h, so gradients over many
steps vanish or explode with the singular values of W_h: ``recurrent_init="orthogonal"`` with ``recurrent_scale=c`` sets
all of them to c. Time O(B T (D H + H^2)) in T dependent steps; state: H numbers per row.
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
from zoo.scans import matmul, recurrent_scan

ACTIVATIONS = {"sigmoid": jax.nn.sigmoid, "tanh": jnp.tanh, "relu": jax.nn.relu, "identity": lambda a: a}


@struct.dataclass
class ElmanState:
    """Carried state: ``hidden`` [B, H]."""

    hidden: Float[Array, "B H"]


def elman(
    params: Mapping[str, Array],
    x: Float[Array, "B T D"],
    state: ElmanState,
    *,
    activation: str = "tanh",
    reset: Bool[Array, "B T"] | None = None,
) -> tuple[Float[Array, "B T H"], ElmanState]:
    """The hidden states of the module docstring.

    Args:
      params: ``input_kernel`` [D, H], ``recurrent_kernel`` [H, H], ``bias`` [H].
      x: inputs; products run in their dtype.
      state: state before the first token.
      activation: "sigmoid", "tanh", "relu" or "identity".
      reset: True at the first token of a new document.

    Returns:
      (h [B, T, H] in at least float32, state after the last token).
    """
    check_choice("activation", activation, ACTIVATIONS)
    weights = {k: params[k].astype(x.dtype) for k in ("input_kernel", "recurrent_kernel")} | {"bias": params["bias"]}
    hidden = state.hidden.astype(accumulator(x.dtype))
    hidden, last = recurrent_scan(_step(activation), x, hidden, weights, project=_project, reset=reset)
    return hidden, ElmanState(last)


def _project(params, x):
    return matmul(x, params["input_kernel"]) + params["bias"]


@functools.cache
def _step(activation):
    act = ACTIVATIONS[activation]

    def step(params, hidden, drive, keep):
        return act(keep(drive + matmul(hidden, params["recurrent_kernel"])))

    return step


@register(
    "elman",
    variants={
        "default": {},
        "sigmoid": {"activation": "sigmoid", "hidden_dim": 6},
        "relu": {"activation": "relu", "recurrent_init": "orthogonal", "recurrent_scale": 0.9},
        "identity": {"activation": "identity", "recurrent_init": "orthogonal", "recurrent_scale": 0.7},
    },
)
class Elman(nn.Module):
    """Elman network: simple recurrence through a squashing function.

    Attributes:
      dim: width D of input and output.
      hidden_dim: width H of the hidden state; None takes ``dim`` and no output projection.
      activation: "sigmoid", "tanh", "relu" or "identity".
      recurrent_init: "uniform" (U(-1/sqrt(H), 1/sqrt(H))) or "orthogonal".
      recurrent_scale: factor on the initial recurrent weights.
      dtype: compute dtype of the products; the state is at least float32.
    """

    dim: int
    hidden_dim: int | None = None
    activation: str = "tanh"
    recurrent_init: str = "uniform"
    recurrent_scale: float = 1.0
    dtype: str = "float32"

    causal: ClassVar[bool] = True
    paper: ClassVar[str] = "Elman 1990, Finding Structure in Time"

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], state: ElmanState | None = None, *, reset: Bool[Array, "B T"] | None = None
    ) -> tuple[Float[Array, "B T D"], ElmanState]:
        check_sequence(x, self.dim, reset)
        initial = self.initial_state(x.shape[0])
        if state is not None:
            check_state(state, initial)
        width = initial.hidden.shape[-1]
        uniform = symmetric_uniform(width**-0.5)
        params = {
            "input_kernel": self.param("input_kernel", uniform, (self.dim, width)),
            "recurrent_kernel": self.param(
                "recurrent_kernel", recurrent_kernel(self.recurrent_init, self.recurrent_scale), (width, width)
            ),
            "bias": self.param("bias", nn.initializers.zeros, (width,)),
        }
        x = x.astype(self.dtype)
        y, state = elman(params, x, initial if state is None else state, activation=self.activation, reset=reset)
        y = y.astype(x.dtype)
        if self.hidden_dim is not None:
            y = nn.Dense(self.dim, use_bias=False, dtype=self.dtype, name="output")(y)
        return y, state

    def initial_state(self, batch_size: int, dtype: str | None = None) -> ElmanState:
        """Zeros, at least float32 whatever ``dtype``."""
        width = self.dim if self.hidden_dim is None else self.hidden_dim
        check_positive("hidden_dim", width)
        return ElmanState(jnp.zeros((batch_size, width), accumulator(self.dtype)))
