"""Sentence pairs of two languages (WMT14 English-German and the like): sub-words, length buckets, batches by tokens.

Two text files with one sentence per line, line n of one being the translation of line n of the other, are turned once
into memory-mapped arrays by ``prepare``. Both languages share one vocabulary: byte-pair sub-words by the ``tokenizers``
library, or plain bytes, which need no library.
"""

import bisect
import dataclasses
import functools
import gzip
import itertools
import json
import os
import pathlib
import random
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from zoo.checks import check_positive
from zoo.tasks.base import Batch, HostTask

PAD, END = 0, 1  # PAD also starts the decoder
BYTES = 256


class ByteVocabulary:
    """UTF-8 bytes, shifted past PAD and END."""

    size = BYTES + 2

    def encode(self, text: str) -> list[int]:
        """Token numbers of ``text``, without END."""
        return [byte + END + 1 for byte in text.encode()]

    def decode(self, tokens: Iterable[Any]) -> str:
        """Text up to the first END; bytes that are no UTF-8 become replacement characters."""
        return bytes(token - END - 1 for token in _until_end(tokens)).decode(errors="replace")


class SubwordVocabulary:
    """Byte-pair sub-words of a ``tokenizers`` file as written by ``train_subwords``."""

    def __init__(self, path: str | pathlib.Path):
        self._tokenizer = _tokenizers().Tokenizer.from_file(str(path))
        self.size = self._tokenizer.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        """Token numbers of ``text``, without END."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, tokens: Iterable[Any]) -> str:
        """Text up to the first END."""
        return self._tokenizer.decode(_until_end(tokens))


def train_subwords(texts: Iterable[str], size: int, path: str | pathlib.Path) -> SubwordVocabulary:
    """Learns ``size`` byte-level byte-pair sub-words, PAD and END included, and writes them to ``path``."""
    if size < BYTES + 2:
        raise ValueError(f"size must be at least {BYTES + 2} (every byte, PAD and END), got {size}")
    library = _tokenizers()
    tokenizer = library.Tokenizer(library.models.BPE())
    tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = library.decoders.ByteLevel()
    trainer = library.trainers.BpeTrainer(
        vocab_size=size, special_tokens=["<pad>", "<end>"], show_progress=False,
        initial_alphabet=library.pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.save(str(path))
    return SubwordVocabulary(path)


def _tokenizers():
    try:
        import tokenizers
    except ImportError:
        raise ImportError(
            "sub-words need the tokenizers library: pip install 'scanzoo[hub]'; or take bytes (subwords=None)"
        ) from None
    return tokenizers


def _until_end(tokens: Iterable[Any]) -> list[int]:
    kept = itertools.takewhile(lambda token: token != END, map(int, tokens))
    return [token for token in kept if token != PAD]


def read_pairs(source: str | pathlib.Path, target: str | pathlib.Path) -> Iterator[tuple[str, str]]:
    """Line pairs of two text files, plain or gzip; pairs with an empty side are left out.

    Raises:
      ValueError: the files have different numbers of lines.
    """
    with _open(source) as sources, _open(target) as targets:
        for number, (a, b) in enumerate(itertools.zip_longest(sources, targets), start=1):
            if a is None or b is None:
                short, long = (source, target) if a is None else (target, source)
                raise ValueError(f"{str(short)!r} ends at line {number - 1}, {str(long)!r} goes on: not parallel")
            if a.strip() and b.strip():
                yield a.strip(), b.strip()


def _open(path):
    path = pathlib.Path(path)
    return (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8")


def prepare(
    source: str | pathlib.Path, target: str | pathlib.Path, folder: str | pathlib.Path, subwords: int | None = None,
    vocabulary: str | pathlib.Path | None = None,
) -> pathlib.Path:  # fmt: skip
    """Writes the sentence pairs as arrays: tokens one after the other, and where each sentence begins.

    Args:
      source, target: text files, see ``read_pairs``.
      folder: made here, all at once when everything is written; must not exist.
      subwords: size of a sub-word vocabulary learned from both files; None: bytes.
      vocabulary: file of sub-words learned before (test data take that of the training data).

    Returns:
      ``folder``.
    """
    folder = pathlib.Path(folder)
    if folder.exists():
        raise FileExistsError(f"{str(folder)!r} exists already; remove it or name another folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = pathlib.Path(tempfile.mkdtemp(dir=folder.parent))
    try:
        if vocabulary is not None:
            shutil.copy(vocabulary, scratch / "subwords.json")
        elif subwords is not None:
            texts = itertools.chain.from_iterable(read_pairs(source, target))
            train_subwords(texts, subwords, scratch / "subwords.json")
        words = open_vocabulary(scratch)
        offsets = ([0], [0])
        kind = np.uint16 if words.size <= 1 << 16 else np.int32
        with open(scratch / "source.tokens", "wb") as sources, open(scratch / "target.tokens", "wb") as targets:
            for pair in read_pairs(source, target):
                for text, file, places in zip(pair, (sources, targets), offsets):
                    tokens = words.encode(text)
                    np.asarray(tokens, kind).tofile(file)
                    places.append(places[-1] + len(tokens))
        if len(offsets[0]) == 1:
            raise ValueError(f"{str(source)!r} and {str(target)!r} hold no sentence pair")
        np.save(scratch / "offsets.npy", np.array(offsets, np.int64))
        (scratch / "format.json").write_text(json.dumps({"dtype": np.dtype(kind).name, "vocab_size": words.size}))
        os.replace(scratch, folder)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    return folder


def open_vocabulary(folder: str | pathlib.Path) -> ByteVocabulary | SubwordVocabulary:
    """The vocabulary of a prepared folder."""
    path = pathlib.Path(folder) / "subwords.json"
    return SubwordVocabulary(path) if path.exists() else ByteVocabulary()


@dataclasses.dataclass(frozen=True)
class ParallelText(HostTask):
    """Sentence pairs of a prepared folder, batches of about equal length and equal numbers of tokens.

    A step draws one bucket, in proportion to the sentences in it, and its pairs uniformly. All buckets have the same
    number of token slots, ``batch_size * max(buckets)`` on either side: a bucket of half the length holds twice
    as many pairs. So there are as many shapes, and compilations, as buckets.

    Batch: ``inputs`` int32 [B', L] source tokens, END, padding; ``lengths`` with the END; ``targets`` [B', L] likewise;
    ``mask`` True up to the END.

    Attributes:
      folder: made by ``prepare``.
      buckets: rising lengths, each dividing the last one. A pair belongs to the first bucket that holds both its
        sentences with their END; longer pairs are left out.
    """

    folder: str
    buckets: tuple[int, ...] = (16, 32, 64, 128)

    def __post_init__(self):
        if not self.buckets or list(self.buckets) != sorted(set(self.buckets)):
            raise ValueError(f"buckets must be rising lengths, got {self.buckets}")
        for length in self.buckets:
            check_positive("bucket", length)
            if self.buckets[-1] % length:
                raise ValueError(f"bucket {length} does not divide the longest, {self.buckets[-1]}")
        if not (pathlib.Path(self.folder) / "format.json").exists():
            raise FileNotFoundError(
                f"{self.folder!r} is no prepared folder; zoo.tasks.parallel_text.prepare(source, target, folder) makes one"
            )

    @functools.cached_property
    def vocab_size(self) -> int:
        return json.loads((pathlib.Path(self.folder) / "format.json").read_text())["vocab_size"]

    @functools.cached_property
    def _corpus(self) -> tuple[np.ndarray, list[np.ndarray], list[np.ndarray]]:
        """Offsets [2, N + 1], tokens of both sides, and the pairs of every bucket."""
        folder = pathlib.Path(self.folder)
        kind = json.loads((folder / "format.json").read_text())["dtype"]
        offsets = np.load(folder / "offsets.npy", mmap_mode="r")
        tokens = [np.memmap(folder / f"{side}.tokens", kind, mode="r") for side in ("source", "target")]
        length = np.diff(offsets, axis=1).max(axis=0) + 1
        place = np.searchsorted(self.buckets, length)
        members = [np.flatnonzero(place == i) for i in range(len(self.buckets))]
        if not any(len(m) for m in members):
            raise ValueError(f"no sentence pair of {self.folder!r} fits into {self.buckets[-1]} tokens")
        return offsets, tokens, members

    def read(self, seed: int, step: int, rows: range, batch_size: int) -> Batch:
        offsets, tokens, members = self._corpus
        totals = list(itertools.accumulate(map(len, members)))
        bucket = bisect.bisect_right(totals, random.Random(f"{seed} {step}").randrange(totals[-1]))
        length = self.buckets[bucket]
        share = self.buckets[-1] // length
        pairs = [
            members[bucket][random.Random(f"{seed} {step} {row} {i}").randrange(len(members[bucket]))]
            for row in rows
            for i in range(share)
        ]
        return pair_arrays(offsets, tokens, np.array(pairs), length)

    def first(self, count: int) -> Batch:
        """The first ``count`` pairs that fit, in the order of the files, as one batch of the longest bucket."""
        offsets, tokens, members = self._corpus
        pairs = np.sort(np.concatenate(members))[:count]
        return pair_arrays(offsets, tokens, pairs, self.buckets[-1])


def pair_arrays(offsets: np.ndarray, tokens: Sequence[np.ndarray], pairs: np.ndarray, length: int) -> Batch:
    """Sentence pairs as arrays of ``length`` with END and padding; see ``ParallelText`` for the batch."""
    arrays = np.zeros((2, len(pairs), length), np.int32)
    ends = np.zeros((2, len(pairs)), np.int32)
    for side in range(2):
        for i, pair in enumerate(pairs):
            sentence = tokens[side][offsets[side, pair] : offsets[side, pair + 1]]
            arrays[side, i, : len(sentence)] = sentence
            arrays[side, i, len(sentence)] = END
            ends[side, i] = len(sentence) + 1
    return Batch(arrays[0], arrays[1], np.arange(length) < ends[1][:, None], ends[0])
