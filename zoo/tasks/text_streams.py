"""Text as parallel streams for truncated backpropagation: every batch goes on where the last one ended.

The text is cut into ``batch_size`` contiguous streams. The batch of step n holds segment n of every stream, so that a
state carried from step to step has read the whole stream before; shuffling would break that.

Public texts this reads: Penn Treebank as prepared by Mikolov (a folder with ``ptb.train.txt``, ``ptb.valid.txt``,
``ptb.test.txt``, one sentence per line, rare words already ``<unk>``), WikiText (``wiki.{train,valid,test}.tokens``), text8
(one file, http://mattmahoney.net/dc/text8.zip), or any text file.
"""

import collections
import dataclasses
import functools
import itertools
import pathlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from zoo.checks import check_choice, check_positive
from zoo.tasks.base import Batch, HostTask

SPLITS = ("train", "validation", "test")
UNITS = ("word", "byte")
FOLDER_NAMES = (
    ("ptb.train.txt", "ptb.valid.txt", "ptb.test.txt"),
    ("wiki.train.tokens", "wiki.valid.tokens", "wiki.test.tokens"),
    ("train.txt", "valid.txt", "test.txt"),
)
END_OF_LINE, UNKNOWN = "<eos>", "<unk>"
SHARES = (0.90, 0.95)  # where validation and test begin in a single file, as is usual for text8


class Tokens(NamedTuple):
    """``ids`` of one split (memory-mapped bytes, or int32 words) and the ``words`` they stand for (None for bytes)."""

    ids: np.ndarray
    words: tuple[str, ...] | None


def split_files(path: str) -> dict[str, pathlib.Path] | pathlib.Path:
    """The three files of a corpus folder, or the single file; FileNotFoundError says which layouts are known."""
    root = pathlib.Path(path)
    if path and root.is_file():
        return root
    if path and root.is_dir():
        for names in FOLDER_NAMES:
            if all((root / name).is_file() for name in names):
                return {split: root / name for split, name in zip(SPLITS, names)}
    layouts = "; ".join(", ".join(names) for names in FOLDER_NAMES)
    raise FileNotFoundError(
        f"data.path={path!r}: give a text file (split 90/5/5 %), or a folder with one of these sets of files: {layouts}"
    )


@functools.lru_cache(maxsize=8)
def load_tokens(path: str, unit: str, split: str, max_words: int | None = None) -> Tokens:
    """Reads one split of a corpus.

    The vocabulary comes from the training split: words by falling frequency, ties in alphabetical order; each line ends
    with ``<eos>``; words outside the ``max_words`` most frequent become ``<unk>``.

    Raises:
      FileNotFoundError: ``path`` is neither a file nor a known corpus folder.
      ValueError: unknown unit or split.
    """
    check_choice("unit", unit, UNITS)
    check_choice("split", split, SPLITS)
    files = split_files(path)
    if unit == "byte":
        if isinstance(files, dict):
            return Tokens(np.memmap(files[split], np.uint8, mode="r"), None)
        every = np.memmap(files, np.uint8, mode="r")
        return Tokens(every[_places(len(every))[split]], None)
    words = _vocabulary(path, max_words)
    number = {word: i for i, word in enumerate(words)}
    return Tokens(np.fromiter((number.get(word, 0) for word in _words(files, split)), np.int32), words)


@functools.lru_cache(maxsize=4)
def _vocabulary(path: str, max_words: int | None) -> tuple[str, ...]:
    """The words of the training split, most frequent first, behind ``<unk>``."""
    counts = collections.Counter(_words(split_files(path), "train"))
    counts.pop(UNKNOWN, None)
    frequent = sorted(counts, key=lambda word: (-counts[word], word))[: None if max_words is None else max_words - 1]
    return (UNKNOWN, *frequent)


def _words(files: dict[str, pathlib.Path] | pathlib.Path, split: str) -> Iterator[str]:
    """The words of a split one by one: a list of all of them would take gigabytes for WikiText-103."""
    if isinstance(files, dict):
        return _words_of(files[split])
    length = sum(1 for _ in _words_of(files))
    return itertools.islice(_words_of(files), *_places(length)[split].indices(length))


def _words_of(path: pathlib.Path) -> Iterator[str]:
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            yield from line.split()
            yield END_OF_LINE


def _places(length: int) -> dict[str, slice]:
    """Where the splits of a single file lie."""
    first, second = (int(share * length) for share in SHARES)
    return dict(zip(SPLITS, (slice(first), slice(first, second), slice(second, None))))


@dataclasses.dataclass(frozen=True)
class TextStreams(HostTask):
    """Consecutive segments of ``time`` tokens of parallel streams.

    Batch: ``inputs`` and ``targets`` int32 [rows, time], the targets one token further; ``extra`` bool [rows, time],
    True where a stream begins (again, after its last segment): a reset for the carried state.

    Attributes:
      path: a text file or a corpus folder, see the module docstring.
      unit: "word" or "byte".
      split: "train", "validation" or "test".
      time: tokens per segment.
      max_words: size of the vocabulary, None for all words of the training split.
    """

    path: str = ""
    unit: str = "word"
    split: str = "train"
    time: int = 35
    max_words: int | None = 10_000

    def __post_init__(self):
        check_positive("time", self.time)
        check_choice("unit", self.unit, UNITS)
        check_choice("split", self.split, SPLITS)
        if self.max_words is not None:
            check_positive("max_words", self.max_words)

    def tokens(self) -> Tokens:
        """The whole split."""
        return load_tokens(self.path, self.unit, self.split, self.max_words)

    @property
    def vocab_size(self) -> int:
        words = self.tokens().words
        return 256 if words is None else len(words)

    def segments(self, batch_size: int) -> int:
        """Steps until every stream has been read once; ValueError if there are none."""
        size = len(self.tokens().ids)
        count = (size - 1) // batch_size // self.time
        if count < 1:
            raise ValueError(
                f"the {self.split} split has {size} tokens, too few for {batch_size} streams of at least {self.time}"
            )
        return count

    def read(self, seed: int, step: int, rows: range, batch_size: int) -> Batch:
        """Segment ``step`` (modulo the number of segments) of the streams ``rows``; the same for every seed."""
        ids = self.tokens().ids
        segments = self.segments(batch_size)
        place = step % segments
        length = (len(ids) - 1) // batch_size
        starts = [row * length + place * self.time for row in rows]
        block = np.stack([ids[s : s + self.time + 1] for s in starts]).astype(np.int32)
        begins = np.zeros((len(starts), self.time), bool)
        begins[:, 0] = place == 0
        return Batch(block[:, :-1], block[:, 1:], extra=begins)
