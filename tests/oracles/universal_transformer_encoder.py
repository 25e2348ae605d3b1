"""The encoder shares its equations with the causal form; ``module.causal`` says what a position sees."""

from tests.oracles.universal_transformer import oracle

__all__ = ["oracle"]
