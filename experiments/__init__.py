"""Experiments: a paper's claim as something that runs and is checked. ``run`` does it; see experiments/experiment.py."""

from experiments.errors import RunError, Stopped, UsageError

__all__ = ["RunError", "Stopped", "UsageError", "run"]


def __getattr__(name: str):
    if name == "run":  # imported on use: an experiment's file imports this package, and run imports all of it
        from experiments.runner import run

        return run
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
