"""Linear attention by its weights: every query against every key before it, one at a time."""

import numpy as np

FEATURES = {
    "elu": lambda x: np.where(x > 0, x + 1, np.exp(np.minimum(x, 0))),
    "relu": lambda x: np.maximum(x, 0),
    "exp": np.exp,
    "identity": lambda x: x,
}


def oracle(module, params, x, reset=None):
    def divisor(row, t, weights):
        return weights.sum(axis=-1) if module.normalize else 1.0

    return attention(params, x, reset, FEATURES[module.feature_map], divisor)


def attention(params, x, reset, features, divisor):
    """Weights features(q_t) . features(k_s) over the document so far, divided by ``divisor(row, t, weights [H, S])``."""
    y = np.zeros_like(x)
    for row in range(len(x)):
        first = 0
        for t in range(x.shape[1]):
            if reset is not None and reset[row, t]:
                first = t
            past = x[row, first : t + 1]
            q = features(np.einsum("d,dhk->hk", x[row, t], params["query"]))
            k = features(np.einsum("sd,dhk->shk", past, params["key"]))
            v = np.einsum("sd,dhv->shv", past, params["value"])
            weights = np.einsum("hk,shk->hs", q, k)
            heads = np.einsum("hs,shv->hv", weights, v) / np.reshape(divisor(row, t, weights), (-1, 1))
            y[row, t] = np.einsum("hv,hvd->d", heads, params["output"])
    return y
