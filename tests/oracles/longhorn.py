"""Longhorn, one step after another in NumPy, document by document."""

import numpy as np

from tests.oracles.mamba import convolved, documents, silu
from tests.oracles.nonlinearities import sigmoid


def oracle(module, params, x, reset=None):
    y = np.zeros_like(x)
    for row in range(len(x)):
        for start, stop in documents(x.shape[1], None if reset is None else reset[row]):
            u, z = np.split(x[row, start:stop] @ params["input"], 2, axis=-1)
            c = convolved(u, params["kernel"], params["kernel_bias"])
            hidden = np.zeros((u.shape[1], params["query"].shape[1]))
            for t, now in enumerate(c):
                q, k = now @ params["query"], now @ params["key"]
                beta = sigmoid(now @ params["beta_down"] @ params["beta_up"] + params["beta_bias"])
                if module.transition == "exact":
                    # the minimum itself, by its normal equations, channel by channel
                    for i in range(len(now)):
                        system = np.eye(len(k)) + beta[i] * np.outer(k, k)
                        hidden[i] = np.linalg.solve(system, hidden[i] + beta[i] * now[i] * k)
                else:
                    step = beta / (1 + beta * (k @ k))
                    hidden = (1 - np.outer(step, k**2)) * hidden + np.outer(step * now, k)
                read = (hidden @ q + params["skip"] * now) * silu(z[t])
                y[row, start + t] = read @ params["output"]
    return y
