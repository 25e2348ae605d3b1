"""CIFAR-10 read pixel by pixel: 1,024 steps, grey or in colour.

Krizhevsky (2009), Learning Multiple Layers of Features from Tiny Images: 50,000 and 10,000 images of 32 x 32 pixels in ten
classes, in the binary version of the data set. A file is a row of records of 3,073 bytes: the class, then the red, the green
and the blue plane, each row by row. The files are memory-mapped; nothing is ever unpickled.

    form      inputs              values
    "grey"    float32 [1024, 1]   0.299 R + 0.587 G + 0.114 B, standardised with the mean and deviation of the training set
    "rgb"     float32 [1024, 3]   each channel standardised likewise
    "tokens"  int32   [1024]      the grey value, 0 .. 255 (the image task of Long Range Arena, Tay et al. 2021)
"""

import dataclasses
import functools
import pathlib

import numpy as np
from jaxtyping import Float, Int

from zoo.checks import check_choice
from zoo.tasks.base import Batch
from zoo.tasks.indexed import IndexedTask, fixed_split

FORMS = ("grey", "rgb", "tokens")
SPLITS = ("train", "validation", "test")
TRAIN_FILES = tuple(f"data_batch_{i}.bin" for i in range(1, 6))
TEST_FILES = ("test_batch.bin",)
PIXELS = 1024
_RECORD = 1 + 3 * PIXELS
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
_SOURCE = (
    "data_batch_1.bin to data_batch_5.bin and test_batch.bin of the binary version of CIFAR-10, cifar-10-binary.tar.gz "
    "from cs.toronto.edu/~kriz/cifar.html"
)


@functools.lru_cache(maxsize=2)
def open_records(folder: str, names: tuple[str, ...]) -> tuple[np.ndarray, ...]:
    """The files ``names`` of ``folder`` as memory-mapped uint8 arrays [N, 3073].

    Raises:
      FileNotFoundError: one of them is missing.
      ValueError: one of them is empty or does not consist of whole records, or names a class above 9.
    """
    parts = []
    for name in names:
        path = pathlib.Path(folder) / name
        if not path.is_file():
            raise FileNotFoundError(f"no file {name} in {folder!r}; needed: {_SOURCE}")
        size = path.stat().st_size
        if size == 0 or size % _RECORD:
            raise ValueError(
                f"{path} has {size} bytes, which is not a number of records of {_RECORD} bytes: cut short?"
            )
        records = np.memmap(path, np.uint8, mode="r").reshape(-1, _RECORD)
        if records[:, 0].max() > 9:
            raise ValueError(
                f"{path} names a class {records[:, 0].max()}, CIFAR-10 has 0 to 9: another file or version"
            )
        parts.append(records)
    return tuple(parts)


def grey(pixels: Float[np.ndarray, "*B 3"]) -> Float[np.ndarray, "*B"]:
    """Luma of red, green, blue (ITU-R BT.601)."""
    return pixels @ _LUMA


@functools.lru_cache(maxsize=2)
def _statistics(folder: str) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of (red, green, blue, grey) [4] over the training files, on the scale 0 .. 255."""
    total, squares, count = np.zeros(4), np.zeros(4), 0
    for records in open_records(folder, TRAIN_FILES):
        for start in range(0, len(records), 1000):
            pixels = _pixels(records[start : start + 1000]).reshape(-1, 3)
            values = np.concatenate([pixels, grey(pixels)[:, None]], axis=1)
            total += values.sum(axis=0, dtype=np.float64)
            squares += np.square(values).sum(axis=0, dtype=np.float64)
            count += len(values)
    mean = total / count
    return mean, np.sqrt(np.maximum(squares / count - mean**2, 1e-12))


def _pixels(records: np.ndarray) -> np.ndarray:
    """Float32 pixels [N, 1024, 3] of ``records`` [N, 3073]."""
    return records[:, 1:].reshape(-1, 3, PIXELS).transpose(0, 2, 1).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class SequentialCifar(IndexedTask):
    """CIFAR-10's images as sequences of 1,024 pixels, left to right and top to bottom.

    Batch: ``inputs`` by ``form``, see the module docstring; ``targets`` the class 0 .. 9.

    Attributes:
      path: folder with data_batch_1.bin .. data_batch_5.bin and test_batch.bin.
      split: "train" and "validation" (nine tenths and one tenth of the training files, drawn once), or "test".
      form: "grey", "rgb" or "tokens".
    """

    path: str = ""
    split: str = "train"
    form: str = "grey"

    num_classes = 10
    time = PIXELS

    def __post_init__(self):
        check_choice("split", self.split, SPLITS)
        check_choice("form", self.form, FORMS)

    @property
    def vocab_size(self) -> int | None:
        """256 for tokens, None for numbers."""
        return 256 if self.form == "tokens" else None

    def _records(self) -> tuple[np.ndarray, ...]:
        return open_records(self.path, TEST_FILES if self.split == "test" else TRAIN_FILES)

    def _chosen(self) -> np.ndarray:
        """Numbers of the split's images in the files, one file after another."""
        every = sum(map(len, self._records()))
        return np.arange(every) if self.split == "test" else fixed_split(every, self.split, validation=0.1)

    @property
    def count(self) -> int:
        return len(self._chosen())

    def rows_at(self, indices: Int[np.ndarray, " B"]) -> Batch:
        parts = self._records()
        starts = np.cumsum([0, *map(len, parts)])
        places = self._chosen()[indices]
        files = np.searchsorted(starts, places, side="right") - 1
        records = np.stack([parts[f][place - starts[f]] for f, place in zip(files, places)])
        pixels, targets = _pixels(records), records[:, 0].astype(np.int32)
        if self.form == "tokens":
            return Batch(np.rint(grey(pixels)).astype(np.int32), targets)
        mean, deviation = _statistics(self.path)
        values, channels = (pixels, slice(3)) if self.form == "rgb" else (grey(pixels)[..., None], slice(3, 4))
        return Batch(((values - mean[channels]) / deviation[channels]).astype(np.float32), targets)
