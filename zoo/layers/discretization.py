"""From x' = lambda x + b u to x_t = decay x_{t-1} + gain b u_t, for diagonal systems.

    zoh        decay = exp(lambda dt)                            gain = (exp(lambda dt) - 1) / lambda
    bilinear   decay = (1 + lambda dt / 2) / (1 - lambda dt / 2)  gain = dt / (1 - lambda dt / 2)

zoh (zero-order hold) is exact for inputs that are constant over a step; bilinear (Tustin) is the trapezoidal rule.
"""

import jax.numpy as jnp
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
