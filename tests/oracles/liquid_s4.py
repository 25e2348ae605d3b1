"""Liquid-S4, step by step; products of inputs written out."""

import numpy as np


def oracle(module, params, x, reset=None):
    p = params
    eigenvalues = -np.exp(p["log_neg_re"]) + 1j * p["Lambda_im"]
    dt = np.exp(p["log_dt"])[:, None]
    if module.discretization == "zoh":
        a = np.exp(dt * eigenvalues)
        b = (a - 1) / eigenvalues
    else:
        a = (2 + dt * eigenvalues) / (2 - dt * eigenvalues)
        b = 2 * dt / (2 - dt * eigenvalues)
    c = p["C_re"] + 1j * p["C_im"]
    y = np.zeros_like(x)
    for row in range(len(x)):
        hidden, document = np.zeros(a.shape, complex), []
        for t in range(x.shape[1]):
            if reset is not None and reset[row, t]:
                hidden, document = np.zeros(a.shape, complex), []
            u = x[row, t]
            document.append(u)
            extra = np.zeros(a.shape, complex)
            if module.form == "exact":
                hidden = (a + b * u[:, None]) * hidden + b * u[:, None]
            else:
                for order in range(2, min(module.order, len(document)) + 1):
                    extra += b**order * np.prod(document[-order:], axis=0)[:, None]
                hidden = a * hidden + b * u[:, None] + (extra if module.form == "kb" else 0)
            seen = hidden + (extra if module.form == "pb" else 0)
            y[row, t] = 2 * np.sum(c * seen, axis=1).real + p["D"] * u
    return y
