"""Problems of long memory: what was shown at the start is asked at the end.

Hochreiter and Schmidhuber (1997), Long Short-Term Memory, sections 5.4 to 5.6; Bengio et al. (1994).
All are generated, and every example is a pure function of its key.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from zoo.checks import check_positive
from zoo.tasks.base import Batch, Task


@dataclasses.dataclass(frozen=True)
class DelayedRecall(Task):
    """The first symbol is one of ``symbols``, then random distractors; which one was it?

    Batch: ``inputs`` int32 [time] in 0 .. symbols + distractors - 1, ``targets`` the first symbol. Chance is 1/symbols.

    Attributes:
      symbols: kinds of symbols to remember.
      distractors: kinds of distractors (other tokens than the symbols).
      time: length of the sequence, the symbol included.
    """

    symbols: int = 6
    distractors: int = 4
    time: int = 40

    def __post_init__(self):
        for field in dataclasses.fields(self):
            check_positive(field.name, getattr(self, field.name))

    @property
    def vocab_size(self) -> int:
        return self.symbols + self.distractors

    def example(self, key: Key[Array, ""], data: None = None) -> Batch:
        key_symbol, key_noise = jax.random.split(key)
        symbol = jax.random.randint(key_symbol, (), 0, self.symbols)
        noise = jax.random.randint(key_noise, (self.time - 1,), self.symbols, self.vocab_size)
        return Batch(jnp.concatenate([symbol[None], noise]), symbol)


@dataclasses.dataclass(frozen=True)
class Adding(Task):
    """Sum of two marked numbers out of ``time``: one marked in each half (Hochreiter and Schmidhuber 1997, section 5.4).

    Batch: ``inputs`` float32 [time, 2], a number uniform in [0, 1) and its mark 0 or 1; ``targets`` [1] the sum of the
    two marked numbers. Always answering 1 gives a mean squared error of 1/6.

    Attributes:
      time: length, at least 2.
    """

    time: int = 50

    def __post_init__(self):
        if not isinstance(self.time, int) or self.time < 2:
            raise ValueError(f"time must be an integer of at least 2 (one number per half), got {self.time!r}")

    def example(self, key: Key[Array, ""], data: None = None) -> Batch:
        key_numbers, key_first, key_second = jax.random.split(key, 3)
        numbers = jax.random.uniform(key_numbers, (self.time,))
        half = self.time // 2
        places = jnp.stack([jax.random.randint(key_first, (), 0, half),
                            jax.random.randint(key_second, (), half, self.time)])  # fmt: skip
        marks = jnp.zeros(self.time).at[places].set(1.0)
        return Batch(jnp.stack([numbers, marks], axis=-1), jnp.sum(numbers * marks)[None])


@dataclasses.dataclass(frozen=True)
class TemporalOrder(Task):
    """``relevant`` symbols X or Y among distractors, at random places: in which order did they come?

    Hochreiter and Schmidhuber (1997), section 5.6. The sequence is cut into ``relevant`` equal parts and each holds one
    relevant symbol at a random place. Batch: ``inputs`` int32 [time] with X = 0, Y = 1 and distractors from 2 on;
    ``targets`` the class, the relevant symbols read as a binary number, first symbol highest.

    Attributes:
      relevant: number of relevant symbols (2: four classes; 3: eight).
      distractors: kinds of distractors.
      time: length, at least ``relevant``.
    """

    relevant: int = 2
    distractors: int = 4
    time: int = 50

    def __post_init__(self):
        check_positive("relevant", self.relevant)
        check_positive("distractors", self.distractors)
        if not isinstance(self.time, int) or self.time < self.relevant:
            raise ValueError(f"time must be an integer of at least relevant={self.relevant}, got {self.time!r}")

    @property
    def vocab_size(self) -> int:
        return 2 + self.distractors

    @property
    def num_classes(self) -> int:
        return 2**self.relevant

    def example(self, key: Key[Array, ""], data: None = None) -> Batch:
        key_noise, key_place, key_symbol = jax.random.split(key, 3)
        noise = jax.random.randint(key_noise, (self.time,), 2, self.vocab_size)
        edges = jnp.arange(self.relevant + 1) * self.time // self.relevant
        places = jax.random.randint(key_place, (self.relevant,), edges[:-1], edges[1:])
        symbols = jax.random.randint(key_symbol, (self.relevant,), 0, 2)
        weights = 2 ** jnp.arange(self.relevant - 1, -1, -1)
        return Batch(noise.at[places].set(symbols), jnp.sum(symbols * weights))


@dataclasses.dataclass(frozen=True)
class CopyMemory(Task):
    """Symbols, a long silence, a signal: now repeat the symbols (Hochreiter and Schmidhuber 1997; Arjovsky et al. 2016).

    Tokens: 0 is silence, 1 the signal, symbols from 2 on. Batch: ``inputs`` and ``targets`` int32
    [2 * length + delay + 1]; targets are silent but for the last ``length`` steps, where ``mask`` is True.

    Attributes:
      symbols: kinds of symbols.
      length: symbols to repeat.
      delay: silent steps between.
    """

    symbols: int = 8
    length: int = 10
    delay: int = 20

    def __post_init__(self):
        for field in dataclasses.fields(self):
            check_positive(field.name, getattr(self, field.name))

    @property
    def vocab_size(self) -> int:
        return 2 + self.symbols

    def example(self, key: Key[Array, ""], data: None = None) -> Batch:
        symbols = jax.random.randint(key, (self.length,), 2, self.vocab_size)
        silence = jnp.zeros(self.delay, symbols.dtype)
        answer_time = jnp.zeros(self.length, symbols.dtype)
        signal = jnp.ones(1, symbols.dtype)
        inputs = jnp.concatenate([symbols, silence, signal, answer_time])
        targets = jnp.concatenate([answer_time, silence, 0 * signal, symbols])
        return Batch(inputs, targets, jnp.arange(inputs.size) >= self.length + self.delay + 1)


@dataclasses.dataclass(frozen=True)
class Parity(Task):
    """Is the number of ones so far odd? Every bit matters, and nothing can be guessed from a part.

    Batch: ``inputs`` int32 bits [time], ``targets`` int32 [time], the parity of all bits up to and including the step. With
    ``min_time`` the length of an example is uniform from ``min_time`` to ``time``; past it bits are 0 and ``mask`` is False.

    Attributes:
      time: number of bits.
      min_time: least number of bits; None: always ``time``.
    """

    time: int = 20
    min_time: int | None = None

    vocab_size = 2

    def __post_init__(self):
        check_positive("time", self.time)
        if self.min_time is not None:
            check_positive("min_time", self.min_time)
            if self.min_time > self.time:
                raise ValueError(f"min_time={self.min_time} is larger than time={self.time}")

    def example(self, key: Key[Array, ""], data: None = None) -> Batch:
        if self.min_time is None:
            bits = jax.random.bernoulli(key, shape=(self.time,)).astype(jnp.int32)
            return Batch(bits, jnp.cumsum(bits) % 2)
        key_length, key_bits = jax.random.split(key)
        mask = jnp.arange(self.time) < jax.random.randint(key_length, (), self.min_time, self.time + 1)
        bits = (jax.random.bernoulli(key_bits, shape=(self.time,)) & mask).astype(jnp.int32)
        return Batch(bits, jnp.cumsum(bits) % 2, mask)
