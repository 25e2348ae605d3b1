"""Gated impulse linear recurrence, one step after another in NumPy."""

import numpy as np

from tests.oracles.nonlinearities import FUNCTIONS, sigmoid
from tests.oracles.paragru import project


def oracle(module, params, x, reset=None):
    rows = []
    for b in range(len(x)):
        h, outputs = np.zeros(params["b"].shape[1]), []
        for t in range(x.shape[1]):
            if reset is not None and reset[b, t]:
                h = np.zeros_like(h)
            p = project(x[b, t], params["B"], params["b"])
            z = sigmoid(p[0])
            h = (1 - z) * h + z * FUNCTIONS[module.activation](p[1])
            outputs.append(h if module.hidden_dim is None else h @ params["output"]["kernel"])
        rows.append(outputs)
    return np.array(rows)
