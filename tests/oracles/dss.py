"""DSS, step by step; the softmax's sum written out."""

import numpy as np

from tests.oracles.s4d import activate, run


def oracle(module, params, x, reset=None):
    p = params
    softmax = module.normalization == "softmax"
    eigen = (p["Lambda_re"] if softmax else -np.exp(p["log_neg_re"])) + 1j * p["Lambda_im"]
    a = np.exp(eigen * np.exp(p["log_dt"])[:, None])
    b = 1 / sum(a**n for n in range(module.length)) if softmax else a - 1
    y = run(a, b, (p["w_re"] + 1j * p["w_im"]) / eigen, x, reset)
    return activate(module.activation, p, y + p["D"] * x)
