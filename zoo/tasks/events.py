"""Marked events in continuous time: when does the next event come, and of which kind is it?

A sequence is a list of intervals tau_i > 0 between events and of marks k_i in 0 .. num_marks - 1. Having seen the first i
events, the model gives a density of tau_{i+1} and probabilities of k_{i+1}.

``MarkovLogNormal`` makes its own sequences, with known likelihood. ``EventSequences`` reads a file, in one of two
layouts:

* JSON lines, one sequence a line: ``{"times": [0.3, 0.9, 2.0], "marks": [0, 2, 1]}``; times do not decrease;
* a .npz file with ``times`` and ``marks`` of all sequences one after another, and ``lengths``, events per sequence.

Sequences without marks have one kind of event ("marks" left out).
"""

import dataclasses
import functools
import json
import os
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from zoo.checks import check_choice, check_positive
from zoo.tasks.base import Batch, Task

SPLITS = ("train", "validation", "test")
_LAYOUT = (
    'needed: JSON lines {"times": [...], "marks": [...]}, or a .npz with times, marks and lengths; public sources: the '
    "data sets of neural point process papers, e.g. Wikipedia, Reddit, MOOC (snap.stanford.edu/jodie), StackOverflow, "
    "Taxi"
)


class Events(NamedTuple):
    """Events of a sequence: ``intervals`` [N] since the event before, ``marks`` [N]."""

    intervals: Float[Array, "*B N"]
    marks: Int[Array, "*B N"]


@dataclasses.dataclass(frozen=True)
class MarkovLogNormal(Task):
    """Marks follow a Markov chain; the interval after mark k is LogNormal(log_mean_k, deviation).

    The chain's transition matrix is drawn once from ``chain_seed``: rows are softmaxes of Gaussian logits with standard
    deviation 1.5. log_mean_k is spread evenly over -1 .. 1.

    Batch: ``inputs`` Events [length], ``targets`` the Events that follow each of them.

    Attributes:
      num_marks: kinds of events.
      length: events in a sequence.
      deviation: standard deviation of log intervals, given the mark before.
      chain_seed: which chain.
    """

    num_marks: int = 3
    length: int = 24
    deviation: float = 0.3
    chain_seed: int = 0

    def __post_init__(self):
        check_positive("num_marks", self.num_marks)
        check_positive("length", self.length)
        if self.deviation <= 0:
            raise ValueError(f"deviation must be positive, got {self.deviation}")

    def transition_logits(self) -> Float[Array, "K K"]:
        """Log-probabilities of the next mark (second axis) after each mark (first axis)."""
        shape = (self.num_marks, self.num_marks)
        return jax.nn.log_softmax(1.5 * jax.random.normal(jax.random.key(self.chain_seed), shape))

    def log_means(self) -> Float[Array, " K"]:
        """Mean log interval after each mark."""
        return jnp.linspace(-1.0, 1.0, self.num_marks) if self.num_marks > 1 else jnp.zeros(1)

    def log_interval_statistics(self) -> tuple[float, float]:
        """Mean and standard deviation of log intervals when all marks are equally frequent."""
        means = np.linspace(-1.0, 1.0, self.num_marks) if self.num_marks > 1 else np.zeros(1)
        return 0.0, float(np.sqrt(means.var() + self.deviation**2))

    def example(self, key: Key[Array, ""], data: None = None) -> Batch:
        key_first, key_marks, key_noise = jax.random.split(key, 3)
        logits = self.transition_logits()
        first = jax.random.randint(key_first, (), 0, self.num_marks)

        def step(mark, key):
            following = jax.random.categorical(key, logits[mark])
            return following, following

        _, marks = jax.lax.scan(step, first, jax.random.split(key_marks, self.length + 1))
        before = jnp.concatenate([first[None], marks[:-1]])
        noise = jax.random.normal(key_noise, marks.shape)
        intervals = jnp.exp(self.log_means()[before] + self.deviation * noise)
        return Batch(Events(intervals[:-1], marks[:-1]), Events(intervals[1:], marks[1:]))

    def true_nll(self, batch: Batch) -> Float[Array, "*B N"]:
        """Negative log-likelihood of every target event under the process that made it: no model can do better."""
        marks, (intervals, following) = batch.inputs.marks, batch.targets
        z = (jnp.log(intervals) - self.log_means()[marks]) / self.deviation
        density = -0.5 * z**2 - jnp.log(self.deviation * intervals) - 0.5 * jnp.log(2 * jnp.pi)
        return -density - self.transition_logits()[marks, following]


