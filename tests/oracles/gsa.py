"""Gated slot attention, one step and one head after another in NumPy, document by document."""

import numpy as np
from scipy.special import softmax

from tests.oracles.mamba import documents, normed, silu
from tests.oracles.nonlinearities import sigmoid


def oracle(module, params, x, reset=None):
    y = np.zeros_like(x)
    heads, slots, width = module.heads, module.slots, x.shape[2] // module.heads
    for row in range(len(x)):
        for start, stop in documents(x.shape[1], None if reset is None else reset[row]):
            keys, values = np.zeros((heads, slots, width)), np.zeros((heads, slots, width))
            for t in range(start, stop):
                q, k, v = (silu(x[row, t] @ params[n]).reshape(heads, width) for n in ("query", "key", "value"))
                keep = sigmoid(x[row, t] @ params["forget"]).reshape(heads, slots) ** (1 / module.temperature)
                out = np.zeros((heads, width))
                for h in range(heads):
                    keys[h] = keep[h][:, None] * keys[h] + np.outer(1 - keep[h], k[h])
                    values[h] = keep[h][:, None] * values[h] + np.outer(1 - keep[h], v[h])
                    out[h] = softmax(keys[h] @ q[h]) @ values[h]
                y[row, t] = normed(silu(out.reshape(-1)), params["scale"], module.norm_eps) @ params["output"]
    return y
