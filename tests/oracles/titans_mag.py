"""Titans MAG, one token after another in NumPy, document by document."""

import numpy as np

from tests.oracles.attention import rotate
from tests.oracles.mamba import documents, normed, silu
from tests.oracles.nonlinearities import sigmoid
from tests.oracles.titans_memory import started
from zoo.layers.neural_memory import NeuralMemory


def heads_of(params, x, position, module):
    """(q, k, v) [H, K] of one row of the attention's input at ``position``."""
    q, k, v = (np.einsum("d,dhk->hk", x, params[name]) for name in ("query", "key", "value"))
    if module.positions == "rotary":
        q, k = (rotate(a, position, module.base) for a in (q, k))
    return q, k, v


def attend(q, keys, values):
    """[H K] of one query over lists of keys and values [H, K]."""
    scores = np.einsum("hk,shk->hs", q, np.stack(keys)) / np.sqrt(q.shape[1])
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    weights /= weights.sum(axis=1, keepdims=True)
    return np.einsum("hs,shk->hk", weights, np.stack(values)).reshape(-1)


def combined(y, r, scales, module):
    gate = {"silu": silu, "sigmoid": sigmoid}[module.gate]
    return normed(y, scales[0], module.norm_eps) * gate(normed(r, scales[1], module.norm_eps))


def oracle(module, params, x, reset=None):
    y, config = np.zeros_like(x), NeuralMemory(**module.memory)
    tokens = params.get("persistent", ())
    scales = params["attention_scale"], params["memory_scale"]
    for row in range(len(x)):
        for start, stop in documents(x.shape[1], None if reset is None else reset[row]):
            branch, _ = started(params, config, module.dim)
            before = [heads_of(params, token, i, module) for i, token in enumerate(tokens)]
            seen = []
            for t in range(start, stop):
                q, *kv = heads_of(params, x[row, t], len(tokens) + t - start, module)
                seen.append(kv)
                rows = [(k, v) for _, k, v in before] + seen[-module.window :]
                o = attend(q, *([r[i] for r in rows] for i in (0, 1)))
                o = combined(o, branch.step(x[row, t]), scales, module)
                y[row, t] = o @ params["output"].reshape(module.dim, module.dim)
    return y
