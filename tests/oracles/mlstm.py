"""mLSTM, one step and one head after another in NumPy, document by document."""

import numpy as np

from tests.oracles.mamba import documents, softplus
from tests.oracles.nonlinearities import sigmoid


def oracle(module, params, x, reset=None):
    y = np.zeros_like(x)
    heads = module.heads

    def capped(z):
        return z if module.gate_cap is None else module.gate_cap * np.tanh(z / module.gate_cap)

    for row in range(len(x)):
        for start, stop in documents(x.shape[1], None if reset is None else reset[row]):
            memory = None
            for t in range(start, stop):
                q, k, v = ((x[row, t] @ params[n]).reshape(heads, -1) for n in ("query", "key", "value"))
                i, f = (capped(x[row, t] @ params[n] + params[f"{n}_bias"]) for n in ("input_gate", "forget_gate"))
                log_forget = -softplus(-f)
                if memory is None:
                    memory, norm = np.zeros((heads, k.shape[1], v.shape[1])), np.zeros(k.shape)
                    top = np.full(heads, -np.inf)
                before, top = top, np.maximum(top + log_forget, i)
                out = np.zeros_like(v)
                for h in range(heads):
                    decay, factor = np.exp(log_forget[h] + before[h] - top[h]), np.exp(i[h] - top[h])
                    memory[h] = decay * memory[h] + factor * np.outer(k[h], v[h])
                    norm[h] = decay * norm[h] + factor * k[h]
                    query = q[h] / np.sqrt(len(q[h]))
                    out[h] = query @ memory[h] / (max(abs(query @ norm[h]), np.exp(-top[h])) + module.epsilon)
                    out[h] = (out[h] - out[h].mean()) / np.sqrt(out[h].var() + module.norm_eps)
                gate = sigmoid(x[row, t] @ params["output_gate"])
                y[row, t] = (gate * out.reshape(-1) * params["scale"]) @ params["output"]
    return y
