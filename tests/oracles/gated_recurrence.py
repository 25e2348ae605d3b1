"""Gated recurrence: every step by itself around the inner mixer's own oracle, document by document."""

import importlib

import numpy as np

import zoo
from tests.oracles.nonlinearities import sigmoid


def oracle(module, params, x, reset=None):
    spec = {"name": module.mixer} if isinstance(module.mixer, str) else dict(module.mixer)
    inner = zoo.create({**spec, "dim": module.dim})
    run = importlib.import_module(f"tests.oracles.{spec['name']}").oracle
    batch, steps, dim = x.shape
    y = np.zeros_like(x)
    for b in range(batch):
        starts = [0] + [t for t in range(1, steps) if reset is not None and reset[b, t]]
        for start, stop in zip(starts, [*starts[1:], steps], strict=True):
            both = x[b, start:stop] @ params["input"]
            u, gate = both[:, :dim], both[:, dim:]
            v = np.zeros_like(u)
            for t in range(stop - start):
                for back in range(min(module.conv_size, t + 1)):
                    v[t] += params["kernel"][module.conv_size - 1 - back] * u[t - back]
            v = v + params["bias"]
            h = run(inner, params["mixer"], (v * sigmoid(v))[None])[0]
            h = h / np.sqrt(np.mean(h**2, axis=-1, keepdims=True) + 1e-6) * params["norm"]["scale"]
            y[b, start:stop] = (h * gate * sigmoid(gate)) @ params["output"]
    return y
