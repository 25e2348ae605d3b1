"""DSS: a diagonal state space model per channel, with the kernel's normalisation of the first diagonal models.

Gupta, Gu, Berant (2022), Diagonal State Spaces are as Effective as Structured State Spaces.

One system per channel d with M modes, u_t the channel's input, Lambda, w [D, M] complex and dt_d = exp(log_dt_d); all
products elementwise in the modes, and no conjugates (so no factor 2):

    exp      K_l = Re sum_n w (exp(Lambda dt) - 1) / Lambda exp(Lambda dt l)        Re Lambda = -exp(log_neg_re)
    softmax  K_l = Re sum_n w / Lambda softmax_l(Lambda dt l)      Lambda_re free, softmax over l = 0 .. L - 1
    y = K * u + D u

exp is the zero-order hold of x' = Lambda x + u, y = Re(w x). The softmax, over complex numbers, divides by sum_l
exp(Lambda dt l), in which the length L enters. Here L is a fixed number of the layer (``length``, the length it is
trained at), so that a layer is one system, a recurrence with decay exp(Lambda dt), for calls of any length, decoding
and cuts included. Where Re Lambda > 0 the exponent is shifted by its largest value, at l = L - 1; such a mode grows,
and what it does beyond L steps nobody has trained. A sum z is divided by as z^* / max(|z|^2, ``SMALLEST``).

Forms and states as in S4D (``zoo.layers.diagonal_system``). Initialisation: Lambda the diagonal part of HiPPO-LegS, w
complex normal, log_dt uniform between log dt_min and log dt_max. Behind the system stands an activation
(``zoo.layers.output_activation``).

Time O(B D T (log T + M)), memory O(B D T) in the kernel form, O(B D T M) in the scan form; state: M complex numbers
per channel and row.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Complex, Float

from zoo.checks import check_choice, check_positive, check_sequence, check_state
from zoo.dtypes import accumulator
from zoo.layers.diagonal_system import diagonal_kernel, diagonal_system
from zoo.layers.discretization import discretize
from zoo.layers.dplr import dplr
from zoo.layers.output_activation import activation_parameters, output_activation
from zoo.layers.step_sizes import check_step_sizes, log_step_sizes
from zoo.registry import register

NORMALIZATIONS = ("exp", "softmax")
SMALLEST = 1e-7


@struct.dataclass
class DSSState:
    """Carried state: ``hidden`` [B, D, M] complex."""

    hidden: Complex[Array, "B D M"]


def dss(
    params: Mapping[str, Array],
    x: Float[Array, "B T D"],
    state: DSSState | None = None,
    *,
    normalization: str = "exp",
    length: int | None = None,
    activation: str = "none",
    reset: Bool[Array, "B T"] | None = None,
    form: str = "auto",
) -> tuple[Float[Array, "B T D"], DSSState]:
    """The layer of the module docstring.

    Args:
      params: ``log_neg_re`` (exp) or ``Lambda_re`` (softmax), ``Lambda_im``, ``w_re``, ``w_im`` [D, M]; ``log_dt``,
        ``D`` [D]; those of the activation.
      x: inputs.
      state: state before the first token; None for the start.
      normalization: "exp" or "softmax".
      length: L of the softmax.
      activation: see ``zoo.layers.output_activation``.
      reset: True at the first token of a new document.
      form: "auto", "kernel" or "scan", see ``zoo.layers.diagonal_system``.

    Returns:
      (y, state after the last token); y has x's dtype.
    """
    u = x.astype(accumulator(x.dtype))
    initial = None if state is None else state.hidden
    system = dss_system(params, normalization, length, u.dtype)
    y, last = diagonal_system(*system, u, initial, reset=reset, form=form)
    return output_activation(params, (y + params["D"] * u).astype(x.dtype), activation), DSSState(last)


def dss_system(
    params: Mapping[str, Array], normalization: str = "exp", length: int | None = None, dtype: Any = jnp.float32
) -> tuple[Complex[Array, "D M"], Complex[Array, "D M"], Complex[Array, "D M"]]:
    """(decay, gain, readout) with K_l = Re sum_n readout gain decay^l; arguments as in ``dss``."""
    check_choice("normalization", normalization, NORMALIZATIONS)
    p = {name: value.astype(dtype) for name, value in params.items()}
    real = p["Lambda_re"] if normalization == "softmax" else -jnp.exp(p["log_neg_re"])
    eigenvalues = jax.lax.complex(real, p["Lambda_im"])
    step = jnp.broadcast_to(jnp.exp(p["log_dt"])[:, None], eigenvalues.shape)
    weights = jax.lax.complex(p["w_re"], p["w_im"])
    decay, gain = discretize(eigenvalues, step)
    if normalization == "exp":
        return decay, gain, weights
    check_positive("length", length)
    # sum_l exp(x l) = exp(x (L - 1)) sum_l exp(-x l): the largest term is 1 in either case
    grows = eigenvalues.real > 0
    exponent = eigenvalues * step
    inward = jnp.where(grows, -exponent, exponent)
    total = jnp.sum(jnp.exp(inward[..., None] * jnp.arange(length, dtype=dtype)), axis=-1)
    size = jnp.maximum(jnp.square(total.real) + jnp.square(total.imag), SMALLEST)
    shift = jnp.exp(jnp.where(grows, -exponent * (length - 1), 0))
    return decay, shift * total.conj() / size, weights / eigenvalues


def dss_kernel(
    params: Mapping[str, Array], kernel_length: int, normalization: str = "exp", length: int | None = None
) -> Float[Array, "L D"]:
    """The first ``kernel_length`` taps of K of the module docstring; other arguments as in ``dss``."""
    decay, gain, readout = dss_system(params, normalization, length, accumulator(params["log_dt"].dtype))
    return diagonal_kernel(decay, gain * readout, kernel_length)


@register(
    "dss",
    variants={
        "default": {"state_dim": 6, "dt_min": 0.05, "dt_max": 0.5},
        "softmax": {
            "state_dim": 4, "normalization": "softmax", "length": 9, "activation": "none", "dt_min": 0.05,
            "dt_max": 0.5,
        },
    },
)  # fmt: skip
class DSS(nn.Module):
    """DSS: diagonal state space model per channel with an exp or softmax kernel.

    Attributes:
      dim: width D of input and output.
      state_dim: even size N of the HiPPO matrix whose M = N/2 modes with positive frequency are the initial ones.
      normalization: "exp" or "softmax".
      length: L of the softmax, the length at which the layer is trained (not read by "exp").
      activation: after the system: "full_glu", "gelu", "half_glu1", "half_glu2" or "none".
      dt_min: smallest step size at initialisation.
      dt_max: largest step size at initialisation.
      form: "auto", "kernel" or "scan".
      dtype: dtype of inputs, outputs and the activation; the system runs in at least float32.
    """

    dim: int
    state_dim: int = 64
    normalization: str = "exp"
    length: int = 1024
    activation: str = "full_glu"
    dt_min: float = 0.001
    dt_max: float = 0.1
    form: str = "auto"
    dtype: str = "float32"

    causal: ClassVar[bool] = True
    paper: ClassVar[str] = "Gupta et al. 2022, Diagonal State Spaces are as Effective as Structured State Spaces"

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], state: DSSState | None = None, *, reset: Bool[Array, "B T"] | None = None
    ) -> tuple[Float[Array, "B T D"], DSSState]:
        check_sequence(x, self.dim, reset)
        if state is not None:
            check_state(state, self.initial_state(x.shape[0]))
        return dss(
            self._params(), x.astype(self.dtype), state, normalization=self.normalization, length=self.length,
            activation=self.activation, reset=reset, form=self.form,
        )  # fmt: skip

    def initial_state(self, batch_size: int, dtype: str | None = None) -> DSSState:
        """Zeros; the state is complex64 whatever ``dtype``."""
        return DSSState(jnp.zeros((batch_size, self.dim, self.state_dim // 2), jnp.complex64))

    def _params(self) -> dict[str, Array]:
        check_positive("state_dim", self.state_dim)
        check_choice("normalization", self.normalization, NORMALIZATIONS)
        check_positive("length", self.length)
        check_step_sizes(self.dt_min, self.dt_max)
        shape = (self.dim, self.state_dim // 2)
        eigenvalues = dplr("legs", self.state_dim).eigenvalues.conj()

        def all_channels(values):
            return lambda _: jnp.broadcast_to(jnp.asarray(values, jnp.float32), shape)

        name, real = "Lambda_re", eigenvalues.real
        if self.normalization == "exp":
            name, real = "log_neg_re", np.log(-real)
        params = {name: self.param(name, all_channels(real))}
        params["Lambda_im"] = self.param("Lambda_im", all_channels(eigenvalues.imag))
        for part in ("w_re", "w_im"):
            params[part] = self.param(part, nn.initializers.normal(0.5**0.5), shape)
        params["log_dt"] = self.param("log_dt", log_step_sizes(self.dt_min, self.dt_max), shape[:1])
        params["D"] = self.param("D", nn.initializers.normal(1.0), shape[:1])
        return params | activation_parameters(self, self.activation, self.dim)
