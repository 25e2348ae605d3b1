"""Learning to execute (Zaremba and Sutskever 2014): read a short Python program by characters, write what it prints.

How hard a program is, is set by the number of digits of its integers (``length``) and by how many operations are
combined (``nesting``)::

    f=8584
    for x in range(8):f+=920
    b=(1500+f)
    print((b+7567))        ->  25011

Beside full programs there are the subsets used since (Santoro et al. 2018; Dehghani et al. 2018): only control
statements, only addition, and three memorisation problems on plain digits.
"""

import dataclasses
import math
import random

import numpy as np

from zoo.checks import check_choice, check_positive
from zoo.tasks.base import Batch, HostTask

PAD, END = 0, 1  # PAD also starts the decoder
CHARACTERS = "0123456789+-*=()<>: \nabcdefghijklmnopqrstuvwxyz"
VOCAB_SIZE = len(CHARACTERS) + 2
_NUMBER = {character: i for i, character in enumerate(CHARACTERS, start=END + 1)}

OPERATIONS = {
    "program": ("add", "subtract", "multiply", "assign", "if", "for"),
    "control": ("assign", "if", "for"),
}
MEMORISATION = {"copy": lambda text: text, "double": lambda text: text + text, "reverse": lambda text: text[::-1]}
PROBLEMS = (*OPERATIONS, "addition", *MEMORISATION)
CURRICULA = ("baseline", "naive", "mix", "combined")


def encode(text: str) -> list[int]:
    """Character numbers of ``text``, with END; raises ValueError for a character outside CHARACTERS."""
    unknown = set(text) - set(CHARACTERS)
    if unknown:
        raise ValueError(f"character {min(unknown)!r} is not one of {CHARACTERS!r}")
    return [*(_NUMBER[c] for c in text), END]


def decode(tokens) -> str:
    """Text of character numbers up to the first END; padding is left out."""
    text = []
    for token in map(int, tokens):
        if token == END:
            break
        if token != PAD:
            text.append(CHARACTERS[token - END - 1])
    return "".join(text)


def program(rng: random.Random, length: int, nesting: int, operations: tuple[str, ...]) -> tuple[str, str]:
    """A random program and what it prints.

    ``nesting`` times an operation is applied to earlier results, or to fresh integers below 10^``length``; all results
    that are left over are not used, and the last one is printed.
    """
    lines, pool, names = [], [], list("abcdefghijklmnopqrstuvwyz")
    rng.shuffle(names)

    def number():
        value = rng.randrange(1, 10**length)
        return str(value), value

    def operand():
        return pool.pop(rng.randrange(len(pool))) if pool and rng.random() < 0.75 else number()

    for _ in range(nesting):
        operation = rng.choice(operations)
        (a, a_value) = operand()
        if operation in ("add", "subtract"):
            b, b_value = operand()
            sign = "+" if operation == "add" else "-"
            pool.append((f"({a}{sign}{b})", a_value + b_value if operation == "add" else a_value - b_value))
        elif operation == "multiply":
            factor = rng.randint(1, 4 * length)
            pool.append((f"({a}*{factor})", a_value * factor))
        elif operation == "if":
            (b, b_value), (c, c_value), (d, d_value) = operand(), operand(), number()
            larger = rng.random() < 0.5
            condition = c_value > d_value if larger else c_value < d_value
            pool.append((f"({a} if {c}{'>' if larger else '<'}{d} else {b})", a_value if condition else b_value))
        elif operation == "assign":
            name = names.pop()
            lines.append(f"{name}={a}")
            pool.append((name, a_value))
        else:
            name, times = names.pop(), rng.randint(1, 4 * length)
            b, b_value = operand()
            sign = rng.choice("+-")
            lines += [f"{name}={a}", f"for x in range({times}):{name}{sign}={b}"]
            pool.append((name, a_value + times * (b_value if sign == "+" else -b_value)))
    text, value = pool[-1]
    return "\n".join([*lines, f"print({text})"]), str(value)


