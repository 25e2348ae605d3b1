"""Induction heads: what followed the special token when it was last seen?"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from zoo.checks import check_positive
from zoo.tasks.base import Batch, Task


@dataclasses.dataclass(frozen=True)
class InductionHeads(Task):
    """Random tokens with one special token at a random place; it comes again at the end: what followed it?

    Olsson et al. (2022), In-context Learning and Induction Heads; in the form of Gu and Dao (2023), Mamba, who train at
    time=256 with a vocabulary of 16 and test the same weights at 2^6 .. 2^20. The distance to the answer is uniform, so a
    model that has learned the rule, and not distances, answers at any length.

    Tokens: 0 .. ``symbols`` - 1, then the special token. Batch: ``inputs`` and ``targets`` int32 [time]; ``mask`` is True at
    the last step only. Chance is 1 / symbols.

    Attributes:
      time: length, at least 3.
      symbols: kinds of ordinary tokens.
    """

    time: int = 256
    symbols: int = 15

    def __post_init__(self):
        for field in dataclasses.fields(self):
            check_positive(field.name, getattr(self, field.name))
        if self.time < 3:
            raise ValueError(f"time must be at least 3 (special token, answer, special token), got {self.time}")

    @property
    def vocab_size(self) -> int:
        return self.symbols + 1

    def example(self, key: Key[Array, ""], data: None = None) -> Batch:
        key_tokens, key_place = jax.random.split(key)
        tokens = jax.random.randint(key_tokens, (self.time,), 0, self.symbols)
        place = jax.random.randint(key_place, (), 0, self.time - 2)
        last = jnp.arange(self.time) == self.time - 1
        inputs = tokens.at[jnp.stack([place, jnp.int32(self.time - 1)])].set(self.symbols)
        return Batch(inputs, jnp.where(last, tokens[place + 1], 0), last)
