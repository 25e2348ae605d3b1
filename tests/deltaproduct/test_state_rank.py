"""The effective rank counts directions, whatever their scale."""

import jax
import numpy as np
import pytest

import zoo
from zoo.analysis import effective_rank, rank_along_sequence


def test_effective_rank_counts_equal_directions_and_hardly_counts_small_ones(as_users_see_it):
    states = np.zeros((4, 3, 5))
    states[1] = np.eye(3, 5)
    states[2] = 7 * np.diag([1, 1, 0]) @ np.eye(3, 5)
    states[3] = np.diag([3, 1, 1e-9]) @ np.eye(3, 5)
    share = np.array([0.75, 0.25])
    np.testing.assert_allclose(effective_rank(states), [0, 3, 2, np.exp(-np.sum(share * np.log(share)))], atol=1e-5)
    assert np.isfinite(jax.grad(lambda s: effective_rank(s).sum())(states[2] + 0.1)).all()
    with pytest.raises(ValueError, match="at least two axes"):
        effective_rank(np.ones(3))


def test_ranks_along_a_sequence_are_those_of_the_states():
    model = zoo.LanguageModel(
        vocab_size=7, dim=8, depth=2, pattern=({"name": "deltaproduct", "heads": 2, "head_dim": 3},), mlp="none"
    )
    tokens = jax.random.randint(jax.random.key(0), (2, 10), 0, 7)
    params = jax.jit(model.init)(jax.random.key(1), tokens)
    ranks = jax.jit(lambda p, t: rank_along_sequence(model, p, t, every=3)[1])(params, tokens)
    assert ranks.shape == (3, 2, 2, 2)  # after 3, 6 and 9 tokens
    _, state = jax.jit(model.apply)(params, tokens[:, :6])
    memory = state.layers[0].memory  # [layers, rows, heads, K, V], as equal layers are scanned
    np.testing.assert_allclose(ranks[1], effective_rank(memory.reshape(2, 2, 2, 3, 6)), rtol=1e-4)
    assert ranks.min() >= 1 and ranks.max() <= 3 + 1e-5
