"""TCNCA: MEGA's gated attention over dilated convolutions."""

from tests.oracles.mega import gated, normed
from tests.oracles.tcn import convolutions


def oracle(module, params, x, reset=None):
    m, n = module, normed(module, params, x)
    moved = convolutions(
        params, n, reset, factor=m.factor, activation=m.inner_activation, residual=m.residual, causal=m.causal
    )
    return gated(module, params, x, n, moved, reset)
