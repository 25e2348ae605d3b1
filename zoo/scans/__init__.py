"""Recurrences as functions of arrays: no parameters, no Flax, time on axis 1.

    linear_scan        h_t = decay_t * h_{t-1} + inputs_t, real or complex
"""

from zoo.scans.linear import linear_scan

__all__ = ["linear_scan"]
