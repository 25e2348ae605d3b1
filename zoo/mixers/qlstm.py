"""Quasi-LSTM: an LSTM whose gates see the input alone, so that its cell is a diagonal linear recurrence.

Stanic, Ashley, Serikov, Kirsch, Faccio, Schmidhuber, Hofmann, Schlag (2023), The Languini Kitchen, arXiv 2309.11197; with
the reversed sigmoid in Sieber et al. (2024), Understanding the Differences in Foundation Models, arXiv 2405.15731.

With u_t [D], E the inner width, everything between the matrices elementwise:

    [g_t, w_t] = W u_t                            E and E numbers
    x_t = sum_k K_k * w_{t-k} + b                 causal depthwise convolution
    [f_t, i_t, o_t] = W_g x_t + b_g               E numbers each
    h_t = lambda_t h_{t-1} + sigmoid(i_t) x_t     lambda_t = sigmoid(f_t), or reversed: exp(-relu(alpha) softplus(f_t))
    y_t = W_o (gelu(g_t) * sigmoid(o_t) * h_t)

The reversed sigmoid, sigmoid(-f)^relu(alpha), is the decay of S6 with A = -alpha: the same numbers in (0, 1), reached with
another gradient, and 1 for alpha <= 0. alpha is a learned number, 1 at the start. Time O(B T E (D + E)), parallel over time
by a scan; state: E numbers per row, and the last taps - 1 values of w.
"""

from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from zoo.checks import check_positive, check_sequence, check_state
from zoo.dtypes import accumulator
from zoo.layers.attention import document_positions
from zoo.layers.convolution import depthwise_convolution, recent
from zoo.layers.initializers import symmetric_uniform
from zoo.registry import register
from zoo.scans import linear_scan


@struct.dataclass
class QLSTMState:
    """Carried state: ``hidden`` [B, E]; ``history`` [B, taps - 1, E] of w; ``age`` [B], tokens of the document so far."""

    hidden: Float[Array, "B E"]
    history: Float[Array, "B K E"]
    age: Int[Array, " B"]


def qlstm_gates(
    params: Mapping[str, Array], x: Float[Array, "*B E"]
) -> tuple[Float[Array, "*B E"], Float[Array, "*B E"], Float[Array, "*B E"]]:
    """(log lambda, sigmoid(i), sigmoid(o)) of the module docstring, in at least float32; reversed with an ``alpha``."""
    gates = (x @ params["gates"].astype(x.dtype)).astype(accumulator(x.dtype)) + params["gates_bias"]
    f, i, o = jnp.split(gates, 3, axis=-1)
    if "alpha" in params:
        log_decay = -jax.nn.relu(params["alpha"]) * jax.nn.softplus(f)
    else:
        log_decay = jax.nn.log_sigmoid(f)
    return log_decay, jax.nn.sigmoid(i), jax.nn.sigmoid(o)


def qlstm_cell(
    params: Mapping[str, Array],
    x: Float[Array, "B T E"],
    hidden: Float[Array, "B E"],
    *,
    values: Float[Array, "B T E"] | None = None,
    reset: Bool[Array, "B T"] | None = None,
    method: str = "auto",
) -> tuple[Float[Array, "B T E"], Float[Array, "B E"]]:
    """The recurrence alone: (sigmoid(o) * h, h after the last token).

    Args:
      params: ``gates``, ``gates_bias``, and ``alpha`` for the reversed sigmoid, as in ``qlstm``.
      x: what the gates see.
      hidden: h before the first token.
      values: what the input gate lets in; None: x.
      reset: True at the first token of a new document.
      method: how the scan is computed, see ``zoo.scans.linear_scan``.
    """
    log_decay, into, out_of = qlstm_gates(params, x)
    decay = jnp.exp(log_decay)
    if reset is not None:
        decay = jnp.where(reset[..., None], 0, decay)
    states, last = linear_scan(decay, into * (x if values is None else values), hidden, method=method)
    return out_of * states, last


