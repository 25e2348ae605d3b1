"""Bidirectional S4D: every document on its own, forwards and backwards."""

import numpy as np

from tests.oracles.s4d import activate, discrete, eigenvalues, run


def documents(x, reset):
    """(row, start, stop) of every document."""
    for row in range(len(x)):
        starts = [0] if reset is None else sorted({0, *np.flatnonzero(reset[row])})
        yield from ((row, start, stop) for start, stop in zip(starts, [*starts[1:], x.shape[1]]))


def oracle(module, params, x, reset=None):
    p = params
    a, b = discrete(module, eigenvalues(p), np.exp(p["log_dt"])[:, None])
    b = b * (p["B_re"] + 1j * p["B_im"])
    c = 2 * (p["C_re"] + 1j * p["C_im"])
    y = np.zeros_like(x)
    for row, start, stop in documents(x, reset):
        part = x[row : row + 1, start:stop]
        y[row, start:stop] = (run(a, b, c[0], part) + run(a, b, c[1], part[:, ::-1])[:, ::-1])[0]
    return activate(module.activation, p, y + p["D"] * x)
