"""Pointer chasing: every label is checked by following the arrows one at a time in plain Python."""

import jax
import numpy as np
import pytest

from zoo.tasks import ChainRoot, Hop


def draw(task, rows=64, seed=0):
    return jax.tree.map(np.asarray, jax.jit(task.batch, static_argnums=1)(jax.random.key(seed), rows))


@pytest.mark.parametrize("task", [ChainRoot(), ChainRoot(min_edges=8, max_edges=8)], ids=["train", "test"])
def test_chain_root_labels_are_what_following_the_arrows_gives(task):
    batch = draw(task)
    assert batch.inputs.shape == (64, task.slots, 2)
    seen = set()
    for inputs, targets, mask, length, depths in zip(*batch):
        assert mask.sum() == length and mask[:length].all()
        following = dict(inputs[:length].tolist())
        assert len(following) == length  # every node once
        roots = [node for node, after in following.items() if node == after]
        assert len(roots) == task.num_chains
        for node, target, depth in zip(inputs[:length, 0], targets, depths):
            steps = 0
            while following[node] != node:
                node, steps = following[node], steps + 1
            assert (target, depth) == (node, steps)
        seen.add(int(depths.max()))
    assert seen == set(range(task.min_edges, task.max_edges + 1))


def test_chain_root_tokens_stand_in_random_order():
    batch = draw(ChainRoot(min_edges=5), rows=400)
    first = batch.extra[:, 0]
    counts = np.bincount(first, minlength=6) / 400
    assert np.all(np.abs(counts - 1 / 6) < 5 * np.sqrt(5 / 36 / 400))  # five standard deviations


def test_hop_labels_are_what_following_the_arrows_gives():
    task = Hop()
    batch = draw(task)
    assert set(np.unique(batch.extra)) == {1, 2, 3, 4}
    for inputs, targets, hops in zip(batch.inputs, batch.targets, batch.extra):
        following = dict(inputs[:, :2].tolist())
        assert sorted(following) == sorted(following.values()) == list(range(8))
        assert np.all(inputs[:, 2] == hops - 1)
        for node, target, count in zip(inputs[:, 0], targets, hops):
            for _ in range(count):
                node = following[node]
            assert target == node
        node = 0
        for length in range(1, 9):  # one cycle through all nodes, so that fewer hops are always wrong
            node = following[node]
            assert (node == 0) == (length == 8)


def test_impossible_sizes_are_refused():
    with pytest.raises(ValueError, match="need 30 nodes, but num_nodes=27"):
        ChainRoot(max_edges=9)
    with pytest.raises(ValueError, match=r"min_edges must lie in 0\.\.max_edges=5, got 6"):
        ChainRoot(min_edges=6)
    with pytest.raises(ValueError, match="max_hops must be below num_nodes=8"):
        Hop(max_hops=8)
