"""The real-gated linear recurrent unit, step by step."""

import numpy as np

from tests.oracles.mamba import softplus
from tests.oracles.nonlinearities import sigmoid


def oracle(module, params, x, reset=None):
    p, y = params, np.zeros_like(x)

    def gate(name, u):
        width = module.dim // module.heads
        parts = [u[h * width : (h + 1) * width] @ p[name][h] for h in range(module.heads)]
        return sigmoid(np.concatenate(parts) + p.get(f"{name}_bias", 0.0))

    for row in range(len(x)):
        hidden = None
        for t in range(x.shape[1]):
            u = x[row, t]
            if reset is not None and reset[row, t]:
                hidden = None
            decay = np.exp(-8 * softplus(p["decay"]) * gate("recurrence_gate", u))
            factor = np.sqrt(1 - decay**2 + module.epsilon)
            if hidden is None:
                hidden = np.zeros(module.dim)
                factor = 1.0 if module.unit_start else factor
            hidden = decay * hidden + factor * gate("input_gate", u) * u
            y[row, t] = hidden
    return y
