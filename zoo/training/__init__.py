"""Algorithms on gradients and parameters, as optax transformations or pure functions."""

from zoo.training.clipping import clip_by_norm, clip_gradients, safe_global_norm
from zoo.training.feeding import free_running, scheduled_sampling, truth_probability
from zoo.training.regularizers import l2_penalty, pascanu_regularizer
from zoo.training.rtrl import rtrl
from zoo.training.stopping import EarlyStopping, early_stopping, update_early_stopping
from zoo.training.truncated import full_bptt, sliding_bptt, truncated_bptt

__all__ = [
    "EarlyStopping",
    "clip_by_norm",
    "clip_gradients",
    "early_stopping",
    "free_running",
    "full_bptt",
    "l2_penalty",
    "pascanu_regularizer",
    "rtrl",
    "safe_global_norm",
    "scheduled_sampling",
    "sliding_bptt",
    "truncated_bptt",
    "truth_probability",
    "update_early_stopping",
]
