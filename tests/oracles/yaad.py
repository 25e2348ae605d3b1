"""Yaad: the oracle of Miras with a Huber bias and weight decay."""

from tests.oracles.miras import layer


def oracle(module, params, x, reset=None):
    bias = ("huber", {"form": module.huber, "factor": module.l2_factor})
    return layer(module, params, x, reset, "mlp", bias, ("l2", {}), ("gradient_descent", {}))
