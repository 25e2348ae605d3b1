"""Bytes of real text: the source files of the running Python's standard library, or any file of the user's.

Every machine that runs the zoo has the standard library, so language modelling on real text needs no download. Files are
found through ``sysconfig``; tests, vendored wheels and data folders are left out; each file belongs to the training or
to the validation part by a hash of its path, so the split never depends on order or on a random seed.
"""

import dataclasses
import functools
import hashlib
import lzma
import pathlib
import sysconfig

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt8

from zoo.checks import check_choice, check_positive
from zoo.tasks.base import Batch, Task

LEFT_OUT = {
    "__pycache__", "site-packages", "dist-packages", "test", "tests", "idle_test", "idlelib", "ensurepip", "lib2to3",
    "pydoc_data", "config", "turtledemo", "lib-dynload", "encodings",
}  # fmt: skip
VALIDATION_SHARE = 16  # one file in 16


def standard_library_files() -> list[pathlib.Path]:
    """Source files of the standard library, sorted by relative path, without tests and data folders."""
    root = pathlib.Path(sysconfig.get_paths()["stdlib"])
    files = []
    for path in sorted(root.rglob("*.py")):
        folders = path.relative_to(root).parts[:-1]
        if not any(f in LEFT_OUT or f.startswith("config-") for f in folders) and path.stat().st_size:
            files.append(path)
    if not files:
        raise FileNotFoundError(
            "no source files of the standard library found; give a text file with data.path instead"
        )
    return files


def in_validation(relative: str) -> bool:
    """Whether the file at ``relative`` (with forward slashes) is held out."""
    return hashlib.sha256(relative.encode()).digest()[0] % VALIDATION_SHARE == 0


@functools.lru_cache(maxsize=4)
def load_bytes(split: str, path: str = "") -> np.ndarray:
    """The bytes of one ``split`` ("train" or "validation") as a uint8 array.

    Args:
      split: which part.
      path: "" for the standard library; otherwise a file, whose last sixteenth is held out.

    Raises:
      FileNotFoundError: no such file.
      ValueError: unknown split, or a file too short to split.
    """
    check_choice("split", split, ("train", "validation"))
    if path:
        if not pathlib.Path(path).is_file():
            raise FileNotFoundError(f"data.path: there is no file {path!r}; give any text file, or leave it empty")
        raw = np.fromfile(path, np.uint8)
        cut = len(raw) - len(raw) // VALIDATION_SHARE
        raw = raw[:cut] if split == "train" else raw[cut:]
    else:
        root = pathlib.Path(sysconfig.get_paths()["stdlib"])
        chosen = [f for f in standard_library_files()
                  if in_validation(f.relative_to(root).as_posix()) == (split == "validation")]  # fmt: skip
        raw = np.frombuffer(b"".join(f.read_bytes() for f in chosen), np.uint8)
    if len(raw) < 64:
        raise ValueError(f"{path or 'the standard library'} gives only {len(raw)} {split} bytes")
    return raw


@dataclasses.dataclass(frozen=True)
class ByteText(Task):
    """Windows of ``time`` bytes at random places; the targets are the bytes that follow.

    Attributes:
      time: window length T.
      split: "train" or "validation".
      path: a text file, or "" for the standard library.
    """

    time: int = 256
    split: str = "train"
    path: str = ""

    def __post_init__(self):
        check_positive("time", self.time)

    def data(self) -> UInt8[Array, " N"]:
        raw = load_bytes(self.split, self.path)
        if len(raw) <= self.time:
            raise ValueError(f"the {self.split} part has {len(raw)} bytes, too few for windows of time={self.time}")
        return jnp.asarray(raw)

    def example(self, key: jax.Array, data: UInt8[Array, " N"]) -> Batch:
        start = jax.random.randint(key, (), 0, data.shape[0] - self.time)
        window = jax.lax.dynamic_slice(data, (start,), (self.time + 1,)).astype(jnp.int32)
        return Batch(window[:-1], window[1:])


def streams(raw: np.ndarray, rows: int, time: int) -> np.ndarray:
    """Cuts the beginning of ``raw`` into ``rows`` contiguous streams [rows, segments * time + 1] for streaming evaluation.

    Neighbouring streams share one byte, so that every byte but the first is predicted exactly once.
    """
    segments = (len(raw) - 1) // (rows * time)
    if segments < 1:
        raise ValueError(f"{len(raw)} bytes are too few for {rows} streams of at least {time}")
    length = segments * time
    return np.stack([raw[i * length : (i + 1) * length + 1] for i in range(rows)])


def order0_entropy(raw: np.ndarray) -> float:
    """Entropy of the byte frequencies of ``raw``, in bits per byte: what a model without context can reach."""
    p = np.bincount(raw, minlength=256) / len(raw)
    p = p[p > 0]
    return float(-np.sum(p * np.log2(p)))


def xz_bits(raw: np.ndarray) -> float:
    """Bits per byte of ``raw`` after ``xz -9``."""
    return 8 * len(lzma.compress(raw.tobytes(), preset=9)) / len(raw)
