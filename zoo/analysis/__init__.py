"""Measuring instruments."""

from zoo.analysis.comparison import Cost, Measured, compare, cost
from zoo.analysis.counting import Memory, count_parameters, flops, memory, state_bytes
from zoo.analysis.dynamical_systems import (
    DynamicalSystem,
    Equivalence,
    check_equivalence,
    compare_systems,
    comparison_table,
    to_dsf,
)
from zoo.analysis.gradient_flow import jacobian_log_norms, log_norm_bound, mixer_step, weight_sweep
from zoo.analysis.memory_probe import band_limited_noise, memory_probe, run_system
from zoo.analysis.probes import (
    ProbeExamples,
    ProbeResult,
    attention_mass,
    fit_probe,
    hidden_states,
    induction_weights,
    probe_examples,
)
from zoo.analysis.state_rank import effective_rank, rank_along_sequence
from zoo.analysis.streaming import bytes_of, step_flops, stream, stream_seconds

__all__ = [
    "Cost",
    "DynamicalSystem",
    "Equivalence",
    "Measured",
    "Memory",
    "ProbeExamples",
    "ProbeResult",
    "attention_mass",
    "band_limited_noise",
    "bytes_of",
    "check_equivalence",
    "compare",
    "compare_systems",
    "comparison_table",
    "cost",
    "count_parameters",
    "effective_rank",
    "fit_probe",
    "flops",
    "hidden_states",
    "induction_weights",
    "jacobian_log_norms",
    "log_norm_bound",
    "memory",
    "memory_probe",
    "mixer_step",
    "probe_examples",
    "rank_along_sequence",
    "run_system",
    "state_bytes",
    "step_flops",
    "stream",
    "stream_seconds",
    "to_dsf",
    "weight_sweep",
]
