"""DeltaNet: DeltaProduct's loop with one step per token and no decay."""

from tests.oracles import deltaproduct


def oracle(module, params, x, reset=None):
    return deltaproduct.oracle(module, params, x, reset, householders=1, value_heads=module.heads)
