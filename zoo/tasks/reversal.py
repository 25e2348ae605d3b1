"""Sequence-to-sequence reversal: say the source backwards (the toy version of reading order in translation)."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from zoo.checks import check_positive
from zoo.tasks.base import Batch, Task

PAD, END, FIRST = 0, 1, 2  # PAD also starts the decoder


@dataclasses.dataclass(frozen=True)
class Reversal(Task):
    """Strings of ``symbols`` kinds, of random length, to be written backwards.

    Batch: ``inputs`` int32 [max_length] symbols from 2 on, right-padded with 0; ``lengths``; ``targets``
    [max_length + 1] the source backwards, END = 1, padding; ``mask`` True up to the END.

    Attributes:
      symbols: kinds of symbols.
      min_length, max_length: source lengths, uniform.
    """

    symbols: int = 8
    min_length: int = 3
    max_length: int = 8

    def __post_init__(self):
        for field in dataclasses.fields(self):
            check_positive(field.name, getattr(self, field.name))
        if self.min_length > self.max_length:
            raise ValueError(f"min_length={self.min_length} is larger than max_length={self.max_length}")

    @property
    def vocab_size(self) -> int:
        return FIRST + self.symbols

    def example(self, key: Key[Array, ""], data: None = None) -> Batch:
        key_length, key_symbols = jax.random.split(key)
        length = jax.random.randint(key_length, (), self.min_length, self.max_length + 1)
        symbols = jax.random.randint(key_symbols, (self.max_length,), FIRST, self.vocab_size)
        place = jnp.arange(self.max_length)
        source = jnp.where(place < length, symbols, PAD)
        place = jnp.arange(self.max_length + 1)
        backwards = symbols[jnp.clip(length - 1 - place, 0, self.max_length - 1)]
        target = jnp.where(place < length, backwards, jnp.where(place == length, END, PAD))
        return Batch(source, target, place <= length, length)
