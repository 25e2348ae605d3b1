"""Multi-query associative recall as in Zoology: keys and their values, then every key once more; which value was it?"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from zoo.checks import check_positive
from zoo.tasks.base import Batch, Task


@dataclasses.dataclass(frozen=True)
class MultiQueryAssociativeRecall(Task):
    """Key-value pairs, then the keys again at even distances drawn from a power law.

    Arora et al. (2023), Zoology: Measuring and Improving Recall in Efficient Language Models, arXiv 2312.04927.

    A row of L tokens begins with ``pairs`` pairs of a key (1 .. V/2 - 1) and a value (V/2 .. V - 1), keys and values drawn
    without replacement. The rest is cut into gaps of two tokens; gap g = 1, 2, ... is taken with weight g^(power - 1),
    without replacement, and begins with one of the keys: a query. Everything else is 0, or with ``random_non_queries``
    any token. Batch: ``inputs`` int32 [L]; ``mask`` is True at the queries and ``targets`` is the query's value there, 0
    elsewhere (published code writes -100, which no mean here needs). Chance among the values is 2 / V, among those shown
    1 / pairs.

    With ``power`` near 0 most queries stand soon after the pairs, and few far away.

    Attributes:
      vocab_size: number V of tokens, more than ``time``.
      time: length L, even, at least 4 ``pairs``.
      pairs: key-value pairs.
      power: exponent of the power law, positive.
      random_non_queries: random tokens in place of 0, as in Zoology's first experiments.
      pool: how many different examples there are, drawn from again and again; None: every example is a fresh one.
    """

    vocab_size: int = 8192
    time: int = 512
    pairs: int = 64
    power: float = 0.01
    random_non_queries: bool = False
    pool: int | None = None

    def __post_init__(self):
        for name in ("vocab_size", "time", "pairs"):
            check_positive(name, getattr(self, name))
        if self.pool is not None:
            check_positive("pool", self.pool)
        if self.time % 2:
            raise ValueError(f"time must be even, got {self.time}")
        if self.vocab_size <= self.time:
            raise ValueError(f"vocab_size must be larger than time={self.time}, got {self.vocab_size}")
        if 4 * self.pairs > self.time:
            raise ValueError(f"time must be at least 4 * pairs = {4 * self.pairs}, got {self.time}")
        if not self.power > 0:
            raise ValueError(f"power must be positive, got {self.power}")

    def example(self, key: Key[Array, ""], data: None = None) -> Batch:
        if self.pool is not None:
            # Example i of the pool is made again from i alone: nothing is stored.
            key = jax.random.fold_in(jax.random.key(0), jax.random.randint(key, (), 0, self.pool))
        key_keys, key_values, key_gaps, key_fill = jax.random.split(key, 4)
        half, shown = self.vocab_size // 2, 2 * self.pairs
        keys = 1 + _distinct(key_keys, half - 1, self.pairs)
        values = half + _distinct(key_values, self.vocab_size - half, self.pairs)
        spaces = (self.time - shown) // 2
        weights = jnp.arange(1, spaces + 1, dtype=jnp.float32) ** (self.power - 1)
        gaps = jax.random.choice(key_gaps, spaces, (self.pairs,), replace=False, p=weights / jnp.sum(weights))
        queries = shown + 2 * gaps
        inputs = jnp.zeros(self.time, jnp.int32).at[:shown].set(jnp.stack([keys, values], axis=1).reshape(-1))
        inputs = inputs.at[queries].set(keys)
        if self.random_non_queries:
            fill = jax.random.randint(key_fill, (self.time,), 0, self.vocab_size)
            inputs = jnp.where(inputs == 0, fill, inputs)
        targets = jnp.zeros(self.time, jnp.int32).at[queries].set(values)
        return Batch(inputs, targets, jnp.zeros(self.time, bool).at[queries].set(True))


def _distinct(key: Key[Array, ""], kinds: int, count: int) -> Array:
    """``count`` different numbers below ``kinds``, in random order."""
    return jax.random.choice(key, kinds, (count,), replace=False).astype(jnp.int32)
