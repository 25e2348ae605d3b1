"""RG-LRU with state expansion, step by step, state by state."""

import numpy as np

from tests.oracles.mamba import softplus
from tests.oracles.nonlinearities import sigmoid


def oracle(module, params, x, reset=None):
    p, y = params, np.zeros_like(x)
    for row in range(len(x)):
        hidden = np.zeros((module.state_dim, module.dim))
        for t in range(x.shape[1]):
            u = x[row, t]
            if reset is not None and reset[row, t]:
                hidden[:] = 0
            b, c, r = u @ p["input"], u @ p["output"], sigmoid(u @ p["recurrence_gate"])
            for s in range(module.state_dim):
                decay = np.exp(-8 * softplus(p["decay"][s]) * r)
                hidden[s] = decay * hidden[s] + np.sqrt(1 - decay**2 + module.epsilon) * b[s] * u
                y[row, t] += c[s] * hidden[s]
    return y
