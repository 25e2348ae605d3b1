"""Moneta: the oracle of Miras with an l_p bias and l_q retention."""

from tests.oracles.miras import layer


def oracle(module, params, x, reset=None):
    retention = ("lq", {"q": module.q})
    return layer(module, params, x, reset, "mlp", ("lp", {"p": module.p}), retention, ("gradient_descent", {}))