def problem(rng: random.Random, name: str, length: int, nesting: int) -> tuple[str, str]:
    """Question and answer of one of PROBLEMS; only programs and control use ``nesting``."""
    check_choice("problem", name, PROBLEMS)
    if name in OPERATIONS:
        return program(rng, length, nesting, OPERATIONS[name])
    if name == "addition":
        a, b = (rng.randrange(10 ** (length - 1), 10**length) for _ in range(2))
        return f"print(({a}+{b}))", str(a + b)
    digits = "".join(rng.choices("0123456789", k=length))
    return digits, MEMORISATION[name](digits)


def curriculum_level(
    rng: random.Random, curriculum: str, step: int, steps_per_level: int, length: int, nesting: int
) -> tuple[int, int]:
    """Length and nesting of one example.

    baseline: always the target (``length``, ``nesting``). naive: length 1, 2, ..., ``length`` with nesting 1, then
    again with nesting 2 and so on, each level for ``steps_per_level`` steps. mix: both uniform up to their targets.
    combined: mix or naive, by the flip of a coin.
    """
    check_choice("curriculum", curriculum, CURRICULA)
    if curriculum == "baseline":
        return length, nesting
    if curriculum == "mix" or (curriculum == "combined" and rng.random() < 0.5):
        return rng.randint(1, length), rng.randint(1, nesting)
    level = min(step // steps_per_level, length * nesting - 1)
    return level % length + 1, level // length + 1


@dataclasses.dataclass(frozen=True)
class LearningToExecute(HostTask):
    """Programs or digit strings, written on the host; row r of step n depends on (seed, n, r) alone.

    Batch: ``inputs`` int32 [B, source_length] characters of the question, END, padding; ``lengths`` with the END;
    ``targets`` [B, target_length] characters of the answer, END, padding; ``mask`` True up to the END.

    Attributes:
      problem: "program", "control", "addition", or the memorisation problems "copy", "double", "reverse".
      length: digits of the integers, or of the string to memorise.
      nesting: operations in a program, at most 25 (every assignment takes a letter).
      curriculum: "baseline", "naive", "mix" or "combined" (see ``curriculum_level``).
      steps_per_level: training steps at each level of the naive curriculum.
    """

    problem: str = "program"
    length: int = 4
    nesting: int = 3
    curriculum: str = "combined"
    steps_per_level: int = 1000

    def __post_init__(self):
        check_choice("problem", self.problem, PROBLEMS)
        check_choice("curriculum", self.curriculum, CURRICULA)
        for name in ("length", "nesting", "steps_per_level"):
            check_positive(name, getattr(self, name))
        if self.nesting > 25:
            raise ValueError(f"nesting must be at most 25, got {self.nesting}")

    @property
    def source_length(self) -> int:
        """Width of ``inputs``: every operation writes at most 24 characters and four integers."""
        if self.problem in MEMORISATION:
            return self.length + 1
        operations = self.nesting if self.problem in OPERATIONS else 1
        return 8 + operations * (24 + 4 * (self.length + 1))

    @property
    def target_length(self) -> int:
        """Width of ``targets``: no operation multiplies the largest value by more than 4 length + 1."""
        if self.problem in MEMORISATION:
            return self.length * (2 if self.problem == "double" else 1) + 1
        operations = self.nesting if self.problem in OPERATIONS else 1
        return 3 + self.length + math.floor(operations * math.log10(4 * self.length + 1))

    def read(self, seed: int, step: int, rows: range, batch_size: int) -> Batch:
        inputs = np.zeros((len(rows), self.source_length), np.int32)
        targets = np.zeros((len(rows), self.target_length), np.int32)
        lengths = np.zeros(len(rows), np.int32)
        for i, row in enumerate(rows):
            rng = random.Random(f"{seed} {step} {row}")
            level = curriculum_level(rng, self.curriculum, step, self.steps_per_level, self.length, self.nesting)
            question, answer = (encode(text) for text in problem(rng, self.problem, *level))
            inputs[i, : len(question)] = question
            targets[i, : len(answer)] = answer
            lengths[i] = len(question)
        return Batch(inputs, targets, targets != PAD, lengths)
