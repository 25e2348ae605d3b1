"""The twenty bAbI question-answering tasks (Weston et al. 2015): reader of their text files, three generators.

A file holds stories. Every line starts with its number in the story, so that a 1 begins a new one; a line is a
sentence, or a question with a tab, its answer, a tab and the numbers of the sentences that support it::

    1 Mary moved to the bathroom.
    2 John went to the hallway.
    3 Where is Mary?<TAB>bathroom<TAB>1

The data set (version 1.2) is public; its folders ``en`` (1,000 questions per task) and ``en-10k`` (10,000) hold files
``qa<number>_<name>_<train|test>.txt``.
"""

import dataclasses
import functools
import pathlib
import random
import re
from collections.abc import Iterable, Mapping, Sequence

import jax
import numpy as np
from jaxtyping import Array, Bool, Int, Key

from zoo.checks import check_choice, check_positive
from zoo.tasks.base import Batch, Task

PAD, UNKNOWN = 0, 1
SPLITS = ("train", "test")
TASKS = tuple(range(1, 21))


@dataclasses.dataclass(frozen=True)
class Question:
    """A question with what was said before it.

    Attributes:
      task: number 1 .. 20.
      facts: sentences of the story so far, as words; earlier questions are left out.
      question: its words.
      answer: the answer as one string; lists such as "milk,football" count as one answer, as is usual.
      support: indices into ``facts`` of the supporting sentences.
    """

    task: int
    facts: tuple[tuple[str, ...], ...]
    question: tuple[str, ...]
    answer: str
    support: tuple[int, ...]


def words(sentence: str) -> tuple[str, ...]:
    """Lower-case words of a sentence, without its final point or question mark."""
    return tuple(re.findall(r"[\w,'-]+", sentence.lower()))


def read_stories(lines: Iterable[str], task: int = 0, source: str = "text") -> list[Question]:
    """All questions of a file in the bAbI format.

    Args:
      lines: the file's lines.
      task: number that the questions are marked with.
      source: name for error messages.

    Raises:
      ValueError: a line does not have the format; the message names source and line.
    """
    questions, facts, place = [], [], {}
    for number, line in enumerate(lines, start=1):
        line = line.strip()
        if not line:
            continue
        match = re.fullmatch(r"(\d+) (.+)", line)
        parts = match.group(2).split("\t") if match else []
        if len(parts) not in (1, 2, 3):
            raise ValueError(
                f"{source}, line {number}: expected 'ID sentence' or 'ID question<TAB>answer<TAB>supporting ids', "
                f"got {line[:80]!r}"
            )
        index = int(match.group(1))
        if index == 1:
            facts, place = [], {}
        if len(parts) == 1:
            place[index] = len(facts)
            facts.append(words(parts[0]))
            continue
        support = parts[2].split() if len(parts) == 3 else []
        unknown = [s for s in support if not s.isdigit() or int(s) not in place]
        if unknown:
            raise ValueError(f"{source}, line {number}: supporting id {unknown[0]!r} is no earlier sentence")
        places = tuple(place[int(s)] for s in support)
        questions.append(Question(task, tuple(facts), words(parts[0]), parts[1].strip().lower(), places))
    return questions


def read_folder(folder: str | pathlib.Path, tasks: Sequence[int] = TASKS, split: str = "train") -> list[Question]:
    """Questions of some tasks from a folder of ``qa<number>_..._<split>.txt`` files."""
    check_choice("split", split, SPLITS)
    questions = []
    for task in tasks:
        if task not in TASKS:
            raise ValueError(f"task must be a number 1 to 20, got {task!r}")
        files = sorted(pathlib.Path(folder).glob(f"qa{task}_*_{split}.txt"))
        if not files:
            raise FileNotFoundError(
                f"no file qa{task}_*_{split}.txt in {str(folder)!r}: give the folder 'en' or 'en-10k' of the "
                "bAbI tasks data, version 1.2"
            )
        with files[0].open(encoding="utf-8") as lines:
            questions += read_stories(lines, task, files[0].name)
    return questions


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """Word and answer numbers. Words 0 and 1 are padding and unknown words."""

    words: Mapping[str, int]
    answers: Mapping[str, int]

    @classmethod
    def of(cls, questions: Iterable[Question]) -> "Vocabulary":
        """All words and all answers of ``questions``, in alphabetical order."""
        seen, answers = set(), set()
        for q in questions:
            seen.update(q.question, *q.facts)
            answers.add(q.answer)
        return cls(
            {word: i for i, word in enumerate(sorted(seen), start=UNKNOWN + 1)},
            {answer: i for i, answer in enumerate(sorted(answers))},
        )

    @property
    def num_words(self) -> int:
        return len(self.words) + 2

    @property
    def num_answers(self) -> int:
        return len(self.answers)


