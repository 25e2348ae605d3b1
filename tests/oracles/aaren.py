"""Float64 oracle of ``zoo.mixers.Aaren``: the softmax of every prefix by definition, one step and head at a time."""

import numpy as np


def oracle(module, params, x, reset=None):
    """y [B, T, D]; the prefix of step t starts at its document's first token."""
    batch, time, dim = x.shape
    head_dim = dim // module.heads
    query = params["query_token"] @ params["query"]
    y = np.zeros_like(x)
    for b in range(batch):
        start = 0
        keys, values = x[b] @ params["key"], x[b] @ params["value"]
        for t in range(time):
            if reset is not None and reset[b, t]:
                start = t
            out = np.zeros(dim)
            for h in range(module.heads):
                part = slice(h * head_dim, (h + 1) * head_dim)
                scores = keys[start : t + 1, part] @ query[part] / np.sqrt(head_dim)
                weights = np.exp(scores - scores.max())
                out[part] = weights @ values[start : t + 1, part] / weights.sum()
            y[b, t] = out @ params["output"]
    return y
