"""Labelling sequences: a label for every frame, or a string of labels for the whole (the task of CTC)."""

import dataclasses
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from zoo.checks import check_positive
from zoo.tasks.base import Batch, Task


@dataclasses.dataclass(frozen=True)
class FutureContext(Task):
    """Labels that depend on the future: y_t = x_{t + ahead} XOR x_{t - behind} on random bits.

    A causal model cannot know x_{t + ahead}, so it stays at chance, 1/2. Batch: ``inputs`` int32 bits [time],
    ``targets`` int32 [time], ``mask`` False at the edges, where one of the two bits does not exist.

    Attributes:
      time: number of bits, more than ``ahead + behind``.
      ahead: distance to the future bit.
      behind: distance to the past bit.
    """

    time: int = 24
    ahead: int = 2
    behind: int = 1

    vocab_size = 2

    def __post_init__(self):
        check_positive("ahead", self.ahead)
        check_positive("behind", self.behind)
        if self.time <= self.ahead + self.behind:
            raise ValueError(f"time must be more than ahead + behind = {self.ahead + self.behind}, got {self.time}")

    def example(self, key: Key[Array, ""], data: None = None) -> Batch:
        bits = jax.random.bernoulli(key, shape=(self.time,)).astype(jnp.int32)
        steps = jnp.arange(self.time)
        targets = jnp.roll(bits, -self.ahead) ^ jnp.roll(bits, self.behind)
        mask = (steps >= self.behind) & (steps < self.time - self.ahead)
        return Batch(bits, jnp.where(mask, targets, 0), mask)


@dataclasses.dataclass(frozen=True)
class NoisyStrokes(Task):
    """Unsegmented labelling, in the manner of handwriting: symbols of random duration, drawn as noisy strokes.

    Each of ``symbols`` kinds is a fixed curve in the plane, a circle's arc with its own start, turn and length, drawn in
    a random number of steps; pen movements (dx, dy) are observed with noise. Only the string of symbols is
    known, not where they begin: the problem that connectionist temporal classification solves (Graves et al. 2006).

    Batch: ``inputs`` float32 [time, 2] pen movements, right-padded; ``lengths`` frames; ``targets`` int32 [max_symbols]
    in 1 .. symbols (0 is the blank, and the padding); ``mask`` True at real targets.

    Attributes:
      symbols: kinds of symbols.
      min_symbols, max_symbols: symbols per sequence.
      min_frames, max_frames: frames per symbol.
      noise: standard deviation of the noise on movements of about unit length.
    """

    symbols: int = 5
    min_symbols: int = 2
    max_symbols: int = 4
    min_frames: int = 4
    max_frames: int = 8
    noise: float = 0.1

    def __post_init__(self):
        for name in ("symbols", "min_symbols", "max_symbols", "min_frames", "max_frames"):
            check_positive(name, getattr(self, name))
        for low, high in (("min_symbols", "max_symbols"), ("min_frames", "max_frames")):
            if getattr(self, low) > getattr(self, high):
                raise ValueError(f"{low}={getattr(self, low)} is larger than {high}={getattr(self, high)}")
        if self.min_frames < 2:
            raise ValueError("min_frames must be at least 2: CTC needs a blank between equal neighbours")
        if self.noise < 0:
            raise ValueError(f"noise must be at least 0, got {self.noise}")

    @property
    def time(self) -> int:
        return self.max_symbols * self.max_frames

    def example(self, key: Key[Array, ""], data: None = None) -> Batch:
        key_count, key_symbols, key_frames, key_noise = jax.random.split(key, 4)
        count = jax.random.randint(key_count, (), self.min_symbols, self.max_symbols + 1)
        real = jnp.arange(self.max_symbols) < count
        symbols = jax.random.randint(key_symbols, (self.max_symbols,), 0, self.symbols)
        frames = jax.random.randint(key_frames, (self.max_symbols,), self.min_frames, self.max_frames + 1)
        ends = jnp.cumsum(jnp.where(real, frames, 0))
        steps = jnp.arange(self.time)
        which = jnp.minimum(jnp.searchsorted(ends, steps, side="right"), self.max_symbols - 1)
        begin = jnp.where(which > 0, ends[which - 1], 0)
        progress = (steps - begin + 0.5) / frames[which]
        # The k-th kind starts in its own direction, and turns left or right by its own amount while it is drawn.
        kind = symbols[which]
        direction = 2 * jnp.pi * kind / self.symbols
        turn = jnp.where(kind % 2 == 0, 1.0, -1.0) * jnp.pi * (1 + kind / self.symbols)
        angle = direction + turn * progress
        pen = jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=-1)
        pen = pen + self.noise * jax.random.normal(key_noise, pen.shape)
        length = ends[-1]
        inputs = jnp.where((steps < length)[:, None], pen, 0)
        return Batch(inputs, jnp.where(real, symbols + 1, 0), real, length)


