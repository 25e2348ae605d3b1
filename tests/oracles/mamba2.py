"""Mamba-2, one step and one head after another in NumPy, document by document; with a window by its definition, the
difference of the states now and ``window`` steps ago."""

import numpy as np

from tests.oracles.mamba import convolved, documents, normed, silu, softplus


def oracle(module, params, x, reset=None):
    y = np.zeros_like(x)
    inner, heads, groups = len(params["scale"]), len(params["A_log"]), module.groups
    width, size = inner // heads, module.state_dim
    low, high = module.dt_limits
    high = np.inf if high is None else high
    retention, insertion, faster = (
        np.broadcast_to(scale, heads) for scale in (module.retention_scale, module.insertion_scale, module.dt_scale)
    )
    for row in range(len(x)):
        for start, stop in documents(x.shape[1], None if reset is None else reset[row]):
            made = x[row, start:stop] @ params["input"]
            gate, rough = made[:, :inner], made[:, -heads:]
            mixed = convolved(made[:, inner:-heads], params["kernel"], params["bias"])
            state, past, decays = np.zeros((heads, size, width)), [], []
            for t in range(stop - start):
                v = mixed[t, :inner].reshape(heads, width)
                b, c = mixed[t, inner:].reshape(2, groups, size)
                delta = np.clip(softplus(rough[t] + params["dt_bias"]), low, high)
                delta = faster * delta
                out = np.zeros((heads, width))
                past.append(state.copy())
                decays.append(retention * np.exp(-delta * np.exp(params["A_log"])))
                for h in range(heads):
                    group = h * groups // heads
                    state[h] = decays[t][h] * state[h] + np.outer(insertion[h] * b[group], delta[h] * v[h])
                    norm = np.sqrt(np.sum(state[h] ** 2))
                    if module.max_norm is not None and norm > module.max_norm:
                        state[h] *= module.max_norm / norm
                    seen = state[h]
                    if module.window is not None and t >= module.window:
                        through = np.prod([d[h] for d in decays[t - module.window + 1 :]])
                        seen = seen - through * past[t - module.window + 1][h]
                    out[h] = c[group] @ seen + params["skip"][h] * v[h]
                out = (out.reshape(-1) * silu(gate[t])).reshape(groups, -1)
                scale = params["scale"].reshape(groups, -1)
                out = np.concatenate([normed(out[g], scale[g], module.norm_eps) for g in range(groups)])
                y[row, start + t] = out @ params["output"]
    return y
