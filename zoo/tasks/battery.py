"""Several problems at once: one example of each, padded to one length."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from zoo.tasks.base import Batch, Task
from zoo.tasks.regbench import Truth


@dataclasses.dataclass(frozen=True)
class Battery(Task):
    """An example of each of P problems on axis 0, right-padded to the longest of them.

    Every problem reads tokens [T] and says a token at the steps of its mask (None: at all of them). Batch: ``inputs`` and
    ``targets`` int32 [P, T], ``mask`` bool [P, T], False on the padding, whose tokens are 0; ``extra`` bool [P, T, V], the
    answers that are right: the target, or in a problem whose examples hold a ``Truth`` every token that may follow.

    Attributes:
      problems: tasks of tokens, without files.
    """

    problems: tuple[Task, ...]

    def __post_init__(self):
        if not self.problems:
            raise ValueError("problems is empty; name at least one")

    def data(self) -> Any:
        return tuple(problem.data() for problem in self.problems)

    @property
    def vocab_size(self) -> int:
        """The largest of the problems' vocabularies."""
        return max(problem.vocab_size for problem in self.problems)

    def example(self, key: Key[Array, ""], data: Any = None) -> Batch:
        data = (None,) * len(self.problems) if data is None else data
        keys = jax.random.split(key, len(self.problems))
        examples = [problem.example(k, d) for problem, k, d in zip(self.problems, keys, data)]
        time = max(len(e.inputs) for e in examples)

        def padded(array):
            return jnp.pad(array, (0, time - len(array)))

        def right(e):
            allowed = e.extra.probs > 0 if isinstance(e.extra, Truth) else jax.nn.one_hot(e.targets, size) > 0
            return jnp.pad(allowed, [(0, time - len(allowed)), (0, size - allowed.shape[1])])

        size = self.vocab_size
        whole = [jnp.ones(len(e.inputs), bool) if e.mask is None else e.mask for e in examples]
        return Batch(
            jnp.stack([padded(e.inputs.astype(jnp.int32)) for e in examples]),
            jnp.stack([padded(e.targets.astype(jnp.int32)) for e in examples]),
            jnp.stack([padded(m) for m in whole]),
            extra=jnp.stack([right(e) for e in examples]),
        )
