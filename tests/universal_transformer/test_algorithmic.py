"""Copy, reverse and addition, checked with Python's own strings and integers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo.tasks import Algorithmic
from zoo.tasks.algorithmic import END, FIRST_DIGIT, PAD, PLUS, add_digits


def read(tokens):
    """Tokens up to END as text; the rest must be padding."""
    tokens = tokens.tolist()
    end = tokens.index(END)
    assert set(tokens[end + 1 :]) <= {PAD}
    return "".join("+" if t == PLUS else str(t - FIRST_DIGIT) for t in tokens[:end])


def solve(problem, source):
    if problem == "copy":
        return source
    if problem == "reverse":
        return source[::-1]
    a, b = (int(number[::-1]) for number in source.split("+"))
    return str(a + b)[::-1]


@pytest.mark.parametrize(("problem", "max_length"), [("copy", 5), ("reverse", 5), ("addition", 5), ("addition", 90)])
def test_answers_are_right(problem, max_length):
    task = Algorithmic(problem, max_length=max_length)
    batch = jax.tree.map(np.asarray, jax.jit(task.batch, static_argnums=1)(jax.random.key(1), 300))
    assert batch.inputs.shape == (300, max_length + 1) and batch.targets.shape == (300, task.target_length)
    assert batch.inputs.max() < task.vocab_size
    lengths = set()
    for inputs, targets, mask, length in zip(*batch[:4]):
        source, answer = read(inputs), read(targets)
        assert answer == solve(problem, source)
        assert len(source) + 1 == length and mask.sum() == len(answer) + 1
        lengths.add(len(source))
        if problem == "addition":
            assert all(not number.endswith("0") for number in source.split("+"))
    if max_length == 5:
        assert lengths == set(range(3 if problem == "addition" else 1, 6))


def test_a_carry_runs_through_all_digits():
    assert add_digits(jnp.array([9, 9, 9, 0]), jnp.array([9, 0, 0, 0])).tolist() == [8, 0, 0, 1]


def test_length_generalisation_uses_the_same_task_with_other_lengths():
    longer = dataclasses.replace(Algorithmic("reverse"), min_length=400, max_length=400)
    example = jax.jit(longer.example)(jax.random.key(0))
    assert example.inputs.shape == (401,) and example.lengths == 401


def test_impossible_sizes_are_refused():
    with pytest.raises(ValueError, match="min_length of addition must lie in 3"):
        Algorithmic("addition", min_length=2)
    with pytest.raises(ValueError, match="did you mean 'reverse'"):
        Algorithmic("reversal")
