"""HGRN2, one step and one head after another in NumPy, document by document."""

import numpy as np

from tests.oracles.hgrn import bound_of, layer_normed
from tests.oracles.mamba import documents, silu
from tests.oracles.nonlinearities import sigmoid

ACTIVATIONS = {"silu": silu, "sigmoid": sigmoid, "identity": lambda a: a}


def oracle(module, params, x, reset=None):
    y = np.zeros_like(x)
    heads = module.heads
    gamma = bound_of(module, params, params["forget"].shape[1])

    def project(now, name):
        return now @ params[name] + params[f"{name}_bias"]

    for row in range(len(x)):
        for start, stop in documents(x.shape[1], None if reset is None else reset[row]):
            memory = None
            for t in range(start, stop):
                now = x[row, t]
                f = (gamma + (1 - gamma) * sigmoid(project(now, "forget"))).reshape(heads, -1)
                i = ACTIVATIONS[module.input_activation](project(now, "input")).reshape(heads, -1)
                o = ACTIVATIONS[module.output_activation](project(now, "query")).reshape(heads, -1)
                if memory is None:
                    memory = np.zeros((heads, f.shape[1], i.shape[1]))
                out = np.zeros_like(i)
                for h in range(heads):
                    memory[h] = f[h][:, None] * memory[h] + np.outer(1 - f[h], i[h])
                    out[h] = o[h] @ memory[h]
                y[row, t] = project(layer_normed(out.reshape(-1), params, module.norm_eps), "output")
    return y
