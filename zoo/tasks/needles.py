"""Needles in haystacks: something said once, early, in a long text, and asked for at its end.

``KeyValueNeedle`` is the task in small, over symbols, made on the device. The others are prompts for language models with a
tokenizer; they know no model, and are given a function from prompts to answers:

* ``needle_prompt``, ``needle_accuracy``: a single needle in three kinds, after Hsieh et al. (2024), RULER, arXiv 2404.06654,
  in words of our own. "passkey": a number among one text said over and over; "number": a number in real text; "word": a word
  of random letters in real text, which is harder, since it has more tokens.
* ``long_story``, ``story_accuracy``: a story of bAbI with its sentences scattered over real text, after Kuratov et al.
  (2024), BABILong, arXiv 2406.10149.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from zoo.checks import check_choice, check_positive
from zoo.tasks.babi import Question
from zoo.tasks.base import Batch, Task

KINDS = ("passkey", "number", "word")
LETTERS = "abcdefghijklmnopqrstuvwxyz"
HAY = "Clouds drift over the hills. The river runs to the sea. Birds sing at dawn. Then it is quiet again."
LABELS = (
    "amber",
    "basalt",
    "cedar",
    "delta",
    "ember",
    "fjord",
    "garnet",
    "heron",
    "indigo",
    "juniper",
    "kestrel",
    "lilac",
)
Tokenizer = Callable[[str], Sequence[Any]]
Answer = Callable[[list[list[int]]], Sequence[str]]


@dataclasses.dataclass(frozen=True)
class KeyValueNeedle(Task):
    """Pairs of key and value at the beginning, noise behind them, and one of the keys at the end: which value was its?

    Pair i stands at 3 i (key) and 3 i + 1 (value), everything else is noise, and the last token repeats one of the keys, all
    of which are different. Tokens: 1 .. keys the keys, then the values, then the noise; 0 is not used. Batch: ``inputs``
    int32 [time], ``targets`` the value at the last step, ``mask`` True there alone. Chance is 1 / values, about 1 / pairs
    for a model that says any value that was there.

    Attributes:
      time: length; the longer, the farther away the pairs.
      pairs: pairs to remember, at most ``keys``.
      keys, values, noise: kinds of tokens.
    """

    time: int = 32
    pairs: int = 4
    keys: int = 8
    values: int = 8
    noise: int = 23

    def __post_init__(self):
        for field in dataclasses.fields(self):
            check_positive(field.name, getattr(self, field.name))
        if self.pairs > self.keys:
            raise ValueError(f"pairs={self.pairs} need as many different keys, but keys={self.keys}")
        if self.time <= 3 * self.pairs - 1:
            raise ValueError(
                f"time must be at least {3 * self.pairs} for {self.pairs} pairs and a question, got {self.time}"
            )

    @property
    def vocab_size(self) -> int:
        return 1 + self.keys + self.values + self.noise

    def example(self, key: Key[Array, ""], data: None = None) -> Batch:
        keys, values, noise, which = jax.random.split(key, 4)
        first = 1 + self.keys + self.values
        inputs = jax.random.randint(noise, (self.time,), first, first + self.noise)
        chosen = 1 + jax.random.permutation(keys, self.keys)[: self.pairs]
        said = 1 + self.keys + jax.random.randint(values, (self.pairs,), 0, self.values)
        places = 3 * jnp.arange(self.pairs)
        asked = jax.random.randint(which, (), 0, self.pairs)
        inputs = inputs.at[places].set(chosen).at[places + 1].set(said).at[-1].set(chosen[asked])
        targets = jnp.zeros(self.time, jnp.int32).at[-1].set(said[asked])
        return Batch(inputs.astype(jnp.int32), targets, jnp.arange(self.time) == self.time - 1)


def needle_prompt(
    tokenize: Tokenizer, kind: str, length: int, depth: float, label: str, value: str, text: str | None = None
) -> str:
    """A prompt of at most ``length`` tokens that ends in a question for ``value``.

    Args:
      tokenize: text -> tokens; only their number counts.
      kind: of ``KINDS``.
      length: tokens.
      depth: 0: the needle comes first, 1: last.
      label: what the value is asked by.
      value: what is asked for.
      text: the haystack of "number" and "word", repeated where it is too short; "passkey" has its own.

    Raises:
      ValueError: no text, no room for it, or a depth outside [0, 1].
    """
    check_choice("kind", kind, KINDS)
    check_positive("length", length)
    if not 0 <= depth <= 1:
        raise ValueError(f"depth must lie in [0, 1], got {depth}")
    if kind != "passkey" and not (text and text.split()):
        raise ValueError(f"text must be given for kind={kind!r}")
    what = "word" if kind == "word" else "number"
    head = f"A secret {what} stands somewhere in the text below. Keep it in mind: you will be asked for it.\n"
    needle = f"The secret {what} of {label} is {value}."
    question = f"\nWhat is the secret {what} of {label} in the text above? The secret {what} of {label} is"
    room = length - sum(len(tokenize(part)) for part in (head, needle, question))
    sentences = [HAY] if kind == "passkey" else [s.strip() + "." for s in text.split(".") if s.strip()]
    chosen: list[str] = []
    while True:
        sentence = sentences[len(chosen) % len(sentences)]
        room -= len(tokenize(" " + sentence))
        if room < 0:
            break
        chosen.append(sentence)
    if not chosen:
        raise ValueError(f"length={length} leaves no room for a sentence of the haystack")
    place = round(depth * len(chosen))
    return head + " ".join([*chosen[:place], needle, *chosen[place:]]) + question


def draw_needle(kind: str, seed: int) -> tuple[str, str]:
    """(label, value): a number of seven digits, or a word of twelve letters for kind "word"."""
    random = np.random.default_rng((seed, KINDS.index(kind)))
    label = LABELS[random.integers(len(LABELS))]
    if kind == "word":
        return label, "".join(LETTERS[i] for i in random.integers(0, 26, 12))
    return label, str(random.integers(10**6, 10**7))


def needle_accuracy(
    answer: Answer,
    tokenize: Callable[[str], Sequence[int]],
    kind: str,
    lengths: Sequence[int],
    *,
    samples: int = 100,
    text: str | None = None,
    begin: int | None = None,
    batch_size: int = 1,
    seed: int = 0,
) -> Float[np.ndarray, " L"]:
    """Share of the answers in which the value stands, per length; needles lie evenly over all depths.

    Args:
      answer: prompts as token lists -> the text that the model goes on with.
      tokenize: text -> tokens.
      kind: of ``KINDS``.
      lengths: tokens of the prompts.
      samples: prompts per length.
      text: haystack, see ``needle_prompt``.
      begin: token to put before every prompt, None for none.
      batch_size: prompts per call of ``answer``.
      seed: of labels and values.
    """
    check_positive("samples", samples)
    shares = []
    for length in lengths:
        drawn = [draw_needle(kind, seed + i) for i in range(samples)]
        prompts = [
            needle_prompt(tokenize, kind, length, (i + 0.5) / samples, *pair, text=text) for i, pair in enumerate(drawn)
        ]
        shares.append(_share(answer, tokenize, prompts, [value for _, value in drawn], begin, batch_size))
    return np.array(shares)


def long_story(tokenize: Tokenizer, question: Question, length: int, text: str, seed: int = 0) -> str:
    """A prompt of at most ``length`` tokens: the sentences of a bAbI story, in their order, anywhere among those of a text.

    Args:
      tokenize: text -> tokens; only their number counts.
      question: with its story, see ``zoo.tasks.babi``.
      length: tokens.
      text: the background, repeated where it is too short.
      seed: of the places.

    Raises:
      ValueError: the story alone has more tokens, or the text is empty.
    """
    check_positive("length", length)
    background = [s.strip() + "." for s in text.split(".") if s.strip()]
    if not background:
        raise ValueError("text must have a sentence")
    facts = [" ".join(fact).capitalize() + "." for fact in question.facts]
    asked = "\n" + " ".join(question.question).capitalize() + "? Answer with one word:"
    room = length - sum(len(tokenize(part + " ")) for part in (*facts, asked))
    if room < 0:
        raise ValueError(f"length={length} has no room for the story")
    chosen: list[str] = []
    while True:
        sentence = background[len(chosen) % len(background)]
        room -= len(tokenize(sentence + " "))
        if room < 0:
            break
        chosen.append(sentence)
    places = np.sort(np.random.default_rng(seed).integers(0, len(chosen) + 1, len(facts)))
    for fact, place in reversed(list(zip(facts, places.tolist()))):
        chosen.insert(place, fact)
    return " ".join(chosen) + asked


def story_accuracy(
    answer: Answer,
    tokenize: Callable[[str], Sequence[int]],
    questions: Sequence[Question],
    lengths: Sequence[int],
    text: str,
    *,
    begin: int | None = None,
    batch_size: int = 1,
    seed: int = 0,
) -> Float[np.ndarray, " L"]:
    """Share of the answers that hold the word of the answer, per length; arguments as of ``needle_accuracy``."""
    shares = []
    for length in lengths:
        prompts = [long_story(tokenize, q, length, text, seed + i) for i, q in enumerate(questions)]
        shares.append(_share(answer, tokenize, prompts, [q.answer for q in questions], begin, batch_size))
    return np.array(shares)


def _share(answer, tokenize, prompts, wanted, begin, batch_size) -> float:
    check_positive("batch_size", batch_size)
    rows = [([] if begin is None else [begin]) + list(tokenize(prompt)) for prompt in prompts]
    said: list[str] = []
    for start in range(0, len(rows), batch_size):
        part = rows[start : start + batch_size]
        answers = list(answer(part))
        if len(answers) != len(part):
            raise ValueError(f"answer returned {len(answers)} answers to {len(part)} prompts")
        said += answers
    return float(np.mean([value.lower() in text.lower() for value, text in zip(wanted, said)]))
