"""Handwritten digits read as sequences: pixel by pixel, row by row, or pixel by pixel in a fixed shuffled order.

``Digits`` are the 1,797 real 8 x 8 images that scikit-learn brings along (Alpaydin and Kaynak 1998, the test part of the
UCI set of optical recognition of handwritten digits), values 0 .. 16 divided by 16, shuffled once: 1,400 for training,
397 for testing. ``IdxDigits`` reads the files of MNIST (LeCun et al. 1998) from a folder, as they are or gzipped,
standardised with the mean and deviation of the training images.

Batch: ``inputs`` float32 [T, F], ``targets`` the digit 0 .. 9.

    form        T            F
    "pixels"    rows * cols  1     left to right, top to bottom (Le, Jaitly, Hinton 2015)
    "permuted"  rows * cols  1     the same pixels in an order drawn once from ``permutation_seed``, the same for all
    "rows"      rows         cols
"""

import dataclasses
import functools
import gzip
import os
import pathlib
import struct
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from zoo.checks import check_choice
from zoo.tasks.base import Batch, Task

FORMS = ("pixels", "permuted", "rows")
SPLITS = ("train", "test")
PARTS = ("train", "t10k")
_SOURCE = (
    "the four files of MNIST, gzipped or not (with part='t10k' one pair will do); "
    "public source: yann.lecun.com/exdb/mnist"
)
_TRAIN, _SHUFFLE_SEED = 1400, 0


def as_sequences(images: np.ndarray, form: str, permutation_seed: int = 0) -> np.ndarray:
    """Turns images [N, rows, cols] into sequences [N, T, F] of the given ``form``."""
    check_choice("form", form, FORMS)
    if form == "rows":
        return images
    pixels = images.reshape(len(images), -1, 1)
    if form == "permuted":
        pixels = pixels[:, np.random.default_rng(permutation_seed).permutation(pixels.shape[1])]
    return pixels


class _ImageTask(Task):
    """Examples are rows of ``data()``: ``inputs`` [N, T, F] and ``targets`` [N]."""

    num_classes = 10

    def example(self, key: Key[Array, ""], data: dict[str, Any]) -> Batch:
        """A random image of the split."""
        return self.rows_at(jax.random.randint(key, (), 0, len(data["targets"])), data)

    def rows_at(self, index: Int[Array, "*B"], data: dict[str, Any]) -> Batch:
        """The images number ``index`` of the split, in a fixed order."""
        return Batch(jnp.asarray(data["inputs"])[index], jnp.asarray(data["targets"])[index])


@dataclasses.dataclass(frozen=True)
class Digits(_ImageTask):
    """scikit-learn's 8 x 8 digits as sequences.

    Attributes:
      split: "train" (1,400 images) or "test" (397).
      form: "pixels", "permuted" or "rows".
      permutation_seed: which order "permuted" is.
    """

    split: str = "train"
    form: str = "pixels"
    permutation_seed: int = 0

    def __post_init__(self):
        check_choice("split", self.split, SPLITS)
        check_choice("form", self.form, FORMS)

    @property
    def time(self) -> int:
        """Steps of a sequence."""
        return 8 if self.form == "rows" else 64

    def data(self) -> dict[str, np.ndarray]:
        images, labels = _bundled()
        part = slice(_TRAIN) if self.split == "train" else slice(_TRAIN, None)
        inputs = as_sequences(images[part], self.form, self.permutation_seed)
        return {"inputs": inputs, "targets": labels[part]}


