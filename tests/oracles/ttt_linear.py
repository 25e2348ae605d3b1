"""TTT, one token and one head after another in NumPy, document by document."""

import numpy as np

from tests.oracles.attention import rotate
from tests.oracles.mamba import documents
from tests.oracles.neural_memory import Memory, gelu
from tests.oracles.nonlinearities import sigmoid


def oracle(module, params, x, reset=None):
    y = np.zeros_like(x)
    width = module.dim // module.heads
    names = [name for name in params if name[0] in "Wb" and name[1:].isdigit()]
    for row in range(len(x)):
        for start, stop in documents(x.shape[1], None if reset is None else reset[row]):
            memories = [
                Memory({n: params[n][h] for n in names}, module.chunk_size, True, half=True, sigma=gelu, eps=1e-6,
                       scale=params["norm_scale"][h], shift=params["norm_bias"][h])
                for h in range(module.heads)
            ]  # fmt: skip
            now = x[row, start:stop]
            u = np.concatenate([now @ params["query"], now @ params["key"]], axis=-1)
            if "kernel" in params:
                taps = len(params["kernel"])
                padded = np.concatenate([np.zeros((taps - 1, u.shape[1])), u])
                u = sum(padded[i : i + len(u)] * params["kernel"][i] for i in range(taps))
            for t in range(stop - start):
                q, k = u[t].reshape(2, module.heads, width)
                v = (now[t] @ params["value"]).reshape(module.heads, width)
                if module.rotary:
                    q, k = (rotate(a, t % module.chunk_size, 10_000.0) for a in (q, k))
                eta = module.eta_base * sigmoid(now[t] @ params["eta"] + params["eta_bias"]) / width
                for h, memory in enumerate(memories):
                    memory.write(k[h], v[h], eta[h])
                r = np.concatenate([memory.read(q[h]) for h, memory in enumerate(memories)])
                r = (r - r.mean()) / np.sqrt(r.var() + 1e-6) * params["post_scale"] + params["post_bias"]
                if "gate" in params:
                    r = r * gelu(now[t] @ params["gate"])[0]
                y[row, start + t] = r @ params["output"]
    return y