def qlstm(
    params: Mapping[str, Array],
    x: Float[Array, "B T D"],
    state: QLSTMState,
    *,
    reset: Bool[Array, "B T"] | None = None,
    method: str = "auto",
) -> tuple[Float[Array, "B T D"], QLSTMState]:
    """The layer of the module docstring.

    Args:
      params: ``input`` [D, 2E], columns g, w; ``kernel`` [taps, E], ``bias`` [E] of the convolution; ``gates`` [E, 3E],
        ``gates_bias`` [3E], columns f, i, o; ``output`` [E, D]; ``alpha`` [] for the reversed sigmoid.
      x: inputs; projections run in their dtype.
      state: state before the first token.
      reset: True at the first token of a new document.
      method: how the scan is computed, see ``zoo.scans.linear_scan``.

    Returns:
      (y, state after the last token); y has x's dtype.
    """
    gate, w = jnp.split(x @ params["input"].astype(x.dtype), 2, axis=-1)
    age = document_positions(reset, state.age, shape=x.shape[:2])
    mixed = depthwise_convolution(w, params["kernel"], age, history=state.history) + params["bias"].astype(x.dtype)
    y, hidden = qlstm_cell(params, mixed, state.hidden, reset=reset, method=method)
    y = (jax.nn.gelu(gate, approximate=False) * y.astype(x.dtype)) @ params["output"].astype(x.dtype)
    history = recent(w, params["kernel"].shape[0] - 1, state.history)
    return y, QLSTMState(hidden, history, age[:, -1] + 1)


@register("qlstm", variants={"default": {}, "reversed": {"reversed_sigmoid": True, "expand": 1, "conv_size": 3}})
class QLSTM(nn.Module):
    """Quasi-LSTM: gates that see the input alone, after a short convolution, with a gated output.

    Attributes:
      dim: width D of input and output.
      expand: inner width E over D.
      conv_size: taps of the convolution.
      reversed_sigmoid: the decay exp(-relu(alpha) softplus(f)) in place of sigmoid(f).
      dtype: compute dtype of the projections; the recurrence runs in at least float32.
    """

    dim: int
    expand: int = 2
    conv_size: int = 4
    reversed_sigmoid: bool = False
    dtype: str = "float32"

    causal: ClassVar[bool] = True
    paper: ClassVar[str] = "Stanic et al. 2023, The Languini Kitchen; Sieber et al. 2024 (reversed sigmoid)"

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], state: QLSTMState | None = None, *, reset: Bool[Array, "B T"] | None = None
    ) -> tuple[Float[Array, "B T D"], QLSTMState]:
        check_sequence(x, self.dim, reset)
        for name in ("expand", "conv_size"):
            check_positive(name, getattr(self, name))
        initial = self.initial_state(x.shape[0])
        if state is not None:
            check_state(state, initial)
        inner, dense = self.expand * self.dim, nn.initializers.lecun_normal()
        declared = {
            "input": (dense, (self.dim, 2 * inner)),
            "kernel": (symmetric_uniform(self.conv_size**-0.5), (self.conv_size, inner)),
            "bias": (nn.initializers.zeros, (inner,)),
            "gates": (dense, (inner, 3 * inner)),
            "gates_bias": (nn.initializers.zeros, (3 * inner,)),
            "output": (dense, (inner, self.dim)),
        }
        if self.reversed_sigmoid:
            declared["alpha"] = (nn.initializers.ones, ())
        params = {name: self.param(name, *how) for name, how in declared.items()}
        return qlstm(params, x.astype(self.dtype), initial if state is None else state, reset=reset)

    def initial_state(self, batch_size: int, dtype: str | None = None) -> QLSTMState:
        """Zeros; ``dtype`` is the storage dtype of the convolution's history."""
        inner = self.expand * self.dim
        return QLSTMState(
            jnp.zeros((batch_size, inner), accumulator(self.dtype)),
            jnp.zeros((batch_size, self.conv_size - 1, inner), dtype or self.dtype),
            jnp.zeros(batch_size, jnp.int32),
        )
