"""Selective copying and induction heads: targets follow from the inputs alone, by a loop in Python."""

import jax
import numpy as np
import pytest

from zoo.tasks import InductionHeads, SelectiveCopying


def rows(task, count=16):
    return jax.tree.map(np.asarray, task.batch(jax.random.key(0), count))


@pytest.mark.parametrize("task", [SelectiveCopying(time=20, items=4, symbols=3), SelectiveCopying(time=3, items=3)])
def test_the_markers_ask_for_the_symbols_in_their_order(task):
    batch = rows(task, 64)
    assert batch.inputs.shape == batch.targets.shape == (64, task.length)
    places = []
    for tokens, targets, mask in zip(batch.inputs, batch.targets, batch.mask):
        shown, asked = tokens[: task.time], tokens[task.time :]
        assert (asked == task.vocab_size - 1).all() and len(asked) == task.items
        assert shown.min() >= 0 and shown.max() <= task.symbols
        assert [t for t in shown if t] == list(targets[mask])
        assert mask.tolist() == [False] * task.time + [True] * task.items
        places.append(np.flatnonzero(shown))
    assert len({tuple(p) for p in places}) > 32 or task.items == task.time, "places vary from row to row"
    assert set(batch.targets[batch.mask]) == set(range(1, task.symbols + 1))


def test_the_size_of_the_paper_has_a_vocabulary_of_16():
    task = SelectiveCopying(time=4096, items=16, symbols=14)
    assert task.vocab_size == 16
    assert rows(task, 1).mask.sum() == 16


def test_the_answer_is_what_followed_the_special_token():
    task = InductionHeads(time=7, symbols=5)
    batch = rows(task, 128)
    seen = set()
    for tokens, targets, mask in zip(batch.inputs, batch.targets, batch.mask):
        special = np.flatnonzero(tokens == 5)
        assert len(special) == 2 and special[1] == 6 and special[0] <= 4
        assert mask.tolist() == [False] * 6 + [True]
        assert targets[mask] == tokens[special[0] + 1] < 5
        seen.add(int(special[0]))
    assert seen == {0, 1, 2, 3, 4}


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: SelectiveCopying(time=5, items=6), "items=6"),
        (lambda: SelectiveCopying(symbols=0), "symbols must be"),
        (lambda: InductionHeads(time=2), "at least 3"),
    ],
)
def test_impossible_sizes_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()
