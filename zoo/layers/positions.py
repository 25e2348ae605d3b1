"""Position signals."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def sinusoidal_positions(
    positions: Int[Array, "*B"], dim: int, *, base: float = 10_000.0, interleaved: bool = True
) -> Float[Array, "*B D"]:
    """Sine and cosine of position / base^(2j/dim) (Vaswani et al. 2017).

    Args:
      positions: integer positions, any shape.
      dim: width of the signal, even.
      base: largest wavelength over 2 pi.
      interleaved: True: channels sin, cos, sin, cos, ... with rates base^(-2j/dim) (the paper). False: all sines, then
        all cosines, with rates base^(-j/(dim/2 - 1)) (the tensor2tensor code).

    Returns:
      float array [*positions.shape, dim].

    Raises:
      ValueError: ``dim`` is odd or not positive.
    """
    if dim < 2 or dim % 2:
        raise ValueError(f"sinusoidal positions need an even dim of at least 2, got {dim}")
    half = jnp.arange(dim // 2)
    exponent = half / (dim // 2) if interleaved else half / max(dim // 2 - 1, 1)
    angles = positions[..., None] * base**-exponent
    if interleaved:
        return jnp.stack([jnp.sin(angles), jnp.cos(angles)], axis=-1).reshape(*positions.shape, dim)
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
