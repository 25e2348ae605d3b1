"""RegBench: automata are minimal and distinct up to names, strings are theirs, what is asked is what the truth says."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo.tasks import (
    AutomatonSampler,
    RegBench,
    dfa_accuracy,
    l1_distance,
    total_variation,
    truth_cross_entropy,
    truth_divergence,
)
from zoo.tasks.regbench import PAD, canonical, minimized, next_symbol_distribution, states_after

SAMPLER = AutomatonSampler(symbols=5, states=(4, 6), alphabet=(3, 5))
TASK = RegBench(SAMPLER, train=30, held_out=10, strings=(2, 4), lengths=(1, 5))


def language(table, length):
    """All strings of up to ``length`` symbols, with their probabilities."""
    found, now = {(): 1.0}, {((), 0): 1.0}
    for _ in range(length):
        later = {}
        for (word, state), p in now.items():
            symbols = np.flatnonzero(table[state] >= 0)
            for a in symbols:
                later[(*word, a), int(table[state, a])] = p / len(symbols)
        found |= {word: p for (word, _), p in later.items()}
        now = later
    return found


def test_sampled_automata_have_the_sizes_that_were_asked_for():
    raw = dataclasses.replace(SAMPLER, minimize=False).sample(np.random.default_rng(0), 500)
    edges = raw >= 0
    degree = edges.sum(axis=2)
    live = degree > 0
    assert live[:, 0].all() and set(np.unique(degree[live])) == {1, 2, 3}
    assert edges.any(axis=1).sum(axis=1).max() <= 5 and live.sum(axis=1).max() == 6
    targets = np.where(edges, raw, -2 - np.arange(5))
    assert all(len(set(row)) == 5 for table in targets[:50] for row in table), "two edges lead to one state"
    assert not (raw == np.arange(6)[:, None]).any(), "an edge leads to its own state"
    loops = dataclasses.replace(SAMPLER, minimize=False, self_loops=True).sample(np.random.default_rng(0), 200)
    assert (loops == np.arange(6)[:, None]).any()


def test_merging_equivalent_states_keeps_the_language_and_leaves_none():
    # states 1 and 3 are equivalent, and so are 2 and 4; 5 is out of reach
    table = np.full((1, 6, 3), -1, np.int8)
    table[0, 0, [0, 1]] = [1, 3]
    table[0, 1, 2], table[0, 3, 2] = 2, 4
    table[0, 2, 0], table[0, 4, 0] = 1, 1
    table[0, 5, 0] = 0
    small = canonical(minimized(table))[0]
    assert (small >= 0).any(axis=1).sum() == 3
    assert language(small, 5) == language(table[0], 5)


def test_names_of_states_do_not_matter():
    tables = dataclasses.replace(SAMPLER, states=(6, 6)).sample(np.random.default_rng(1), 40)
    order = np.concatenate([[0], 1 + np.random.default_rng(2).permutation(5)])
    renamed = np.full_like(tables, -1)
    renamed[:, order] = np.where(tables >= 0, order[np.maximum(tables, 0)], -1)
    assert not np.array_equal(renamed, tables)
    np.testing.assert_array_equal(canonical(renamed), tables)


def test_splits_share_no_automaton_and_what_is_held_out_stays():
    every = [dataclasses.replace(TASK, split=split).data().automata for split in ("train", "validation", "test")]
    assert [len(part) for part in every] == [30, 10, 10]
    assert len({table.tobytes() for part in every for table in part}) == 50
    larger = dataclasses.replace(TASK, train=60, split="test")
    assert all(np.array_equal(a, b) for a, b in zip(larger.data(), dataclasses.replace(TASK, split="test").data()))


@pytest.mark.parametrize("fresh", [False, True])
def test_rows_are_strings_of_the_automaton_and_the_truth_is_its(fresh):
    """The rows that are made on the host, and those that are made on the device."""
    tables = TASK.data().automata
    if fresh:
        task = dataclasses.replace(TASK, fresh=True)
        batch = jax.jit(task.batch, static_argnums=1)(jax.random.key(1), 12, TASK.data())
    else:
        batch = TASK.every_row(12)
    counts = set()
    for tokens, targets, mask, truth, states, number in zip(
        *map(np.asarray, (batch.inputs, batch.targets, batch.mask, *batch.extra)), strict=True
    ):
        whole = np.append(tokens, targets[-1])
        text = TASK.decode(whole)
        strings = text.split("|")
        counts.add(len(strings))
        assert all(1 <= len(s) <= 5 for s in strings)
        np.testing.assert_array_equal(TASK.encode(text), whole[: len(text)])
        state = 0
        for t, (token, target) in enumerate(zip(tokens, targets, strict=True)):
            if token == PAD:
                assert states[t] == -1 and not truth[t].any()
                continue
            state = 0 if token == TASK.separator else tables[number, state, token - 1]
            assert state >= 0 and states[t] == state
            wanted = np.flatnonzero(tables[number, state] >= 0) + 1
            np.testing.assert_allclose(truth[t][wanted], 1 / len(wanted), rtol=1e-6)
            assert truth[t].sum() == pytest.approx(1)
            assert mask[t] == (target not in (PAD, TASK.separator))
            assert not mask[t] or truth[t, target] > 0
        np.testing.assert_array_equal(states_after(jnp.asarray(tables[number]), jnp.asarray(tokens)), states)
    assert counts == {2, 3, 4}


def test_metrics_by_hand():
    truth = jnp.array([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    said = jnp.array([[0.2, 0.3, 0.5], [0.8, 0.2, 0.0], [0.9, 0.1, 0.0]])
    mask = jnp.array([True, True, False])
    assert float(dfa_accuracy(said, truth, mask)) == 0.5
    assert float(total_variation(said, truth, mask)) == pytest.approx((0.5 + 0.2) / 2)
    assert float(l1_distance(said, truth, mask)) == pytest.approx(0.5 + 0.2)
    entropy = float(truth_cross_entropy(said, truth, mask))
    assert entropy == pytest.approx((-0.5 * np.log(0.2 * 0.3) - np.log(0.8)) / 2, rel=1e-5)
    assert float(truth_divergence(said, truth, mask)) == pytest.approx(entropy - np.log(2) / 2, rel=1e-5)
    assert next_symbol_distribution(jnp.array([[1, -1], [0, 1]]), jnp.array([1, -1])).tolist() == [
        [0, 0.5, 0.5, 0],
        [0, 0, 0, 0],
    ]


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"alphabet": (2, 5)}, "alphabet"),
        ({"alphabet": (4, 6)}, "symbols"),
        ({"states": (3, 6)}, "states"),
        ({"edges": (0, 2)}, "edges"),
        ({"states": (6, 4)}, "states"),
    ],
)
def test_impossible_automata_are_refused(wrong, word):
    with pytest.raises(ValueError, match=word):
        dataclasses.replace(SAMPLER, **wrong)


def test_unknown_characters_splits_and_too_many_automata_are_refused():
    with pytest.raises(ValueError, match="'z'"):
        TASK.encode("abz")
    with pytest.raises(ValueError, match="split"):
        dataclasses.replace(TASK, split="dev")
    with pytest.raises(ValueError, match="found only"):
        AutomatonSampler(symbols=1, states=(2, 2), alphabet=(1, 1), edges=(1, 1)).distinct(2)
