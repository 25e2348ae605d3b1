"""ListOps: nested operations on lists of digits; what is the value of the whole?

Nangia and Bowman (2018), ListOps: A Diagnostic Dataset for Latent Tree Learning; with the sizes of Tay et al. (2021), Long
Range Arena. An expression such as ``[MAX 4 3 [MIN 2 3 ] 1 0 ]`` is a digit, or an operator, its arguments (expressions
again) and a closing bracket:

    [MIN  the smallest      [MED  the median, rounded down      [MAX  the largest      [SM  the sum modulo 10

Tokens: 0 padding, 1 .. 10 the digits 0 .. 9, 11 .. 14 the operators in the order of ``OPERATORS``, 15 the closing bracket.
Batch: ``inputs`` int32 [time], right-padded; ``targets`` the value 0 .. 9; ``lengths`` tokens.

``ListOps`` makes expressions, by the rules of the release; ``ListOpsFiles`` reads the files of the release.
"""

import dataclasses
import functools
import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Int, Key

from zoo.checks import check_choice, check_positive
from zoo.tasks.base import Batch, Task
from zoo.tasks.indexed import IndexedTask

OPERATORS = ("[MIN", "[MAX", "[MED", "[SM")
END = "]"
WORDS = ("<pad>", *map(str, range(10)), *OPERATORS, END)
VOCAB_SIZE = len(WORDS)
OPERATOR_SHARE = 0.25  # how often an argument is itself an operation
FILES = {"train": "basic_train.tsv", "validation": "basic_val.tsv", "test": "basic_test.tsv"}
_SOURCE = (
    "the folder listops-1000 of the Long Range Arena release (lra_release.gz, see github.com/google-research/"
    "long-range-arena), with basic_train.tsv, basic_val.tsv and basic_test.tsv"
)


class _Expression(NamedTuple):
    """An expression in the making: what is written, and the operations that are still open, outermost first."""

    key: Array
    tokens: Array  # [time]
    written: Array  # tokens so far
    level: Array  # open operations
    operator: Array  # [depth] which operation
    missing: Array  # [depth] arguments still to come
    counts: Array  # [depth, 10] how often each digit is among the arguments so far
    value: Array  # of the operation closed last
    done: Array


@dataclasses.dataclass(frozen=True)
class ListOps(Task):
    """Expressions made by the rules of the release, as many as are asked for.

    An argument is an operation with probability 1/4 where the depth allows it, otherwise a digit; operators, digits and
    the number of arguments (2 .. ``max_args``) are uniform; expressions outside the wanted lengths are thrown away. All
    is done in a loop over tokens with a stack, which costs a few sequential steps per token: for short expressions made
    while training. At the sizes of the release its files are the better choice.

    Attributes:
      time: length of the padded rows, at least ``max_length`` - 1.
      max_depth: depth of the tree, digits included, at least 2.
      max_args: most arguments of an operation, at least 2.
      min_length, max_length: the number of tokens lies strictly between.
    """

    time: int = 2048
    max_depth: int = 10
    max_args: int = 10
    min_length: int = 500
    max_length: int = 2000

    num_classes = 10
    vocab_size = VOCAB_SIZE

    def __post_init__(self):
        for field in dataclasses.fields(self):
            check_positive(field.name, getattr(self, field.name))
        for name in ("max_depth", "max_args"):
            if getattr(self, name) < 2:
                raise ValueError(f"{name} must be at least 2, got {getattr(self, name)}")
        if self.time < self.max_length - 1:
            raise ValueError(f"time={self.time} has no room for expressions of max_length - 1 = {self.max_length - 1}")
        shortest = max(4, self.min_length + 1)  # an operator, two digits, the bracket
        if shortest >= self.max_length or shortest > self._longest():
            raise ValueError(
                f"no expression has more than min_length={self.min_length} and fewer than max_length={self.max_length} "
                f"tokens with max_depth={self.max_depth} and max_args={self.max_args}"
            )

    def _longest(self) -> int:
        """Tokens of the largest tree."""
        size = 1
        for _ in range(self.max_depth - 1):
            size = 2 + self.max_args * size
        return size

    def example(self, key: Key[Array, ""], data: None = None) -> Batch:
        depth = self.max_depth - 1
        start = _Expression(
            key, jnp.zeros(self.time, jnp.uint8), jnp.int32(0), jnp.int32(0), jnp.zeros(depth, jnp.int32),
            jnp.zeros(depth, jnp.int32), jnp.zeros((depth, 10), jnp.int32), jnp.int32(0), jnp.bool_(False),
        )  # fmt: skip
        made = lax.while_loop(lambda e: ~e.done, self._write, start)
        tokens = jnp.where(jnp.arange(self.time) < made.written, made.tokens, 0).astype(jnp.int32)
        return Batch(tokens, made.value, lengths=made.written)

    def _write(self, e: _Expression) -> _Expression:
        """Writes one token; throws the expression away and begins anew when it cannot be of a wanted length."""
        key, key_share, key_operator, key_args, key_digit = jax.random.split(e.key, 5)
        operator = jax.random.randint(key_operator, (), 0, len(OPERATORS))
        args = jax.random.randint(key_args, (), 2, self.max_args + 1)
        digit = jax.random.randint(key_digit, (), 0, 10)
        nested = (jax.random.uniform(key_share) < OPERATOR_SHARE) & (e.level + 1 < self.max_depth)

        top = jnp.maximum(e.level - 1, 0)  # row of the innermost open operation
        inside = e.level > 0
        closes = inside & (e.missing[top] == 0)
        opens = ~closes & (nested | ~inside)  # a digit alone is too short to be wanted
        value = _value(e.operator[top], e.counts[top])
        token = jnp.where(closes, VOCAB_SIZE - 1, jnp.where(opens, 11 + operator, 1 + digit))

        # A digit is an argument of the innermost operation; a closed operation's value is one of the operation around it.
        parent = jnp.where(closes, top - 1, top)
        argument = jnp.where(closes, value, digit)
        counts = e.counts.at[parent, argument].add(jnp.where(inside & ~opens & (parent >= 0), 1, 0))
        missing = e.missing.at[top].add(jnp.where(inside & ~closes, -1, 0))
        row = jnp.where(opens, e.level, self.max_depth)  # out of range: dropped
        level = e.level + jnp.where(opens, 1, jnp.where(closes, -1, 0))
        written = e.written + 1
        ended = level == 0
        done = ended & (written > self.min_length)
        again = (ended & ~done) | (~ended & (written >= self.max_length - 1))
        return _Expression(
            key=key,
            tokens=e.tokens.at[e.written].set(token.astype(jnp.uint8)),
            written=jnp.where(again, 0, written),
            level=jnp.where(again, 0, level),
            operator=e.operator.at[row].set(operator, mode="drop"),
            missing=missing.at[row].set(args, mode="drop"),
            counts=counts.at[row].set(0, mode="drop"),
            value=value,
            done=done,
        )


