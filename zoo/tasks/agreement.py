"""Subject-verb agreement: after "the keys to the cabinet", is "are" more probable than "is"?

Linzen et al. 2016 (dependencies from Wikipedia), Gulordava et al. 2018 (pairs of a right and a wrong form). What makes
a sentence hard is the number of attractors: nouns of the other number between the subject and its verb.
"""

import collections
import csv
import dataclasses
import functools
import gzip
import itertools
import pathlib
import random
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, Shaped

from zoo.checks import check_choice, check_positive
from zoo.tasks.base import Batch, Task

PAD, UNKNOWN = 0, 1
SPLITS = ("train", "test")


@dataclasses.dataclass(frozen=True)
class Dependency:
    """The words before a verb, its right and its wrong form, and the attractors that lead astray.

    Attributes:
      prefix: the words before the verb.
      right: the verb as it was written.
      wrong: the verb in the other number.
      plural: whether the subject is plural.
      attractors: nouns of the other number between subject and verb.
    """

    prefix: tuple[str, ...]
    right: str
    wrong: str
    plural: bool
    attractors: int


_LINZEN = ("sentence", "verb_pos", "verb_index", "n_diff_intervening")
_PAIRS = ("prefix", "form", "class", "correct_number", "n_attr")


def read_dependencies(path: str | pathlib.Path) -> list[Dependency]:
    """Reads one of the two public layouts, told apart by their header line; plain or gzip.

    Linzen et al.: one dependency per line, columns ``sentence``, ``verb_pos`` (VBZ or VBP), ``verb_index`` (from 1) and
    ``n_diff_intervening``. Gulordava et al.: one form per line, columns ``prefix``, ``form``, ``class`` (correct or
    wrong), ``correct_number`` (sing or plur) and ``n_attr``, the two forms of a sentence on neighbouring lines.

    Raises:
      FileNotFoundError: no such file.
      ValueError: neither layout, or a line that does not fit.
    """
    path = pathlib.Path(path)
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8", newline="") as lines:
        rows = csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_MINIMAL)
        columns = rows.fieldnames or ()
        if all(c in columns for c in _LINZEN):
            return list(_linzen(rows, path.name))
        if all(c in columns for c in _PAIRS):
            return list(_pairs(rows, path.name))
    raise ValueError(
        f"{path.name} needs tab-separated columns {', '.join(_LINZEN)} or {', '.join(_PAIRS)}; "
        f"its first line has {', '.join(columns) or 'none'}"
    )


def _linzen(rows: Iterable[Mapping[str, str]], name: str) -> Iterator[Dependency]:
    for number, row in enumerate(rows, start=2):
        words, index, tag = row["sentence"].split(), row["verb_index"], row["verb_pos"]
        if tag not in ("VBZ", "VBP") or not index.isdigit() or not 1 < int(index) <= len(words):
            raise ValueError(f"{name}, line {number}: verb_pos={tag!r}, verb_index={index!r} name no verb")
        verb = words[int(index) - 1]
        yield Dependency(
            tuple(words[: int(index) - 1]), verb, other_form(verb), tag == "VBP", int(row["n_diff_intervening"])
        )


def _pairs(rows: Iterable[Mapping[str, str]], name: str) -> Iterator[Dependency]:
    rows = iter(rows)
    for number, forms in enumerate(itertools.zip_longest(rows, rows)):
        classes = [form and form["class"] for form in forms]
        if sorted(map(str, classes)) != ["correct", "wrong"] or forms[0]["prefix"] != forms[1]["prefix"]:
            first = 2 * number + 2
            raise ValueError(f"{name}, lines {first} and {first + 1} are not the two forms of one sentence")
        right, wrong = forms if classes[0] == "correct" else forms[::-1]
        yield Dependency(
            tuple(right["prefix"].split()), right["form"], wrong["form"], right["correct_number"] == "plur",
            int(right["n_attr"]),
        )  # fmt: skip


_IRREGULAR = {"is": "are", "was": "were", "has": "have", "does": "do", "goes": "go", "focuses": "focus"}
_OTHER = _IRREGULAR | {plural: singular for singular, plural in _IRREGULAR.items()}
_BASE_IN_IE = {"dies", "lies", "ties", "vies"}


def other_form(verb: str) -> str:
    """The English present-tense verb in the other number: "sees" <-> "see", "carries" <-> "carry", "is" <-> "are"."""
    if verb in _OTHER:
        return _OTHER[verb]
    if verb.endswith("s") and not verb.endswith(("ss", "us")):  # third person singular
        if verb.endswith("ies") and verb not in _BASE_IN_IE:
            return verb[:-3] + "y"
        if verb.endswith(("sses", "shes", "ches", "xes", "zzes", "oes")) and verb != "aches":
            return verb[:-2]
        return verb[:-1]
    if verb.endswith(("s", "sh", "ch", "x", "z", "o")):
        return verb + "es"
    if verb.endswith("y") and verb[-2:-1] not in tuple("aeiou"):
        return verb[:-1] + "ies"
    return verb + "s"


NOUNS = ("key", "cabinet", "teacher", "road", "letter", "painter", "garden", "engine", "river", "window")
PREPOSITIONS = ("near", "behind", "with", "above")
VERBS = ("is", "has", "looks", "seems", "remains", "appears")


