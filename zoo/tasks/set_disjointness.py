"""Set disjointness: two sets one after the other; which element do they share?

Arora et al. (2024), Just Read Twice, arXiv 2407.05483. Who reads once must keep the first set until the second comes; who
knew the second set, or reads twice, could do with the smaller of the two. In general min(|A|, |B|) log |U| bits are needed
where the order can be chosen, |A| log |U| where it cannot.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key

from zoo.checks import check_positive
from zoo.tasks.base import Batch, Task

BEGIN, BETWEEN, ASK, SPECIALS = 1, 2, 3, 4  # tokens 0 .. 3 are in no set; 0 is padding


def two_sets(first: Int[Array, " A"], second: Int[Array, " B"]) -> Int[Array, " T"]:
    """The row of tokens: BEGIN, the first set, BETWEEN, the second, ASK."""

    def one(token):
        return jnp.full((1,), token, jnp.int32)

    return jnp.concatenate([one(BEGIN), first, one(BETWEEN), second, one(ASK)])


def shared_element(row: Int[np.ndarray, " T"]) -> int:
    """The element that the sets in a row share; ValueError unless the row has the form of ``two_sets`` and shares one."""
    row = np.asarray(row)
    marks = np.flatnonzero((row < SPECIALS) & (row > 0))
    if row[marks].tolist() != [BEGIN, BETWEEN, ASK] or marks[0] != 0:
        raise ValueError(f"a row must be {BEGIN}, a set, {BETWEEN}, a set, {ASK}, got {row.tolist()}")
    shared = set(row[1 : marks[1]].tolist()) & set(row[marks[1] + 1 : marks[2]].tolist())
    if len(shared) != 1:
        raise ValueError(f"the sets of a row must share one element, these share {sorted(shared)}: {row.tolist()}")
    return shared.pop()


@dataclasses.dataclass(frozen=True)
class SetDisjointness(Task):
    """Two sets that share one element, of sizes drawn from a list.

    A and B are drawn without replacement, A from one half of the elements 4 .. V - 1 and B from the rest, the halves anew
    for every example; then one place of B, anywhere, gets a token of A. ``inputs`` int32 [T] is 1, A, 2, B, 3, with zeros in
    front up to the longest of all sizes, T = 3 + max(|A| + |B|); ``targets`` [T] has the shared element at the last place,
    where alone ``mask`` is True; ``extra`` is the index into ``sizes``. Chance among the elements of B is 1 / |B|.

    Attributes:
      vocab_size: number V of tokens, the four special ones included.
      sizes: pairs (|A|, |B|), as likely as each other; |A| <= V / 2 and |B| <= V / 2 - 4.
      repeats: how often the row is said, specials and all, before the answer is wanted: 2 is JRT-Prompt.
      length: tokens of a row said once, padding included; None: as many as the longest needs.
      pool: how many different examples of each size there are; None: every example is a fresh one.
    """

    vocab_size: int = 64
    sizes: tuple[tuple[int, int], ...] = ((3, 16), (16, 3), (3, 24), (24, 3))
    repeats: int = 1
    length: int | None = None
    pool: int | None = None

    def __post_init__(self):
        check_positive("vocab_size", self.vocab_size)
        check_positive("repeats", self.repeats)
        if self.pool is not None:
            check_positive("pool", self.pool)
        if not self.sizes:
            raise ValueError("sizes is empty; give at least one pair (|A|, |B|)")
        for first, second in self.sizes:
            check_positive("|A|", first)
            check_positive("|B|", second)
            if first > self.vocab_size // 2 or second > self.vocab_size // 2 - SPECIALS:
                raise ValueError(
                    f"sizes must be at most |A| = {self.vocab_size // 2} and |B| = {self.vocab_size // 2 - SPECIALS} "
                    f"for vocab_size={self.vocab_size}, got {(first, second)}"
                )

        if self.length is not None and self.length < self.longest:
            raise ValueError(f"length must be at least {self.longest} for these sizes, got {self.length}")

    @property
    def longest(self) -> int:
        """Tokens of the longest row, said once."""
        return 3 + max(first + second for first, second in self.sizes)

    @property
    def time(self) -> int:
        """Tokens in a row, repeats included."""
        return self.repeats * (self.longest if self.length is None else self.length)

    def example(self, key: Key[Array, ""], data: None = None) -> Batch:
        """An example of a size drawn at random."""
        key, key_size = jax.random.split(key)
        which = jax.random.randint(key_size, (), 0, len(self.sizes))
        if self.pool is not None:
            # Example i of the pool is made again from i alone: nothing is stored.
            place = jax.random.randint(key, (), 0, self.pool)
            key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), which), place)
        order, place, chosen = jax.random.split(key, 3)
        first, second = jnp.asarray(self.sizes)[which]
        # The first |A| and the last |B| of a random order lie in disjoint random halves.
        elements = SPECIALS + jax.random.permutation(order, self.vocab_size - SPECIALS).astype(jnp.int32)
        answer = elements[jax.random.randint(chosen, (), 0, first)]
        count = self.time // self.repeats
        index = jnp.arange(count) - (count - first - second - 3)
        within = index - first - 2  # place in B
        row = jnp.select(
            [index < 0, index == 0, index <= first, index == first + 1, within < second],
            [0, BEGIN, elements[index - 1], BETWEEN, elements[within - second]],
            ASK,
        )
        row = jnp.where(within == jax.random.randint(place, (), 0, second), answer, row)
        inputs = jnp.tile(row, self.repeats)
        last = jnp.arange(self.time) == self.time - 1
        return Batch(inputs, jnp.where(last, answer, 0), last, extra=which)
