"""Liquid-S4: a diagonal state space model whose transition depends linearly on the input.

Hasani, Lechner, Wang, Chahine, Amini, Rus (2023), Liquid Structural State-Space Models.

One system per channel d, with N/2 stored modes of conjugate pairs (state_dim = N), u_t the channel's input, and Abar,
Bbar [N/2] complex from a bilinear or zero-order-hold discretisation of lambda, B = 1, step dt_d = exp(log_dt_d):

    exact   x_t = (Abar + Bbar u_t) x_{t-1} + Bbar u_t                     y_t = 2 Re(C x_t) + D u_t
    kb      x_t = Abar x_{t-1} + sum_{p=1..order} Bbar^p u_t u_{t-1} ... u_{t-p+1}      (y_t as above)
    pb      x_t = Abar x_{t-1} + Bbar u_t          y_t = 2 Re(C x_t + sum_{p=2..order} C Bbar^p u_t ... u_{t-p+1}) + D u_t

All products are elementwise in the modes. Expanding the exact form in powers of u gives the linear model, then terms in
products of inputs; kb and pb keep only products of adjacent inputs, up to ``order`` of them: kb convolves them with the
kernel C Abar^l Bbar^p, pb adds them pointwise (Abar replaced by the identity). A product never reaches across a
document boundary, and inputs before the start count as zero. (The authors' code takes the products from the end of the
sequence, which is not causal; here they are the causal ones.)

The exact form is stable only while |Abar + Bbar u_t| stays below 1 on average: keep inputs normalised.

Initialisation as S4D-Lin: lambda_n = -1/2 + i pi n; C complex normal; log_dt uniform between log dt_min and log dt_max.
Time O(B T D N), parallel over time by a scan, and as much memory for the states; state per row: N/2 complex numbers per
channel and the last order - 1 inputs (none for the exact form).
"""

import math
from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Complex, Float

from zoo.checks import check_choice, check_positive, check_sequence, check_state
from zoo.dtypes import accumulator
from zoo.layers.discretization import DISCRETIZATIONS, discretize
from zoo.registry import register
from zoo.scans import linear_scan

FORMS = ("exact", "kb", "pb")


@struct.dataclass
class LiquidS4State:
    """Carried state.

    Attributes:
      hidden: [B, D, N/2] complex.
      inputs: [B, order - 1, D], the last inputs of the current document, newest last, zeros before it ([B, 0, D] for the
        exact form).
    """

    hidden: Complex[Array, "B D N"]
    inputs: Float[Array, "B K D"]


def liquid_scan(
    decay: Complex[Array, "D N"],
    gain: Complex[Array, "D N"],
    readout: Complex[Array, "D N"],
    x: Float[Array, "B T D"],
    state: LiquidS4State,
    *,
    form: str = "exact",
    order: int = 2,
    reset: Bool[Array, "B T"] | None = None,
    method: str = "auto",
) -> tuple[Float[Array, "B T D"], LiquidS4State]:
    """The recurrences of the module docstring, without the D term; ``order=1`` is the linear model.

    Args:
      decay: Abar of every channel.
      gain: Bbar.
      readout: C.
      x: inputs u, in the dtype of the recurrence.
      state: state before the first token.
      form: "exact", "kb" or "pb".
      order: largest number of inputs multiplied (kb and pb).
      reset: True at the first token of a new document.
      method: how the scan is computed, see ``zoo.scans.linear_scan``.
    """
    u = x[..., None]
    if form == "exact":
        transition, drive, inputs = decay + gain * u, gain * u, state.inputs
        products = []
    else:
        transition, drive = decay[None, None], gain * u
        products, inputs = _adjacent_products(x, state.inputs, order, reset)
        if form == "kb":
            drive = drive + sum(gain**p * product[..., None] for p, product in enumerate(products, start=2))
    if reset is not None:
        transition = jnp.where(reset[..., None, None], 0, transition)
    hidden, last = linear_scan(transition, drive, state.hidden, method=method)
    if form == "pb":
        hidden = hidden + sum(gain**p * product[..., None] for p, product in enumerate(products, start=2))
    return 2 * jnp.sum((readout * hidden).real, axis=-1), LiquidS4State(last, inputs)


