"""The Universal Transformer in NumPy float64: one document at a time, one position at a time where it matters.

Written from the equations of the paper and of the released code, without masks: a document is cut out of its row, a
query looks at a Python slice of it, every depth step is a turn of a Python loop.
"""

import itertools

import numpy as np


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def softmax(a, axis):
    e = np.exp(a - np.max(a, axis=axis, keepdims=True))
    return e / np.sum(e, axis=axis, keepdims=True)


def norm(p, x):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * p["scale"] + p["bias"]


def attention(q, k, v, visible):
    """One head: query i sees the positions visible(i)."""
    rows = []
    for i in range(len(q)):
        seen = visible(i)
        rows.append(softmax(k[seen] @ q[i] / np.sqrt(q.shape[1]), 0) @ v[seen])
    return np.stack(rows)


def self_attention(m, p, h):
    """MHSA of one document [T, D]."""
    size = m.dim // m.heads
    heads = []
    for j in range(m.heads):
        part = slice(j * size, (j + 1) * size)
        q, k, v = (h @ p[name][:, part] for name in ("query", "key", "value"))
        seen = (lambda i: slice(max(0, i - m.window + 1), i + 1)) if m.causal else (lambda i: slice(None))
        heads.append(attention(q, k, v, seen))
    return np.concatenate(heads, axis=1) @ p["output"]


def cross_attention(m, p, h, memory):
    size = m.dim // m.heads
    heads = []
    for j in range(m.heads):
        part = slice(j * size, (j + 1) * size)
        q, k, v = h @ p["cross_query"][:, part], memory @ p["cross_key"][:, part], memory @ p["cross_value"][:, part]
        heads.append(attention(q, k, v, lambda i: slice(None)))
    return np.concatenate(heads, axis=1) @ p["cross_output"]


def convolve(m, kernel, h):
    taps = len(kernel)
    left = taps - 1 if m.causal else (taps - 1) // 2
    out = np.zeros_like(h)
    for t in range(len(h)):
        for tap in range(taps):
            if 0 <= t + tap - left < len(h):
                out[t] += kernel[tap] * h[t + tap - left]
    return out


def transition(m, p, h):
    if m.transition == "sepconv":
        h = convolve(m, p["up_kernel"], h)
    h = np.maximum(h @ p["up"] + p["up_bias"], 0)
    if m.transition == "sepconv":
        h = convolve(m, p["down_kernel"], h)
    return h @ p["down"] + p["down_bias"]


def layer(m, p, x, memory=None):
    branches = [("attention_norm", lambda h: self_attention(m, p, h))]
    if memory is not None:
        branches.append(("cross_norm", lambda h: cross_attention(m, p, h, memory)))
    branches.append(("transition_norm", lambda h: transition(m, p, h)))
    for name, branch in branches:
        x = x + branch(norm(p[name], x)) if m.norm == "pre" else norm(p[name], x + branch(x))
    return x


def layers(m, stacked, x, memory=None):
    for i in range(len(stacked["query"])):
        p = {k: {n: a[i] for n, a in v.items()} if isinstance(v, dict) else v[i] for k, v in stacked.items()}
        x = layer(m, p, x, memory)
    return x


