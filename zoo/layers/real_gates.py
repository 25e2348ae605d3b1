"""The decay of real-gated linear recurrences, exp(-8 softplus(p) r) with a gate r in (0, 1), and the input's factor."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

SHARPNESS = 8.0  # De et al. 2024 call it c


def input_scale(log_decay: Float[Array, "*B"], epsilon: float) -> Float[Array, "*B"]:
    """sqrt(1 - exp(log_decay)^2 + epsilon), with all digits near a decay of 1 and a finite gradient everywhere."""
    return jnp.sqrt(jnp.maximum(-jnp.expm1(2 * log_decay) + epsilon, float(jnp.finfo(log_decay.dtype).tiny) ** 0.5))


def decay_initializer(r_min: float, r_max: float) -> nn.initializers.Initializer:
    """p for which exp(-8 softplus(p)), the decay with an open gate, is uniform by area on the ring [r_min, r_max]."""

    def init(key, shape, dtype=jnp.float32):
        area = jax.random.uniform(key, shape, dtype, r_min**2, r_max**2)
        return jnp.log(jnp.expm1(-0.5 * jnp.log(area) / SHARPNESS))

    return init


def check_ring(r_min: float, r_max: float) -> None:
    """Raises ValueError unless 0 < r_min < r_max < 1."""
    if not 0 < r_min < r_max < 1:
        raise ValueError(f"need 0 < r_min < r_max < 1, got r_min={r_min}, r_max={r_max}")
