"""DeltaProduct, one step and one head after another in NumPy, document by document."""

import numpy as np

from tests.oracles.gated_deltanet import unit
from tests.oracles.mamba import convolved, documents, normed, silu, softplus
from tests.oracles.nonlinearities import sigmoid


def oracle(module, params, x, reset=None, householders=None, value_heads=None):
    y = np.zeros_like(x)
    n, groups = householders or module.householders, module.heads
    heads, width = value_heads or module.value_heads or groups, len(params["scale"])
    keys = params["query"].shape[1] // groups
    for row in range(len(x)):
        for start, stop in documents(x.shape[1], None if reset is None else reset[row]):
            inputs = x[row, start:stop]
            mixed = {}
            for name in ("query", "key", "value"):
                u = inputs @ params[name]
                mixed[name] = convolved(u, params[f"{name}_kernel"], 0) if module.conv_size else silu(u)
            memory = np.zeros((heads, keys, width))
            for t, now in enumerate(inputs):
                q, k = mixed["query"][t].reshape(groups, keys), mixed["key"][t].reshape(n, groups, keys)
                v = mixed["value"][t].reshape(n, heads, width)
                beta = (2 if module.allow_neg_eigval else 1) * sigmoid(now @ params["beta"]).reshape(n, heads)
                if "A_log" in params:
                    rate = np.exp(params["A_log"]) * softplus(now @ params["dt"] + params["dt_bias"])
                    memory *= np.exp(-rate)[:, None, None]
                out = np.zeros((heads, width))
                for h in range(heads):
                    g = h * groups // heads
                    for j in range(n):
                        key = unit(k[j, g])
                        memory[h] += beta[j, h] * np.outer(key, v[j, h] - key @ memory[h])
                    out[h] = normed(unit(q[g]) @ memory[h] / np.sqrt(keys), params["scale"], module.norm_eps)
                out = out.reshape(-1)
                if "gate" in params:
                    out = out * silu(now @ params["gate"])
                y[row, start + t] = out @ params["output"]
    return y