@dataclasses.dataclass(frozen=True)
class IdxDigits(_ImageTask):
    """Images and labels in MNIST's idx files as sequences.

    Attributes:
      path: folder with train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte and
        t10k-labels-idx1-ubyte, each with or without ".gz".
      split: "train" or "test".
      form: "pixels", "permuted" or "rows".
      permutation_seed: which order "permuted" is.
      part: None: the usual split. "train" or "t10k": only that pair of files is needed; five sixths of its images are
        taken for training and the rest for testing.
    """

    path: str
    split: str = "train"
    form: str = "pixels"
    permutation_seed: int = 0
    part: str | None = None

    def __post_init__(self):
        check_choice("split", self.split, SPLITS)
        check_choice("form", self.form, FORMS)
        if self.part is not None:
            check_choice("part", self.part, PARTS)

    @property
    def time(self) -> int:
        """Steps of a sequence."""
        rows, cols = self._images("train")[0].shape[1:]
        return rows if self.form == "rows" else rows * cols

    def data(self) -> dict[str, np.ndarray]:
        train, _ = self._images("train")
        images, labels = self._images(self.split)
        mean, deviation = train.mean(dtype=np.float64), train.std(dtype=np.float64)
        images = ((images - mean) / max(deviation, 1e-12)).astype(np.float32)
        return {"inputs": as_sequences(images, self.form, self.permutation_seed), "targets": labels}

    def _images(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        if self.part is None:
            return read_idx_pair(self.path, "train" if split == "train" else "t10k")
        images, labels = read_idx_pair(self.path, self.part)
        cut = len(images) * 5 // 6
        order = np.random.default_rng(_SHUFFLE_SEED).permutation(len(images))
        chosen = order[:cut] if split == "train" else order[cut:]
        return images[chosen], labels[chosen]


@functools.lru_cache(maxsize=1)
def _bundled() -> tuple[Float[np.ndarray, "N 8 8"], Int[np.ndarray, " N"]]:
    """All of scikit-learn's digits in the fixed order of the split."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = np.random.default_rng(_SHUFFLE_SEED).permutation(len(digits.images))
    return (digits.images[order] / 16).astype(np.float32), digits.target[order].astype(np.int32)


@functools.lru_cache(maxsize=2)
def read_idx_pair(folder: str | os.PathLike, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [N, rows, cols] and labels int32 [N] of ``part`` ("train" or "t10k").

    Raises:
      FileNotFoundError: the folder or one of the two files is missing.
      ValueError: a file is not in the idx format, is cut short, or the two do not belong together.
    """
    images = read_idx(_find(folder, f"{part}-images-idx3-ubyte"), axes=3)
    labels = read_idx(_find(folder, f"{part}-labels-idx1-ubyte"), axes=1).astype(np.int32)
    if len(images) != len(labels):
        raise ValueError(f"{part} in {folder} has {len(images)} images, but {len(labels)} labels")
    if len(labels) and labels.max() > 9:
        raise ValueError(f"{part} labels in {folder} go up to {labels.max()}; digits are 0 to 9")
    return images, labels


def _find(folder: str | os.PathLike, name: str) -> pathlib.Path:
    for candidate in (pathlib.Path(folder) / name, pathlib.Path(folder) / f"{name}.gz"):
        if candidate.is_file():
            return candidate
    raise FileNotFoundError(f"no file {name} or {name}.gz in {str(folder)!r}; needed: {_SOURCE}")


def read_idx(path: str | os.PathLike, axes: int) -> np.ndarray:
    """Reads an idx file of unsigned bytes with ``axes`` axes, gzipped if its name ends in .gz.

    Raises:
      ValueError: another format, or fewer or more bytes than the header says.
    """
    path = pathlib.Path(path)
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            content = file.read()
    except (gzip.BadGzipFile, EOFError) as error:
        raise ValueError(f"{path} is not a whole gzip file: {error}") from error
    header = 4 + 4 * axes
    if len(content) < header or content[:4] != bytes((0, 0, 8, axes)):
        raise ValueError(f"{path} is not an idx file of unsigned bytes with {axes} axes")
    shape = struct.unpack(f">{axes}I", content[4:header])
    array = np.frombuffer(content, np.uint8, offset=header)
    if array.size != np.prod(shape):
        raise ValueError(f"{path} says {list(shape)} in its header, but holds {array.size} values")
    return array.reshape(shape)
