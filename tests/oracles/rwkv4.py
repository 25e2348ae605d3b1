"""RWKV-4's time mixing from its sums over all earlier tokens, document by document."""

import numpy as np

from tests.oracles.mamba import documents
from tests.oracles.nonlinearities import sigmoid


def mixed(params, row, name):
    """W (mu x_t + (1 - mu) x_{t-1}) of one document [T, D]."""
    before = np.concatenate([np.zeros((1, row.shape[1])), row[:-1]])
    share = params[f"mix_{name}"]
    return (share * row + (1 - share) * before) @ params[name]


def oracle(module, params, x, reset=None):
    y = np.zeros_like(x)
    rate = np.exp(params["decay"])
    for b in range(len(x)):
        for start, stop in documents(x.shape[1], None if reset is None else reset[b]):
            r, k, v = (mixed(params, x[b, start:stop], name) for name in ("receptance", "key", "value"))
            for t in range(stop - start):
                weights = [np.exp(k[s] - (t - 1 - s) * rate) for s in range(t)] + [np.exp(params["bonus"] + k[t])]
                wkv = sum(w * v[s] for s, w in enumerate(weights)) / sum(weights)
                y[b, start + t] = (sigmoid(r[t]) * wkv) @ params["output"]
    return y
