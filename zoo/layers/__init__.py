"""The few bricks that several architectures share."""

from zoo.layers.attention import (
    attention_parameters,
    document_positions,
    grouped_attention,
    merge_heads,
    project_heads,
    rotary,
)
from zoo.layers.ctc import ctc_loss
from zoo.layers.discretization import discretize
from zoo.layers.hippo import legs, legs_eigen
from zoo.layers.losses import accuracy, cross_entropy, masked_mean
from zoo.layers.mlp import MLP
from zoo.layers.norms import LayerNorm, RMSNorm, layer_norm, make_norm, rms_norm
from zoo.layers.positions import sinusoidal_positions
from zoo.layers.trees import batch_axes, rows_back, rows_first, split_floating

__all__ = [
    "MLP",
    "LayerNorm",
    "RMSNorm",
    "accuracy",
    "attention_parameters",
    "batch_axes",
    "cross_entropy",
    "ctc_loss",
    "discretize",
    "document_positions",
    "grouped_attention",
    "layer_norm",
    "legs",
    "legs_eigen",
    "make_norm",
    "masked_mean",
    "merge_heads",
    "project_heads",
    "rms_norm",
    "rotary",
    "rows_back",
    "rows_first",
    "sinusoidal_positions",
    "split_floating",
]
