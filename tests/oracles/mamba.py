"""Mamba, one step after another in NumPy, document by document."""

import numpy as np

from tests.oracles.nonlinearities import sigmoid


def silu(x):
    return x * sigmoid(x)


def softplus(x):
    return np.logaddexp(x, 0.0)


def convolved(u, kernel, bias):
    """[T, C]: the causal depthwise convolution of one document, and silu."""
    v = np.zeros_like(u)
    for t in range(len(u)):
        for back in range(min(len(kernel), t + 1)):
            v[t] += kernel[len(kernel) - 1 - back] * u[t - back]
    return silu(v + bias)


def documents(length, reset):
    """(start, stop) of the documents of one row."""
    starts = [0] + [t for t in range(1, length) if reset is not None and reset[t]]
    return zip(starts, [*starts[1:], length], strict=True)


def normed(x, scale, eps):
    return x / np.sqrt(np.mean(x**2) + eps) * scale


def oracle(module, params, x, reset=None):
    y = np.zeros_like(x)
    rank, (inner, size) = len(params["dt"]), params["A_log"].shape
    for row in range(len(x)):
        for start, stop in documents(x.shape[1], None if reset is None else reset[row]):
            both = x[row, start:stop] @ params["input"] + params.get("input_bias", 0)
            v = convolved(both[:, :inner], params["kernel"], params.get("bias", 0))
            h = np.zeros((inner, size))
            for t in range(stop - start):
                made = v[t] @ params["project"]
                rough, b, c = made[:rank], made[rank : rank + size], made[rank + size :]
                if module.norms != "none":
                    rough, b, c = (
                        normed(a, params.get(f"{name}_norm", 1), module.norm_eps)
                        for name, a in (("dt", rough), ("B", b), ("C", c))
                    )
                delta = softplus(rough @ params["dt"] + params["dt_bias"])
                h = np.exp(-delta[:, None] * np.exp(params["A_log"])) * h + np.outer(delta * v[t], b)
                out = (h @ c + params["skip"] * v[t]) * silu(both[t, inner:])
                y[row, start + t] = out @ params["output"] + params.get("output_bias", 0)
    return y
