"""Passkey retrieval: a number hidden in a long filler text, asked for at the end; and a stream of symbols like it.

Mohtashami and Jaggi (2023), Landmark Attention (the task); Chen et al. (2024), Stuffed Mamba, arXiv 2410.07145 (these texts,
and how positions and lengths are counted).

``passkey_prompt`` makes one prompt, ``passkey_accuracy`` asks for many: it is given a function from prompts to answers, and
knows no model. ``PasskeyStream`` is the toy version, over random symbols instead of a text.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from zoo.checks import check_positive
from zoo.tasks.base import Batch, Task

PREFIX = "There is an important info hidden inside a lot of irrelevant text. Find it and memorize it.\n\n"
FILLER = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.\n"
SUFFIX = "\nWhat is the pass key? The passkey is"
DIGITS = 5
Tokenizer = Callable[[str], Sequence[Any]]


def hidden_passkey(passkey: str) -> str:
    """The block of text that states ``passkey``, twice."""
    return f"The passkey is {passkey}. Remember it. {passkey} is the passkey.\n"


def passkey_prompt(tokenize: Tokenizer, context_length: int, answer_position: float, passkey: str) -> str:
    """A prompt of about ``context_length`` tokens with ``passkey`` in place of one of its filler blocks.

    There are n = floor((context_length - prefix - suffix) / block) blocks, all counted in tokens of the filler, and block
    number int(answer_position * (n - 1)) is replaced by the one with the passkey.

    Args:
      tokenize: text -> tokens; only their number counts.
      context_length: tokens.
      answer_position: 0 for the first block, 1 for the last.
      passkey: five digits.

    Raises:
      ValueError: no room for a block, a position outside [0, 1], or a passkey that is not five digits.
    """
    check_positive("context_length", context_length)
    if not 0 <= answer_position <= 1:
        raise ValueError(f"answer_position must lie in [0, 1], got {answer_position}")
    if len(passkey) != DIGITS or not (passkey.isascii() and passkey.isdigit()):
        raise ValueError(f"passkey must be {DIGITS} digits, got {passkey!r}")
    prefix, block, suffix = (len(tokenize(text)) for text in (PREFIX, FILLER, SUFFIX))
    count = (context_length - prefix - suffix) // block
    if count < 1:
        raise ValueError(
            f"context_length={context_length} has no room for a block of {block} tokens between {prefix} tokens of "
            f"prefix and {suffix} of suffix"
        )
    blocks = [FILLER] * count
    blocks[int(answer_position * (count - 1))] = hidden_passkey(passkey)
    return PREFIX + "".join(blocks) + SUFFIX


def draw_passkeys(seed: int, count: int) -> list[str]:
    """``count`` passkeys, uniform over 00000 to 99999."""
    check_positive("count", count)
    drawn = np.random.default_rng(seed).integers(0, 10**DIGITS, count)
    return [f"{key:0{DIGITS}d}" for key in drawn.tolist()]


def passkey_accuracy(
    answer: Callable[[list[list[int]]], Sequence[str]],
    tokenize: Callable[[str], Sequence[int]],
    context_lengths: Sequence[int],
    *,
    samples: int = 200,
    depths: int = 10,
    begin: int | None = None,
    batch_size: int = 1,
    seed: int = 0,
) -> Float[np.ndarray, "L D"]:
    """Accuracy per context length and depth of the passkey: the heat map.

    Sample i of ``samples`` has the passkey at (i + 0.5) / samples; ``depths`` equal parts of these are the columns. An
    answer counts when the passkey stands anywhere in it.

    Args:
      answer: prompts as token lists -> the text that the model goes on with, greedily, for five tokens or more.
      tokenize: text -> tokens.
      context_lengths: tokens of the prompts, one row each.
      samples: prompts per length, a multiple of ``depths``.
      depths: columns.
      begin: token to put before every prompt, None for none (models differ in whether they were trained with one).
      batch_size: prompts per call of ``answer``.
      seed: of the passkeys; every length gets its own.

    Returns:
      [lengths, depths] shares in [0, 1]; the mean of a row is the accuracy at that length.

    Raises:
      ValueError: ``samples`` is not a multiple of ``depths``, no length, or ``answer`` returns too few answers.
    """
    for name, value in {"samples": samples, "depths": depths, "batch_size": batch_size}.items():
        check_positive(name, value)
    if samples % depths:
        raise ValueError(f"samples={samples} is not a multiple of depths={depths}")
    if not context_lengths:
        raise ValueError("context_lengths is empty; name at least one")
    rows = []
    for number, length in enumerate(context_lengths):
        hits: list[bool] = []
        keys = draw_passkeys(seed + number, samples)
        texts = [passkey_prompt(tokenize, length, (i + 0.5) / samples, key) for i, key in enumerate(keys)]
        prompts = [([] if begin is None else [begin]) + list(tokenize(text)) for text in texts]
        for start in range(0, samples, batch_size):
            wanted = keys[start : start + batch_size]
            said = answer(prompts[start : start + batch_size])
            if len(said) != len(wanted):
                raise ValueError(f"answer returned {len(said)} answers to {len(wanted)} prompts")
            hits += [key in text for key, text in zip(wanted, said)]
        rows.append(np.reshape(hits, (depths, -1)).mean(axis=1))
    return np.stack(rows)


@dataclasses.dataclass(frozen=True)
class PasskeyStream(Task):
    """Random filler symbols with a marker and a key somewhere, and a query at the end: which key was it?

    Tokens: 0 .. fillers - 1 the fillers, then the keys, the marker, the query. Batch: ``inputs`` int32 [time], ``targets``
    the key at the last step, ``mask`` True there alone. Chance is 1 / keys.

    Attributes:
      time: length, at least 3.
      fillers: kinds of filler symbols.
      keys: kinds of keys.
      within: the marker is one of the last ``within`` tokens; None: anywhere.
      pool: a fixed set of as many examples, from which batches are drawn; None: every example is new.
    """

    time: int = 32
    fillers: int = 8
    keys: int = 16
    within: int | None = None
    pool: int | None = None

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is not None:
                check_positive(field.name, value)
        if self.time < 3:
            raise ValueError(f"time must be at least 3 (marker, key and query), got {self.time}")
        if self.within is not None and not 3 <= self.within <= self.time:
            raise ValueError(f"within must lie between 3 and time={self.time}, got {self.within}")

    @property
    def vocab_size(self) -> int:
        return self.fillers + self.keys + 2

    def example(self, key: Key[Array, ""], data: None = None) -> Batch:
        if self.pool is not None:
            key = jax.random.fold_in(jax.random.key(0), jax.random.randint(key, (), 0, self.pool))
        fill_key, place_key, symbol_key = jax.random.split(key, 3)
        marker = self.fillers + self.keys
        place = jax.random.randint(place_key, (), self.time - (self.within or self.time), self.time - 2)
        symbol = self.fillers + jax.random.randint(symbol_key, (), 0, self.keys)
        inputs = jax.random.randint(fill_key, (self.time,), 0, self.fillers)
        inputs = inputs.at[place].set(marker).at[place + 1].set(symbol).at[-1].set(marker + 1)
        targets = jnp.zeros(self.time, jnp.int32).at[-1].set(symbol)
        return Batch(inputs, targets, jnp.arange(self.time) == self.time - 1)
