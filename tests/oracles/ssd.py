"""SSD, one step and one head after another."""

import numpy as np

from tests.oracles.mamba import softplus


def oracle(module, params, x, reset=None):
    p, y = params, np.zeros_like(x)
    for row in range(len(x)):
        state = np.zeros((module.heads, module.state_dim, module.dim // module.heads))
        for t in range(x.shape[1]):
            if reset is not None and reset[row, t]:
                state[:] = 0
            u = x[row, t]
            delta = softplus(u @ p["dt"] + p["dt_bias"])
            out = []
            for h in range(module.heads):
                decay = np.exp(-np.exp(p["A_log"][h]) * delta[h])
                state[h] = decay * state[h] + delta[h] * np.outer(u @ p["B"], u @ p["value"][:, h])
                out.append((u @ p["C"]) @ state[h])
            y[row, t] = np.concatenate(out)
    return y
