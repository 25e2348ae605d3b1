"""LAMBADA (Paperno et al. 2016): guess the last word of a passage, which only makes sense with all that came before.

Two ways to play it. As a language model: the next-word distribution after the passage. As reading comprehension (Chu et
al. 2017): the answer is one of the passage's own words; a model scores every position, and a word's probability is the
sum over the positions where it stands (Kadlec et al. 2016).

Public files: ``lambada_{development,test}_plain_text.txt`` (words separated by blanks, one passage per line, the answer
last), the same passages as JSON lines with a field ``text``, and a folder of training novels in plain text.
"""

import collections
import dataclasses
import functools
import json
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from zoo.checks import check_choice, check_positive
from zoo.tasks.base import Batch, Task

PAD, UNKNOWN = 0, 1
OBJECTIVES = ("language_model", "reading")


def read_passages(path: str | pathlib.Path) -> list[tuple[str, ...]]:
    """Words of every passage; the last word is the answer.

    Args:
      path: ``.jsonl`` (field ``text``; split into words and punctuation, lower case) or text with one passage per line
        (split at blanks).

    Raises:
      FileNotFoundError: no such file.
      ValueError: a line without two words, or JSON without the field; the message names the line.
    """
    path = pathlib.Path(path)
    passages = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            if path.suffix == ".jsonl":
                try:
                    text = json.loads(line)["text"]
                except (ValueError, KeyError, TypeError):
                    raise ValueError(
                        f"{path.name}, line {number}: expected a JSON object with the field 'text'"
                    ) from None
                words = tuple(re.findall(r"\w+(?:'\w+)*|[^\w\s]", text.lower()))
            else:
                words = tuple(line.split())
            if len(words) < 2:
                raise ValueError(f"{path.name}, line {number}: a passage needs two words, got {line.strip()[:60]!r}")
            passages.append(words)
    if not passages:
        raise ValueError(f"{path.name} holds no passage")
    return passages


def read_novels(path: str | pathlib.Path, length: int) -> list[tuple[str, ...]]:
    """Cuts a text file, or all ``.txt`` files under a folder, into passages of ``length + 1`` words."""
    path = pathlib.Path(path)
    files = sorted(path.rglob("*.txt")) if path.is_dir() else [path]
    if not files:
        raise FileNotFoundError(f"no .txt file under {str(path)!r}: give the folder of LAMBADA's training novels")
    passages = []
    for file in files:
        words = file.read_text(encoding="utf-8").split()
        passages += [tuple(words[i : i + length + 1]) for i in range(0, len(words) - 1, length)]
    return [p for p in passages if len(p) > 1]


@dataclasses.dataclass(frozen=True)
class Lambada(Task):
    """Random passages of a file.

    Batch: ``inputs`` int32 [max_length] words without the last, padded on the right; ``lengths``; ``targets``
    [max_length] the words that follow; ``mask`` the positions that count: all for training novels as language model, else
    the last; ``extra`` = {"answer": the last word, "in_context": whether it stands among the inputs}.

    Attributes:
      novels: training text, a file or a folder; also the source of the vocabulary.
      passages: development or test passages; None: train on ``novels``.
      objective: "language_model", or "reading": of the novels only passages whose last word stands in its context.
      vocab_size: the most frequent words of the novels are kept, the others become one unknown word. Numbers 0 and 1
        stand for padding and unknown words.
      max_length: longest context; longer passages keep their last words.
    """

    novels: str
    passages: str | None = None
    objective: str = "language_model"
    vocab_size: int = 60_000
    max_length: int = 200

    def __post_init__(self):
        check_choice("objective", self.objective, OBJECTIVES)
        check_positive("vocab_size", self.vocab_size)
        check_positive("max_length", self.max_length)

    @functools.cached_property
    def _novels(self) -> list[tuple[str, ...]]:
        return read_novels(self.novels, self.max_length)

    @functools.cached_property
    def vocabulary(self) -> Mapping[str, int]:
        """Word -> number, by falling frequency in the novels."""
        counts = collections.Counter(
            word for passage in self._novels for word in passage[1:]
        )  # passages overlap by one
        ordered = sorted(counts, key=lambda word: (-counts[word], word))[: max(self.vocab_size - 2, 0)]
        return {word: i for i, word in enumerate(ordered, start=UNKNOWN + 1)}

    @functools.cached_property
    def _arrays(self) -> Batch:
        if self.passages is not None:
            return encode(read_passages(self.passages), self.vocabulary, self.max_length)
        novels = self._novels
        if self.objective == "reading":
            novels = [p for p in novels if p[-1] in p[:-1]]
            if not novels:
                raise ValueError("no passage of the novels ends in a word that it has used before")
        return encode(novels, self.vocabulary, self.max_length, every=self.objective == "language_model")

    def data(self) -> Batch:
        """All passages; also the whole set for a final evaluation."""
        return self._arrays

    def example(self, key: Key[Array, ""], data: Batch) -> Batch:
        row = jax.random.randint(key, (), 0, data.lengths.shape[0])
        return jax.tree.map(lambda values: jnp.asarray(values)[row], data)


