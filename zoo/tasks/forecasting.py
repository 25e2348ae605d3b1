"""Time-series forecasting: given ``input_length`` steps of a series, say the next ``horizon`` steps.

``SumOfSines`` makes its own series. ``SeriesWindows`` reads the files that the literature uses, with its protocol
(chronological split, standardised with the statistics of the training part, every window of the split is an example).
"""

import csv
import dataclasses
import functools
import gzip
import math
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from zoo.checks import check_choice, check_positive
from zoo.tasks.base import Batch, Task

SPLITS = ("train", "validation", "test")
PROTOCOLS = ("ett_hour", "ett_minute", "ratio")
_SOURCE = (
    "public sources: ETTh1, ETTh2, ETTm1, ETTm2 as CSV with a date column (github.com/zhouhaoyi/ETDataset), "
    "exchange_rate, electricity and traffic as .txt.gz without a header "
    "(github.com/laiguokun/multivariate-time-series-data)"
)


@dataclasses.dataclass(frozen=True)
class SumOfSines(Task):
    """One channel: x_t = sum_i a_i sin(2 pi t / p_i + phase_i) + noise * N(0, 1).

    Periods p_i are uniform in ``shortest`` .. ``longest`` steps, amplitudes in 0.5 .. 1.5, phases on the circle.

    Batch: ``inputs`` float32 [input_length, 1], ``targets`` [horizon, 1].
    """

    input_length: int = 48
    horizon: int = 12
    sines: int = 2
    shortest: float = 8.0
    longest: float = 24.0
    noise: float = 0.1

    def __post_init__(self):
        for name in ("input_length", "horizon", "sines"):
            check_positive(name, getattr(self, name))
        if not 0 < self.shortest <= self.longest:
            raise ValueError(f"need 0 < shortest <= longest, got {self.shortest} and {self.longest}")

    def example(self, key: Key[Array, ""], data: None = None) -> Batch:
        key_period, key_phase, key_amplitude, key_noise = jax.random.split(key, 4)
        shape = (self.sines, 1)
        period = jax.random.uniform(key_period, shape, minval=self.shortest, maxval=self.longest)
        phase = jax.random.uniform(key_phase, shape, maxval=2 * jnp.pi)
        amplitude = jax.random.uniform(key_amplitude, shape, minval=0.5, maxval=1.5)
        time = jnp.arange(self.input_length + self.horizon)
        series = jnp.sum(amplitude * jnp.sin(2 * jnp.pi * time / period + phase), axis=0)
        series = (series + self.noise * jax.random.normal(key_noise, series.shape))[:, None]
        return Batch(inputs=series[: self.input_length], targets=series[self.input_length :])


def read_series(path: str | os.PathLike) -> np.ndarray:
    """Reads a multivariate series, one time step a line, values separated by commas.

    A header line and a first column of dates are recognised and left out; files ending in .gz are decompressed.

    Returns:
      float64 array [steps, channels].

    Raises:
      FileNotFoundError: no such file; the message names the public sources.
      ValueError: a line that does not fit; the message names file and line.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no time series file {str(path)!r}; {_SOURCE}")
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8", newline="") as lines:
        rows = [(number, row) for number, row in enumerate(csv.reader(lines), start=1) if row]
    if rows and not _is_number(rows[0][1][-1]):
        rows = rows[1:]
    if not rows:
        raise ValueError(f"{path.name} holds no time steps; {_SOURCE}")
    first = 0 if _is_number(rows[0][1][0]) else 1
    width = len(rows[0][1])
    if width <= first:
        raise ValueError(f"{path.name}, line {rows[0][0]}: no values")
    series = np.empty((len(rows), width - first))
    for i, (number, row) in enumerate(rows):
        if len(row) != width:
            raise ValueError(f"{path.name}, line {number}: {len(row)} fields, but {width} in the lines before")
        wrong = next((value for value in row[first:] if not _is_number(value)), None)
        if wrong is not None:
            raise ValueError(f"{path.name}, line {number}: {wrong!r} is not a finite number")
        series[i] = [float(value) for value in row[first:]]
    return series


def split_bounds(protocol: str, steps: int) -> dict[str, tuple[int, int]]:
    """First and last-plus-one target step of each split.

    Args:
      protocol: "ett_hour" and "ett_minute": 12, 4 and 4 months of 30 days, at 24 and at 96 steps a day; "ratio": 70 %,
        10 % and 20 % of the series.
      steps: length of the series.
    """
    check_choice("protocol", protocol, PROTOCOLS)
    if protocol == "ratio":
        train, test = int(steps * 0.7), int(steps * 0.2)
        ends = (train, steps - test, steps)
    else:
        month = 30 * 24 * (1 if protocol == "ett_hour" else 4)
        ends = (12 * month, 16 * month, 20 * month)
        if steps < ends[-1]:
            raise ValueError(f"protocol {protocol!r} needs {ends[-1]} steps (20 months), but the series has {steps}")
    return dict(zip(SPLITS, zip((0, *ends[:-1]), ends)))


@dataclasses.dataclass(frozen=True)
class SeriesWindows(Task):
    """Windows of a real series, all channels together.

    The series is standardised per channel by mean and standard deviation of its training part. Windows of the validation
    and test parts may begin before the part, so that their first target is its first step, as is usual.

    Batch: ``inputs`` float32 [input_length, C], ``targets`` [horizon, C].

    Attributes:
      path: CSV or text file, see ``read_series``.
      split: "train", "validation" or "test".
      protocol: how the series is split, see ``split_bounds``.
      input_length: steps that are given.
      horizon: steps to forecast.
    """

    path: str
    split: str = "train"
    protocol: str = "ratio"
    input_length: int = 96
    horizon: int = 96

    def __post_init__(self):
        check_choice("split", self.split, SPLITS)
        check_choice("protocol", self.protocol, PROTOCOLS)
        check_positive("input_length", self.input_length)
        check_positive("horizon", self.horizon)

    def data(self) -> Float[np.ndarray, "N C"]:
        """The standardised steps that this split's windows lie in."""
        return _standardised(os.fspath(self.path), self.split, self.protocol, self.input_length, self.horizon)

    def num_windows(self, data: Float[Array, "N C"] | Float[np.ndarray, "N C"]) -> int:
        """Number of different windows in ``data``."""
        return data.shape[0] - self.input_length - self.horizon + 1

    def window(self, start: Int[Array, ""], data: Float[Array, "N C"]) -> Batch:
        """The window that begins at step ``start`` of ``data``."""
        steps = jax.lax.dynamic_slice_in_dim(jnp.asarray(data), start, self.input_length + self.horizon)
        return Batch(inputs=steps[: self.input_length], targets=steps[self.input_length :])

    def example(self, key: Key[Array, ""], data: Float[Array, "N C"]) -> Batch:
        return self.window(jax.random.randint(key, (), 0, self.num_windows(data)), data)


@functools.lru_cache(maxsize=8)
def _standardised(path: str, split: str, protocol: str, input_length: int, horizon: int) -> np.ndarray:
    series = read_series(path)
    bounds = split_bounds(protocol, len(series))
    train = series[slice(*bounds["train"])]
    start, stop = bounds[split]
    start = max(start - input_length, 0)
    if stop - start < input_length + horizon:
        raise ValueError(
            f"the {split} part of {pathlib.Path(path).name} has {stop - start} steps, too few for one window of "
            f"input_length={input_length} and horizon={horizon}"
        )
    deviation = train.std(axis=0)
    return ((series[start:stop] - train.mean(axis=0)) / np.where(deviation > 0, deviation, 1)).astype(np.float32)


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
