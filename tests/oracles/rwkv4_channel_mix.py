"""RWKV-4's channel mixing in NumPy, document by document."""

import numpy as np

from tests.oracles.mamba import documents
from tests.oracles.nonlinearities import sigmoid
from tests.oracles.rwkv4 import mixed


def oracle(module, params, x, reset=None):
    y = np.zeros_like(x)
    for b in range(len(x)):
        for start, stop in documents(x.shape[1], None if reset is None else reset[b]):
            row = x[b, start:stop]
            hidden = np.maximum(mixed(params, row, "key"), 0) ** 2
            y[b, start:stop] = sigmoid(mixed(params, row, "receptance")) * (hidden @ params["value"])
    return y
