"""TCNCA as an encoder: convolutions to both sides, whole chunks."""

from tests.oracles.tcnca import oracle

__all__ = ["oracle"]
