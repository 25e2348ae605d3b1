"""Word problems of finite groups: read group elements one by one, and say their product so far.

Merrill, Petty and Sabharwal (2024), The Illusion of State in State-Space Models, arXiv 2404.08819; with few of the elements
as inputs Grazzi et al. (2025), Unlocking State-Tracking in Linear RNNs Through Negative Eigenvalues, arXiv 2411.12537. A
model that answers at every length holds an element of the group in its state. Words of a group that is not solvable, such
as A5, are complete for NC^1, and beyond linear recurrences with diagonal transitions.
"""

import dataclasses
import functools
import itertools
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Key

from zoo.checks import check_positive
from zoo.tasks.base import Batch, Task

MOST_ELEMENTS = 2520  # of a group: its table has as many rows and columns


@dataclasses.dataclass(frozen=True, eq=False)
class Group:
    """A finite group with its elements numbered, 0 the neutral one.

    Attributes:
      name: as given to ``group``.
      table: int32 [N, N], ``table[a, b]`` the number of the product a b.
      moved: int32 [N], how many points an element moves; None for groups that are not given as permutations.
    """

    name: str
    table: Int[np.ndarray, "N N"]
    moved: Int[np.ndarray, " N"] | None

    @property
    def order(self) -> int:
        """Number N of elements."""
        return len(self.table)

    def product(self, word: Any) -> int:
        """x_1 x_2 ... x_t of the elements of ``word``; the empty product is 0."""
        return functools.reduce(lambda a, b: int(self.table[a, b]), word, 0)


@functools.lru_cache(maxsize=32)
def group(name: str) -> Group:
    """The group called ``name``.

    S<n>, A<n>: permutations of n points, and the even ones, in lexicographic order; (a b)(i) = a(b(i)). Z<n>: integers
    modulo n. D<n>: the 2 n symmetries of the regular n-gon, r^i then r^i s. <group>x<group>: pairs, the first factor
    slowest.

    Raises:
      ValueError: the name is none of these, or the group has more than ``MOST_ELEMENTS`` elements.
    """
    factors = [_factor(name, part) for part in re.split("x", name)] if re.fullmatch(r"\w+", name) else []
    if not factors:
        raise ValueError(_unknown(name))
    order = math.prod(size for size, _ in factors)
    if order > MOST_ELEMENTS:
        raise ValueError(f"group={name!r} has {order} elements, more than {MOST_ELEMENTS}")
    made = [make() for _, make in factors]
    if len(made) == 1:
        return Group(name, *made[0])
    table = np.zeros((1, 1), np.int32)
    for other, _ in made:
        table = table[:, None, :, None] * len(other) + other[None, :, None, :]
        table = table.reshape(len(table) * len(other), -1)
    return Group(name, table.astype(np.int32), None)


def _unknown(name):
    return f"group={name!r} is none of S<n>, A<n>, Z<n>, D<n> with n >= 1, or a product of them such as S3xZ2"


def _factor(name, part):
    """(order, function that makes (table, moved)) of one factor of the group ``name``."""
    match = re.fullmatch(r"([SAZD])([1-9][0-9]{0,3})", part)
    if not match:
        raise ValueError(_unknown(name))
    kind, n = match[1], int(match[2])
    if kind in "SA" and n > 8:  # 8! is more than enough to refuse
        raise ValueError(f"group={name!r} has more than {MOST_ELEMENTS} elements")
    order = {"S": math.factorial(min(n, 9)), "A": max(1, math.factorial(min(n, 9)) // 2), "Z": n, "D": 2 * n}[kind]
    make = {"S": _permutations, "A": lambda n: _permutations(n, even=True), "Z": _cyclic, "D": _dihedral}[kind]
    return order, lambda: make(n)


def _permutations(n, even=False):
    elements = np.array(list(itertools.permutations(range(n))))
    if even:
        later = np.triu(np.ones((n, n), bool), 1)
        inversions = np.sum((elements[:, :, None] > elements[:, None, :]) & later, axis=(1, 2))
        elements = elements[inversions % 2 == 0]
    digits = n ** np.arange(n)[::-1]
    codes = elements @ digits  # increasing, as the order is lexicographic
    composed = np.stack([(a[elements] @ digits) for a in elements])  # [a, b]: i -> a(b(i))
    return np.searchsorted(codes, composed).astype(np.int32), np.sum(elements != np.arange(n), axis=1).astype(np.int32)


def _cyclic(n):
    numbers = np.arange(n)
    return ((numbers[:, None] + numbers) % n).astype(np.int32), None


def _dihedral(n):
    """r^i s^e is number i + n e, and s r = r^-1 s."""
    turn, flip = np.arange(2 * n) % n, np.arange(2 * n) // n
    turns = (turn[:, None] + np.where(flip[:, None], -turn, turn)) % n
    return (turns + n * (flip[:, None] ^ flip)).astype(np.int32), None


@dataclasses.dataclass(frozen=True)
class GroupWords(Task):
    """Random words of a group; every position asks for the product x_1 x_2 ... x_t so far.

    Batch: ``inputs`` int32 [time], numbers of the elements as in ``group``; ``targets`` int32 [time], those of the products.
    Inputs are uniform over all elements, or over those that move at most ``limit_to`` points, while products range over all
    that these generate: "S5 only swaps" of the papers is group="S5", limit_to=2, the neutral element and the transpositions.
    Chance is 1 / order (a little more where ``limit_to`` is small and the word short).

    Attributes:
      group: name, see ``zoo.tasks.group_words.group``.
      time: elements of a word.
      limit_to: for S<n> and A<n>: only elements that move at most so many points; None: all elements.
      pool: a fixed set of as many words, from which batches are drawn; None: every word is new.
    """

    group: str = "S3"
    time: int = 12
    limit_to: int | None = None
    pool: int | None = None

    def __post_init__(self):
        check_positive("time", self.time)
        made = group(self.group)
        if self.pool is not None:
            check_positive("pool", self.pool)
        if self.limit_to is not None:
            check_positive("limit_to", self.limit_to)
            if made.moved is None:
                raise ValueError(f"limit_to needs a group of permutations, S<n> or A<n>, got group={self.group!r}")
            if self.allowed().sum() < 2:
                raise ValueError(
                    f"limit_to={self.limit_to} leaves only the neutral element of {self.group}: the others move at least "
                    f"{int(np.sort(made.moved)[1])} points"
                )

    @property
    def vocab_size(self) -> int:
        """Elements of the group: inputs and targets."""
        return group(self.group).order

    def allowed(self) -> Bool[np.ndarray, " N"]:
        """Which elements are inputs."""
        made = group(self.group)
        return np.ones(made.order, bool) if self.limit_to is None else made.moved <= self.limit_to

    def data(self) -> tuple[Int[Array, "N N"], Int[Array, " M"]]:
        """(multiplication table, elements that are inputs)."""
        return jnp.asarray(group(self.group).table), jnp.asarray(np.flatnonzero(self.allowed()), jnp.int32)

    def example(self, key: Key[Array, ""], data: Any = None) -> Batch:
        table, letters = self.data() if data is None else data
        if self.pool is not None:
            key = jax.random.fold_in(jax.random.key(0), jax.random.randint(key, (), 0, self.pool))
        word = letters[jax.random.randint(key, (self.time,), 0, len(letters))]
        return Batch(word, jax.lax.associative_scan(lambda a, b: table[a, b], word))
