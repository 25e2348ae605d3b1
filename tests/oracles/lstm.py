"""LSTM, one step after another in NumPy."""

import numpy as np


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def oracle(module, params, x, reset=None):
    """Every gate by itself, from its own slice of the kernels."""
    batch, steps, _ = x.shape
    names = "ifgo" if module.forget_gate else "igo"
    width = params["recurrent_kernel"].shape[0]

    def part(array, gate):
        k = names.index(gate)
        return array[..., k * width : (k + 1) * width]

    y = []
    for b in range(batch):
        h, c = np.zeros(width), np.zeros(width)
        for t in range(steps):
            if reset is not None and reset[b, t]:
                h, c = np.zeros(width), np.zeros(width)

            def gate(name, x_t=x[b, t], h=h):
                kernels = part(params["input_kernel"], name), part(params["recurrent_kernel"], name)
                return x_t @ kernels[0] + h @ kernels[1] + part(params["bias"], name)

            def peep(name, cell):
                return params[f"peephole_{name}"] * cell if module.peephole else 0.0

            i = sigmoid(gate("i") + peep("input", c))
            f = sigmoid(gate("f") + peep("forget", c)) if module.forget_gate else 1.0
            g = np.tanh(gate("g"))
            new = f * c + i * g
            o = sigmoid(gate("o") + peep("output", new))
            h, c = o * (np.tanh(new) if module.output_activation == "tanh" else new), new
            y.append(h if module.hidden_dim is None else h @ params["output"]["kernel"])
    return np.array(y).reshape(batch, steps, -1)
