"""Mamba-2, one step and one head after another in NumPy, document by document."""

import numpy as np

from tests.oracles.mamba import convolved, documents, normed, silu, softplus


def oracle(module, params, x, reset=None):
    y = np.zeros_like(x)
    inner, heads, groups = len(params["scale"]), len(params["A_log"]), module.groups
    width, size = inner // heads, module.state_dim
    low, high = module.dt_limits
    for row in range(len(x)):
        for start, stop in documents(x.shape[1], None if reset is None else reset[row]):
            made = x[row, start:stop] @ params["input"]
            gate, rough = made[:, :inner], made[:, -heads:]
            mixed = convolved(made[:, inner:-heads], params["kernel"], params["bias"])
            state = np.zeros((heads, size, width))
            for t in range(stop - start):
                v = mixed[t, :inner].reshape(heads, width)
                b, c = mixed[t, inner:].reshape(2, groups, size)
                delta = np.clip(softplus(rough[t] + params["dt_bias"]), low, high)
                out = np.zeros((heads, width))
                for h in range(heads):
                    group = h * groups // heads
                    decay = np.exp(-delta[h] * np.exp(params["A_log"][h]))
                    state[h] = decay * state[h] + np.outer(b[group], delta[h] * v[h])
                    out[h] = c[group] @ state[h] + params["skip"][h] * v[h]
                out = (out.reshape(-1) * silu(gate[t])).reshape(groups, -1)
                scale = params["scale"].reshape(groups, -1)
                out = np.concatenate([normed(out[g], scale[g], module.norm_eps) for g in range(groups)])
                y[row, start + t] = out @ params["output"]
    return y
