"""Causal attention with a window, one query at a time."""

import numpy as np


def rotate(x, position, base, fraction=1.0):
    """Channel pairs (j, j + R/2) of the first R = fraction K of x [heads, K] turned as complex numbers."""
    turned = int(x.shape[-1] * fraction)
    half = turned // 2
    z = (x[:, :half] + 1j * x[:, half:turned]) * np.exp(1j * position * base ** (-np.arange(half) / half))
    return np.concatenate([z.real, z.imag, x[:, turned:]], axis=-1)


def attend(params, row, starts, sees, module):
    """One row [T, D]; ``starts[t]``: first token of t's document; ``sees(t)``: positions that t attends to."""
    heads = [
        np.einsum("td,dhk->thk", row, params[name]) + params.get(f"{name}_bias", 0)
        for name in ("query", "key", "value")
    ]
    if module.positions == "rotary":
        for a in heads[:2]:
            for t in range(len(row)):
                a[t] = rotate(a[t], t - starts[t], module.base, getattr(module, "rotary_fraction", 1.0))
    q, k, v = heads
    share = q.shape[1] // k.shape[1]
    y = np.zeros_like(row)
    for t in range(len(row)):
        for h in range(q.shape[1]):
            seen = sees(t)
            scores = np.array([q[t, h] @ k[s, h // share] for s in seen]) / np.sqrt(q.shape[2])
            weights = np.exp(scores - scores.max())
            weights /= weights.sum()
            y[t] += sum(w * v[s, h // share] for w, s in zip(weights, seen)) @ params["output"][h]
    return y + params.get("output_bias", 0)


def document_starts(reset, row, time):
    """First token of the document of every token."""
    starts, start = [], 0
    for t in range(time):
        if reset is not None and reset[row, t]:
            start = t
        starts.append(start)
    return starts


def oracle(module, params, x, reset=None):
    y = np.zeros_like(x)
    for b in range(len(x)):
        starts = document_starts(reset, b, x.shape[1])

        def sees(t, starts=starts):
            return range(max(starts[t], t - module.window + 1), t + 1)

        y[b] = attend(params, x[b], starts, sees, module)
    return y
