"""Miras and the three models that it is known for, one step and one head after another in NumPy, document by document.

Written from the equations, chunks included: the gradients of a chunk are taken at its first weights; with the KL retention
the first step of a chunk is exact and the others are linear, with gradients after it.
"""

import numpy as np
from scipy.special import erf, softmax

from tests.oracles.gated_deltanet import unit
from tests.oracles.mamba import convolved, documents, normed, silu, softplus
from tests.oracles.nonlinearities import sigmoid


def gelu(a):
    return a * 0.5 * (1 + erf(a / np.sqrt(2)))


def gelu_slope(a):
    return 0.5 * (1 + erf(a / np.sqrt(2))) + a * np.exp(-(a**2) / 2) / np.sqrt(2 * np.pi)


def read(kind, weights, x):
    """(M(x), what ``gradient`` needs)."""
    if kind == "matrix":
        return x @ weights[0], x
    seen, z = [], x
    for layer, w in enumerate(weights):
        h = gelu(z) if layer else z
        seen.append((z, h))
        z = h @ w
    centred = z - z.mean()
    size = np.sqrt(np.mean(centred**2) + 1e-5)
    return x + centred / size, (seen, centred / size, size)


def gradient(kind, weights, seen, u):
    """Gradients of <u, M(x)>."""
    if kind == "matrix":
        return [np.outer(seen, u)]
    layers, normal, size = seen
    delta = (u - u.mean() - normal * np.mean(u * normal)) / size
    found = []
    for layer in reversed(range(len(weights))):
        z, h = layers[layer]
        found.insert(0, np.outer(h, delta))
        delta = (delta @ weights[layer].T) * (gelu_slope(z) if layer else 1)
    return found


def bias_slope(bias, e, threshold):
    name, o = bias
    length = np.sqrt(e @ e + 1e-12)
    if name == "l2":
        return o.get("factor", 2.0) * e
    if name == "lp":
        p = o.get("p", 3.0)
        return p * np.tanh(10 * e) * np.sqrt(e**2 + 1e-6) ** (p - 1)
    if name == "huber":
        if o.get("form", "switched") == "coordinate":
            return np.where(np.abs(e) <= threshold, e, threshold * np.tanh(10 * e))
        if o.get("form", "switched") == "norm":
            return np.where(length <= threshold, e, threshold * e / length)
        return np.where(length <= threshold, o.get("factor", 2.0) * e, threshold * np.tanh(10 * e))
    return e + o["radius"] * e / length


def dual(retention, w):
    name, o = retention
    if name == "lq":
        q = o["q"]
        return w * np.sum(np.abs(w) ** q) ** ((q - 2) / (3 - q) / q)
    return np.log(w) if name == "kl" else w


def primal(retention, z):
    name, o = retention
    if name == "lq":
        return z / np.sum(np.abs(z) ** o["q"]) ** ((o["q"] - 2) / o["q"])
    return np.exp(z) if name == "kl" else z


def update(retention, z, change, decay, step):
    name, o = retention
    if name == "elastic_net":
        alpha, beta = o.get("alpha", 100.0), o.get("beta", 100.0)
        share = beta / (beta + step)
        moved = share * (z + change)
        return np.sign(moved) * np.maximum(np.abs(moved) - share * step / alpha, 0)
    if name == "kl":
        return np.log(o.get("c", 1.0) * softmax(decay * z + change, axis=0))
    return decay * z + change


def meet(gate, index, count):
    """A gate of one step as it meets weight ``index`` of ``count``: the output axis of the last, else the input axis."""
    if np.ndim(gate) == 0:
        return gate
    return gate[None, :] if index == count - 1 else gate[:, None]


