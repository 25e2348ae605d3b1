"""Elman network, one step after another in NumPy."""

import numpy as np

ACTIVATIONS = {
    "sigmoid": lambda a: 1 / (1 + np.exp(-a)),
    "tanh": np.tanh,
    "relu": lambda a: np.maximum(a, 0),
    "identity": lambda a: a,
}


def oracle(module, params, x, reset=None):
    """h_t = act(x_t W_x + h_{t-1} W_h + b)."""
    batch, steps, _ = x.shape
    y = []
    for b in range(batch):
        h = np.zeros(len(params["bias"]))
        for t in range(steps):
            if reset is not None and reset[b, t]:
                h = np.zeros_like(h)
            a = x[b, t] @ params["input_kernel"] + h @ params["recurrent_kernel"] + params["bias"]
            h = ACTIVATIONS[module.activation](a)
            y.append(h if module.hidden_dim is None else h @ params["output"]["kernel"])
    return np.array(y).reshape(batch, steps, -1)
