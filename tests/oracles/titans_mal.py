"""Titans MAL, one token after another in NumPy, document by document."""

import numpy as np

from tests.oracles.mamba import documents, normed, silu
from tests.oracles.titans_mag import attend, heads_of
from tests.oracles.titans_memory import started
from zoo.layers.neural_memory import NeuralMemory


def oracle(module, params, x, reset=None):
    y, config = np.zeros_like(x), NeuralMemory(**module.memory)
    tokens = params.get("persistent", ())

    def said(x, r):
        out = normed(r, params["scale"], module.norm_eps) * silu(x @ params["gate"])
        return x + out if module.inner_residual else out

    for row in range(len(x)):
        for start, stop in documents(x.shape[1], None if reset is None else reset[row]):
            branch, read = started(params, config, module.dim)
            seen = [heads_of(params, said(token, r), i, module)[1:] for i, (token, r) in enumerate(zip(tokens, read))]
            for t in range(start, stop):
                q, *kv = heads_of(params, said(x[row, t], branch.step(x[row, t])), len(seen), module)
                seen.append(kv)
                o = attend(q, *([r[i] for r in seen[-module.window :]] for i in (0, 1)))
                y[row, t] = o @ params["output"].reshape(module.dim, module.dim)
    return y
