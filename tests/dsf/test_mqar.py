"""Multi-query associative recall: every row follows from its definition, by a loop in Python; sizes; the law of the gaps."""

import dataclasses

import jax
import numpy as np
import pytest

from zoo.tasks import MultiQueryAssociativeRecall

SMALL = MultiQueryAssociativeRecall(vocab_size=33, time=32, pairs=5)


def rows(task, count=64, seed=0):
    return jax.tree.map(np.asarray, jax.jit(task.batch, static_argnums=1)(jax.random.key(seed), count))


def test_every_query_asks_for_the_value_that_stood_behind_its_key():
    batch = rows(SMALL)
    for tokens, targets, mask in zip(batch.inputs, batch.targets, batch.mask):
        keys, values = tokens[:10:2], tokens[1:10:2]
        assert len(set(keys)) == len(set(values)) == 5
        assert keys.min() >= 1 and keys.max() < 16 and values.min() >= 16 and values.max() < 33
        asked = np.flatnonzero(mask)
        assert len(asked) == 5 and asked.min() >= 10 and not (asked % 2).any()
        assert sorted(tokens[asked]) == sorted(keys)
        shown = dict(zip(keys, values))
        assert [shown[k] for k in tokens[asked]] == list(targets[asked])
        assert not tokens[10:][~mask[10:]].any() and not targets[~mask].any()


def test_all_keys_values_and_gaps_occur():
    batch = rows(SMALL, 512)
    assert set(np.unique(batch.inputs[:, :10:2])) == set(range(1, 16))
    assert set(np.unique(batch.inputs[:, 1:10:2])) == set(range(16, 33))
    assert batch.mask.any(axis=0)[10::2].all()


def test_near_gaps_are_as_much_likelier_as_the_power_law_says():
    """One pair: the share of the first gap is 1 / sum of g^(a - 1), here 0.38; 4096 rows give it to 0.03 at 4 sigma."""
    task = MultiQueryAssociativeRecall(vocab_size=18, time=16, pairs=1, power=0.01)
    weights = np.arange(1.0, 8) ** (0.01 - 1)
    shares = rows(task, 4096).mask[:, 2::2].mean(axis=0)
    np.testing.assert_allclose(shares, weights / weights.sum(), atol=0.031)


def test_random_fillers_leave_pairs_queries_and_answers_alone():
    plain, filled = rows(SMALL), rows(dataclasses.replace(SMALL, random_non_queries=True))
    fixed = plain.inputs > 0
    np.testing.assert_array_equal(filled.inputs[fixed], plain.inputs[fixed])
    np.testing.assert_array_equal(filled.targets, plain.targets)
    assert len(np.unique(filled.inputs[~fixed])) == 33


def test_a_pool_repeats_its_examples():
    batch = rows(dataclasses.replace(SMALL, pool=3), 64)
    assert len(np.unique(batch.inputs, axis=0)) == 3
    other = rows(dataclasses.replace(SMALL, pool=3), 64, seed=1)
    np.testing.assert_array_equal(np.unique(other.inputs, axis=0), np.unique(batch.inputs, axis=0))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"time": 31}, "time must be even, got 31"),
        ({"vocab_size": 32}, "vocab_size must be larger than time=32, got 32"),
        ({"pairs": 9}, r"time must be at least 4 \* pairs = 36, got 32"),
        ({"pairs": 0}, "pairs must be a positive integer"),
        ({"power": 0.0}, "power must be positive"),
        ({"pool": 0}, "pool must be a positive integer"),
    ],
)
def test_impossible_sizes_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(SMALL, **options)
