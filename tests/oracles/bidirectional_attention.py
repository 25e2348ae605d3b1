"""Attention over the whole document, one query at a time."""

import numpy as np

from tests.oracles.attention import attend, document_starts


def oracle(module, params, x, reset=None):
    y = np.zeros_like(x)
    for b in range(len(x)):
        starts = document_starts(reset, b, x.shape[1])

        def sees(t, starts=starts):
            return [s for s in range(len(starts)) if starts[s] == starts[t]]

        y[b] = attend(params, x[b], starts, sees, module)
    return y
