"""The same signals at another sampling rate: every sample repeated, or every k-th one kept.

A continuous-time model trained at one rate can be tested at another after its step sizes are rescaled: a signal sampled k
times faster wants steps 1/k as long (Gu et al. 2021, LSSL).
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Int, Key

from zoo.checks import check_positive
from zoo.tasks.base import Batch, Task


@dataclasses.dataclass(frozen=True)
class Resampled(Task):
    """``task`` with ``inputs`` [T, F] repeated (``faster``) and thinned out (``slower``) along time.

    Inputs become [ceil(T * faster / slower), F]; lengths follow, targets stay.

    Attributes:
      task: any task of one target per row.
      faster: repetitions of every sample.
      slower: one sample in so many is kept, the first of each, after repeating.
    """

    task: Any
    faster: int = 1
    slower: int = 1

    def __post_init__(self):
        check_positive("faster", self.faster)
        check_positive("slower", self.slower)

    @property
    def time(self) -> int:
        """Steps of a sequence."""
        return -(-self.task.time * self.faster // self.slower)

    @property
    def num_classes(self) -> int:
        """Those of the task."""
        return self.task.num_classes

    def data(self) -> Any:
        return self.task.data()

    def example(self, key: Key[Array, ""], data: Any = None) -> Batch:
        return self._resampled(self.task.example(key, data))

    def rows_at(self, index: Int[Array, "*B"], data: Any) -> Batch:
        """The task's rows number ``index``, resampled."""
        return self._resampled(self.task.rows_at(index, data))

    def _resampled(self, batch: Batch) -> Batch:
        inputs = jnp.repeat(batch.inputs, self.faster, axis=-2)[..., :: self.slower, :]
        lengths = None if batch.lengths is None else -(-batch.lengths * self.faster // self.slower)
        return batch._replace(inputs=inputs, lengths=lengths)
