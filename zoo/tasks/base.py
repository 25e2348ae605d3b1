"""What a task is: a problem that makes its own examples, and knows no model."""

import abc
from typing import Any, NamedTuple

import jax


class Batch(NamedTuple):
    """Examples of a task, stacked on axis 0 (one example: without that axis).

    Attributes:
      inputs: what the model reads, e.g. tokens [B, T] or features [B, T, F].
      targets: what it should say, e.g. classes [B] or tokens [B, T].
      mask: bool, True where ``targets`` counts; None: everywhere.
      lengths: valid steps per row [B] when rows are right-padded, else None.
      extra: anything else the loss or a metric needs.
    """

    inputs: Any
    targets: Any
    mask: Any = None
    lengths: Any = None
    extra: Any = None


class Task(abc.ABC):
    """A problem. Subclasses are frozen dataclasses whose fields are its whole configuration.

    A synthetic task only defines ``example``. A task over real data also defines ``data``: arrays that are handed to
    the compiled step as arguments. Every example is a pure function of its key, so data can be made on the device,
    step n can be recomputed from (seed, n), and resuming needs no iterator state.
    """

    def data(self) -> Any:
        """Arrays that ``example`` reads (loaded once, kept on the device), or None."""
        return None

    @abc.abstractmethod
    def example(self, key: jax.Array, data: Any = None) -> Batch:
        """One example of static shapes, without a batch axis; jit-able and vmap-able."""

    def batch(self, key: jax.Array, batch_size: int, data: Any = None) -> Batch:
        """``batch_size`` independent examples; row i depends only on ``key``, ``batch_size`` and i."""
        return self.rows(jax.random.split(key, batch_size), data)

    def rows(self, keys: jax.Array, data: Any = None) -> Batch:
        """One example per key. A device that holds rows [a, b) of a batch calls this with its own keys."""
        return jax.vmap(self.example, in_axes=(0, None))(keys, data)


class HostTask(abc.ABC):
    """A task whose data is too large for the device: rows are read on the host, memory-mapped, by a deterministic index."""

    @abc.abstractmethod
    def read(self, seed: int, step: int, rows: range, batch_size: int) -> Batch:
        """NumPy rows ``rows`` of the batch of ``step``; depends on nothing else, so any step can be read again."""
