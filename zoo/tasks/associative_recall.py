"""Recall by content: what followed a token when it was last seen, asked once or hop after hop."""

import dataclasses
import math

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
class PairRecall(Task):
    """Associative recall: pairs of key and value, then one of the keys; which value went with it?

    As in Fu et al. (2023), Hungry Hungry Hippos, and Poli et al. (2023), Hyena Hierarchy. A row is a begin token,
    (time - 2) / 2 pairs whose keys are drawn uniformly with replacement, and the key of a pair drawn uniformly; a
    random one-to-one map from the keys to the values is drawn for every row. Tokens: keys 0 .. symbols / 2 - 1, then
    the values, then the begin token. Batch: ``inputs`` and ``targets`` int32 [time], a key's target being its value;
    ``mask`` is True at the last step and, if ``every`` is, wherever a key stood before. Chance is 2 / symbols.

    Attributes:
      symbols: keys and values together, even.
      time: length, even, at least 4.
      every: ask at every key that stood before, not at the end alone.
    """

    symbols: int = 20
    time: int = 64
    every: bool = True

    def __post_init__(self):
        for name, least in (("symbols", 2), ("time", 4)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least or value % 2:
                raise ValueError(f"{name} must be an even integer of at least {least}, got {value!r}")

    @property
    def vocab_size(self) -> int:
        return self.symbols + 1

    @property
    def pairs(self) -> int:
        return (self.time - 2) // 2

    def example(self, key: Key[Array, ""], data: None = None) -> Batch:
        key_keys, key_map, key_last = jax.random.split(key, 3)
        kinds = self.symbols // 2
        values = kinds + jax.random.permutation(key_map, kinds)
        keys = jax.random.randint(key_keys, (self.pairs,), 0, kinds)
        asked = keys[jax.random.randint(key_last, (), 0, self.pairs)]
        shown = jnp.stack([keys, values[keys]], axis=1).reshape(-1)
        inputs = jnp.concatenate([jnp.array([self.symbols]), shown, asked[None]]).astype(jnp.int32)
        is_key = inputs < kinds
        steps = jnp.arange(self.time)
        before = jnp.any((inputs[:, None] == inputs) & (steps < steps[:, None]), axis=1)
        mask = (steps == self.time - 1) | (is_key & before & self.every)
        targets = jnp.where(is_key, values[jnp.minimum(inputs, kinds - 1)], 0)
        return Batch(inputs, jnp.where(mask, targets, 0), mask)

    def bound_within(self, chunk: int) -> float:
        """Accuracy at the last step of the best answer from the last ``chunk`` steps (of chunks that divide ``time``).

        It knows the pairs whose value lies there, and otherwise guesses among the values that it has not seen.
        """
        check_positive("chunk", chunk)
        if self.time % chunk:
            raise ValueError(f"chunk={chunk} does not divide time={self.time}")
        kinds = self.symbols // 2
        known = min(self.pairs, chunk // 2)
        by_chance = 1 - (1 - 1 / kinds) ** known  # an older pair's key is among the known ones
        some_unseen = 1.0 - sum(
            (-1) ** left * math.comb(kinds, left) * (1 - left / kinds) ** known for left in range(kinds + 1)
        )
        share = known / self.pairs
        return share + (1 - share) * (by_chance + some_unseen / kinds)


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
