"""Gated linear attention, one step and one head after another in NumPy, document by document."""

import numpy as np

from tests.oracles.based import project
from tests.oracles.mamba import documents, normed, silu
from tests.oracles.nonlinearities import sigmoid


def oracle(module, params, x, reset=None):
    y = np.zeros_like(x)
    for row in range(len(x)):
        for start, stop in documents(x.shape[1], None if reset is None else reset[row]):
            inputs = x[row, start:stop]
            q, k, v = (project(inputs, params[name]) for name in ("query", "key", "value"))
            rough = project(inputs @ params["forget_down"], params["forget_up"]) + params["forget_bias"]
            gates = sigmoid(rough) ** (1 / module.gate_divisor)
            if module.gate_min is not None:
                gates = np.maximum(gates, np.exp(module.gate_min))
            memory = np.zeros((module.heads, k.shape[-1], v.shape[-1]))
            for t, now in enumerate(inputs):
                for h in range(module.heads):
                    memory[h] = gates[t, h][:, None] * memory[h] + np.outer(k[t, h], v[t, h])
                    read = normed(q[t, h] @ memory[h] / np.sqrt(k.shape[-1]), params["scale"], module.norm_eps)
                    if module.output_gate:
                        read = read * silu(now @ params["gate"][:, h])
                    y[row, start + t] += read @ params["output"][h]
    return y
