"""Linear Recurrent Unit: a diagonal, complex, stable linear recurrence.

Orvieto, Smith, Gu, Fernando, Gulcehre, Pascanu, De (2023), Resurrecting Recurrent Neural Networks for Long Sequences.

With u_t [D] the input, h_t [P] the complex state:

    lambda = exp(-exp(nu_log) + i exp(theta_log))        [P], always inside the unit circle
    h_t = lambda * h_{t-1} + exp(gamma_log) * (B u_t)
    y_t = Re(C h_t) + d * u_t

B [D, P] and C [P, D] are complex, d [D] real. At initialisation |lambda| is uniform by area on the ring
[r_min, r_max], its phase is uniform on (0, max_phase), and gamma = sqrt(1 - |lambda|^2) keeps the state's variance
at one. Time O(B T (D P + P)), parallel over time by a scan; state: P complex numbers per row.
"""

from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Complex, Float

from zoo.checks import check_positive, check_sequence, check_state
from zoo.dtypes import accumulator
from zoo.registry import register
from zoo.scans import linear_scan


@struct.dataclass
class LRUState:
    """Carried state: ``hidden`` [B, P] complex."""

    hidden: Complex[Array, "B P"]


def lru(
    params: Mapping[str, Array],
    x: Float[Array, "B T D"],
    state: LRUState,
    *,
    reset: Bool[Array, "B T"] | None = None,
    method: str = "auto",
) -> tuple[Float[Array, "B T D"], LRUState]:
    """The recurrence of the module docstring.

    Args:
      params: ``nu_log``, ``theta_log``, ``gamma_log`` [P]; ``B_re``, ``B_im`` [D, P]; ``C_re``, ``C_im`` [P, D];
        ``D`` [D].
      x: inputs.
      state: state before the first token.
      reset: True at the first token of a new document.
      method: how the scan is computed, see ``zoo.scans.linear_scan``.

    Returns:
      (y, state after the last token); y has x's dtype.
    """
    dtype = accumulator(x.dtype)
    real, imag = (params[k].astype(dtype) for k in ("nu_log", "theta_log"))
    decay = jnp.exp(jax.lax.complex(-jnp.exp(real), jnp.exp(imag)))[None, None]
    gamma = jnp.exp(params["gamma_log"])
    drive = jax.lax.complex(*((x @ params[k].astype(x.dtype)).astype(dtype) * gamma for k in ("B_re", "B_im")))
    if reset is not None:
        decay = jnp.where(reset[..., None], 0, decay)
    hidden, last = linear_scan(decay, drive, state.hidden, method=method)
    y = hidden.real @ params["C_re"] - hidden.imag @ params["C_im"]
    return (y + params["D"] * x).astype(x.dtype), LRUState(last)


@register("lru", variants={"default": {"state_dim": 6}, "ring": {"state_dim": 5, "r_min": 0.8, "r_max": 0.99}})
class LRU(nn.Module):
    """Linear Recurrent Unit: diagonal complex linear recurrence.

    Attributes:
      dim: width D of input and output.
      state_dim: number P of complex state channels.
      r_min: smallest |lambda| at initialisation.
      r_max: largest |lambda| at initialisation.
      max_phase: largest phase of lambda at initialisation, in radians.
      dtype: compute dtype of the projections; the recurrence runs in complex64.
    """

    dim: int
    state_dim: int = 64
    r_min: float = 0.0
    r_max: float = 1.0
    max_phase: float = 6.283185307179586
    dtype: str = "float32"

    causal: ClassVar[bool] = True
    paper: ClassVar[str] = "Orvieto et al. 2023, Resurrecting Recurrent Neural Networks for Long Sequences"

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], state: LRUState | None = None, *, reset: Bool[Array, "B T"] | None = None
    ) -> tuple[Float[Array, "B T D"], LRUState]:
        check_sequence(x, self.dim, reset)
        initial = self.initial_state(x.shape[0])
        if state is not None:
            check_state(state, initial)
        return lru(self._params(), x.astype(self.dtype), initial if state is None else state, reset=reset)

    def initial_state(self, batch_size: int, dtype: str | None = None) -> LRUState:
        """Zeros; the state is complex64 whatever ``dtype``."""
        return LRUState(jnp.zeros((batch_size, self.state_dim), jnp.complex64))

    def _params(self) -> dict[str, Array]:
        check_positive("state_dim", self.state_dim)
        if not 0 <= self.r_min < self.r_max <= 1:
            raise ValueError(f"need 0 <= r_min < r_max <= 1, got r_min={self.r_min}, r_max={self.r_max}")
        d, p = self.dim, self.state_dim

        def nu_log(key):
            area = jax.random.uniform(key, (p,), minval=1e-6, maxval=1 - 1e-6)
            return jnp.log(-0.5 * jnp.log(area * (self.r_max**2 - self.r_min**2) + self.r_min**2))

        def theta_log(key):
            return jnp.log(self.max_phase * jax.random.uniform(key, (p,), minval=1e-6))

        nu = self.param("nu_log", nu_log)
        params = {"nu_log": nu, "theta_log": self.param("theta_log", theta_log)}
        # |lambda|^2 = exp(-2 exp(nu_log)); expm1 keeps 1 - |lambda|^2 exact near the unit circle.
        params["gamma_log"] = self.param("gamma_log", lambda _: 0.5 * jnp.log(-jnp.expm1(-2 * jnp.exp(nu))))
        for part in ("re", "im"):
            params[f"B_{part}"] = self.param(f"B_{part}", nn.initializers.normal((2 * d) ** -0.5), (d, p))
            params[f"C_{part}"] = self.param(f"C_{part}", nn.initializers.normal(p**-0.5), (p, d))
        params["D"] = self.param("D", nn.initializers.normal(1.0), (d,))
        return params
