"""Memora: the oracle of Miras with KL retention."""

from tests.oracles.miras import layer


def oracle(module, params, x, reset=None):
    bias, retention = ("l2", {"factor": module.l2_factor}), ("kl", {"c": module.c})
    return layer(module, params, x, reset, "mlp", bias, retention, ("gradient_descent", {}))