def liquid_second_order(
    decay: Complex[Array, "D N"],
    gain: Complex[Array, "D N"],
    readout: Complex[Array, "D N"],
    x: Float[Array, "B T D"],
) -> Float[Array, "B T D"]:
    """The exact form up to products of two inputs, whatever their distance: what kb approximates by adjacent ones.

    x1_t = Abar x1_{t-1} + Bbar u_t,  x2_t = Abar x2_{t-1} + Bbar u_t x1_{t-1},  y_t = 2 Re(C (x1_t + x2_t)), from zero.
    """
    drive = gain * x[..., None]
    first, _ = linear_scan(decay[None, None], drive)
    before = jnp.pad(first[:, :-1], ((0, 0), (1, 0), (0, 0), (0, 0)))
    second, _ = linear_scan(decay[None, None], drive * before)
    return 2 * jnp.sum((readout * (first + second)).real, axis=-1)


def _adjacent_products(x, past, order, reset):
    """[u_t u_{t-1}, u_t u_{t-1} u_{t-2}, ...] up to ``order`` factors, within documents; and the last order - 1 inputs."""
    time = x.shape[1]
    extended = jnp.concatenate([past.astype(x.dtype), x], axis=1)
    first = jnp.zeros(extended.shape[:2], bool)
    if reset is not None:
        first = first.at[:, order - 1 :].set(reset)
    products, product, same = [], x, True
    for lag in range(1, order):
        stop = order - 1 - lag + time
        # u_{t-lag} is of t's document if no document starts in (t - lag, t]
        same = same & ~first[:, stop + 1 - time : stop + 1]
        product = product * jnp.where(same[..., None], extended[:, stop - time : stop], 0)
        products.append(product)
    tail = extended[:, time:]
    starts = first[:, time:]
    later = jnp.cumsum(starts[:, ::-1], axis=1)[:, ::-1] - starts  # documents that start after this input
    return products, jnp.where(later[..., None] > 0, 0, tail)


def liquid_s4(
    params: Mapping[str, Array],
    x: Float[Array, "B T D"],
    state: LiquidS4State,
    *,
    form: str = "exact",
    order: int = 2,
    discretization: str = "bilinear",
    reset: Bool[Array, "B T"] | None = None,
    method: str = "auto",
) -> tuple[Float[Array, "B T D"], LiquidS4State]:
    """The layer of the module docstring.

    Args:
      params: ``log_neg_re`` (log(-Re lambda)), ``Lambda_im``, ``C_re``, ``C_im`` [D, N/2]; ``log_dt``, ``D`` [D].
      x: inputs.
      state: state before the first token.
      form: "exact", "kb" or "pb".
      order: largest number of inputs multiplied (kb and pb).
      discretization: "zoh" or "bilinear".
      reset: True at the first token of a new document.
      method: how the scan is computed, see ``zoo.scans.linear_scan``.

    Returns:
      (y, state after the last token); y has x's dtype.
    """
    dtype = accumulator(x.dtype)
    p = {name: value.astype(dtype) for name, value in params.items()}
    eigenvalues = jax.lax.complex(-jnp.exp(p["log_neg_re"]), p["Lambda_im"])
    step = jnp.broadcast_to(jnp.exp(p["log_dt"])[:, None], eigenvalues.shape)
    decay, gain = discretize(eigenvalues, step, discretization)
    readout = jax.lax.complex(p["C_re"], p["C_im"])
    u = x.astype(dtype)
    y, state = liquid_scan(decay, gain, readout, u, state, form=form, order=order, reset=reset, method=method)
    return (y + p["D"] * u).astype(x.dtype), state