def head(kind, bias, retention, momentum, size, first, q, k, v, gates):
    """Answers [T, P] of one head in one document; ``gates``: name -> [T] or [T, P]."""
    count = len(first)
    z, kept = [dual(retention, w) for w in first], [0.0] * count
    out, lag = np.zeros_like(v), retention[0] == "kl" and size > 1
    for t in range(len(q)):
        place = t % size
        if place == 0:
            anchor = [primal(retention, a) for a in z]
        now = {n: g[t] for n, g in gates.items()}
        predicted, seen = read(kind, anchor, k[t])
        slope = bias_slope(bias, predicted - v[t], now.get("threshold"))
        gradients = gradient(kind, anchor, seen, slope)
        for i, g in enumerate(gradients):
            step, decay = meet(now["step"], i, count), meet(now.get("decay", 1.0), i, count)
            change = -step * g
            if momentum:
                change = kept[i] = meet(now["momentum"], i, count) * kept[i] + change
            z[i] = decay * z[i] + change if lag and place else update(retention, z[i], change, decay, step)
            if lag and not place:
                z[i] = primal(retention, z[i])
        if lag and not place:
            anchor = list(z)
        current = z if lag else [primal(retention, a) for a in z]
        out[t] = read(kind, current, q[t])[0]
        if lag and place == size - 1:
            floored = [np.maximum(w, 1e-6) for w in z]
            z = [np.log(retention[1].get("c", 1.0) * w / w.sum(0)) for w in floored]
    return out


def rotated(a, positions):
    half = a.shape[-1] // 2
    angles = positions[:, None] * 10_000.0 ** (-np.arange(half) / half)
    cos, sin = np.cos(angles), np.sin(angles)
    return np.concatenate([a[:, :half] * cos - a[:, half:] * sin, a[:, :half] * sin + a[:, half:] * cos], axis=-1)


def attended(length, q, k, v):
    """Attention of one head in one document, over the last ``length`` steps."""
    q, k = (rotated(a, np.arange(len(a))) for a in (q, k))
    out = np.zeros_like(v)
    for t in range(len(q)):
        since = max(0, t - length + 1)
        out[t] = softmax(k[since : t + 1] @ q[t] / np.sqrt(q.shape[1])) @ v[since : t + 1]
    return out


def part(spec):
    options = {"name": spec} if isinstance(spec, str) else dict(spec)
    return options.pop("name"), options


def layer(module, params, x, reset, kind, bias, retention, algorithm):
    """The whole layer with these parts."""
    y = np.zeros_like(x)
    width = len(params["scale"])
    heads, inner = x.shape[2] // width, x.shape[2]
    names = [n for n in ("step", "decay", "momentum", "threshold") if f"{n}_bias" in params]
    first = [params[n] for n in sorted(params) if n.startswith("memory_")]
    if retention[0] == "kl":
        first = [retention[1].get("c", 1.0) * softmax(w, axis=1) for w in first]
    for row in range(len(x)):
        for start, stop in documents(x.shape[1], None if reset is None else reset[row]):
            inputs = x[row, start:stop]
            u = np.concatenate([inputs @ params[name] for name in ("query", "key", "value")], axis=-1)
            q, k, v = np.split(convolved(u, params["kernel"], 0), 3, axis=-1)
            gates = {}
            for name in names:
                raw = (
                    inputs @ params[name] if name in params else inputs @ params[f"{name}_down"] @ params[f"{name}_up"]
                )
                squash = sigmoid if name in ("decay", "momentum") else softplus
                gates[name] = squash(raw + params[f"{name}_bias"])
            answers = np.zeros((stop - start, inner))
            for h in range(heads):
                part = slice(h * width, (h + 1) * width)
                if algorithm[0] == "non_parametric":
                    answers[:, part] = attended(algorithm[1]["max_length"], q[:, part], k[:, part], v[:, part])
                else:
                    now = {n: g[:, h] if module.gates == "head" else g[:, part] for n, g in gates.items()}
                    queries, keys = (np.stack([unit(a) for a in b[:, part]]) for b in (q, k))
                    answers[:, part] = head(
                        kind, bias, retention, algorithm[0] == "momentum", module.chunk_size, [w[h] for w in first],
                        queries, keys, v[:, part], now,
                    )  # fmt: skip
                for t in range(stop - start):
                    answers[t, part] = normed(answers[t, part], params["scale"], module.norm_eps)
            y[row, start:stop] = (answers * silu(inputs @ params["gate"])) @ params["output"]
    return y


def oracle(module, params, x, reset=None):
    kind = part(module.memory)[0]
    return layer(module, params, x, reset, kind, part(module.bias), part(module.retention), part(module.algorithm))
