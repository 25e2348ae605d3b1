"""Initialisers of recurrent layers, as functions (key, shape) -> array."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from zoo.checks import check_choice

RECURRENT_INITS = ("uniform", "orthogonal")


def symmetric_uniform(bound: float) -> Callable:
    """U(-bound, bound)."""

    def initialise(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return initialise


def recurrent_kernel(kind: str, scale: float = 1.0) -> Callable:
    """Recurrent weights [H, G H] of G gates.

    Args:
      kind: "uniform", U(-1/sqrt(H), 1/sqrt(H)), or "orthogonal", one orthogonal matrix for each gate.
      scale: multiplies the weights; with "orthogonal" it is every singular value of every gate's matrix.
    """
    check_choice("recurrent_init", kind, RECURRENT_INITS)

    def initialise(key, shape, dtype=jnp.float32):
        width, total = shape
        if kind == "uniform":
            return scale * symmetric_uniform(width**-0.5)(key, shape, dtype)
        keys = jax.random.split(key, total // width)
        square = nn.initializers.orthogonal(scale)
        return jnp.concatenate([square(k, (width, width), dtype) for k in keys], axis=1)

    return initialise
