"""Measuring instruments."""

from zoo.analysis.counting import Memory, count_parameters, flops, memory, state_bytes
from zoo.analysis.dynamical_systems import (
    DynamicalSystem,
    Equivalence,
    check_equivalence,
    compare,
    comparison_table,
    to_dsf,
)
from zoo.analysis.gradient_flow import jacobian_log_norms, log_norm_bound, mixer_step, weight_sweep
from zoo.analysis.streaming import bytes_of, step_flops, stream, stream_seconds

__all__ = [
    "DynamicalSystem",
    "Equivalence",
    "Memory",
    "bytes_of",
    "check_equivalence",
    "compare",
    "comparison_table",
    "count_parameters",
    "flops",
    "jacobian_log_norms",
    "log_norm_bound",
    "memory",
    "mixer_step",
    "state_bytes",
    "step_flops",
    "stream",
    "stream_seconds",
    "to_dsf",
    "weight_sweep",
]
