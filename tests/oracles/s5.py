"""S5, step by step from the continuous system."""

import math

import numpy as np

erf = np.vectorize(math.erf)


def system(module, p):
    """(Lambda_bar [P, P], B_bar [P, H]) as dense matrices."""
    real = np.minimum(p["Lambda_re"], -1e-4) if module.clip_eigs else p["Lambda_re"]
    a = np.diag(real + 1j * p["Lambda_im"])
    b = p["B_re"] + 1j * p["B_im"]
    dt = np.diag(module.step_rescale * np.exp(p["log_step"]))
    one = np.eye(len(a))
    if module.discretization == "zoh":
        a_bar = np.diag(np.exp(np.diag(a @ dt)))
        return a_bar, np.linalg.solve(a, (a_bar - one) @ b)
    inverse = np.linalg.inv(one - a @ dt / 2)
    return inverse @ (one + a @ dt / 2), inverse @ dt @ b


def states(a_bar, b_bar, x, cut):
    """States [B, T, P] of one direction; ``cut`` [B, T]: the state before this step is forgotten."""
    hidden = np.zeros((len(x), len(a_bar)), complex)
    every = []
    for t in range(x.shape[1]):
        if cut is not None:
            hidden = np.where(cut[:, t, None], 0, hidden)
        hidden = hidden @ a_bar.T + x[:, t] @ b_bar.T
        every.append(hidden)
    return np.stack(every, axis=1)


def output(module, p, x, hidden):
    y = (2 if module.conj_sym else 1) * np.real(hidden @ (p["C_re"] + 1j * p["C_im"]).T) + p["D"] * x
    z = y * (1 + erf(y / np.sqrt(2))) / 2
    if module.activation in ("none", "gelu"):
        return y if module.activation == "none" else z
    gate = 1 / (1 + np.exp(-(z @ p["W2"] + p["b2"])))
    return {
        "full_glu": lambda: (z @ p["W1"] + p["b1"]) * gate,
        "half_glu1": lambda: z * gate,
        "half_glu2": lambda: y * gate,
    }[module.activation]()


def oracle(module, params, x, reset=None):
    return output(module, params, x, states(*system(module, params), x, reset))
