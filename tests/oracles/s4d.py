"""S4D, step by step."""

import math

import numpy as np


def eigenvalues(p):
    return -np.exp(p["log_neg_re"]) + 1j * p["Lambda_im"]


def discrete(module, eigen, dt):
    if module.discretization == "zoh":
        a = np.exp(dt * eigen)
        return a, (a - 1) / eigen
    return (2 + dt * eigen) / (2 - dt * eigen), 2 * dt / (2 - dt * eigen)


def run(a, b, c, x, reset=None):
    """y_t = Re sum c h_t, h_t = a h_{t-1} + b x_t."""
    y = np.zeros_like(x)
    for row in range(len(x)):
        hidden = np.zeros(a.shape, complex)
        for t in range(x.shape[1]):
            if reset is not None and reset[row, t]:
                hidden = np.zeros(a.shape, complex)
            hidden = a * hidden + b * x[row, t][:, None]
            y[row, t] = np.sum(c * hidden, axis=1).real
    return y


def activate(kind, p, y):
    erf = np.vectorize(math.erf)
    z = y * (1 + erf(y / np.sqrt(2))) / 2
    if kind == "none":
        return y
    if kind == "gelu":
        return z
    gate = 1 / (1 + np.exp(-(z @ p["W2"] + p["b2"])))
    return {"full_glu": lambda: z @ p["W1"] + p["b1"], "half_glu1": lambda: z, "half_glu2": lambda: y}[kind]() * gate


def oracle(module, params, x, reset=None):
    p = params
    a, b = discrete(module, eigenvalues(p), np.exp(p["log_dt"])[:, None])
    y = run(a, b * (p["B_re"] + 1j * p["B_im"]), 2 * (p["C_re"] + 1j * p["C_im"]), x, reset)
    return activate(module.activation, p, y + p["D"] * x)
