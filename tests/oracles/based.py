"""Based by its weights: exp to second order of every query against every key before it, one at a time."""

import numpy as np


def weights(q, k):
    """[H, F] and [S, H, F] -> [H, S]: 1 + s + s^2 / 2."""
    s = np.einsum("hf,shf->hs", q, k) / np.sqrt(q.shape[-1])
    return 1 + s + s**2 / 2


def project(x, kernel):
    return np.einsum("td,dhk->thk", x, kernel)


def oracle(module, params, x, reset=None):
    y = np.zeros_like(x)
    for row in range(len(x)):
        q, k, v = (project(x[row], params[name]) for name in ("query", "key", "value"))
        first = 0
        for t in range(x.shape[1]):
            if reset is not None and reset[row, t]:
                first = t
            past = range(first, t + 1)
            w = weights(q[t], k[past])
            fading = np.ones_like(w)
            if module.decay:
                rates = 1 - 2.0 ** (module.decay_start - np.arange(module.heads))
                fading = rates[:, None] ** (t - np.arange(first, t + 1))
            heads = np.einsum("hs,shv->hv", w * fading, v[past]) / (w.sum(axis=1) + module.eps)[:, None]
            y[row, t] = np.einsum("hv,hvd->d", heads, params["output"])
    return y
