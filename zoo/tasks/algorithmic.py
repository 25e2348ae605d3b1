"""Copying, reversing and adding decimal strings: sequence-to-sequence problems that test length generalisation.

Kaiser and Sutskever 2015 (Neural GPU); Dehghani et al. 2018 train on at most 40 symbols and test on 400.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int, Key

from zoo.checks import check_choice, check_positive
from zoo.tasks.base import Batch, Task

PROBLEMS = ("copy", "reverse", "addition")
PAD, END = 0, 1  # PAD also starts the decoder
FIRST_DIGIT = 2
PLUS = 12


@dataclasses.dataclass(frozen=True)
class Algorithmic(Task):
    """Decimal strings to copy, to reverse or to add.

    The number of source symbols is uniform in ``min_length`` .. ``max_length``. An addition is two numbers without
    leading zeros and a plus sign between; all numbers are written with the least significant digit first, so that a
    carry moves in reading direction.

    Batch: ``inputs`` int32 [max_length + 1] source symbols, END, padding; ``lengths`` counts the source with its END;
    ``targets`` [target_length] answer, END, padding; ``mask`` True up to the END. For length generalisation,
    evaluate on ``dataclasses.replace(task, min_length=400, max_length=400)``.

    Attributes:
      problem: "copy", "reverse" or "addition".
      min_length: fewest source symbols; None takes 1, or 3 for an addition.
      max_length: most source symbols.
    """

    problem: str = "copy"
    min_length: int | None = None
    max_length: int = 40

    vocab_size = 13

    def __post_init__(self):
        check_choice("problem", self.problem, PROBLEMS)
        check_positive("max_length", self.max_length)
        smallest = 3 if self.problem == "addition" else 1
        if not smallest <= self._shortest <= self.max_length:
            raise ValueError(
                f"min_length of {self.problem} must lie in {smallest}..max_length={self.max_length}, "
                f"got {self._shortest}"
            )

    @property
    def _shortest(self) -> int:
        return (3 if self.problem == "addition" else 1) if self.min_length is None else self.min_length

    @property
    def target_length(self) -> int:
        """Width of ``targets``: a sum has at most one digit more than a number of ``max_length - 2`` digits."""
        return self.max_length if self.problem == "addition" else self.max_length + 1

    def example(self, key: Key[Array, ""], data: None = None) -> Batch:
        key_length, key_digits, key_split = jax.random.split(key, 3)
        length = jax.random.randint(key_length, (), self._shortest, self.max_length + 1)
        place = jnp.arange(self.max_length)
        if self.problem != "addition":
            digits = jax.random.randint(key_digits, (self.max_length,), 0, 10)
            answer = digits if self.problem == "copy" else digits[jnp.maximum(length - 1 - place, 0)]
            return _batch(digits + FIRST_DIGIT, length, answer + FIRST_DIGIT, length)
        first = jax.random.randint(key_split, (), 1, length - 1)  # digits of the first number: 1 .. length - 2
        second = length - 1 - first
        a, b = (_number(k, n, self.max_length) for k, n in zip(jax.random.split(key_digits), (first, second)))
        source = jnp.where(place < first, a + FIRST_DIGIT, PLUS)
        source = jnp.where(place > first, jnp.roll(b, first + 1) + FIRST_DIGIT, source)
        total = add_digits(a, b)[: self.target_length - 1]
        digits = self.target_length - jnp.argmax(total[::-1] > 0) - 1
        return _batch(source, length, total + FIRST_DIGIT, digits)


def add_digits(a: Int[Array, " N"], b: Int[Array, " N"]) -> Int[Array, " N"]:
    """Sum of two decimal numbers given as digits, least significant first; a carry out of the last digit is lost."""

    def step(carry, digits):
        total = carry + digits[0] + digits[1]
        return total // 10, total % 10

    return lax.scan(step, jnp.zeros((), a.dtype), (a, b))[1]


def _number(key, digits, size):
    """Random number of ``digits`` digits, the most significant not 0; least significant first, zeros up to ``size``."""
    key_digits, key_top = jax.random.split(key)
    place = jnp.arange(size)
    number = jnp.where(place == digits - 1, jax.random.randint(key_top, (), 1, 10),
                       jax.random.randint(key_digits, (size,), 0, 10))  # fmt: skip
    return jnp.where(place < digits, number, 0)


def _batch(source, source_length, answer, answer_length) -> Batch:
    """Appends END to both strings and blanks what lies behind it."""
    inputs = _terminate(source, source_length)
    targets = _terminate(answer, answer_length)
    mask = jnp.arange(targets.size) <= answer_length
    return Batch(inputs, targets, mask, source_length + 1)


def _terminate(symbols, length):
    place = jnp.arange(symbols.size + 1)
    padded = jnp.pad(symbols, (0, 1))
    return jnp.where(place < length, padded, jnp.where(place == length, END, PAD))
