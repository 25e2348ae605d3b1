"""S4, step by step, with the dense matrix of all modes and their conjugates."""

import numpy as np

from tests.oracles.s4d import activate


def systems(p, channels):
    """Dense (Abar, Bbar) of every channel by the bilinear rule."""
    repeat = channels // len(p["log_neg_re"])
    for channel in range(channels):
        s = channel // repeat
        half = -np.exp(p["log_neg_re"][s]) + 1j * p["Lambda_im"][s]
        eigen = np.concatenate([half, half.conj()])
        low = p["P_re"][s] + 1j * p["P_im"][s]
        low = np.concatenate([low, low.conj()], axis=1).T
        into = p["B_re"][s] + 1j * p["B_im"][s]
        into = np.concatenate([into, into.conj()])
        a = np.diag(eigen) - low @ low.conj().T
        dt, one = np.exp(p["log_dt"][channel]), np.eye(len(eigen))
        yield np.linalg.solve(one - dt / 2 * a, one + dt / 2 * a), np.linalg.solve(one - dt / 2 * a, dt * into)


def run(p, c, x, reset=None):
    """C h_t for complex readouts ``c`` [D, M] of the kept modes."""
    y = np.zeros_like(x)
    for channel, (a, b) in enumerate(systems(p, x.shape[2])):
        readout = np.concatenate([c[channel], c[channel].conj()])
        hidden = np.zeros((len(x), len(b)), complex)
        for t in range(x.shape[1]):
            if reset is not None:
                hidden[reset[:, t]] = 0
            hidden = hidden @ a.T + x[:, t, channel, None] * b
            y[:, t, channel] = (hidden @ readout).real
    return y


def oracle(module, params, x, reset=None):
    p = params
    return activate(module.activation, p, run(p, p["C_re"] + 1j * p["C_im"], x, reset) + p["D"] * x)
