"""Initialisers of cells with elementwise recurrence, by name, as functions (key, shape) -> array.

Danieli et al. (2025), ParaRNN, and the initialisations it compares.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from zoo.checks import check_choice

WEIGHT_INITS = (
    "xlstm", "xavier_uniform", "kaiming_uniform", "truncated_normal", "small_normal", "negative_exponential",
    "negative_exponential_long", "uniform", "normal", "zeros",
)  # fmt: skip
BIAS_INITS = ("zeros", "minus_linspace", "linspace", "one", "minus_one", "two", "uniform")


def cell_weight(kind: str, fan_in: int, fan_out: int, scale: float = 1.0) -> Callable:
    """Weights of any shape.

    Args:
      kind: "xlstm" N(0, 4 / (5 fan_in)), "xavier_uniform" U(+-sqrt(6 / (fan_in + fan_out))), "kaiming_uniform"
        U(+-sqrt(3 / fan_in)), "truncated_normal" N(0, 1 / fan_in) cut at +-0.9, "small_normal" N(0, 0.01^2) cut at two
        deviations, "negative_exponential" exp(-U(0, 8)), "negative_exponential_long" exp(-U(1, 16)), "uniform" U(+-0.9),
        "normal" N(0, 1), or "zeros".
      fan_in: inputs of a unit.
      fan_out: outputs of the layer.
      scale: multiplies the draw.
    """
    check_choice("initialiser", kind, WEIGHT_INITS)

    def uniform(key, shape, dtype, low, high):
        return jax.random.uniform(key, shape, dtype, low, high)

    def initialise(key, shape, dtype=jnp.float32):
        if kind == "zeros":
            return jnp.zeros(shape, dtype)
        if kind == "normal":
            return scale * jax.random.normal(key, shape, dtype)
        if kind == "xlstm":
            return scale * 2 / (5 * fan_in) ** 0.5 * jax.random.normal(key, shape, dtype)
        if kind in ("truncated_normal", "small_normal"):
            deviation = fan_in**-0.5 if kind == "truncated_normal" else 0.01
            cut = 0.9 / deviation if kind == "truncated_normal" else 2.0
            return scale * deviation * jax.random.truncated_normal(key, -cut, cut, shape, dtype)
        if kind.startswith("negative_exponential"):
            low, high = (1, 16) if kind.endswith("long") else (0, 8)
            return scale * jnp.exp(-uniform(key, shape, dtype, low, high))
        bound = {"xavier_uniform": (6 / (fan_in + fan_out)) ** 0.5, "kaiming_uniform": (3 / fan_in) ** 0.5}.get(
            kind, 0.9
        )
        return scale * uniform(key, shape, dtype, -bound, bound)

    return initialise


def cell_bias(kind: str) -> Callable:
    """Biases [gates, N]: zeros but for the first row, which is the gate that updates or forgets.

    Args:
      kind: first row "zeros", "minus_linspace" (0 down to -1), "linspace" (3 to 6), "one", "minus_one", "two", or "uniform"
        U(+-0.9).
    """
    check_choice("initialiser", kind, BIAS_INITS)

    def initialise(key, shape, dtype=jnp.float32):
        width = shape[1]
        first = {
            "minus_linspace": lambda: -jnp.linspace(0, 1, width, dtype=dtype),
            "linspace": lambda: jnp.linspace(3, 6, width, dtype=dtype),
            "uniform": lambda: jax.random.uniform(key, (width,), dtype, -0.9, 0.9),
        }
        constants = {"zeros": 0.0, "one": 1.0, "minus_one": -1.0, "two": 2.0}
        row = first[kind]() if kind in first else jnp.full(width, constants[kind], dtype)
        return jnp.zeros(shape, dtype).at[0].set(row)

    return initialise
