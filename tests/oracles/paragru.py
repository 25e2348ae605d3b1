"""ParaGRU, one step after another in NumPy."""

import numpy as np

from tests.oracles.nonlinearities import FUNCTIONS


def project(x, kernel, bias):
    """Gates [G, N] of one input [D]: head i of the input through its own matrices."""
    heads, inputs, gates, width = kernel.shape
    p = np.zeros((gates, heads * width))
    for head in range(heads):
        for gate in range(gates):
            part = x[head * inputs : (head + 1) * inputs] @ kernel[head, :, gate]
            p[gate, head * width : (head + 1) * width] = part
    return p + bias


def oracle(module, params, x, reset=None):
    update, reset_gate, candidate = (FUNCTIONS[name] for name in module.activations)
    bound = np.inf if module.recurrent_bound is None else module.recurrent_bound
    a = np.clip(params["A"], -bound, bound)
    rows = []
    for b in range(len(x)):
        h, outputs = np.zeros(a.shape[1]), []
        for t in range(x.shape[1]):
            if reset is not None and reset[b, t]:
                h = np.zeros_like(h)
            p = project(x[b, t], params["B"], params["b"])
            z = update(a[0] * h + p[0])
            r = reset_gate(a[1] * h + p[1])
            h = (1 - z) * h + z * candidate(a[2] * h * r + p[2])
            outputs.append(h if module.hidden_dim is None else h @ params["output"]["kernel"])
        rows.append(outputs)
    return np.array(rows)
