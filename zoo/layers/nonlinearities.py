"""Nonlinearities by name, each with its derivative, for cells that write their own Jacobians."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import nn

from zoo.checks import check_choice

_SELU_SCALE, _SELU_ALPHA = 1.0507009873554805, 1.6732632423543772
_GELU_SCALE, _GELU_CUBIC = 0.7978845608028654, 0.044715  # sqrt(2 / pi), and the cubic term of the tanh form


class Nonlinearity(NamedTuple):
    """``function`` and its ``derivative``, both elementwise in the argument."""

    function: Callable[[jax.Array], jax.Array]
    derivative: Callable[[jax.Array], jax.Array]


def _sigmoid_slope(a):
    s = nn.sigmoid(a)
    return s * (1 - s)


def _silu_slope(a):
    s = nn.sigmoid(a)
    return s * (1 + a * (1 - s))


def _gelu_slope(a):
    t = jnp.tanh(_GELU_SCALE * (a + _GELU_CUBIC * a**3))
    return 0.5 * (1 + t) + 0.5 * a * (1 - t**2) * _GELU_SCALE * (1 + 3 * _GELU_CUBIC * a**2)


def _elu_slope(a):
    return jnp.where(a > 0, 1, jnp.exp(jnp.minimum(a, 0)))


def _selu_slope(a):
    return _SELU_SCALE * jnp.where(a > 0, 1, _SELU_ALPHA * jnp.exp(jnp.minimum(a, 0)))


NONLINEARITIES = {
    "identity": Nonlinearity(lambda a: a, jnp.ones_like),
    "relu": Nonlinearity(nn.relu, lambda a: jnp.where(a > 0, 1, 0).astype(a.dtype)),
    "leaky_relu": Nonlinearity(lambda a: nn.leaky_relu(a, 0.01), lambda a: jnp.where(a > 0, 1, 0.01).astype(a.dtype)),
    "silu": Nonlinearity(nn.silu, _silu_slope),
    "gelu": Nonlinearity(lambda a: nn.gelu(a, approximate=True), _gelu_slope),
    "selu": Nonlinearity(nn.selu, _selu_slope),
    "tanh": Nonlinearity(jnp.tanh, lambda a: 1 - jnp.tanh(a) ** 2),
    "sigmoid": Nonlinearity(nn.sigmoid, _sigmoid_slope),
    "half_sigmoid": Nonlinearity(lambda a: 0.5 * nn.sigmoid(a), lambda a: 0.5 * _sigmoid_slope(a)),
    "exp": Nonlinearity(jnp.exp, jnp.exp),
    "softplus": Nonlinearity(nn.softplus, nn.sigmoid),
    "elu": Nonlinearity(nn.elu, _elu_slope),
}


def nonlinearity(name: str) -> Nonlinearity:
    """The nonlinearity called ``name``, one of ``NONLINEARITIES``; ValueError with the nearest name if there is none."""
    check_choice("nonlinearity", name, NONLINEARITIES)
    return NONLINEARITIES[name]
