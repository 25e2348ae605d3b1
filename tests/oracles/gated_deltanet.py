"""Gated DeltaNet, one step and one head after another in NumPy, document by document."""

import numpy as np

from tests.oracles.mamba import convolved, documents, normed, silu, softplus
from tests.oracles.nonlinearities import sigmoid


def unit(a):
    return a / np.sqrt(a @ a + 1e-6)


def oracle(module, params, x, reset=None):
    y = np.zeros_like(x)
    heads, width, keys = params["beta"].shape[1], len(params["scale"]), params["key"].shape[1]
    groups, limit = module.key_heads or heads, 2 if module.allow_neg_eigval else 1
    for row in range(len(x)):
        for start, stop in documents(x.shape[1], None if reset is None else reset[row]):
            inputs = x[row, start:stop]
            u = np.concatenate([inputs @ params[name] for name in ("query", "key", "value")], axis=-1)
            mixed = convolved(u, params["kernel"], 0)
            memory = np.zeros((heads, keys // groups, width))
            for t, now in enumerate(inputs):
                q, k = mixed[t, : 2 * keys].reshape(2, groups, -1)
                v = mixed[t, 2 * keys :].reshape(heads, -1)
                z = silu(now @ params["gate"]).reshape(heads, -1) if "gate" in params else np.ones((heads, 1))
                beta = limit * sigmoid(now @ params["beta"])
                decay = np.exp(-np.exp(params["A_log"]) * softplus(now @ params["dt"] + params["dt_bias"]))
                out = np.zeros((heads, width))
                for h in range(heads):
                    query, key = unit(q[h * groups // heads]), unit(k[h * groups // heads])
                    memory[h] *= decay[h]
                    memory[h] += beta[h] * np.outer(key, v[h] - key @ memory[h])
                    read = query @ memory[h] / np.sqrt(len(query))
                    out[h] = normed(read, params["scale"], module.norm_eps) * z[h]
                y[row, start + t] = out.reshape(-1) @ params["output"]
    return y
