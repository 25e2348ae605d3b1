"""The nonlinearities of gated cells, by name, in NumPy; the tanh form of GELU."""

import numpy as np


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


FUNCTIONS = {
    "identity": lambda a: a,
    "relu": lambda a: np.maximum(a, 0),
    "leaky_relu": lambda a: np.where(a > 0, a, 0.01 * a),
    "silu": lambda a: a * sigmoid(a),
    "gelu": lambda a: 0.5 * a * (1 + np.tanh(np.sqrt(2 / np.pi) * (a + 0.044715 * a**3))),
    "selu": lambda a: 1.0507009873554805 * np.where(a > 0, a, 1.6732632423543772 * np.expm1(np.minimum(a, 0))),
    "tanh": np.tanh,
    "sigmoid": sigmoid,
    "half_sigmoid": lambda a: 0.5 * sigmoid(a),
    "exp": np.exp,
    "softplus": lambda a: np.log1p(np.exp(-np.abs(a))) + np.maximum(a, 0),
    "elu": lambda a: np.where(a > 0, a, np.expm1(np.minimum(a, 0))),
}