@register(
    "liquid_s4",
    variants={
        "default": {"state_dim": 6},
        # large steps, so that products of inputs carry weight
        "kb": {"state_dim": 4, "form": "kb", "order": 3, "dt_min": 0.5, "dt_max": 1.0},
        "pb": {"state_dim": 4, "form": "pb", "discretization": "zoh", "dt_min": 0.5, "dt_max": 1.0},
    },
)
class LiquidS4(nn.Module):
    """Liquid-S4: diagonal state space model whose transition depends linearly on the input.

    Attributes:
      dim: width D of input and output.
      state_dim: even state size N of every channel, conjugate modes included.
      form: "exact", "kb" or "pb".
      order: largest number of inputs multiplied, at least 2 (kb and pb; the exact form has all orders).
      discretization: "zoh" or "bilinear".
      dt_min: smallest step size at initialisation.
      dt_max: largest step size at initialisation.
      dtype: dtype of inputs and outputs; the recurrence runs in complex64.
    """

    dim: int
    state_dim: int = 64
    form: str = "exact"
    order: int = 2
    discretization: str = "bilinear"
    dt_min: float = 0.001
    dt_max: float = 0.1
    dtype: str = "float32"

    causal: ClassVar[bool] = True
    paper: ClassVar[str] = "Hasani et al. 2023, Liquid Structural State-Space Models"

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], state: LiquidS4State | None = None, *, reset: Bool[Array, "B T"] | None = None
    ) -> tuple[Float[Array, "B T D"], LiquidS4State]:
        check_sequence(x, self.dim, reset)
        initial = self.initial_state(x.shape[0])
        if state is not None:
            check_state(state, initial)
        options = {"form": self.form, "order": self.order, "discretization": self.discretization}
        return liquid_s4(
            self._params(), x.astype(self.dtype), initial if state is None else state, reset=reset, **options
        )

    def initial_state(self, batch_size: int, dtype: str | None = None) -> LiquidS4State:
        """Zeros: the state is complex64, the last inputs float32, whatever ``dtype``."""
        kept = 0 if self.form == "exact" else self.order - 1
        hidden = jnp.zeros((batch_size, self.dim, self.state_dim // 2), jnp.complex64)
        return LiquidS4State(hidden, jnp.zeros((batch_size, kept, self.dim), accumulator(self.dtype)))

    def _params(self) -> dict[str, Array]:
        check_positive("state_dim", self.state_dim)
        if self.state_dim % 2:
            raise ValueError(f"state_dim must be even (half of it is stored), got {self.state_dim}")
        check_choice("form", self.form, FORMS)
        check_choice("discretization", self.discretization, DISCRETIZATIONS)
        check_positive("order", self.order)
        if self.order < 2:
            raise ValueError(f"order must be at least 2, got {self.order}")
        if not 0 < self.dt_min <= self.dt_max:
            raise ValueError(f"need 0 < dt_min <= dt_max, got dt_min={self.dt_min}, dt_max={self.dt_max}")
        shape = (self.dim, self.state_dim // 2)
        low, high = math.log(self.dt_min), math.log(self.dt_max)
        frequencies = jnp.pi * jnp.arange(shape[1], dtype=jnp.float32)
        params = {
            "log_neg_re": self.param("log_neg_re", nn.initializers.constant(math.log(0.5)), shape),
            "Lambda_im": self.param("Lambda_im", lambda _: jnp.broadcast_to(frequencies, shape)),
            "log_dt": self.param("log_dt", lambda k: jax.random.uniform(k, shape[:1], minval=low, maxval=high)),
            "D": self.param("D", nn.initializers.normal(1.0), shape[:1]),
        }
        for part in ("re", "im"):
            params[f"C_{part}"] = self.param(f"C_{part}", nn.initializers.normal(0.5**0.5), shape)
        return params
