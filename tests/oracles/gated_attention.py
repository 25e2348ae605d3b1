"""Gated attention, one query at a time in NumPy."""

import numpy as np

from tests.oracles.attention import document_starts, rotate
from tests.oracles.mamba import normed
from tests.oracles.nonlinearities import sigmoid


def oracle(module, params, x, reset=None):
    y = np.zeros_like(x)
    for b in range(len(x)):
        starts = document_starts(reset, b, x.shape[1])
        q, k, v, gate = (
            np.einsum("td,dhk->thk", x[b], params[name]) + params.get(f"{name}_bias", 0)
            for name in ("query", "key", "value", "gate")
        )
        for a, name in ((q, "query_norm"), (k, "key_norm")):
            for t in range(len(a)):
                heads = np.stack([normed(head, params[name], module.norm_eps) for head in a[t]])
                a[t] = rotate(heads, t - starts[t], module.base, module.rotary_fraction)
        share = q.shape[1] // k.shape[1]
        for t in range(len(q)):
            seen = range(max(starts[t], t - module.window + 1), t + 1)
            for h in range(q.shape[1]):
                weights = np.exp([q[t, h] @ k[s, h // share] / np.sqrt(q.shape[2]) for s in seen])
                read = sum(w * v[s, h // share] for w, s in zip(weights / weights.sum(), seen))
                y[b, t] += (sigmoid(gate[t, h]) * read) @ params["output"][h]
    return y + params.get("output_bias", 0)
