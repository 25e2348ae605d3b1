"""Time-series classification and regression on the files of the UEA and TSER archives (the .ts format).

A .ts file has a header of lines ``@name value`` ending with ``@data``, then one case a line: channels separated by
colons, values inside a channel by commas, the class label last. Cases may differ in length; ``?`` is a missing value::

    @problemName Toy
    @timeStamps false
    @classLabel true 0 1
    @data
    0.1,0.2,0.3:1.0,?,1.2:0

Files of regression problems (Tan et al. 2021, Time Series Extrinsic Regression; BIDMC32HR, BIDMC32RR and BIDMC32SpO2, heart
and respiratory rate and oxygen saturation from 32 seconds of two signals at 125 Hz, are among them) have a line
``@targetLabel true`` in place of the class labels, and a number last in every case.
"""

import dataclasses
import functools
import os
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from zoo.checks import check_choice
from zoo.tasks.base import Batch, Task

SPLITS = ("train", "test")
_SOURCE = (
    "public sources: the multivariate archive at timeseriesclassification.com and the regression archive at "
    "tseregression.org, whose folders hold <Name>_TRAIN.ts and <Name>_TEST.ts"
)


class Cases(NamedTuple):
    """Right-padded cases of a file: ``values`` [N, T, C] (NaN where missing), ``lengths`` [N], ``labels`` [N].

    ``labels`` are numbers of ``classes``, or the targets of a regression problem, which has no classes.
    """

    values: Float[np.ndarray, "N T C"]
    lengths: Int[np.ndarray, " N"]
    labels: Int[np.ndarray, " N"] | Float[np.ndarray, " N"]
    classes: tuple[str, ...]


