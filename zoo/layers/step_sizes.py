"""Initialisation of the step sizes of selective state space models."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp


def step_size_bias(low: float, high: float, floor: float = 0.0) -> Callable:
    """An initialiser of a bias whose softplus is drawn log-uniformly from [low, high] and at least ``floor``."""

    def init(key, shape, dtype=jnp.float32):
        steps = jnp.exp(jax.random.uniform(key, shape, dtype, math.log(low), math.log(high)))
        steps = jnp.maximum(steps, floor)
        return steps + jnp.log(-jnp.expm1(-steps))  # softplus backwards, also right for small steps

    return init


def check_step_sizes(low: float, high: float) -> None:
    """Raises ValueError unless 0 < low <= high."""
    if not 0 < low <= high:
        raise ValueError(f"need 0 < dt_min <= dt_max, got dt_min={low}, dt_max={high}")


def log_step_sizes(low: float, high: float) -> Callable:
    """An initialiser of logarithms of step sizes, uniform between log ``low`` and log ``high``."""
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, math.log(low), math.log(high))
