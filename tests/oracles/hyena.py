"""Hyena, sum by sum over the tokens of a document."""

import numpy as np


def filters(module, p):
    """[order, L, D]."""
    length, bands = module.max_length, (module.features - 1) // 2
    rates = [1e-4] if bands == 1 else [1e-4 + (bands - 1 - 1e-4) * i / (bands - 1) for i in range(bands)]
    d = p["output"].shape[0]
    alpha = np.array([-np.log(module.floor) / (module.slow_decay + (module.fast_decay - module.slow_decay) * c / (d - 1))
                      for c in range(d)])  # fmt: skip
    out = np.zeros((module.order, length, d))
    for tap in range(length):
        share = tap / (length - 1)
        turns = [2 * np.pi * f * tap / length for f in rates]
        hidden = np.array([share, *np.cos(turns), *(-np.sin(turns))])
        for layer in range(module.filter_layers):
            hidden = hidden @ p[f"filter_kernel_{layer}"] + p[f"filter_bias_{layer}"]
            hidden = np.sin(p["filter_rate"] * hidden)
        out[:, tap] = (hidden @ p["filter_output"]).reshape(module.order, d) * np.exp(-alpha * share)
    return out


def oracle(module, params, x, reset=None):
    p, h = params, filters(module, params)
    y = np.zeros_like(x)
    for row in range(len(x)):
        start = 0
        stages = [[] for _ in range(module.order + 1)]
        for t in range(x.shape[1]):
            if reset is not None and reset[row, t]:
                start, stages = t, [[] for _ in range(module.order + 1)]
            taps = range(min(module.conv_size, t - start + 1))
            u = sum(p["short"][lag] * (x[row, t - lag] @ p["input"]) for lag in taps)
            z, *gates = np.split(u, module.order + 1)
            for i, gate in enumerate(gates):
                stages[i].append(z)
                seen = stages[i][::-1][: module.max_length]
                z = gate * (sum(h[i, lag] * past for lag, past in enumerate(seen)) + p["skip"][i] * z)
            y[row, t] = z @ p["output"]
    return y