def read_ts(path: str | os.PathLike) -> Cases:
    """Reads a .ts file.

    Raises:
      FileNotFoundError: no such file.
      ValueError: not in the format, or with time stamps or without labels; the message names file and line.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no time series file {str(path)!r}; {_SOURCE}")
    cases, labels, kind, in_data = [], [], None, False
    with path.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, start=1):
            line = line.strip()
            if not line or line.startswith(("#", "%")):
                continue
            if not in_data:
                kind = _header(line, kind, f"{path.name}, line {number}")
                in_data = line.lower() == "@data"
                continue
            *channels, label = line.split(":")
            labels.append(_label(label.strip(), kind, f"{path.name}, line {number}"))
            cases.append(_case(channels, f"{path.name}, line {number}"))
            if cases[-1].shape[1] != cases[0].shape[1]:
                raise ValueError(
                    f"{path.name}, line {number}: {cases[-1].shape[1]} channels, but {cases[0].shape[1]} before"
                )
    if not cases:
        raise ValueError(f"{path.name} holds no cases after '@data'; {_SOURCE}")
    lengths = np.array([len(case) for case in cases], np.int32)
    values = np.zeros((len(cases), lengths.max(), cases[0].shape[1]))
    for i, case in enumerate(cases):
        values[i, : len(case)] = case
    return Cases(values, lengths, np.array(labels, np.int32 if kind else np.float64), kind)


def _header(line: str, kind: tuple[str, ...] | None, where: str) -> tuple[str, ...] | None:
    """Reads one header line; returns the class labels known so far: none for regression, None before either is known."""
    if not line.startswith("@"):
        raise ValueError(f"{where}: expected a header line '@name value' before '@data', got {line[:60]!r}")
    name, *value = line.lower().split()
    if name == "@timestamps" and value[:1] == ["true"]:
        raise ValueError(f"{where}: time stamps are not supported, only equally spaced series")
    if name == "@classlabel" and value[:1] == ["true"]:
        return tuple(line.split()[2:])
    if name == "@targetlabel" and value[:1] == ["true"]:
        return ()
    if name == "@data" and kind is None:
        raise ValueError(f"{where}: no line '@classLabel true ...' or '@targetLabel true' before '@data'")
    return kind


def _label(text: str, classes: tuple[str, ...], where: str) -> int | float:
    """The last entry of a case: the number of its class, or its target where there are no classes."""
    if classes:
        if text not in classes:
            raise ValueError(f"{where}: unknown class label {text[:40]!r}")
        return classes.index(text)
    try:
        target = float(text)
    except ValueError:
        target = float("nan")
    if not np.isfinite(target):
        raise ValueError(f"{where}: the target {text[:40]!r} is not a finite number")
    return target


def _case(channels: list[str], where: str) -> np.ndarray:
    """One case [T, C]; channels that end early are continued with missing values."""
    try:
        columns = [[float("nan") if v.strip() == "?" else float(v) for v in c.split(",")] for c in channels]
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    if not columns:
        raise ValueError(f"{where}: no values before the label")
    case = np.full((max(map(len, columns)), len(columns)), np.nan)
    for i, column in enumerate(columns):
        case[: len(column), i] = column
    return case


def _standardised(split: str, train: Cases, test: Cases) -> dict[str, np.ndarray]:
    """Cases of the split, per channel with the statistics of the training file, padded to the longer of the two files."""
    valid = (np.arange(train.values.shape[1]) < train.lengths[:, None])[..., None] & ~np.isnan(train.values)
    count = np.maximum(valid.sum(axis=(0, 1)), 1)
    mean = np.where(valid, train.values, 0).sum(axis=(0, 1)) / count
    deviation = np.sqrt(np.where(valid, (train.values - mean) ** 2, 0).sum(axis=(0, 1)) / count)
    cases = train if split == "train" else test
    values = (cases.values - mean) / np.where(deviation > 0, deviation, 1)
    inside = (np.arange(values.shape[1]) < cases.lengths[:, None])[..., None]
    values = np.where(inside & ~np.isnan(values), values, 0)
    longest = max(train.values.shape[1], test.values.shape[1])
    values = np.pad(values, ((0, 0), (0, longest - values.shape[1]), (0, 0)))
    return {"values": values.astype(np.float32), "lengths": cases.lengths, "labels": cases.labels}


class _ArchiveTask(Task):
    """Cases of one problem of an archive."""

    path: str

    def case(self, index: Int[Array, ""], data: dict[str, Any]) -> Batch:
        """Case number ``index`` of the split."""
        fields = {"values": "inputs", "labels": "targets", "lengths": "lengths"}
        return Batch(**{fields[name]: jnp.asarray(array)[index] for name, array in data.items()})

    def example(self, key: Key[Array, ""], data: dict[str, Any]) -> Batch:
        return self.case(jax.random.randint(key, (), 0, len(data["labels"])), data)


@dataclasses.dataclass(frozen=True)
class UEAClassification(_ArchiveTask):
    """Cases of one problem of the UEA archive, standardised per channel with the training file's statistics.

    Missing values become 0 (the mean). Both splits are padded to the longer of the two files.

    Batch: ``inputs`` float32 [T, C], ``targets`` class, ``lengths`` valid steps.

    Attributes:
      path: folder with <Name>_TRAIN.ts and <Name>_TEST.ts.
      split: "train" or "test".
    """

    path: str
    split: str = "train"

    def __post_init__(self):
        check_choice("split", self.split, SPLITS)

    @property
    def num_classes(self) -> int:
        """Number of class labels."""
        return len(self._files()[0].classes)

    def data(self) -> dict[str, np.ndarray]:
        """``values`` [N, T, C], ``lengths`` [N] and ``labels`` [N] of the split."""
        return _standardised(self.split, *self._files())

    def _files(self) -> tuple[Cases, Cases]:
        train, test = _problem(os.fspath(self.path))
        if not train.classes:
            raise ValueError(f"{self.path!r} is a regression problem; read it with SeriesRegression")
        return train, test


@dataclasses.dataclass(frozen=True)
class SeriesRegression(_ArchiveTask):
    """Cases of one regression problem of the TSER archive, standardised as in ``UEAClassification``, targets too.

    Batch: ``inputs`` float32 [T, C], ``targets`` float32 [1] with mean 0 and variance 1 over the training file,
    ``lengths`` valid steps, or None where all cases of the split have the length of the longest. ``target_scale`` has the
    way back to the units of the file.

    Attributes:
      path: folder with <Name>_TRAIN.ts and <Name>_TEST.ts.
      split: "train" or "test".
    """

    path: str
    split: str = "train"

    def __post_init__(self):
        check_choice("split", self.split, SPLITS)

    @property
    def target_scale(self) -> tuple[float, float]:
        """(mean, deviation) of the training file's targets: target = mean + deviation * standardised."""
        targets = self._files()[0].labels
        deviation = float(np.std(targets))
        return float(np.mean(targets)), deviation if deviation > 0 else 1.0

    def data(self) -> dict[str, np.ndarray]:
        """``values`` [N, T, C], ``labels`` [N, 1] and, where they differ, ``lengths`` [N] of the split."""
        data = _standardised(self.split, *self._files())
        if np.all(data["lengths"] == data["values"].shape[1]):
            del data["lengths"]
        mean, deviation = self.target_scale
        return {**data, "labels": ((data["labels"] - mean) / deviation).astype(np.float32)[:, None]}

    def _files(self) -> tuple[Cases, Cases]:
        train, test = _problem(os.fspath(self.path))
        if train.classes:
            raise ValueError(f"{self.path!r} is a classification problem; read it with UEAClassification")
        return train, test


@functools.lru_cache(maxsize=4)
def _problem(folder: str) -> tuple[Cases, Cases]:
    """The training and the test cases of a folder; labels are numbered by the training file."""
    files = {}
    for split in ("TRAIN", "TEST"):
        found = sorted(pathlib.Path(folder).glob(f"*_{split}.ts"))
        if len(found) != 1:
            raise FileNotFoundError(f"{folder!r} holds {len(found)} files *_{split}.ts, one is needed; {_SOURCE}")
        files[split] = read_ts(found[0])
    train, test = files["TRAIN"], files["TEST"]
    if train.values.shape[2] != test.values.shape[2] or set(train.classes) != set(test.classes):
        raise ValueError(f"the training and test files in {folder!r} differ in channels or class labels")
    if not train.classes:
        return train, test
    renumbered = np.array([train.classes.index(test.classes[label]) for label in test.labels], np.int32)
    return train, test._replace(labels=renumbered, classes=train.classes)
