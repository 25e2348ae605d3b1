"""Bidirectional mixer: its own oracle for each direction, document by document."""

import importlib

import numpy as np

import zoo


def oracle(module, params, x, reset=None):
    """Every document is cut out, run forwards and backwards by the inner mixer's oracle, and put back."""
    spec = {"name": module.mixer} if isinstance(module.mixer, str) else dict(module.mixer)
    inner = zoo.create({**spec, "dim": module.dim})
    run = importlib.import_module(f"tests.oracles.{spec['name']}").oracle
    batch, steps, _ = x.shape
    y = np.zeros_like(x)
    for b in range(batch):
        starts = [0] + [t for t in range(1, steps) if reset is not None and reset[b, t]]
        for start, stop in zip(starts, [*starts[1:], steps], strict=True):
            document = x[b : b + 1, start:stop]
            f = run(inner, params["forward"], document)
            g = run(inner, params["backward"], document[:, ::-1])[:, ::-1]
            if module.merge == "sum":
                y[b, start:stop] = (f + g)[0]
            else:
                y[b, start:stop] = (np.concatenate([f, g], axis=-1) @ params["output"]["kernel"])[0]
    return y
