"""Titans MAC, one token after another in NumPy, document by document."""

import copy

import numpy as np

from tests.oracles.mamba import documents
from tests.oracles.titans_mag import attend, combined, heads_of
from tests.oracles.titans_memory import Branch, unit
from zoo.layers.neural_memory import NeuralMemory


def oracle(module, params, x, reset=None):
    y, config = np.zeros_like(x), NeuralMemory(**module.memory)
    tokens, dim = params.get("persistent", ()), module.dim
    scales = params["attention_scale"], params["memory_scale"]
    lead = [heads_of(params, token, i, module)[1:] for i, token in enumerate(tokens)]
    for row in range(len(x)):
        for start, stop in documents(x.shape[1], None if reset is None else reset[row]):
            branch = Branch(params, config, dim)
            for t in range(start, stop):
                place = (t - start) % module.segment
                if place == 0:
                    before, seen = copy.deepcopy(branch.memories), list(lead)
                q = (x[row, t] @ params["recall"]).reshape(config.heads, -1)
                h = np.concatenate([memory.read(unit(one)) for memory, one in zip(before, q)])
                seen.append(heads_of(params, h, len(tokens) + place, module)[1:])
                q, *kv = heads_of(params, x[row, t], len(tokens) + module.segment + place, module)
                seen.append(kv)
                out = attend(q, *([r[i] for r in seen] for i in (0, 1))) @ params["output"].reshape(dim, dim)
                y[row, t] = combined(out, branch.step(out), scales, module) @ params["gated_output"]
    return y
