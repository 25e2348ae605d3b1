"""Tasks over numbered examples in files: which example goes into which row of which step."""

import abc
import functools

import numpy as np
from jaxtyping import Int

from zoo.tasks.base import Batch, HostTask


@functools.lru_cache(maxsize=4)
def _order(seed: int, epoch: int, count: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(count)


def shuffled(seed: int, step: int, rows: range, batch_size: int, count: int) -> Int[np.ndarray, " rows"]:
    """Numbers of the examples in ``rows`` of the batch of ``step``.

    All ``count`` examples come once before any comes again, in an order that depends on the seed and changes from epoch to
    epoch; epochs are not cut at the ends of batches. Any step can be asked for by itself.
    """
    places = np.array([step * batch_size + row for row in rows], np.int64)
    epochs, within = np.divmod(places, count)
    return np.array([_order(seed, int(epoch), count)[place] for epoch, place in zip(epochs, within)], np.int64)


@functools.lru_cache(maxsize=8)
def fixed_split(count: int, split: str, validation: float, test: float = 0.0) -> Int[np.ndarray, " N"]:
    """Which of ``count`` examples belong to "train", "validation" or "test" (shares, rounded down), drawn once for all."""
    order = np.random.default_rng(0).permutation(count)
    tested, validated = int(test * count), int(validation * count)
    ends = np.cumsum([count - validated - tested, validated])
    return dict(zip(("train", "validation", "test"), np.split(order, ends)))[split]


class IndexedTask(HostTask):
    """A task whose examples stand in files and are numbered from 0; read on the host, shuffled anew every epoch."""

    @property
    @abc.abstractmethod
    def count(self) -> int:
        """Number of examples."""

    @abc.abstractmethod
    def rows_at(self, indices: Int[np.ndarray, " B"]) -> Batch:
        """The examples of these numbers, as NumPy arrays with a leading batch axis."""

    def read(self, seed: int, step: int, rows: range, batch_size: int) -> Batch:
        """Rows ``rows`` of the batch of ``step``, see ``shuffled``."""
        return self.rows_at(shuffled(seed, step, rows, batch_size, self.count))
