"""The few bricks that several architectures share."""

from zoo.layers.attention import (
    attention_parameters,
    document_positions,
    grouped_attention,
    merge_heads,
    project_heads,
    ring_of_last,
    rotary,
    rotary_frequencies,
    unroll_ring,
    windowed_attention,
)
from zoo.layers.cell_initializers import cell_bias, cell_weight
from zoo.layers.ctc import ctc_loss
from zoo.layers.discretization import discretize, generalized_bilinear, zero_order_hold
from zoo.layers.hippo import legs, legs_eigen, transition
from zoo.layers.linear_attention import (
    FEATURE_MAPS,
    append_normalizer,
    dropped_attention,
    linear_attention_parameters,
    normalized,
    retention_decays,
    taylor_dim,
    taylor_features,
    taylor_weights,
)
from zoo.layers.losses import accuracy, cross_entropy, masked_mean, prefix_lm_loss, z_loss
from zoo.layers.lower_bounds import rising_lower_bounds, rising_pattern
from zoo.layers.mlp import MLP, make_mlp
from zoo.layers.moe import MixtureOfExperts, mixture_of_experts
from zoo.layers.nonlinearities import NONLINEARITIES, Nonlinearity, nonlinearity
from zoo.layers.norms import BatchNorm, LayerNorm, RMSNorm, ScaleNorm, layer_norm, make_norm, rms_norm
from zoo.layers.parallel_cell import CellSolver, head_projection, run_cell
from zoo.layers.positions import sinusoidal_positions
from zoo.layers.projections import linear, mixed_linear
from zoo.layers.quasiseparable import Quasiseparable, discretize_structured, structured_transition
from zoo.layers.trees import batch_axes, rows_back, rows_first, split_floating

__all__ = [
    "FEATURE_MAPS",
    "MLP",
    "NONLINEARITIES",
    "BatchNorm",
    "CellSolver",
    "LayerNorm",
    "MixtureOfExperts",
    "Nonlinearity",
    "Quasiseparable",
    "RMSNorm",
    "ScaleNorm",
    "accuracy",
    "append_normalizer",
    "attention_parameters",
    "batch_axes",
    "cell_bias",
    "cell_weight",
    "cross_entropy",
    "ctc_loss",
    "discretize",
    "discretize_structured",
    "document_positions",
    "dropped_attention",
    "generalized_bilinear",
    "grouped_attention",
    "head_projection",
    "layer_norm",
    "legs",
    "legs_eigen",
    "linear",
    "linear_attention_parameters",
    "make_mlp",
    "make_norm",
    "masked_mean",
    "merge_heads",
    "mixed_linear",
    "mixture_of_experts",
    "nonlinearity",
    "normalized",
    "prefix_lm_loss",
    "project_heads",
    "retention_decays",
    "ring_of_last",
    "rising_lower_bounds",
    "rising_pattern",
    "rms_norm",
    "rotary",
    "rotary_frequencies",
    "rows_back",
    "rows_first",
    "run_cell",
    "sinusoidal_positions",
    "split_floating",
    "structured_transition",
    "taylor_dim",
    "taylor_features",
    "taylor_weights",
    "transition",
    "unroll_ring",
    "windowed_attention",
    "z_loss",
    "zero_order_hold",
]
