"""The damped exponential moving average, step by step."""

import numpy as np


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def silu(a):
    return a * sigmoid(a)


def averages(p, x, reset, truncation, rows):
    """e [B, T, D] of the rows of parameters ``rows``."""
    step, beta, gamma = sigmoid(p["delta"])[rows], p["beta"][rows], p["gamma"][rows]
    decay = 1 - step * sigmoid(p["alpha"])[rows]
    e = np.zeros_like(x)
    for b in range(x.shape[0]):
        start = 0
        for t in range(x.shape[1]):
            if reset is not None and reset[b, t]:
                start = t
            oldest = start if truncation is None else max(start, t - truncation + 1)
            hidden = np.zeros_like(beta)
            for s in range(oldest, t + 1):
                hidden = decay * hidden + step * beta * x[b, s][:, None]
            e[b, t] = np.sum(gamma * hidden, axis=1) / np.sqrt(gamma.shape[1])
    return e


def reversed_starts(reset):
    """First tokens of the documents of the reversed row."""
    starts = np.zeros_like(reset)
    starts[:, 1:] = reset[:, 1:][:, ::-1]
    return starts


def moving_average(p, x, reset, truncation):
    e = averages(p, x, reset, truncation, slice(0, x.shape[2]))
    if len(p["delta"]) == 2 * x.shape[2]:
        starts = None if reset is None else reversed_starts(reset)
        e = e + averages(p, x[:, ::-1], starts, truncation, slice(x.shape[2], None))[:, ::-1]
    return silu(e + p["omega"] * x)


def oracle(module, params, x, reset=None):
    return moving_average(params, x, reset, module.truncation)
