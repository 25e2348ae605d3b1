"""The Linear Recurrent Unit, step by step."""

import numpy as np


def oracle(module, params, x, reset=None):
    p = params
    eigenvalues = np.exp(-np.exp(p["nu_log"]) + 1j * np.exp(p["theta_log"]))
    into = (p["B_re"] + 1j * p["B_im"]) * np.exp(p["gamma_log"])
    out_of = p["C_re"] + 1j * p["C_im"]
    y = np.zeros_like(x)
    hidden = np.zeros((len(x), len(eigenvalues)), complex)
    for t in range(x.shape[1]):
        if reset is not None:
            hidden[reset[:, t]] = 0
        hidden = eigenvalues * hidden + x[:, t] @ into
        y[:, t] = (hidden @ out_of).real + p["D"] * x[:, t]
    return y
