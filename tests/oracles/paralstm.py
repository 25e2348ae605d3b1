"""ParaLSTM, one step after another in NumPy."""

import numpy as np

from tests.oracles.nonlinearities import FUNCTIONS
from tests.oracles.paragru import project


def oracle(module, params, x, reset=None):
    forget, output, candidate, squash = (FUNCTIONS[name] for name in module.activations)
    bound = np.inf if module.recurrent_bound is None else module.recurrent_bound
    a, peephole = (np.clip(params[name], -bound, bound) for name in "AC")
    rows = []
    for b in range(len(x)):
        c, h, outputs = np.zeros(a.shape[1]), np.zeros(a.shape[1]), []
        for t in range(x.shape[1]):
            if reset is not None and reset[b, t]:
                c, h = np.zeros_like(c), np.zeros_like(h)
            p = project(x[b, t], params["B"], params["b"])
            f = forget(a[0] * h + peephole[0] * c + p[0])
            c = f * c + (1 - f) * candidate(a[2] * h + p[2])
            h = output(a[1] * h + peephole[1] * c + p[1]) * squash(c)
            outputs.append(h if module.hidden_dim is None else h @ params["output"]["kernel"])
        rows.append(outputs)
    return np.array(rows)
