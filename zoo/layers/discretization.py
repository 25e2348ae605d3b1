"""From x' = A x + B u to x_t = Abar x_{t-1} + Bbar u_t.

Diagonal systems, x_t = decay x_{t-1} + gain b u_t:

    zoh        decay = exp(lambda dt)                            gain = (exp(lambda dt) - 1) / lambda
    bilinear   decay = (1 + lambda dt / 2) / (1 - lambda dt / 2)  gain = dt / (1 - lambda dt / 2)

Dense systems, the generalised bilinear transform (GBT) of weight alpha and the zero-order hold:

    gbt        Abar = (I - alpha dt A)^{-1} (I + (1 - alpha) dt A)   Bbar = (I - alpha dt A)^{-1} dt B
               alpha = 0: forward Euler,  1/2: bilinear,  1: backward Euler; A-stable from 1/2 on
    zoh        [[Abar, Bbar], [0, 1]] = expm([[dt A, dt B], [0, 0]])

zoh is exact for inputs that are constant over a step; bilinear (Tustin) is the trapezoidal rule. A gate of a recurrent
network is a backward Euler step: with A = -1, B = 1 and dt = exp(z), alpha = 1 gives Abar = 1 - sigmoid(z) and
Bbar = sigmoid(z).
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float

from zoo.checks import check_choice

DISCRETIZATIONS = ("zoh", "bilinear")


def discretize(
    eigenvalues: Complex[Array, "*N"], step: Float[Array, "*N"], method: str = "zoh"
) -> tuple[Complex[Array, "*N"], Complex[Array, "*N"]]:
    """Discretises a diagonal system.

    Args:
      eigenvalues: lambda of the continuous system, any shape; not 0 for "zoh".
      step: dt > 0 of every entry.
      method: "zoh" or "bilinear".

    Returns:
      (decay, gain), both of the shape and dtype of ``eigenvalues``.
    """
    check_choice("discretization", method, DISCRETIZATIONS)
    if method == "zoh":
        exponent = eigenvalues * step
        return jnp.exp(exponent), jnp.expm1(exponent) / eigenvalues  # expm1: no cancellation for small steps
    half = eigenvalues * (step / 2)
    return (1 + half) / (1 - half), step / (1 - half)


def generalized_bilinear(
    transition: Float[Array, "... N N"], into: Float[Array, "... N"], step: Float[Array, "..."], alpha: float = 0.5
) -> tuple[Float[Array, "... N N"], Float[Array, "... N"]]:
    """The generalised bilinear transform of dense systems, one for each step size.

    Args:
      transition: A [..., N, N]; leading axes broadcast with those of ``step``.
      into: B [..., N].
      step: dt > 0 [...].
      alpha: weight of the implicit end, in [0, 1].

    Returns:
      (Abar [..., N, N], Bbar [..., N]).

    Raises:
      ValueError: alpha outside of [0, 1], shapes that do not fit, or a step that is known not to be positive.
    """
    check_weight(alpha)
    scaled, drive = _scaled(transition, into, step)
    size = scaled.shape[-1]
    identity = jnp.eye(size, dtype=scaled.dtype)
    right = jnp.concatenate([identity + (1 - alpha) * scaled, drive[..., None]], axis=-1)
    if alpha > 0:
        right = jnp.linalg.solve(identity - alpha * scaled, right)
    return right[..., :size], right[..., size]


def zero_order_hold(
    transition: Float[Array, "... N N"], into: Float[Array, "... N"], step: Float[Array, "..."]
) -> tuple[Float[Array, "... N N"], Float[Array, "... N"]]:
    """The zero-order hold of dense systems; arguments and results as in ``generalized_bilinear``."""
    scaled, drive = _scaled(transition, into, step)
    size = scaled.shape[-1]
    whole = jnp.concatenate([scaled, drive[..., None]], axis=-1)
    whole = jnp.concatenate([whole, jnp.zeros_like(whole[..., :1, :])], axis=-2)
    exponential = jax.scipy.linalg.expm(whole)
    return exponential[..., :size, :size], exponential[..., :size, size]


def check_weight(alpha: float) -> None:
    """Raises ValueError unless ``alpha`` lies in [0, 1]."""
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must lie in [0, 1] (0: forward Euler, 1/2: bilinear, 1: backward Euler), got {alpha}")


def _scaled(transition, into, step):
    """Checks a dense system; returns dt A [..., N, N] and dt B [..., N] with the leading axes of ``step``."""
    transition, into, step = (jnp.asarray(a) for a in (transition, into, step))
    if transition.ndim < 2 or transition.shape[-1] != transition.shape[-2] or transition.shape[-1] == 0:
        raise ValueError(f"transition must be square matrices [..., N, N], N >= 1, got {list(transition.shape)}")
    size = transition.shape[-1]
    if into.ndim < 1 or into.shape[-1] != size:
        raise ValueError(f"into must have shape [..., {size}] like transition, got {list(into.shape)}")
    if not isinstance(step, jax.core.Tracer) and np.any(np.asarray(step) <= 0):
        raise ValueError(f"step must be positive, got {np.min(np.asarray(step))}")
    scaled = step[..., None, None] * transition
    return scaled, jnp.broadcast_to(step[..., None] * into, scaled.shape[:-1])
