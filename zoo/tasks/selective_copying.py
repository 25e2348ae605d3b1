"""Selective copying: remember the symbols that stand at random places among blanks, and say them in order."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from zoo.checks import check_positive
from zoo.tasks.base import Batch, Task


@dataclasses.dataclass(frozen=True)
class SelectiveCopying(Task):
    """``items`` symbols at random increasing places among blanks, then as many markers: say the symbols in order.

    Gu and Dao (2023), Mamba: Linear-Time Sequence Modeling with Selective State Spaces; a variant of the copying of
    Arjovsky, Shah, Bengio (2016), where the symbols stand at fixed places. Since the distances vary, a filter that is the
    same at every step cannot solve it: what to keep has to depend on the input. The paper's size is time=4096, items=16,
    symbols=14 (a vocabulary of 16).

    Tokens: 0 the blank, 1 .. ``symbols``, then the marker. Batch: ``inputs`` and ``targets`` int32 [time + items];
    ``mask`` is True at the markers, the last ``items`` steps, where the n-th target is the n-th symbol. Chance is
    1 / symbols.

    Attributes:
      time: places before the markers, at least ``items``.
      items: symbols to remember.
      symbols: kinds of symbols.
    """

    time: int = 64
    items: int = 6
    symbols: int = 8

    def __post_init__(self):
        for field in dataclasses.fields(self):
            check_positive(field.name, getattr(self, field.name))
        if self.items > self.time:
            raise ValueError(f"items={self.items} symbols need as many places, but time={self.time}")

    @property
    def vocab_size(self) -> int:
        return self.symbols + 2

    @property
    def length(self) -> int:
        """Steps of a row, markers included."""
        return self.time + self.items

    def example(self, key: Key[Array, ""], data: None = None) -> Batch:
        key_symbols, key_places = jax.random.split(key)
        symbols = jax.random.randint(key_symbols, (self.items,), 1, self.symbols + 1)
        places = jnp.sort(jax.random.choice(key_places, self.time, (self.items,), replace=False))
        shown = jnp.zeros(self.time, jnp.int32).at[places].set(symbols)
        markers = jnp.full(self.items, self.symbols + 1, jnp.int32)
        mask = jnp.arange(self.length) >= self.time
        return Batch(jnp.concatenate([shown, markers]), jnp.pad(symbols, (self.time, 0)), mask)
