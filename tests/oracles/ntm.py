"""Neural Turing Machine, one row and one step at a time, from the equations of Graves et al. 2014."""

import numpy as np


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def softplus(a):
    return np.log1p(np.exp(-np.abs(a))) + np.maximum(a, 0)


def softmax(a):
    e = np.exp(a - a.max())
    return e / e.sum()


def head_address(memory, previous, key, shift, beta, gate, gamma):
    slots, offsets = len(memory), len(shift) // 2
    cosine = np.array([m @ key / (np.sqrt(m @ m) * np.sqrt(key @ key) + 1e-8) for m in memory])
    gated = gate * softmax(beta * cosine) + (1 - gate) * previous
    shifted = np.zeros(slots)
    for i in range(slots):
        for j in range(len(shift)):
            shifted[i] += gated[(i - (j - offsets)) % slots] * shift[j]
    powers = shifted**gamma
    return powers / powers.sum()


def oracle(module, params, x, reset=None):
    p, y = params, np.zeros_like(x)
    slots, width, heads, shifts = module.slots, module.slot_dim, module.heads, module.shifts
    size = module.hidden_dim or module.dim
    for b in range(x.shape[0]):
        for t in range(x.shape[1]):
            if t == 0 or (reset is not None and reset[b, t]):
                memory = np.full((slots, width), 1e-6)
                read_w, write_w = (np.eye(slots)[np.zeros(heads, int)] for _ in range(2))
                reads, hidden, cell = np.zeros((heads, width)), np.zeros(size), np.zeros(size)
            a = x[b, t] @ p["W_x"] + reads.ravel() @ p["W_r"] + p["b"]
            if module.controller == "lstm":
                g, i, f, o = np.split(a + hidden @ p["W_h"], 4)
                cell = np.tanh(g) * sigmoid(i) + cell * sigmoid(f)
                hidden = np.tanh(cell) * sigmoid(o)
            else:
                hidden = np.tanh(a)
            emitted_r = (hidden @ p["W_read"] + p["b_read"]).reshape(heads, -1)
            emitted_w = (hidden @ p["W_write"] + p["b_write"]).reshape(heads, -1)
            new_r, new_w = np.zeros_like(read_w), np.zeros_like(write_w)
            keep, add = np.ones_like(memory), np.zeros_like(memory)
            for r in range(heads):
                for out, old, new in ((emitted_r[r], read_w, new_r), (emitted_w[r], write_w, new_w)):
                    shift, (beta, gate, gamma) = softmax(out[-3 - shifts : -3]), out[-3:]
                    scalars = softplus(beta), sigmoid(gate), 1 + softplus(gamma)
                    new[r] = head_address(memory, old[r], out[:width], shift, *scalars)
                erase, content = sigmoid(emitted_w[r, width : 2 * width]), emitted_w[r, 2 * width : 3 * width]
                keep *= 1 - np.outer(new_w[r], erase)
                add += np.outer(new_w[r], content)
            reads = new_r @ memory
            memory, read_w, write_w = memory * keep + add, new_r, new_w
            y[b, t] = np.concatenate([hidden, reads.ravel()]) @ p["W_y"] + p["b_y"]
    return y
