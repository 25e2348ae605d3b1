"""TCNCA without gates."""

from tests.oracles.ema import silu
from tests.oracles.mega import attention, queries_and_keys
from tests.oracles.tcn import convolutions


def oracle(module, params, x, reset=None):
    p = params
    m = convolutions(p, x, reset, factor=module.factor)
    q, k = queries_and_keys(p, silu(m @ p["key"] + p["key_bias"]))
    v = m @ p["value"] + p["value_bias"]
    return attention(module, p, q, k, v, reset) @ p["output"] + p["output_bias"]
