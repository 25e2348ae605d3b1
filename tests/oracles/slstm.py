"""sLSTM, unstabilised, one head and one step after another in NumPy."""

from tests.oracles.flashrnn import layer


def oracle(module, params, x, reset=None):
    return layer("slstm", params, x, reset)
