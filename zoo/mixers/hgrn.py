"""HGRN: a complex diagonal recurrence whose forget gates have a lower bound that rises from layer to layer.

Qin, Yang, Zhong (2023), Hierarchically Gated Recurrent Neural Network for Sequence Modeling, arXiv 2311.04823.

With x_t [D], N state channels, gamma [N] in [0, 1) the lower bound, all products with gates elementwise:

    c_t = silu(W_re x_t + b_re) + i silu(W_im x_t + b_im)                [N]
    f_t = gamma + (1 - gamma) sigmoid(W_f x_t + b_f)                     [N]
    h_t = f_t e^(i theta) h_{t-1} + (1 - f_t) c_t                        [N] complex, theta [N] learned
    y_t = W_o (layer_norm(sigmoid(W_g x_t + b_g) [Re h_t, Im h_t])) + b_o

theta_n begins at 10000^(-n / N). ``complex_state`` False is the real form: no theta, no imaginary parts.

The paper's bounds are gamma_k = sum_{i<k} softmax(Gamma)_i over layers, with Gamma shared by all
(``zoo.layers.rising_lower_bounds``). Layers of a ``zoo.models.Stack`` share nothing: here ``lower_bound`` is a number,
k / depth at the paper's start (``zoo.layers.rising_pattern``), or with ``learn_lower_bound`` the start of a parameter of the
layer. That is our choice.

Gates and state are at least float32 (complex64) whatever ``dtype``. Time O(B T D N), parallel over time by a scan; state: N
complex numbers per row, or N real ones.
"""

from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Inexact

from zoo.checks import check_positive, check_sequence, check_state
from zoo.dtypes import accumulator
from zoo.layers.lower_bounds import lower_bound
from zoo.layers.norms import layer_norm
from zoo.layers.projections import linear
from zoo.registry import register
from zoo.scans import linear_scan


@struct.dataclass
class HGRNState:
    """Carried state: ``hidden`` [B, N], complex in the complex form."""

    hidden: Inexact[Array, "B N"]


def hgrn(
    params: Mapping[str, Array],
    x: Float[Array, "B T D"],
    state: HGRNState,
    *,
    norm_eps: float = 1e-5,
    reset: Bool[Array, "B T"] | None = None,
    method: str = "auto",
) -> tuple[Float[Array, "B T D"], HGRNState]:
    """The layer of the module docstring; complex if ``params`` has ``theta``.

    Args:
      params: ``forget`` [D, N], ``input``, ``gate`` [D, M], ``output`` [M, D], each with a bias such as ``forget_bias``;
        ``theta``, ``lower_bound`` [N]; ``norm_scale``, ``norm_bias`` [M]. M = 2 N, real parts before imaginary ones; in the
        real form M = N.
      x: inputs; projections run in their dtype.
      state: state before the first token.
      norm_eps: of the norm.
      reset: True at the first token of a new document.
      method: how the scan is computed, see ``zoo.scans.linear_scan``.

    Returns:
      (y, state after the last token); y has x's dtype.
    """
    wide = accumulator(x.dtype)
    bound = params["lower_bound"].astype(wide)
    forget = bound + (1 - bound) * jax.nn.sigmoid(linear(x, params, "forget").astype(wide))
    candidate = jax.nn.silu(linear(x, params, "input").astype(wide))
    decay = forget
    if "theta" in params:
        candidate = jax.lax.complex(*jnp.split(candidate, 2, axis=-1))
        decay = forget * jnp.exp(1j * params["theta"].astype(wide))
    if reset is not None:
        decay = jnp.where(reset[..., None], 0, decay)
    hidden, last = linear_scan(decay, (1 - forget) * candidate, state.hidden, method=method)
    parts = jnp.concatenate([hidden.real, hidden.imag], axis=-1) if "theta" in params else hidden
    gated = jax.nn.sigmoid(linear(x, params, "gate").astype(wide)) * parts
    y = layer_norm(gated, params["norm_scale"], params["norm_bias"], norm_eps)
    return linear(y.astype(x.dtype), params, "output"), HGRNState(last)


@register(
    "hgrn",
    variants={
        "default": {"state_dim": 5, "lower_bound": 0.25, "learn_lower_bound": True},
        "real": {"state_dim": 6, "complex_state": False, "lower_bound": 0.5},
    },
)
class HGRN(nn.Module):
    """HGRN: gated diagonal recurrence, complex, with forget gates above a lower bound.

    Attributes:
      dim: width D of input and output.
      state_dim: number N of state channels; None: ``dim``.
      complex_state: complex state with learned phases, or a real one.
      lower_bound: gamma, of all channels.
      learn_lower_bound: gamma is a parameter per channel that begins at ``lower_bound`` > 0.
      norm_eps: of the norm.
      dtype: compute dtype of the projections; the recurrence runs in at least float32.
    """

    dim: int
    state_dim: int | None = None
    complex_state: bool = True
    lower_bound: float = 0.0
    learn_lower_bound: bool = False
    norm_eps: float = 1e-5
    dtype: str = "float32"

    causal: ClassVar[bool] = True
    paper: ClassVar[str] = "Qin, Yang and Zhong 2023, Hierarchically Gated Recurrent Neural Network"

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], state: HGRNState | None = None, *, reset: Bool[Array, "B T"] | None = None
    ) -> tuple[Float[Array, "B T D"], HGRNState]:
        check_sequence(x, self.dim, reset)
        initial = self.initial_state(x.shape[0])
        if state is not None:
            check_state(state, initial)
        return hgrn(
            self._params(),
            x.astype(self.dtype),
            initial if state is None else state,
            norm_eps=self.norm_eps,
            reset=reset,
        )

    def _params(self) -> dict[str, Array]:
        width = self.dim if self.state_dim is None else self.state_dim
        parts = 2 * width if self.complex_state else width
        dense, zeros = nn.initializers.lecun_normal(), nn.initializers.zeros
        shapes = {"forget": (self.dim, width), "input": (self.dim, parts), "gate": (self.dim, parts)}
        shapes["output"] = (parts, self.dim)
        params = {}
        for name, shape in shapes.items():
            params[name] = self.param(name, dense, shape)
            params[f"{name}_bias"] = self.param(f"{name}_bias", zeros, shape[1:])
        if self.complex_state:
            params["theta"] = self.param("theta", lambda _: 10_000.0 ** (-jnp.arange(width) / width))
        params["norm_scale"] = self.param("norm_scale", nn.initializers.ones, (parts,))
        params["norm_bias"] = self.param("norm_bias", zeros, (parts,))
        params["lower_bound"] = lower_bound(self, width, self.lower_bound, self.learn_lower_bound)
        return params

    def initial_state(self, batch_size: int, dtype: str | None = None) -> HGRNState:
        """Zeros, at least float32 or complex64 whatever ``dtype``."""
        width = self.dim if self.state_dim is None else self.state_dim
        check_positive("state_dim", width)
        wide = accumulator(self.dtype)
        return HGRNState(
            jnp.zeros((batch_size, width), jnp.result_type(wide, jnp.complex64) if self.complex_state else wide)
        )