@dataclasses.dataclass(frozen=True)
class LabelledFrames(Task):
    """Real unsegmented labelling from a file: IAM-OnDB pen strokes with characters, TIMIT frames with phonemes.

    Both corpora are licensed and must be obtained from their makers. The file is a .npz with four arrays: ``features``
    float [all frames, F], the sequences one after another; ``lengths`` [N] frames of each; ``labels`` int [all labels],
    from 1 on (0 is the CTC blank); ``label_lengths`` [N].

    Batch: as ``NoisyStrokes``, padded to the longest sequence and the longest label string of the file.

    Attributes:
      path: the file.
    """

    path: str = ""

    def data(self) -> tuple[Array, Array, Array, Array]:
        """(features [N, time, F], frames [N], labels [N, max labels], number of labels [N])."""
        return tuple(jnp.asarray(a) for a in load_labelled(self.path))

    @property
    def symbols(self) -> int:
        """Largest label."""
        return int(load_labelled(self.path)[2].max())

    def example(self, key: Key[Array, ""], data: tuple[Array, Array, Array, Array]) -> Batch:
        features, lengths, labels, label_lengths = data
        row = jax.random.randint(key, (), 0, lengths.shape[0])
        mask = jnp.arange(labels.shape[1]) < label_lengths[row]
        return Batch(features[row], labels[row], mask, lengths[row])


@functools.lru_cache(maxsize=4)
def load_labelled(path: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Reads the file of ``LabelledFrames`` into padded arrays; a wrong layout raises ValueError that says what is needed."""
    needed = ("features", "lengths", "labels", "label_lengths")
    if not path or not pathlib.Path(path).is_file():
        raise FileNotFoundError(
            f"data.path={path!r} must be a .npz file with {', '.join(needed)}: sequences of IAM-OnDB or TIMIT (licensed, "
            "obtain them from their makers), features [all frames, F] and labels from 1 on, one sequence after another"
        )
    with np.load(path) as archive:
        missing = [name for name in needed if name not in archive.files]
        if missing:
            raise ValueError(f"{pathlib.Path(path).name} lacks {', '.join(missing)}; needed: {', '.join(needed)}")
        features, lengths, labels, label_lengths = (archive[name] for name in needed)
    if lengths.sum() != len(features) or label_lengths.sum() != len(labels) or len(lengths) != len(label_lengths):
        raise ValueError(
            f"lengths sum to {lengths.sum()} for {len(features)} frames and label_lengths to {label_lengths.sum()} for "
            f"{len(labels)} labels; both must agree"
        )
    if labels.min(initial=1) < 1:
        raise ValueError("labels must count from 1 (0 is the blank)")
    return (
        _pad(features.astype(np.float32), lengths), lengths.astype(np.int32),
        _pad(labels.astype(np.int32), label_lengths), label_lengths.astype(np.int32),
    )  # fmt: skip


def _pad(values: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Cuts ``values`` into rows of ``lengths`` and pads them with zeros."""
    padded = np.zeros((len(lengths), lengths.max(), *values.shape[1:]), values.dtype)
    for row, part in zip(padded, np.split(values, np.cumsum(lengths)[:-1])):
        row[: len(part)] = part
    return padded