def encode(questions: Sequence[Question], vocabulary: Vocabulary, memories: int = 70) -> Batch:
    """Questions as arrays; the facts are followed by the question, so that a row is one sequence of sentences.

    Args:
      questions: N questions.
      vocabulary: their words and answers; an unknown word becomes UNKNOWN, an unknown answer -1 (never right).
      memories: the last so many facts are kept.

    Returns:
      Batch of NumPy arrays: ``inputs`` int32 [N, M + 1, W] word numbers; ``targets`` [N] answers; ``lengths`` [N]
      sentences with the question; ``extra`` = {"task": [N], "support": bool [N, M + 1]}.
    """
    check_positive("memories", memories)
    rows = [[*q.facts[-memories:], q.question] for q in questions]
    width = max((len(sentence) for row in rows for sentence in row), default=1)
    height = max((len(row) for row in rows), default=1)
    inputs = np.zeros((len(rows), height, width), np.int32)
    support = np.zeros((len(rows), height), bool)
    for n, (row, q) in enumerate(zip(rows, questions)):
        for i, sentence in enumerate(row):
            inputs[n, i, : len(sentence)] = [vocabulary.words.get(word, UNKNOWN) for word in sentence]
        dropped = max(len(q.facts) - memories, 0)
        support[n, [i - dropped for i in q.support if i >= dropped]] = True
    return Batch(
        inputs=inputs,
        targets=np.array([vocabulary.answers.get(q.answer, -1) for q in questions], np.int32),
        lengths=np.array([len(row) for row in rows], np.int32),
        extra={"task": np.array([q.task for q in questions], np.int32), "support": support},
    )


@dataclasses.dataclass(frozen=True)
class Babi(Task):
    """Random questions of the bAbI tasks; see ``encode`` for the batch.

    Attributes:
      folder: folder with the files (``en`` or ``en-10k``); None generates tasks 1 to 3 with ``generate``.
      tasks: task numbers, trained jointly when several.
      split: "train" or "test".
      memories: most facts kept.
      generated: questions per task and split when they are generated.
    """

    folder: str | None = None
    tasks: tuple[int, ...] = (1,)
    split: str = "train"
    memories: int = 70
    generated: int = 1000

    def __post_init__(self):
        check_choice("split", self.split, SPLITS)
        if not self.tasks:
            raise ValueError("tasks is empty; name at least one of 1 to 20")

    def questions(self, split: str) -> list[Question]:
        """All questions of a split, in the order of the files."""
        if self.folder is not None:
            return read_folder(self.folder, self.tasks, split)
        return [
            question
            for task in self.tasks
            for question in read_stories(generate(task, self.generated, seed=SPLITS.index(split)).splitlines(), task)
        ]

    @functools.cached_property
    def vocabulary(self) -> Vocabulary:
        """Words and answers of both splits (the public files share one small vocabulary)."""
        return Vocabulary.of(self.questions("train") + self.questions("test"))

    @functools.cached_property
    def _arrays(self) -> Batch:
        return encode(self.questions(self.split), self.vocabulary, self.memories)

    def data(self) -> Batch:
        """All questions of the split; also the whole set for a final evaluation."""
        return self._arrays

    def example(self, key: Key[Array, ""], data: Batch) -> Batch:
        row = jax.random.randint(key, (), 0, data.targets.shape[0])
        return jax.tree.map(lambda values: jax.numpy.asarray(values)[row], data)


def error_report(
    correct: Bool[np.ndarray, " N"], tasks: Int[np.ndarray, " N"], failure: float = 5.0
) -> dict[str, float]:
    """Error rates as they are reported for bAbI.

    Args:
      correct: which answers were right.
      tasks: task number of every question.
      failure: a task with more than this error, in per cent, counts as failed.

    Returns:
      ``error_<task>`` for every task, ``error`` their mean, all in per cent; ``failed`` the number of failed tasks.
    """
    correct, tasks = np.asarray(correct), np.asarray(tasks)
    errors = {int(t): 100.0 * int((~correct[tasks == t]).sum()) / int((tasks == t).sum()) for t in np.unique(tasks)}
    return {
        **{f"error_{task}": error for task, error in errors.items()},
        "error": float(np.mean(list(errors.values()))),
        "failed": float(sum(error > failure for error in errors.values())),
    }


