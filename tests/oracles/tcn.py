"""A stack of dilated convolutions, step by step."""

import numpy as np

from tests.oracles.ema import silu

ACTIVATIONS = {"identity": lambda a: a, "silu": silu}


def documents(reset, shape):
    """The document number of every token."""
    return np.zeros(shape, int) if reset is None else np.cumsum(reset, axis=1)


def convolve(x, weight, bias, dilation, ahead, document):
    taps, y = len(weight), np.zeros_like(x)
    for b in range(x.shape[0]):
        for t in range(x.shape[1]):
            y[b, t] = bias
            for k in range(taps):
                s = t - (taps - 1 - ahead - k) * dilation
                if 0 <= s < x.shape[1] and document[b, s] == document[b, t]:
                    y[b, t] += x[b, s] * weight[k] if weight.ndim == 2 else x[b, s] @ weight[k]
    return y


def convolutions(p, x, reset, *, factor, activation="identity", residual=False, causal=True):
    document, act = documents(reset, x.shape[:2]), ACTIVATIONS[activation]
    ahead = 0 if causal else (p["direction"].shape[2] - 1) // 2
    y = x
    for layer, blocks in enumerate(p["direction"]):
        hidden = y
        for i, v in enumerate(blocks):
            if "gain" in p:
                norm = np.sqrt(np.sum(v**2, axis=tuple(range(v.ndim - 1))))
                v = v * p["gain"][layer, i] / norm
            hidden = act(convolve(hidden, v, p["bias"][layer, i], factor**layer, ahead, document))
        y = y + hidden if residual else hidden
    return silu(y + p["omega"] * x) if "omega" in p else y


def oracle(module, params, x, reset=None):
    m = module
    return convolutions(params, x, reset, factor=m.factor, activation=m.activation, residual=m.residual)
