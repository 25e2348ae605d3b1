"""What state space layers put behind their linear system, so that layers of them are not one linear system.

With y_t [H] the system's output and z = gelu(y):

    none  y      gelu  z      full_glu  (W1 z + b1) * sigmoid(W2 z + b2)
    half_glu1  z * sigmoid(W2 z + b2)      half_glu2  y * sigmoid(W2 z + b2)

full_glu is a linear map to 2 H channels and a gated linear unit (Gu et al. 2021), the half forms are those of Smith
et al. (2023).
"""

from collections.abc import Mapping

import flax.linen as nn
import jax
from jaxtyping import Array, Float

from zoo.checks import check_choice

ACTIVATIONS = ("gelu", "full_glu", "half_glu1", "half_glu2", "none")


def output_activation(params: Mapping[str, Array], y: Float[Array, "B T H"], kind: str) -> Float[Array, "B T H"]:
    """Activation ``kind`` in y's dtype; ``params``: ``W2``, ``b2`` for the gated ones, ``W1``, ``b1`` for full_glu."""
    check_choice("activation", kind, ACTIVATIONS)
    if kind == "none":
        return y
    z = jax.nn.gelu(y, approximate=False)
    if kind == "gelu":
        return z
    gate = jax.nn.sigmoid(z @ params["W2"].astype(z.dtype) + params["b2"].astype(z.dtype))
    if kind == "full_glu":
        return (z @ params["W1"].astype(z.dtype) + params["b1"].astype(z.dtype)) * gate
    return (z if kind == "half_glu1" else y) * gate


def activation_parameters(module: nn.Module, kind: str, width: int) -> dict[str, Float[Array, "..."]]:
    """Declares the parameters of activation ``kind`` on ``module``: maps [H, H] and biases [H]."""
    check_choice("activation", kind, ACTIVATIONS)
    params = {}
    for i in {"full_glu": ("1", "2"), "half_glu1": ("2",), "half_glu2": ("2",)}.get(kind, ()):
        params[f"W{i}"] = module.param(f"W{i}", nn.initializers.lecun_normal(), (width, width))
        params[f"b{i}"] = module.param(f"b{i}", nn.initializers.zeros_init(), (width,))
    return params
