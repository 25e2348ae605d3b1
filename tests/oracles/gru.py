"""GRU, one step after another in NumPy."""

import numpy as np


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def oracle(module, params, x, reset=None):
    """Gates r, z and candidate n, in both forms of the reset gate."""
    batch, steps, _ = x.shape
    width = params["recurrent_kernel"].shape[0]
    w_r, w_z, w_n = np.split(params["input_kernel"], 3, axis=1)
    u_r, u_z, u_n = np.split(params["recurrent_kernel"], 3, axis=1)
    b_r, b_z, b_n = np.split(params["bias"], 3)
    y = []
    for b in range(batch):
        h = np.zeros(width)
        for t in range(steps):
            if reset is not None and reset[b, t]:
                h = np.zeros(width)
            r = sigmoid(x[b, t] @ w_r + h @ u_r + b_r)
            z = sigmoid(x[b, t] @ w_z + h @ u_z + b_z)
            if module.reset_gate == "after":
                n = np.tanh(x[b, t] @ w_n + b_n + r * (h @ u_n + params["candidate_bias"]))
            else:
                n = np.tanh(x[b, t] @ w_n + b_n + (r * h) @ u_n)
            h = z * h + (1 - z) * n
            y.append(h if module.hidden_dim is None else h @ params["output"]["kernel"])
    return np.array(y).reshape(batch, steps, -1)
