"""FlashRNN, one head and one step after another in NumPy; complex numbers pass, for derivatives by complex steps."""

import numpy as np


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def elman(w, r, b, states):
    return (np.tanh(w[0] + r[0] + b[0]),)


def lstm(w, r, b, states):
    i, f, z, o = w + r + b
    c = sigmoid(f) * states[1] + sigmoid(i) * np.tanh(z)
    return sigmoid(o) * np.tanh(c), c


def gru(w, r, b, states):
    reset, update = sigmoid(w[0] + r[1] + b[1]), sigmoid(w[1] + r[2] + b[2])
    return (update * states[0] + (1 - update) * np.tanh(w[2] + b[3] + reset * (r[0] + b[0])),)


def slstm(w, r, b, states):
    """Without stabilisation: c and n are the true sums, i and f the true gates."""
    i, f, z, o = w + r + b
    _, c, n = states
    c, n = sigmoid(f) * c + np.exp(i) * np.tanh(z), sigmoid(f) * n + np.exp(i)
    return sigmoid(o) * c / n, c, n


CELLS = {"elman": (elman, 1), "lstm": (lstm, 2), "gru": (gru, 1), "slstm": (slstm, 3)}


def run(function, Wx, R, b, reset=None, initial=None):
    """h [B, T, N, D] from Wx [B, T, Gw, N, D], R [Gr, N, D, D], b [Gt, N, D]; ``initial`` [S, B, N, D]."""
    step, count = CELLS[function]
    batch, steps, _, heads, dim = Wx.shape
    h = np.zeros((batch, steps, heads, dim), np.result_type(Wx, R, b, *([] if initial is None else initial)))
    for row in range(batch):
        for n in range(heads):
            states = [np.zeros(dim)] * count if initial is None else [s[row, n] for s in initial]
            for t in range(steps):
                if reset is not None and reset[row, t]:
                    states = [np.zeros(dim)] * count
                recurrent = np.array([R[g, n] @ states[0] for g in range(len(R))])
                states = step(Wx[row, t, :, n], recurrent, b[:, n], states)
                h[row, t, n] = states[0]
    return h


def layer(function, params, x, reset=None):
    heads, dim = params["bias"].shape[1:]
    drive = (x @ params["input_kernel"]).reshape(*x.shape[:2], -1, heads, dim)
    y = run(function, drive, params["recurrent_kernel"], params["bias"], reset)
    if "norm_scale" in params:
        centred = y - y.mean(-1, keepdims=True)
        y = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * params["norm_scale"]
    y = y.reshape(*x.shape[:2], -1)
    return y @ params["output"]["kernel"] if "output" in params else y


def oracle(module, params, x, reset=None):
    return layer(module.function, params, x, reset)