def read_events(path: str | os.PathLike) -> list[tuple[np.ndarray, np.ndarray]]:
    """Reads (times, marks) of every sequence from a JSON-lines or .npz file, see the module docstring.

    Raises:
      FileNotFoundError: no such file.
      ValueError: not in the layout, times that decrease or are not finite, marks that are no integers from 0.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no event file {str(path)!r}; {_LAYOUT}")
    sequences = _npz_sequences(path) if path.suffix == ".npz" else _json_sequences(path)
    if not sequences:
        raise ValueError(f"{path.name} holds no sequences; {_LAYOUT}")
    for where, times, marks in sequences:
        if times.ndim != 1 or times.shape != marks.shape:
            raise ValueError(f"{where}: times {list(times.shape)} and marks {list(marks.shape)} must be equally long")
        if not np.all(np.isfinite(times)) or np.any(np.diff(times) < 0):
            raise ValueError(f"{where}: times must be finite and must not decrease")
        if not np.issubdtype(marks.dtype, np.integer) or np.any(marks < 0):
            raise ValueError(f"{where}: marks must be integers from 0")
    return [(times, marks) for _, times, marks in sequences]


def _json_sequences(path: pathlib.Path) -> list[tuple[str, np.ndarray, np.ndarray]]:
    sequences = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            where = f"{path.name}, line {number}"
            try:
                record = json.loads(line)
                times = np.array(record["times"], np.float64)
                marks = np.array(record.get("marks", np.zeros(len(times), np.int64)))
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                raise ValueError(f"{where}: {type(error).__name__} {error}; {_LAYOUT}") from None
            sequences.append((where, times, marks if marks.size else marks.astype(np.int64)))
    return sequences


def _npz_sequences(path: pathlib.Path) -> list[tuple[str, np.ndarray, np.ndarray]]:
    with np.load(path, allow_pickle=False) as archive:
        missing = {"times", "lengths"} - set(archive.files)
        if missing:
            raise ValueError(f"{path.name} lacks {', '.join(sorted(missing))}; {_LAYOUT}")
        times, lengths = archive["times"].astype(np.float64), archive["lengths"]
        marks = archive["marks"] if "marks" in archive.files else np.zeros(times.shape, np.int64)
    if lengths.sum() != len(times) or marks.shape != times.shape:
        raise ValueError(f"{path.name}: lengths sum to {lengths.sum()}, but there are {len(times)} times")
    ends = np.cumsum(lengths)[:-1]
    pieces = zip(np.split(times, ends), np.split(marks, ends))
    return [(f"{path.name}, sequence {i}", t, m) for i, (t, m) in enumerate(pieces)]


@dataclasses.dataclass(frozen=True)
class EventSequences(Task):
    """Sequences of a file, split by sequence into 60 % train, 20 % validation and 20 % test.

    Sequences longer than ``max_length`` + 1 events are cut into pieces; pieces of fewer than two events are left out.
    The first interval of a sequence is its first time; the first of a later piece is counted from the event before.
    Intervals of zero are raised to the smallest positive interval of the training part.

    Batch: ``inputs`` Events [max_length], ``targets`` the Events that follow, ``mask`` and ``lengths`` the valid ones.

    Attributes:
      path: file, see the module docstring.
      split: "train", "validation" or "test".
      max_length: events of an example.
      split_seed: order in which sequences are dealt out to the splits.
    """

    path: str
    split: str = "train"
    max_length: int = 128
    split_seed: int = 0

    def __post_init__(self):
        check_choice("split", self.split, SPLITS)
        check_positive("max_length", self.max_length)

    @property
    def num_marks(self) -> int:
        """Kinds of events in the whole file."""
        return 1 + max(int(marks.max(initial=0)) for _, marks in _sequences(os.fspath(self.path)))

    def log_interval_statistics(self) -> tuple[float, float]:
        """Mean and standard deviation of log intervals in the training part."""
        logs = np.log(_training_intervals(os.fspath(self.path), self.split_seed))
        return float(logs.mean()), float(max(logs.std(), 1e-6))

    def data(self) -> dict[str, np.ndarray]:
        """``intervals`` and ``marks`` [N, max_length + 1], ``events`` [N]: valid events of every piece."""
        floor = _training_intervals(os.fspath(self.path), self.split_seed).min()
        pieces = []
        for times, marks in _deal(_sequences(os.fspath(self.path)), self.split_seed)[self.split]:
            intervals = np.maximum(np.diff(times, prepend=0.0), floor)
            for start in range(0, len(times), self.max_length + 1):
                piece = slice(start, start + self.max_length + 1)
                if len(times[piece]) > 1:
                    pieces.append((intervals[piece], marks[piece]))
        if not pieces:
            raise ValueError(f"the {self.split} part of {self.path!r} holds no sequence of at least two events")
        shape = (len(pieces), self.max_length + 1)
        data = {"intervals": np.full(shape, floor, np.float32), "marks": np.zeros(shape, np.int32)}
        for i, (intervals, marks) in enumerate(pieces):
            data["intervals"][i, : len(intervals)], data["marks"][i, : len(marks)] = intervals, marks
        return {**data, "events": np.array([len(marks) for _, marks in pieces], np.int32)}

    def sequence(self, index: Int[Array, ""], data: dict[str, Any]) -> Batch:
        """Piece number ``index`` of the split."""
        intervals, marks, events = (jnp.asarray(data[name])[index] for name in ("intervals", "marks", "events"))
        length = events - 1
        mask = jnp.arange(self.max_length) < length
        return Batch(Events(intervals[:-1], marks[:-1]), Events(intervals[1:], marks[1:]), mask, length)

    def example(self, key: Key[Array, ""], data: dict[str, Any]) -> Batch:
        return self.sequence(jax.random.randint(key, (), 0, len(data["events"])), data)


@functools.lru_cache(maxsize=4)
def _sequences(path: str) -> list[tuple[np.ndarray, np.ndarray]]:
    return read_events(path)


def _deal(sequences: list, seed: int) -> dict[str, list]:
    """Splits sequences 60/20/20 in an order drawn from ``seed``."""
    if len(sequences) < 5:
        raise ValueError(f"an event file needs at least 5 sequences to be split 60/20/20, got {len(sequences)}")
    order = np.random.default_rng(seed).permutation(len(sequences))
    ends = (int(0.6 * len(order)), int(0.8 * len(order)))
    return {s: [sequences[i] for i in part] for s, part in zip(SPLITS, np.split(order, ends))}


def _training_intervals(path: str, seed: int) -> np.ndarray:
    """The positive intervals of the training part."""
    intervals = [np.diff(times, prepend=0.0) for times, _ in _deal(_sequences(path), seed)["train"]]
    positive = np.concatenate(intervals)
    positive = positive[positive > 0]
    if not len(positive):
        raise ValueError(f"{pathlib.Path(path).name}: no positive interval in the training part")
    return positive