def _value(operator: Int[Array, ""], counts: Int[Array, "10"]) -> Int[Array, ""]:
    """Value of an operation on arguments of which digit d occurs ``counts[d]`` times."""
    digits = jnp.arange(10)
    at_most = jnp.cumsum(counts)
    size = at_most[-1]

    def ranked(rank):  # the argument of this rank, from 0
        return jnp.argmax(at_most > rank)

    median = (ranked((size - 1) // 2) + ranked(size // 2)) // 2
    results = jnp.stack([ranked(0), ranked(size - 1), median, jnp.sum(digits * counts) % 10])
    return results[operator].astype(jnp.int32)


class Expressions(NamedTuple):
    """``tokens`` uint8 [N, time], right-padded, ``lengths`` and ``values`` int32 [N]."""

    tokens: np.ndarray
    lengths: np.ndarray
    values: np.ndarray


@functools.lru_cache(maxsize=3)
def read_listops(path: str, time: int) -> Expressions:
    """Reads a file of the release: a header ``Source<tab>Target``, then an expression, a tab, its value on every line.

    The release writes every application of an operation in round brackets of its own; they say nothing new and are left
    out, as is usual. Expressions longer than ``time`` are cut off.

    Raises:
      FileNotFoundError: no such file.
      ValueError: not in the format; the message names file and line.
    """
    file = pathlib.Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"no file {str(path)!r}; needed: {_SOURCE}")
    number = {word: i for i, word in enumerate(WORDS) if i} | {"(": -1, ")": -1}
    rows, values = [], []
    with file.open(encoding="utf-8", errors="replace") as lines:
        if next(lines, "").split() != ["Source", "Target"]:
            raise ValueError(f"{file.name} does not begin with a line 'Source<tab>Target'; needed: {_SOURCE}")
        for at, line in enumerate(lines, start=2):
            source, _, target = line.rstrip("\r\n").partition("\t")
            try:
                tokens = np.array([number[word] for word in source.split()], np.int8)
            except KeyError as error:
                raise ValueError(f"{file.name}, line {at}: unknown token {str(error.args[0])[:20]!r}") from None
            if len(target) != 1 or not target.isdecimal() or not len(tokens):
                raise ValueError(f"{file.name}, line {at}: expected an expression, a tab and a digit")
            rows.append(tokens[tokens > 0][:time])
            values.append(int(target))
    if not rows:
        raise ValueError(f"{file.name} holds no expressions; needed: {_SOURCE}")
    padded = np.zeros((len(rows), time), np.uint8)
    for row, tokens in zip(padded, rows):
        row[: len(tokens)] = tokens
    return Expressions(padded, np.array([len(r) for r in rows], np.int32), np.array(values, np.int32))


@dataclasses.dataclass(frozen=True)
class ListOpsFiles(IndexedTask):
    """The expressions of the release: 96,000 for training, 2,000 for validation, 2,000 for testing, 500 to 2,000 tokens.

    Attributes:
      path: folder with basic_train.tsv, basic_val.tsv, basic_test.tsv.
      split: "train", "validation" or "test".
      time: length of the padded rows.
    """

    path: str = ""
    split: str = "train"
    time: int = 2048

    num_classes = 10
    vocab_size = VOCAB_SIZE

    def __post_init__(self):
        check_choice("split", self.split, FILES)
        check_positive("time", self.time)

    def _expressions(self) -> Expressions:
        return read_listops(str(pathlib.Path(self.path) / FILES[self.split]), self.time)

    @property
    def count(self) -> int:
        return len(self._expressions().values)

    def rows_at(self, indices: Int[np.ndarray, " B"]) -> Batch:
        tokens, lengths, values = self._expressions()
        return Batch(tokens[indices].astype(np.int32), values[indices], lengths=lengths[indices])


def expression_text(tokens: Int[np.ndarray, " time"]) -> str:
    """The expression that ``tokens`` stand for, without padding."""
    return " ".join(WORDS[t] for t in np.asarray(tokens) if t)
