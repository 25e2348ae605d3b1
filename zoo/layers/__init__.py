"""The few bricks that several architectures share."""

from zoo.layers.attention import grouped_attention, rotary
from zoo.layers.losses import accuracy, cross_entropy, masked_mean
from zoo.layers.mlp import MLP
from zoo.layers.norms import LayerNorm, RMSNorm, layer_norm, make_norm, rms_norm
from zoo.layers.positions import sinusoidal_positions

__all__ = [
    "MLP",
    "LayerNorm",
    "RMSNorm",
    "accuracy",
    "cross_entropy",
    "grouped_attention",
    "layer_norm",
    "make_norm",
    "masked_mean",
    "rms_norm",
    "rotary",
    "sinusoidal_positions",
]
