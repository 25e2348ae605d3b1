"""Counting: how often has the symbol that is read now been read so far?"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from zoo.checks import check_positive
from zoo.tasks.base import Batch, Task


@dataclasses.dataclass(frozen=True)
class Counting(Task):
    """Random symbols; at every step the number of times that its symbol has come by now, at most ``most``.

    One counter for each symbol, in the manner of the counter languages of Weiss, Goldberg and Yahav (2018), On the Practical
    Computational Power of Finite Precision RNNs. Exact counts have to be kept, and none may leak into another symbol's.

    Tokens: 0 .. ``symbols`` - 1 are read, 0 .. ``most`` are said (0 never). Batch: ``inputs`` and ``targets`` int32 [time];
    ``mask`` is True from the second occurrence of a symbol on: the first is known without counting.

    Attributes:
      time: length.
      symbols: kinds of symbols.
      most: counts above it are said as ``most``.
    """

    time: int = 32
    symbols: int = 3
    most: int = 8

    def __post_init__(self):
        for field in dataclasses.fields(self):
            check_positive(field.name, getattr(self, field.name))

    @property
    def vocab_size(self) -> int:
        return max(self.symbols, self.most + 1)

    def example(self, key: Key[Array, ""], data: None = None) -> Batch:
        inputs = jax.random.randint(key, (self.time,), 0, self.symbols)
        counts = jnp.cumsum(jax.nn.one_hot(inputs, self.symbols, dtype=jnp.int32), axis=0)
        now = jnp.take_along_axis(counts, inputs[:, None], axis=1)[:, 0]
        return Batch(inputs, jnp.minimum(now, self.most), now > 1)
