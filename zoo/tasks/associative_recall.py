"""Recall by content: what followed a token when it was last seen, asked once or hop after hop."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from zoo.checks import check_positive
from zoo.tasks.base import Batch, Task


@dataclasses.dataclass(frozen=True)
class AssociativeRecall(Task):
    """Multi-query associative recall: pairs of key and value, then every key again; which value went with it?

    Arora et al. (2023), Zoology. The row begins with ``pairs`` pairs of different keys and any values; behind them each key
    stands once more, at places whose distances follow a power law, between fillers. Tokens: 0 the filler, 1 .. ``keys``,
    then the values. Batch: ``inputs`` and ``targets`` int32 [time]; ``mask`` is True where a key is asked for and the
    target is its value. Chance is 1 / values.

    Attributes:
      pairs: pairs to remember, at most ``keys``.
      keys: kinds of keys.
      values: kinds of values.
      time: length, at least 3 ``pairs``.
      power: exponent of the power law: distance d from the pairs has weight d^(power - 1).
    """

    pairs: int = 4
    keys: int = 16
    values: int = 16
    time: int = 64
    power: float = 0.01

    def __post_init__(self):
        for name in ("pairs", "keys", "values", "time"):
            check_positive(name, getattr(self, name))
        if self.pairs > self.keys:
            raise ValueError(f"pairs={self.pairs} need as many different keys, but keys={self.keys}")
        if self.time < 3 * self.pairs:
            raise ValueError(f"time must be at least 3 * pairs = {3 * self.pairs}, got {self.time}")

    @property
    def vocab_size(self) -> int:
        return 1 + self.keys + self.values

    def example(self, key: Key[Array, ""], data: None = None) -> Batch:
        key_keys, key_values, key_places = jax.random.split(key, 3)
        keys = 1 + jax.random.permutation(key_keys, self.keys)[: self.pairs]
        values = 1 + self.keys + jax.random.randint(key_values, (self.pairs,), 0, self.values)
        shown = jnp.stack([keys, values], axis=1).reshape(-1)
        rest = self.time - 2 * self.pairs
        weights = jnp.arange(1, rest + 1, dtype=jnp.float32) ** (self.power - 1)
        places = 2 * self.pairs + jax.random.choice(
            key_places, rest, (self.pairs,), replace=False, p=weights / jnp.sum(weights)
        )
        inputs = jnp.zeros(self.time, jnp.int32).at[: 2 * self.pairs].set(shown).at[places].set(keys)
        targets = jnp.zeros(self.time, jnp.int32).at[places].set(values)
        return Batch(inputs, targets, jnp.zeros(self.time, bool).at[places].set(True))


@dataclasses.dataclass(frozen=True)
class HopRecall(Task):
    """k-hop induction: from a token to what followed its last earlier occurrence, k times over.

    Sanford, Hsu, Telgarsky (2024), Transformers, Parallel Computation, and Logarithmic Depth. Tokens are uniform; a hop goes
    from step i to the step after the last m < i with the same token. Batch: ``inputs`` int32 [time]; ``targets`` the token
    ``hops`` hops away; ``mask`` is True where there is one. Chance is 1 / symbols.

    Attributes:
      hops: number of hops; 1 is an induction head.
      symbols: kinds of tokens.
      time: length.
    """

    hops: int = 2
    symbols: int = 4
    time: int = 32

    def __post_init__(self):
        for field in dataclasses.fields(self):
            check_positive(field.name, getattr(self, field.name))

    @property
    def vocab_size(self) -> int:
        return self.symbols

    def example(self, key: Key[Array, ""], data: None = None) -> Batch:
        tokens = jax.random.randint(key, (self.time,), 0, self.symbols)
        steps = jnp.arange(self.time)
        same = (tokens[:, None] == tokens) & (steps < steps[:, None])
        follower = jnp.max(jnp.where(same, steps + 1, -1), axis=1)
        place = steps
        for _ in range(self.hops):
            place = jnp.where(place >= 0, follower[place], -1)
        return Batch(tokens, jnp.where(place >= 0, tokens[place], 0), place >= 0)
