"""TTT-MLP: that of TTT-Linear, whose memories have as many layers as there are weights."""

from tests.oracles.ttt_linear import oracle

__all__ = ["oracle"]