def generate(count: int, seed: int = 0, max_attractors: int = 5) -> list[Dependency]:
    """Sentences such as "the key near the roads behind the gardens is": all nouns after the subject are attractors."""
    check_positive("count", count)
    rng = random.Random(f"agreement {seed}")
    sentences = []
    for _ in range(count):
        plural, attractors = rng.random() < 0.5, rng.randint(0, max_attractors)
        words = ["the", rng.choice(NOUNS) + "s" * plural]
        for _ in range(attractors):
            words += [rng.choice(PREPOSITIONS), "the", rng.choice(NOUNS) + "s" * (not plural)]
        singular = rng.choice(VERBS)
        forms = (singular, other_form(singular))
        sentences.append(Dependency(tuple(words), forms[plural], forms[not plural], plural, attractors))
    return sentences


@dataclasses.dataclass(frozen=True)
class Agreement(Task):
    """Random dependencies, as a language model or as a classifier needs them.

    Batch: ``inputs`` int32 [max_length] the words before the verb, padded on the right; ``lengths``; ``targets``
    [max_length] the words that follow, the right form of the verb last; ``mask`` where there is one;
    ``extra`` = {"right", "wrong": words, "plural": class 0 or 1, "attractors"}.

    Attributes:
      file: see ``read_dependencies``; None: sentences of ``generate``.
      split: "train" or "test": sentences go to one of them by a hash of their words.
      train_percent: share of the training split (Linzen et al. train on a tenth).
      vocab_size: the most frequent words of the training split are kept, the others become one unknown word. Numbers 0
        and 1 stand for padding and unknown words.
      max_length: longer prefixes keep their last words.
      generated: number of generated sentences, both splits together.
      max_attractors: most attractors of a generated sentence.
    """

    file: str | None = None
    split: str = "train"
    train_percent: int = 10
    vocab_size: int = 10_000
    max_length: int = 50
    generated: int = 10_000
    max_attractors: int = 5

    def __post_init__(self):
        check_choice("split", self.split, SPLITS)
        for name in ("vocab_size", "max_length", "generated"):
            check_positive(name, getattr(self, name))
        if not 0 < self.train_percent < 100:
            raise ValueError(f"train_percent must lie between 0 and 100, got {self.train_percent}")

    @functools.cached_property
    def _splits(self) -> dict[str, list[Dependency]]:
        if self.file is None:
            everything = generate(self.generated, max_attractors=self.max_attractors)
        else:
            everything = read_dependencies(self.file)
        splits = {name: [] for name in SPLITS}
        for d in everything:
            part = zlib.crc32(" ".join(d.prefix).encode()) % 100
            splits["train" if part < self.train_percent else "test"].append(d)
        return splits

    @functools.cached_property
    def vocabulary(self) -> Mapping[str, int]:
        """Word -> number, by falling frequency in the training split; both forms of its verbs are counted."""
        counts = collections.Counter()
        for d in self._splits["train"]:
            counts.update((*d.prefix, d.right, d.wrong))
        ordered = sorted(counts, key=lambda word: (-counts[word], word))[: max(self.vocab_size - 2, 0)]
        return {word: i for i, word in enumerate(ordered, start=UNKNOWN + 1)}

    @functools.cached_property
    def _arrays(self) -> Batch:
        return encode(self._splits[self.split], self.vocabulary, self.max_length)

    def data(self) -> Batch:
        """All sentences of the split; also the whole set for a final evaluation."""
        if not self._splits[self.split]:
            raise ValueError(f"the {self.split} split has no sentences; change train_percent={self.train_percent}")
        return self._arrays

    def example(self, key: Key[Array, ""], data: Batch) -> Batch:
        row = jax.random.randint(key, (), 0, data.lengths.shape[0])
        return jax.tree.map(lambda values: jnp.asarray(values)[row], data)


def encode(dependencies: Sequence[Dependency], vocabulary: Mapping[str, int], max_length: int) -> Batch:
    """Dependencies as arrays; see ``Agreement`` for the batch."""

    def number(words):
        return [vocabulary.get(word, UNKNOWN) for word in words]

    inputs = np.zeros((len(dependencies), max_length), np.int32)
    targets = np.zeros_like(inputs)
    lengths = np.zeros(len(dependencies), np.int32)
    for i, d in enumerate(dependencies):
        prefix = d.prefix[-max_length:]
        lengths[i] = len(prefix)
        inputs[i, : len(prefix)] = number(prefix)
        targets[i, : len(prefix)] = number((*prefix[1:], d.right))
    extra = {
        "right": np.array(number(d.right for d in dependencies), np.int32),
        "wrong": np.array(number(d.wrong for d in dependencies), np.int32),
        "plural": np.array([d.plural for d in dependencies], np.int32),
        "attractors": np.array([d.attractors for d in dependencies], np.int32),
    }
    return Batch(inputs, targets, np.arange(max_length) < lengths[:, None], lengths, extra)


def prefers_right_form(logits: Float[Array, "B T V"], batch: Batch) -> Shaped[Array, " B"]:
    """bool [B]: whether a language model finds the right form more probable than the wrong one.

    Both forms unknown to the vocabulary, or equally probable, count as wrong.
    """
    last = jnp.take_along_axis(logits, (batch.lengths - 1)[:, None, None], axis=1)[:, 0]
    right, wrong = (jnp.take_along_axis(last, batch.extra[form][:, None], axis=1)[:, 0] for form in ("right", "wrong"))
    return right > wrong


def accuracy_by_attractors(correct: Shaped[np.ndarray, " N"], attractors: Shaped[np.ndarray, " N"]) -> dict[str, float]:
    """``accuracy`` over all sentences, and ``accuracy_<k>`` over those with k attractors."""
    correct, attractors = np.asarray(correct, float), np.asarray(attractors)
    by_number = {f"accuracy_{k}": float(correct[attractors == k].mean()) for k in np.unique(attractors)}
    return {"accuracy": float(correct.mean()), **by_number}