def encode(
    passages: Sequence[Iterable[str]], vocabulary: Mapping[str, int], max_length: int, every: bool = False
) -> Batch:
    """Passages as arrays; see ``Lambada`` for the batch. ``every``: all words count, not the last alone."""
    inputs = np.zeros((len(passages), max_length), np.int32)
    targets = np.zeros_like(inputs)
    lengths = np.zeros(len(passages), np.int32)
    for i, passage in enumerate(passages):
        numbers = [vocabulary.get(word, UNKNOWN) for word in passage][-max_length - 1 :]
        lengths[i] = n = len(numbers) - 1
        inputs[i, :n], targets[i, :n] = numbers[:-1], numbers[1:]
    steps, last = np.arange(max_length), lengths[:, None] - 1
    answer = np.take_along_axis(targets, last, axis=1)
    in_context = ((inputs == answer) & (steps <= last)).any(axis=1)
    mask = steps <= last if every else steps == last
    return Batch(inputs, targets, mask, lengths, {"answer": answer[:, 0], "in_context": in_context})


def word_probabilities(
    scores: Float[Array, "B T"], inputs: Int[Array, "B T"], lengths: Int[Array, " B"]
) -> Float[Array, "B T"]:
    """Probability of the word at every position: softmax of the scores, summed over equal words; 0 at padding."""
    valid = jnp.arange(inputs.shape[1]) < lengths[:, None]
    attention = jax.nn.softmax(jnp.where(valid, scores, jnp.finfo(scores.dtype).min), axis=-1)
    same = inputs[:, :, None] == inputs[:, None, :]
    return jnp.where(valid, jnp.einsum("bts,bs->bt", same.astype(scores.dtype), jnp.where(valid, attention, 0)), 0)


def reading_loss(
    scores: Float[Array, "B T"], batch: Batch, floor: float = 1e-9
) -> tuple[Float[Array, ""], Bool[Array, " B"]]:
    """Attention-sum loss of reading comprehension.

    Args:
      scores: one score per position.
      batch: of ``Lambada``.
      floor: least probability of an answer, for those that do not stand in the context.

    Returns:
      Mean of -log(probability of the answer), and whether each row's most probable word is the answer.
    """
    probabilities = word_probabilities(scores, batch.inputs, batch.lengths)
    answer = batch.extra["answer"]
    of_answer = jnp.max(jnp.where(batch.inputs == answer[:, None], probabilities, 0), axis=1)
    guess = jnp.take_along_axis(batch.inputs, jnp.argmax(probabilities, axis=1)[:, None], axis=1)[:, 0]
    return -jnp.mean(jnp.log(jnp.maximum(of_answer, floor))), guess == answer
