"""Normalised attention by its weights, divided by a function of the query's input."""

import numpy as np

from tests.oracles.linear_attention import attention

NORMALIZERS = {"exp": np.exp, "softplus": lambda z: np.logaddexp(0, z), "sigmoid": lambda z: 1 / (1 + np.exp(-z))}


def oracle(module, params, x, reset=None):
    def divisor(row, t, weights):
        return NORMALIZERS[module.normalizer](x[row, t] @ params["normalizer"] + params["normalizer_bias"])

    return attention(params, x, reset, lambda a: a, divisor)
