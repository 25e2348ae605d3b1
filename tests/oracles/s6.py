"""S6, one step and one channel after another."""

import numpy as np

from tests.oracles.mamba import softplus


def oracle(module, params, x, reset=None):
    p, y = params, np.zeros_like(x)
    rank, size = p["dt"].shape[0], module.state_dim
    for row in range(len(x)):
        hidden = np.zeros((x.shape[2], size))
        for t in range(x.shape[1]):
            if reset is not None and reset[row, t]:
                hidden[:] = 0
            made = x[row, t] @ p["project"]
            b, c = made[rank : rank + size], made[rank + size :]
            delta = softplus(made[:rank] @ p["dt"] + p["dt_bias"])
            for d in range(x.shape[2]):
                hidden[d] = np.exp(-delta[d] * np.exp(p["A_log"][d])) * hidden[d] + delta[d] * b * x[row, t, d]
                y[row, t, d] = c @ hidden[d] + p["skip"][d] * x[row, t, d]
    return y
