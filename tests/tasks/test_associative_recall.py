"""Recall by content: targets follow from the inputs alone, by a loop in Python."""

import jax
import numpy as np
import pytest

from zoo.tasks import AssociativeRecall, HopRecall, PairRecall


def rows(task, count=16):
    return jax.tree.map(np.asarray, task.batch(jax.random.key(0), count))


def test_every_asked_key_has_the_value_that_stood_behind_it():
    task = AssociativeRecall(pairs=3, keys=5, values=4, time=20)
    batch = rows(task)
    for tokens, targets, mask in zip(batch.inputs, batch.targets, batch.mask):
        shown = dict(zip(tokens[:6:2], tokens[1:6:2]))
        assert len(shown) == 3 and all(1 <= k <= 5 < v < task.vocab_size for k, v in shown.items())
        assert mask[:6].sum() == 0 and mask.sum() == 3
        assert sorted(tokens[mask]) == sorted(shown)
        assert [shown[k] for k in tokens[mask]] == list(targets[mask])
        assert not tokens[6:][~mask[6:]].any(), "fillers between"


@pytest.mark.parametrize("every", [True, False])
def test_a_pair_is_asked_for_at_the_end_and_where_its_key_stood_before(every):
    task = PairRecall(symbols=8, time=16, every=every)
    batch = rows(task)
    for tokens, targets, mask in zip(batch.inputs, batch.targets, batch.mask):
        assert tokens[0] == 8 and all(tokens[1:-1:2] < 4) and all((tokens[2:-1:2] >= 4) & (tokens[2:-1:2] < 8))
        value, asked = {}, np.zeros(16, bool)
        for t in (*range(1, 15, 2), 15):
            asked[t] = tokens[t] in value and (every or t == 15)
            if t < 15:
                assert value.setdefault(tokens[t], tokens[t + 1]) == tokens[t + 1], "a key has one value"
        assert asked[15] and np.array_equal(asked, mask)
        assert len(set(value.values())) == len(value), "a value has one key"
        assert [value[k] for k in tokens[mask]] == list(targets[mask])


def test_what_the_last_chunk_gives_away():
    task = PairRecall(symbols=8, time=32)
    batch = rows(task, 4000)
    for chunk in (8, 16):
        score = 0.0
        for tokens, targets in zip(batch.inputs, batch.targets):
            seen = {tokens[t - 1]: tokens[t] for t in range(32 - chunk, 31) if tokens[t] >= 4}
            score += tokens[-1] in seen or (targets[-1] not in seen.values()) / (4 - len(seen))
        assert task.bound_within(chunk) == pytest.approx(score / 4000, abs=0.02)
    assert task.bound_within(32) == pytest.approx(1.0)


@pytest.mark.parametrize("hops", [1, 3])
def test_hops_lead_to_what_followed_the_last_occurrence(hops):
    batch = rows(HopRecall(hops=hops, symbols=3, time=15))
    for tokens, targets, mask in zip(batch.inputs, batch.targets, batch.mask):
        for i in range(15):
            place = i
            for _ in range(hops):
                earlier = [] if place is None else [m for m in range(place) if tokens[m] == tokens[place]]
                place = earlier[-1] + 1 if earlier else None
            assert mask[i] == (place is not None)
            if place is not None:
                assert targets[i] == tokens[place]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: AssociativeRecall(pairs=5, keys=4), "different keys"),
        (lambda: AssociativeRecall(pairs=4, time=11), "at least 3"),
        (lambda: HopRecall(hops=0), "hops must be"),
        (lambda: PairRecall(symbols=5), "symbols must be an even"),
        (lambda: PairRecall(time=7), "time must be an even"),
        (lambda: PairRecall(time=16).bound_within(5), "does not divide"),
    ],
)
def test_impossible_sizes_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()
