"""Measuring instruments."""

from zoo.analysis.counting import Memory, count_parameters, flops, memory, state_bytes

__all__ = ["Memory", "count_parameters", "flops", "memory", "state_bytes"]
