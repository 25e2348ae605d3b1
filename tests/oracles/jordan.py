"""Jordan network running free, one step after another in NumPy."""

import numpy as np


def softmax(a):
    e = np.exp(a - a.max())
    return e / e.sum()


def oracle(module, params, x, reset=None):
    """s' = alpha s + o, with o the network's own output."""
    batch, steps, _ = x.shape
    y = []
    for b in range(batch):
        s = np.zeros(len(params["readout_bias"]))
        for t in range(steps):
            if reset is not None and reset[b, t]:
                s = np.zeros_like(s)
            a = x[b, t] @ params["input_kernel"] + s @ params["feedback_kernel"] + params["bias"]
            logits = (1 / (1 + np.exp(-a))) @ params["readout_kernel"] + params["readout_bias"]
            s = module.decay * s + (softmax(logits) if module.feedback == "softmax" else logits)
            y.append(logits if module.feedback_dim is None else logits @ params["output"]["kernel"])
    return np.array(y).reshape(batch, steps, -1)
