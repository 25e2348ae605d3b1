"""Measuring instruments."""

from zoo.analysis.counting import Memory, count_parameters, flops, memory, state_bytes
from zoo.analysis.gradient_flow import jacobian_log_norms, log_norm_bound, mixer_step, weight_sweep

__all__ = [
    "Memory",
    "count_parameters",
    "flops",
    "jacobian_log_norms",
    "log_norm_bound",
    "memory",
    "mixer_step",
    "state_bytes",
    "weight_sweep",
]