def sinusoid(m, position):
    d = m.dim
    if m.sinusoid == "interleaved":
        out = np.zeros(d)
        for j in range(d // 2):
            angle = (position + 1) / 10000 ** (2 * j / d)
            out[2 * j], out[2 * j + 1] = np.sin(angle), np.cos(angle)
        return out
    scales = np.exp(-np.arange(d // 2) * np.log(1e4) / (d // 2 - 1))
    return np.concatenate([np.sin(position * scales), np.cos(position * scales)])


def with_signal(m, params, s, t):
    if m.position_signal == m.step_signal == "none":
        return s
    signal = np.zeros_like(s)
    start = len(s) * t // m.steps if m.position_start == "step" else 0
    for i in range(len(s)):
        if m.position_signal == "sinusoid":
            signal[i] += sinusoid(m, start + i)
        if m.step_signal == "sinusoid":
            signal[i] += sinusoid(m, t)
        if m.step_signal == "learned":
            signal[i] += params["step_table"][t] * np.sqrt(m.dim)
    return s + signal if m.combine == "add" else np.concatenate([s, signal], axis=1) @ params["combine"]


def affine(p, *inputs):
    return np.concatenate(inputs, axis=-1) @ p["weight"] + p["bias"]


def adaptive(m, params, s, block):
    """The halting loop of the released code, with a flag instead of h < 1; returns (o, n, R)."""
    length, threshold = len(s), 1 - m.epsilon
    h, remainder, n, o = np.zeros(length), np.zeros(length), np.zeros(length), np.zeros_like(s)
    halted, step = np.zeros(length, bool), 0
    while step < m.steps and np.any(~halted):
        before = with_signal(m, params, s, step)
        p = sigmoid(before @ params["halting"]["weight"] + params["halting"]["bias"])
        if m.act_type == "global":
            p = np.full(length, p.mean())
        after = block(before)
        for i in range(length):
            if halted[i]:
                weight = 0.0
            elif h[i] + p[i] > threshold:
                weight = 1 - h[i]
                remainder[i] = weight
                halted[i] = True
                n[i] += 1
            else:
                weight = p[i]
                h[i] += p[i]
                n[i] += 1
            if m.freeze_halted and weight == 0.0:
                after[i] = s[i]
            o[i] = weight * after[i] + (1 if m.act_type == "accumulated" else 1 - weight) * o[i]
        s, step = after, step + 1
    return o, n, remainder


def recur(m, params, x, memory=None):
    def block(s):
        return layers(m, params["block"], s, memory)

    def gated(s):
        p = {k: {n: a[0] for n, a in v.items()} if isinstance(v, dict) else v[0] for k, v in params["block"].items()}
        return norm(p["attention_norm"], self_attention(m, p, with_signal(m, params, s, 0)))

    s = x
    if m.recurrence == "act":
        return adaptive(m, params, s, block)[0]
    if m.recurrence == "dwa":
        states, p = [x], params["dwa"]
        for t in range(m.steps):
            scores = np.stack([affine(p, state + p["embedding"][n]) for n, state in enumerate(states)])
            weights = softmax(scores, 0 if m.dwa_axis == "depth" else -1)
            states.append(block(with_signal(m, params, np.sum(weights * np.stack(states), axis=0), t)))
        return states[-1]
    c = np.zeros_like(x)
    for t in range(m.steps):
        if m.recurrence == "gru":
            a = gated(s)
            z, r = (sigmoid(affine(params[name], a, s)) for name in ("update", "reset"))
            candidate = np.tanh(affine(params["candidate"], a, r * s))
            s = norm(params["gru_norm"], (1 - z) * a + z * candidate)
            continue
        if m.recurrence == "lstm":
            a = gated(s)
            i, f, o = (sigmoid(affine(params[name], a, s)) for name in ("input", "forget", "out"))
            c = f * c + i * np.tanh(affine(params["cell"], a, s))
            s = o * np.tanh(c)
            continue
        new = block(with_signal(m, params, s, t))
        if m.recurrence in ("highway", "skip"):
            inputs = [{"s": s, "t": new, "i": x}[letter] for letter in m.gate_inputs]
            g = sigmoid(affine(params["gate"], *inputs))
            carry = 1 - g if m.couple_gates else sigmoid(affine(params["carry"], *inputs))
            new = g * new + carry * (s if m.recurrence == "highway" else x)
        s = new
    return s


def document(m, params, x, memory=None):
    """One document [T, D], with a memory [S, D] or None."""
    if m.mix_before:
        x = layers(m, params["before"], x, memory)
    x = recur(m, params, x, memory)
    if m.mix_after:
        x = layers(m, params["after"], x, memory)
    return norm(params["final_norm"], x) if m.norm == "pre" else x


def oracle(module, params, x, reset=None):
    out = np.zeros(x.shape)
    for b in range(len(x)):
        starts = [0, *(np.nonzero(reset[b])[0] if reset is not None else []), x.shape[1]]
        for start, stop in itertools.pairwise(starts):
            if stop > start:
                out[b, start:stop] = document(module, params, x[b, start:stop])
    return out
