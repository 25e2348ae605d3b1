"""MEGA as an encoder: the moving averages of both directions, whole chunks."""

from tests.oracles.mega import oracle

__all__ = ["oracle"]
