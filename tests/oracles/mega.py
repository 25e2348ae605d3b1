"""MEGA's gated attention, query by query."""

from math import erf

import numpy as np

from tests.oracles.ema import moving_average, sigmoid, silu
from tests.oracles.tcn import documents


def normed(module, p, x):
    if module.norm == "layer":
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + module.norm_eps)
        return scaled * p["norm"]["scale"] + p["norm"]["bias"]
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + module.norm_eps) * p["norm"]["scale"]


def turned(vector, position):
    half = len(vector) // 2
    angle = position * 10_000.0 ** (-np.arange(half) / half)
    a, b = vector[:half], vector[half:]
    return np.concatenate([a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)])


def bias(p, i, j):
    if "relative_bias" in p:
        return p["relative_bias"][(len(p["relative_bias"]) - 1) // 2 + j - i]
    if "relative_query" in p:
        return turned(p["relative_query"], i) @ turned(p["relative_key"], j)
    return 0.0


def attention(module, p, q, k, v, reset):
    """Attention within the chunks of documents."""
    batch, time, _ = q.shape
    document, y = documents(reset, (batch, time)), np.zeros_like(v)
    chunk = module.chunk or (module.max_positions if module.causal else time)
    for b in range(batch):
        place = np.array([t - np.flatnonzero(document[b] == document[b, t])[0] for t in range(time)])
        for t in range(time):
            together = (document[b] == document[b, t]) & (place // chunk == place[t] // chunk)
            seen = np.flatnonzero(together & (np.arange(time) <= t) if module.causal else together)
            scores = np.array([q[b, t] @ k[b, s] for s in seen])
            biases = np.array([bias(p, place[t] % chunk, place[s] % chunk) for s in seen])
            if module.activation == "softmax":
                scores = scores / np.sqrt(q.shape[2]) + biases
                weights = np.exp(scores - scores.max())
                weights = weights / weights.sum()
            else:
                scores = scores / len(seen) + biases
                if module.activation == "relu2":
                    weights = np.maximum(scores, 0) ** 2
                else:
                    weights = np.array([0.5 * (1 + erf((s - 0.707107) / (0.282095 * np.sqrt(2)))) for s in scores])
            y[b, t] = weights @ v[b, seen]
    return y


def queries_and_keys(p, z):
    return z * p["scale"][0] + p["shift"][0], z * p["scale"][1] + p["shift"][1]


def gated(module, p, x, n, m, reset):
    dim, key_dim, value_dim = x.shape[2], p["scale"].shape[1], p["value"].shape[1]
    v = silu(n @ p["value"] + p["value_bias"])
    edges = np.cumsum([dim, key_dim, value_dim])
    u, z, r, s = np.split(m @ p["mix"] + p["mix_bias"], edges, axis=-1)
    q, k = queries_and_keys(p, silu(z))
    h = silu(s + (attention(module, p, q, k, v, reset) * silu(r)) @ p["output"] + p["output_bias"])
    return sigmoid(u) * (h - x)


def oracle(module, params, x, reset=None):
    n = normed(module, params, x)
    return gated(module, params, x, n, moving_average(params, n, reset, module.truncation), reset)
