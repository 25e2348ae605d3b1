"""Titans LMM, one token and one head after another in NumPy, document by document."""

import numpy as np

from tests.oracles.mamba import convolved, documents, normed
from tests.oracles.mamba import silu as swish
from tests.oracles.neural_memory import Memory
from tests.oracles.nonlinearities import sigmoid


def unit(a):
    return a / np.sqrt(a @ a + 1e-6)


def gates_of(params, x, config):
    """(theta, alpha, eta) of one token: lists over heads of numbers, or of numbers per channel by weight."""
    found = []
    for name in ("theta", "alpha", "eta"):
        if f"memory_{name}" not in params:
            found.append([0.0] * config.heads)
            continue
        g = sigmoid(x @ params[f"memory_{name}"] + params[f"memory_{name}_bias"]).reshape(config.heads, -1)
        g = g * (config.theta_max if name == "theta" else 1)
        if config.gates == "head":
            found.append(list(g[:, 0]))
            continue
        widths = {n: s[-1] for n, s in config.shapes(len(x)).items()}
        ends = np.cumsum(list(widths.values()))
        found.append([{n: row[e - w : e] for (n, w), e in zip(widths.items(), ends)} for row in g])
    return found


class Branch:
    """The memories of one document; ``step`` takes projected inputs [D] one after another."""

    def __init__(self, params, config, dim):
        self.params, self.config = params, config
        residual = config.depth >= 2 if config.residual_norm is None else config.residual_norm
        names = config.shapes(dim)
        self.memories = [
            Memory({n: params[f"memory_{n}"][h] for n in names}, config.chunk_size, residual, config.max_gradient_norm)
            for h in range(config.heads)
        ]
        self.us, self.gates, self.count = [], None, 0

    def step(self, x, write=True):
        """Writes x and returns what is read, [D]."""
        p, heads = self.params, self.config.heads
        self.us.append(np.concatenate([x @ p[f"memory_{name}"] for name in ("query", "key", "value")]))
        if self.config.conv_size:
            mixed = convolved(np.stack(self.us[-self.config.conv_size :]), p["memory_kernel"], 0)[-1]
        else:
            mixed = swish(self.us[-1])
        q, k, v = mixed.reshape(3, heads, -1)
        if self.config.gates_per == "token" or self.count % self.config.chunk_size == 0:
            self.gates = gates_of(p, x, self.config)
        self.count += 1
        for h, memory in enumerate(self.memories):
            memory.write(unit(k[h]), v[h], *(g[h] for g in self.gates))
        return np.concatenate([memory.read(unit(q[h])) for h, memory in enumerate(self.memories)])

    def document(self):
        """The convolution begins anew."""
        self.us = []


def started(params, config, dim):
    """(memories that have read the persistent tokens, what they read there)."""
    branch = Branch(params, config, dim)
    read = [branch.step(token) for token in params.get("persistent", ())]
    branch.document()
    return branch, read


def oracle(module, params, x, reset=None):
    y = np.zeros_like(x)
    for row in range(len(x)):
        for start, stop in documents(x.shape[1], None if reset is None else reset[row]):
            branch, _ = started(params, module.config(), module.dim)
            for t in range(start, stop):
                r = branch.step(x[row, t]).reshape(module.heads, -1)
                r = np.concatenate([normed(one, params["scale"], module.norm_eps) for one in r])
                if module.output_gate != "none":
                    z = x[row, t] @ params["gate"]
                    r = r * (swish(z) if module.output_gate == "silu" else sigmoid(z))
                y[row, t] = r @ params["output"]
    return y
