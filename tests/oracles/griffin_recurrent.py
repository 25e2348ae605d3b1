"""Griffin's recurrent block, one step after another in NumPy, document by document."""

import types

import numpy as np

from tests.oracles import rg_lru
from tests.oracles.mamba import documents
from tests.oracles.nonlinearities import FUNCTIONS


def oracle(module, params, x, reset=None):
    y = np.zeros_like(x)
    inner = types.SimpleNamespace(
        dim=len(params["decay"]), heads=module.heads, epsilon=0.0, unit_start=module.unit_start
    )
    for row in range(len(x)):
        for start, stop in documents(x.shape[1], None if reset is None else reset[row]):
            u = x[row, start:stop] @ params["input"] + params["input_bias"]
            v = np.tile(params["bias"], (len(u), 1))
            for t in range(len(u)):
                for back in range(min(module.conv_size, t + 1)):
                    v[t] += params["kernel"][module.conv_size - 1 - back] * u[t - back]
            hidden = rg_lru.oracle(inner, params, v[None])[0]
            gate = FUNCTIONS["gelu"](x[row, start:stop] @ params["gate"] + params["gate_bias"])
            y[row, start:stop] = (hidden * gate) @ params["output"] + params["output_bias"]
    return y