PEOPLE = ("Mary", "John", "Sandra", "Daniel")
PLACES = ("bathroom", "hallway", "kitchen", "garden", "office", "bedroom")
OBJECTS = ("football", "milk", "apple")
MOVES = ("moved to", "went to", "travelled to", "journeyed to", "went back to")
TAKES = ("got", "took", "grabbed", "picked up")
DROPS = ("dropped", "put down", "left", "discarded")


def generate(task: int, questions: int, seed: int = 0) -> str:
    """Stories of task 1, 2 or 3 (one, two, three supporting facts) in the bAbI text format.

    Four people walk between six places; in tasks 2 and 3 they also take and drop three objects. Asked is where a
    person is (1), where an object is (2), or where it was before it came to its present place (3). As in the public
    files a story of task 1 asks after every second sentence, five times; those of tasks 2 and 3 ask at the end, and
    have at least two and six sentences.
    """
    if task not in (1, 2, 3):
        raise ValueError(f"only tasks 1, 2 and 3 can be generated, got {task!r}; give a folder with the files")
    check_positive("questions", questions)
    rng = random.Random(f"babi {task} {seed}")
    lines, asked = [], 0
    while asked < questions:
        world = _World(rng, objects=task > 1)
        if task == 1:
            for _ in range(min(5, questions - asked)):
                world.act()
                world.act()
                person = rng.choice(sorted(world.where))
                place, support = world.where[person]
                world.ask(f"Where is {person}?", place, [support])
                asked += 1
            lines += world.lines
            continue
        for _ in range(rng.randint(2, 12) if task == 2 else rng.randint(6, 24)):
            world.act()
        answerable = world.located() if task == 2 else world.moved()
        if not answerable:
            continue  # nobody has carried anything (far enough) yet: another story
        question, place, support = rng.choice(answerable)
        world.ask(question, place, support)
        lines += world.lines
        asked += 1
    return "\n".join(lines) + "\n"


class _World:
    """People, places and things while a story is told."""

    def __init__(self, rng: random.Random, objects: bool):
        self.rng, self.objects = rng, objects
        self.lines = []
        self.where = {}  # person -> (place, line that told it)
        self.holder = {}  # object -> (person, line that told it)
        self.dropped = {}  # object -> line that told it last
        self.track = {}  # object -> places it has been, each with two lines that tell it: the taking, and a move

    def tell(self, sentence):
        self.lines.append(f"{len(self.lines) + 1} {sentence}")
        return len(self.lines)

    def ask(self, question, answer, support):
        self.tell(f"{question}\t{answer}\t{' '.join(map(str, sorted(set(support))))}")

    def act(self):
        person = self.rng.choice(PEOPLE)
        choices = ["move", "move"]
        held = [o for o, (who, _) in self.holder.items() if who == person]
        here = self.where.get(person, (None, 0))[0]
        free = [o for o in OBJECTS if o not in self.holder and (o not in self.track or self.track[o][-1][0] == here)]
        if self.objects and here and free:
            choices.append("take")
        if held:
            choices.append("drop")
        kind = self.rng.choice(choices)
        if kind == "move":
            place = self.rng.choice([p for p in PLACES if p != here])
            line = self.tell(f"{person} {self.rng.choice(MOVES)} the {place}.")
            self.where[person] = (place, line)
            for thing in held:
                self.track[thing].append((place, (self.holder[thing][1], line)))
        elif kind == "take":
            thing = self.rng.choice(free)
            line = self.tell(f"{person} {self.rng.choice(TAKES)} the {thing} there.")
            self.holder[thing] = (person, line)
            self.track[thing] = [*self.track.get(thing, [])[:-1], (here, (line, self.where[person][1]))]
        else:
            thing = self.rng.choice(held)
            line = self.tell(f"{person} {self.rng.choice(DROPS)} the {thing}.")
            del self.holder[thing]
            self.dropped[thing] = line

    def located(self):
        """Questions of task 2. Its place follows from who took or dropped the thing, and where that one went last."""
        questions = []
        for thing, places in self.track.items():
            place, (take, move) = places[-1]
            handled = take if thing in self.holder else self.dropped[thing]
            questions.append((f"Where is the {thing}?", place, (handled, move)))
        return questions

    def moved(self):
        """Questions of task 3: the same person took the thing and brought it to both places."""
        return [
            (f"Where was the {thing} before the {places[-1][0]}?", places[-2][0], (*places[-2][1], *places[-1][1]))
            for thing, places in self.track.items()
            if len(places) > 1 and places[-1][1][0] == places[-2][1][0]
        ]
