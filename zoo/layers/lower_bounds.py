"""Lower bounds of forget gates that rise from layer to layer (HGRN): upper layers keep more, lower ones may forget."""

import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from zoo.checks import check_positive


def rising_lower_bounds(logits: Float[Array, "L N"]) -> Float[Array, "L N"]:
    """Bounds of all layers from one matrix that they share: gamma_k = sum_{i<k} softmax(logits)_i over layers.

    The first layer's is 0. Qin, Yang, Zhong (2023), Hierarchically Gated Recurrent Neural Network, arXiv 2311.04823.
    """
    shares = jax.nn.softmax(logits, axis=0)
    return jnp.cumsum(shares, axis=0) - shares


def rising_pattern(mixer: Mapping[str, Any], depth: int) -> tuple[dict[str, Any], ...]:
    """``depth`` times ``mixer`` with ``lower_bound`` k / depth, k = 0, 1, ...: equal logits of ``rising_lower_bounds``."""
    check_positive("depth", depth)
    return tuple({**mixer, "lower_bound": k / depth} for k in range(depth))


def lower_bound(module: nn.Module, width: int, bound: float, learned: bool) -> Float[Array, " N"]:
    """gamma [N] of one layer: ``bound`` in [0, 1), or the sigmoid of a parameter that begins there."""
    if not 0 <= bound < 1:
        raise ValueError(f"lower_bound must lie in [0, 1), got {bound}")
    if not learned:
        return jnp.full(width, bound)
    if bound == 0:
        raise ValueError("a lower bound that is learned must begin above 0, got lower_bound=0")
    start = math.log(bound / (1 - bound))
    return jax.nn.sigmoid(module.param("lower_bound", nn.initializers.constant(start), (width,)))
