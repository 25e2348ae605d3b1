"""HGRN, one step after another in NumPy, document by document."""

import numpy as np

from tests.oracles.mamba import documents, silu
from tests.oracles.nonlinearities import sigmoid


def bound_of(module, params, width):
    return sigmoid(params["lower_bound"]) if module.learn_lower_bound else np.full(width, module.lower_bound)


def layer_normed(a, params, eps):
    return (a - a.mean()) / np.sqrt(a.var() + eps) * params["norm_scale"] + params["norm_bias"]


def oracle(module, params, x, reset=None):
    y = np.zeros_like(x)
    width = params["forget"].shape[1]
    gamma = bound_of(module, params, width)
    turn = np.exp(1j * params["theta"]) if module.complex_state else 1.0

    def project(now, name):
        return now @ params[name] + params[f"{name}_bias"]

    for row in range(len(x)):
        for start, stop in documents(x.shape[1], None if reset is None else reset[row]):
            h = np.zeros(width, complex)
            for t in range(start, stop):
                now = x[row, t]
                c = silu(project(now, "input"))
                if module.complex_state:
                    c = c[:width] + 1j * c[width:]
                f = gamma + (1 - gamma) * sigmoid(project(now, "forget"))
                h = f * turn * h + (1 - f) * c
                parts = np.concatenate([h.real, h.imag]) if module.complex_state else h.real
                normed = layer_normed(sigmoid(project(now, "gate")) * parts, params, module.norm_eps)
                y[row, t] = project(normed, "output")
    return y
