"""Classification of DNA: the folders of GenomicsBenchmarks (Gresova et al. 2023), one text file per sequence.

    <path>/train/<class>/<name>.txt        letters A, C, G, T, and N for any
    <path>/test/<class>/<name>.txt

as the data set's own package writes them. Classes are the names of the folders in alphabetical order.
"""

import dataclasses
import functools
import pathlib

import numpy as np
from jaxtyping import Int

from zoo.checks import check_choice, check_positive
from zoo.tasks.base import Batch
from zoo.tasks.indexed import IndexedTask

SPLITS = ("train", "test")
LETTERS = "ACGTN"  # numbers 1 to 5; 0 is padding
_NUMBERS = np.full(256, -1, np.int32)
for _number, _letter in enumerate(LETTERS, start=1):
    _NUMBERS[[ord(_letter), ord(_letter.lower())]] = _number


def read_sequence(path: pathlib.Path) -> Int[np.ndarray, " T"]:
    """Numbers of the letters of one file.

    Raises:
      ValueError: another letter, or none at all; the message names the file.
    """
    numbers = _NUMBERS[np.frombuffer(path.read_bytes().strip(), np.uint8)]
    if not len(numbers) or numbers.min() < 0:
        raise ValueError(f"{path} must hold letters of {LETTERS} alone, and at least one")
    return numbers


@functools.lru_cache(maxsize=4)
def _files(path: str, split: str) -> tuple[tuple[str, ...], tuple[pathlib.Path, ...], np.ndarray]:
    """(classes, files, their classes) of a split."""
    folder = pathlib.Path(path) / split
    if not path or not folder.is_dir():
        raise FileNotFoundError(
            f"no folder {split!r} in path={path!r}: give a data set of GenomicsBenchmarks, with folders train and test, one "
            "folder per class in each, one text file per sequence"
        )
    classes = tuple(sorted(p.name for p in folder.iterdir() if p.is_dir()))
    found = [(file, label) for label, name in enumerate(classes) for file in sorted((folder / name).glob("*.txt"))]
    if not found:
        raise FileNotFoundError(f"no file *.txt in the folders of {folder}")
    return classes, tuple(file for file, _ in found), np.array([label for _, label in found], np.int32)


@dataclasses.dataclass(frozen=True)
class GenomicsBenchmark(IndexedTask):
    """Sequences of one data set of GenomicsBenchmarks.

    Batch: ``inputs`` int32 [time], letters 1 to 5 and 0 behind the end; ``targets`` the class; ``lengths`` letters.

    Attributes:
      path: folder with train and test.
      split: "train" or "test".
      time: letters that are read; longer sequences are cut at the end.
    """

    path: str = ""
    split: str = "train"
    time: int = 512

    def __post_init__(self):
        check_choice("split", self.split, SPLITS)
        check_positive("time", self.time)

    @property
    def vocab_size(self) -> int:
        return len(LETTERS) + 1

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return _files(self.path, self.split)[0]

    @property
    def count(self) -> int:
        return len(_files(self.path, self.split)[1])

    def rows_at(self, indices: Int[np.ndarray, " B"]) -> Batch:
        _, files, labels = _files(self.path, self.split)
        inputs = np.zeros((len(indices), self.time), np.int32)
        lengths = np.zeros(len(indices), np.int32)
        for row, index in enumerate(indices):
            sequence = read_sequence(files[index])[: self.time]
            inputs[row, : len(sequence)] = sequence
            lengths[row] = len(sequence)
        return Batch(inputs, labels[np.asarray(indices)], lengths=lengths)
