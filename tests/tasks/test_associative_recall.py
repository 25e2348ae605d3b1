"""Recall by content: targets follow from the inputs alone, by a loop in Python."""

import jax
import numpy as np
import pytest

from zoo.tasks import AssociativeRecall, HopRecall


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
    ],
)
def test_impossible_sizes_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()
