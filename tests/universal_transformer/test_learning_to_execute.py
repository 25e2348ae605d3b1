"""Learning to execute: the answers are what Python prints when it runs the programs."""

import collections
import contextlib
import dataclasses
import io
import random

import numpy as np
import pytest

from zoo.tasks import LearningToExecute
from zoo.tasks.learning_to_execute import PROBLEMS, VOCAB_SIZE, curriculum_level, decode, encode, problem


def execute(text):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(text, {"__builtins__": {"range": range, "print": print}})
    return out.getvalue().strip()


@pytest.mark.parametrize("name", ["program", "control", "addition"])
@pytest.mark.parametrize(("length", "nesting"), [(1, 1), (4, 3), (8, 25)])
def test_answers_are_what_python_prints(name, length, nesting):
    task = LearningToExecute(name, length, nesting)
    rng = random.Random(0)
    used = collections.Counter()
    for _ in range(300):
        text, answer = problem(rng, name, length, nesting)
        assert execute(text) == answer
        assert len(encode(text)) <= task.source_length and len(encode(answer)) <= task.target_length
        used.update(word for word in ("+", "-", "*", "if", "for", "=") if word in text)
    if name != "addition":
        assert used["if"] and used["for"] and used["="] and bool(used["*"]) == (name == "program")


def test_memorisation():
    for name, solve in (("copy", lambda s: s), ("double", lambda s: s + s), ("reverse", lambda s: s[::-1])):
        batch = LearningToExecute(name, length=9, curriculum="mix").read(0, 0, range(50), 50)
        for inputs, targets in zip(batch.inputs, batch.targets):
            assert decode(targets) == solve(decode(inputs))
        assert {len(decode(row)) for row in batch.inputs} == set(range(1, 10))


@pytest.mark.parametrize("name", PROBLEMS)
def test_rows_depend_on_seed_step_and_row_alone(name):
    task = LearningToExecute(name, steps_per_level=2)
    whole, part = task.read(3, 7, range(8), 8), task.read(3, 7, range(2, 5), 8)
    for a, b in zip(whole[:4], part[:4]):
        np.testing.assert_array_equal(a[2:5], b)
    assert not np.array_equal(whole.inputs, task.read(3, 8, range(8), 8).inputs)
    assert not np.array_equal(whole.inputs, task.read(4, 7, range(8), 8).inputs)
    assert whole.inputs.shape == (8, task.source_length) and whole.targets.shape == (8, task.target_length)
    assert whole.inputs.max() < VOCAB_SIZE
    np.testing.assert_array_equal(whole.lengths, (whole.inputs != 0).sum(1))
    np.testing.assert_array_equal(whole.mask, whole.targets != 0)


def test_curricula():
    rng = random.Random(0)

    def levels(curriculum, step, count=400):
        return collections.Counter(curriculum_level(rng, curriculum, step, 10, 3, 2) for _ in range(count))

    everything = {(a, b) for a in (1, 2, 3) for b in (1, 2)}
    assert set(levels("baseline", 0)) == {(3, 2)}
    assert [list(levels("naive", s)) for s in (0, 9, 10, 20, 30, 50, 999)] == [
        [(1, 1)], [(1, 1)], [(2, 1)], [(3, 1)], [(1, 2)], [(3, 2)], [(3, 2)]
    ]  # fmt: skip
    assert set(levels("mix", 0)) == everything
    combined = levels("combined", 0)
    assert set(combined) == everything and combined[1, 1] > 0.5 * 400  # half naive, a twelfth from mixing


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="did you mean 'program'"):
        LearningToExecute("programs")
    with pytest.raises(ValueError, match="nesting must be at most 25, got 26"):
        LearningToExecute(nesting=26)
    with pytest.raises(ValueError, match="length must be a positive integer, got 0"):
        dataclasses.replace(LearningToExecute(), length=0)
    with pytest.raises(ValueError, match="character '%'"):
        encode("5%2")
