"""Gated impulse linear recurrence: a GRU whose gate and candidate see the input alone, so that the recurrence is linear.

Martin and Cundy (2018), Parallelizing Linear Recurrent Neural Nets Over Sequence Length; with an identity candidate it is
minGRU, Feng et al. (2024), Were RNNs All We Needed?

With x_t [D] the input cut into H heads, h_t [N] the state, all products but the first elementwise:

    p = blockdiag_H(B) x_t + b                [2, N], rows z, c; B [H, D/H, 2, N/H], b [2, N]
    z = sigmoid(p_z),  c = tanh(p_c)
    h_t = (1 - z) h_{t-1} + z c
    y_t = h_t, or W h_t with W [N, D] when ``hidden_dim`` is given

No gate sees h: this is ParaGRU without what makes it nonlinear, and what it is compared with. The state of a layer is a
weighted mean of the past; it cannot follow the parity of a sequence, which flips with every one.

Time O(B T D N / H), parallel over time by a scan; state: N numbers per row.
"""

from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float

from zoo.checks import check_positive, check_sequence, check_state
from zoo.dtypes import accumulator
from zoo.layers.cell_initializers import cell_bias, cell_weight
from zoo.layers.nonlinearities import nonlinearity
from zoo.layers.parallel_cell import check_heads, head_projection
from zoo.registry import register
from zoo.scans import linear_scan


@struct.dataclass
class GILRState:
    """Carried state: ``hidden`` [B, N]."""

    hidden: Float[Array, "B N"]


def gilr(
    params: Mapping[str, Array],
    x: Float[Array, "B T D"],
    state: GILRState,
    *,
    activation: str = "tanh",
    reset: Bool[Array, "B T"] | None = None,
    method: str = "auto",
) -> tuple[Float[Array, "B T N"], GILRState]:
    """The states of the module docstring.

    Args:
      params: ``B`` [H, D/H, 2, N/H], ``b`` [2, N]; rows z, candidate.
      x: inputs; the projection runs in their dtype.
      state: state before the first token.
      activation: nonlinearity of the candidate, a name of ``zoo.layers.NONLINEARITIES``.
      reset: True at the first token of a new document.
      method: how the scan is computed, see ``zoo.scans.linear_scan``.

    Returns:
      (h [B, T, N] in at least float32, state after the last token).
    """
    p = head_projection(x, params["B"], params["b"])
    decay, z = jax.nn.sigmoid(-p[:, :, 0]), jax.nn.sigmoid(p[:, :, 0])
    if reset is not None:
        decay = jnp.where(reset[..., None], 0, decay)
    hidden, last = linear_scan(decay, z * nonlinearity(activation).function(p[:, :, 1]), state.hidden, method=method)
    return hidden, GILRState(last)


@register("gilr", variants={"default": {"heads": 2}, "min_gru": {"activation": "identity", "hidden_dim": 6}})
class GILR(nn.Module):
    """Gated impulse linear recurrence: gates see the input alone; also minGRU.

    Attributes:
      dim: width D of input and output.
      hidden_dim: width N of the state; None takes ``dim`` and no output projection.
      heads: heads of the input projection; divides ``dim`` and ``hidden_dim``.
      activation: nonlinearity of the candidate; "identity" is minGRU.
      input_init, bias_init: see ``zoo.layers.cell_initializers``.
      dtype: compute dtype of the projection; the recurrence runs in at least float32.
    """

    dim: int
    hidden_dim: int | None = None
    heads: int = 1
    activation: str = "tanh"
    input_init: str = "xavier_uniform"
    bias_init: str = "minus_linspace"
    dtype: str = "float32"

    causal: ClassVar[bool] = True
    paper: ClassVar[str] = "Martin and Cundy 2018, Parallelizing Linear Recurrent Neural Nets Over Sequence Length"

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], state: GILRState | None = None, *, reset: Bool[Array, "B T"] | None = None
    ) -> tuple[Float[Array, "B T D"], GILRState]:
        check_sequence(x, self.dim, reset)
        initial = self.initial_state(x.shape[0])
        if state is not None:
            check_state(state, initial)
        width = initial.hidden.shape[-1]
        check_positive("heads", self.heads)
        check_heads(self.heads, self.dim, width)
        inputs = self.dim // self.heads
        kernel = cell_weight(self.input_init, inputs, width)
        params = {
            "B": self.param("B", kernel, (self.heads, inputs, 2, width // self.heads)),
            "b": self.param("b", cell_bias(self.bias_init), (2, width)),
        }
        x = x.astype(self.dtype)
        y, state = gilr(params, x, initial if state is None else state, activation=self.activation, reset=reset)
        y = y.astype(x.dtype)
        if self.hidden_dim is not None:
            y = nn.Dense(self.dim, use_bias=False, dtype=self.dtype, name="output")(y)
        return y, state

    def initial_state(self, batch_size: int, dtype: str | None = None) -> GILRState:
        """Zeros, at least float32 whatever ``dtype``."""
        width = self.dim if self.hidden_dim is None else self.hidden_dim
        check_positive("hidden_dim", width)
        return GILRState(jnp.zeros((batch_size, width), accumulator(self.dtype)))
