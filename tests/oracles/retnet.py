"""RetNet's retention, one step and one head after another in NumPy, document by document."""

import numpy as np

from tests.oracles.based import project
from tests.oracles.mamba import documents, normed, silu


def rotated(a, position, base):
    """Pairs (j, j + K/2) of [H, K] as complex numbers, turned by position * base^(-2j/K)."""
    half = a.shape[-1] // 2
    turn = np.exp(1j * position * base ** (-np.arange(half) / half))
    turned = (a[:, :half] + 1j * a[:, half:]) * turn
    return np.concatenate([turned.real, turned.imag], axis=1)


def oracle(module, params, x, reset=None):
    y = np.zeros_like(x)
    scale = params.get("scale", np.ones(params["value"].shape[-1]))
    for row in range(len(x)):
        for start, stop in documents(x.shape[1], None if reset is None else reset[row]):
            q, k, v, gate = (project(x[row, start:stop], params[n]) for n in ("query", "key", "value", "gate"))
            memory = np.zeros((module.heads, k.shape[-1], v.shape[-1]))
            for t in range(stop - start):
                query, key = (rotated(a[t], t, module.base) for a in (q, k))
                for h in range(module.heads):
                    memory[h] = (1 - 2.0 ** (-5 - h)) * memory[h] + np.outer(key[h], v[t, h])
                    read = query[h] @ memory[h] / np.sqrt(k.shape[-1])
                    if module.norm == "layer":
                        read = (read - read.mean()) / np.sqrt(read.var() + module.norm_eps) * scale
                    else:
                        read = normed(read, scale, module.norm_eps)
                    y[row, start + t] += read * silu(gate[t, h]) @ params["output"][h]
    return y
