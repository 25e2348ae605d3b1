"""S4D: a diagonal state space model per channel, computed as a convolution or as a recurrence.

Gu, Gupta, Goel, Re (2022), On the Parameterization and Initialization of Diagonal State Space Models.

One system per channel d with N/2 stored modes of conjugate pairs (state_dim = N), u_t the channel's input, Lambda, B,
C [D, N/2] complex and step sizes dt_d = exp(log_dt_d); all products elementwise in the modes:

    h_t = Abar h_{t-1} + Bbar u_t       y_t = 2 Re sum_n C h_t + D u_t
    zoh        Abar = exp(Lambda dt),                           Bbar = (Abar - 1) / Lambda B
    bilinear   Abar = (1 + Lambda dt/2) / (1 - Lambda dt/2),    Bbar = dt / (1 - Lambda dt/2) B
    kernel     K_l = 2 Re sum_n C Bbar Abar^l,  y = K * u + D u + 2 Re sum_n C Abar^(l+1) h_{-1}

Training and prefill take the kernel form, decoding and packed documents the recurrence
(``zoo.layers.diagonal_system``); by the FFT, an output of the kernel form depends on later inputs within rounding.
Behind the system stands an activation (``zoo.layers.output_activation``), by default GELU, a linear map to 2 D
channels and a gated linear unit.

Initial eigenvalues: ``zoo.layers.s4d_system``; B starts at 1, C is complex normal, log_dt uniform between log dt_min
and log dt_max.

Bidirectional (its own mixer): a second kernel, with a C of its own, runs from the end, and both are added; C is [2,
D, N/2].

Time O(B D T (log T + N)), memory O(B D T) in the kernel form, O(B D T N) in the scan form; state: N/2 complex numbers
per channel and row, none for the bidirectional form.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Complex, Float

from zoo.checks import check_choice, check_sequence, check_state
from zoo.dtypes import accumulator
from zoo.layers.diagonal_system import diagonal_kernel, diagonal_system
from zoo.layers.discretization import DISCRETIZATIONS
from zoo.layers.output_activation import activation_parameters, output_activation
from zoo.layers.s4d_system import s4d_parameters, s4d_system
from zoo.layers.two_directions import two_directions
from zoo.registry import register

PAPER = "Gu et al. 2022, On the Parameterization and Initialization of Diagonal State Space Models"


@struct.dataclass
class S4DState:
    """Carried state: ``hidden`` [B, D, N/2] complex."""

    hidden: Complex[Array, "B D N"]


def s4d(
    params: Mapping[str, Array],
    x: Float[Array, "B T D"],
    state: S4DState | None = None,
    *,
    discretization: str = "zoh",
    activation: str = "none",
    reset: Bool[Array, "B T"] | None = None,
    form: str = "auto",
) -> tuple[Float[Array, "B T D"], S4DState]:
    """The layer of the module docstring.

    Args:
      params: ``log_neg_re`` (log(-Re Lambda)), ``Lambda_im``, ``B_re``, ``B_im``, ``C_re``, ``C_im`` [D, N/2];
        ``log_dt``, ``D`` [D]; those of the activation.
      x: inputs.
      state: state before the first token; None for the start.
      discretization: "zoh" or "bilinear".
      activation: see ``zoo.layers.output_activation``.
      reset: True at the first token of a new document.
      form: "auto", "kernel" or "scan", see ``zoo.layers.diagonal_system``.

    Returns:
      (y, state after the last token); y has x's dtype.
    """
    u = x.astype(accumulator(x.dtype))
    initial = None if state is None else state.hidden
    system = s4d_system(params, discretization, u.dtype)
    y, last = diagonal_system(*system, u, initial, reset=reset, form=form)
    return output_activation(params, (y + params["D"] * u).astype(x.dtype), activation), S4DState(last)


def s4d_bidirectional(
    params: Mapping[str, Array],
    x: Float[Array, "B T D"],
    *,
    discretization: str = "zoh",
    activation: str = "none",
    reset: Bool[Array, "B T"] | None = None,
    form: str = "auto",
) -> Float[Array, "B T D"]:
    """The bidirectional layer: as ``s4d``, but ``C_re``, ``C_im`` are [2, D, N/2]: forward and backward kernel."""
    u = x.astype(accumulator(x.dtype))

    def run(direction, inputs, reset):
        one = {**params, "C_re": params["C_re"][direction], "C_im": params["C_im"][direction]}
        return diagonal_system(*s4d_system(one, discretization, u.dtype), inputs, reset=reset, form=form)[0]

    y = two_directions(run, u, reset)
    return output_activation(params, (y + params["D"] * u).astype(x.dtype), activation)


def s4d_kernel(params: Mapping[str, Array], length: int, discretization: str = "zoh") -> Float[Array, "L D"]:
    """K of the module docstring, in the dtype of the parameters."""
    decay, gain, readout = s4d_system(params, discretization, accumulator(params["log_dt"].dtype))
    return diagonal_kernel(decay, gain * readout, length)


def _declare(module: Any, directions: int) -> dict[str, Array]:
    """Checks the options of ``module`` and declares its parameters, C for so many directions."""
    check_choice("discretization", module.discretization, DISCRETIZATIONS)
    params = s4d_parameters(
        module, module.dim, state_dim=module.state_dim, lambda_init=module.lambda_init, dt_min=module.dt_min,
        dt_max=module.dt_max, directions=directions,
    )  # fmt: skip
    params["D"] = module.param("D", nn.initializers.normal(1.0), (module.dim,))
    return params | activation_parameters(module, module.activation, module.dim)


@register(
    "s4d",
    variants={
        "default": {"state_dim": 6, "dt_min": 0.05, "dt_max": 0.5},
        "inv_bilinear": {
            "state_dim": 4, "lambda_init": "inv", "discretization": "bilinear", "activation": "gelu", "dt_min": 0.1,
            "dt_max": 1.0,
        },
    },
)  # fmt: skip
class S4D(nn.Module):
    """S4D: diagonal state space model per channel, a convolution in training and a recurrence in decoding.

    Attributes:
      dim: width D of input and output.
      state_dim: even state size N of every channel, conjugate modes included.
      lambda_init: initial eigenvalues: "lin", "inv", "legs", "real" or "random".
      discretization: "zoh" or "bilinear".
      activation: after the system: "full_glu", "gelu", "half_glu1", "half_glu2" or "none".
      dt_min: smallest step size at initialisation.
      dt_max: largest step size at initialisation.
      form: "auto", "kernel" or "scan".
      dtype: dtype of inputs, outputs and the activation; the system runs in at least float32.
    """

    dim: int
    state_dim: int = 64
    lambda_init: str = "lin"
    discretization: str = "zoh"
    activation: str = "full_glu"
    dt_min: float = 0.001
    dt_max: float = 0.1
    form: str = "auto"
    dtype: str = "float32"

    causal: ClassVar[bool] = True
    paper: ClassVar[str] = PAPER

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], state: S4DState | None = None, *, reset: Bool[Array, "B T"] | None = None
    ) -> tuple[Float[Array, "B T D"], S4DState]:
        check_sequence(x, self.dim, reset)
        if state is not None:
            check_state(state, self.initial_state(x.shape[0]))
        return s4d(
            _declare(self, 1), x.astype(self.dtype), state, discretization=self.discretization,
            activation=self.activation, reset=reset, form=self.form,
        )  # fmt: skip

    def initial_state(self, batch_size: int, dtype: str | None = None) -> S4DState:
        """Zeros; the state is complex64 whatever ``dtype``."""
        return S4DState(jnp.zeros((batch_size, self.dim, self.state_dim // 2), jnp.complex64))


@register(
    "s4d_bidirectional",
    variants={"default": {"state_dim": 6, "lambda_init": "legs", "dt_min": 0.05, "dt_max": 0.5}},
)
class S4DBidirectional(nn.Module):
    """Bidirectional S4D: two diagonal kernels per channel, one from each end.

    Attributes:
      dim, state_dim, lambda_init, discretization, activation, dt_min, dt_max, form, dtype: as in ``S4D``.
    """

    dim: int
    state_dim: int = 64
    lambda_init: str = "lin"
    discretization: str = "zoh"
    activation: str = "full_glu"
    dt_min: float = 0.001
    dt_max: float = 0.1
    form: str = "auto"
    dtype: str = "float32"

    causal: ClassVar[bool] = False
    paper: ClassVar[str] = PAPER

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], state: Any = None, *, reset: Bool[Array, "B T"] | None = None
    ) -> tuple[Float[Array, "B T D"], None]:
        check_sequence(x, self.dim, reset)
        if state is not None:
            raise ValueError("s4d_bidirectional keeps no state (it reads the whole sequence), but got one")
        y = s4d_bidirectional(
            _declare(self, 2), x.astype(self.dtype), discretization=self.discretization,
            activation=self.activation, reset=reset, form=self.form,
        )  # fmt: skip
        return y, None

    def initial_state(self, batch_size: int, dtype: str | None = None) -> None:
        """None: there is no state."""
        return None
