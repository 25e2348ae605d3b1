"""N-gram heads: every form is the definition, in a model too; documents, padding and separators."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zoo
from zoo.layers import rising_lower_bounds, rising_pattern
from zoo.mixers import ngram_mean, ngram_weights
from zoo.models import SequenceClassifier, with_ngram_heads

TOKENS = jnp.array([[0, 1, 0, 1, 1, 1, 0, 2, 2, 2, 0, 1], [2, 0, 0, 0, 0, 1, 2, 0, 0, 2, 0, 0]])
RESET = jnp.zeros((2, 12), bool).at[0, 5].set(True).at[1, 0].set(True)


def test_weights_by_hand():
    """0 1 0 1: after the second 0 comes what came after the first; the n-gram that ends one step before does not count."""
    weights = np.asarray(ngram_weights(TOKENS, 1)[0])
    assert np.flatnonzero(weights[2]).tolist() == [1] and np.flatnonzero(weights[3]).tolist() == [2]
    assert np.flatnonzero(weights[5]).tolist() == [2, 4]  # 1 stands at 1, 3 and 4; what follows 4 is 5 itself
    assert not weights[0].any() and not weights[7].any()
    pairs = np.asarray(ngram_weights(TOKENS, 2)[0])
    assert np.flatnonzero(pairs[3]).tolist() == [2] and np.flatnonzero(pairs[11]).tolist() == [2, 4]


def naive(tokens, order, reset, pad):
    weights = np.zeros((len(tokens), len(tokens)))
    start = 0
    for i in range(len(tokens)):
        start = i if reset[i] else start
        for j in range(start + order, i):
            same = all(tokens[j - 1 - r] == tokens[i - r] for r in range(order))
            weights[i, j] = same and pad not in tokens[j - order : j + 1]
    return weights / np.maximum(weights.sum(axis=1, keepdims=True), 1)


@pytest.mark.parametrize(("order", "pad"), [(1, None), (2, 0), (3, None)])
def test_sorted_quadratic_and_definition_agree(order, pad):
    x = jax.random.normal(jax.random.key(0), (2, 12, 3))
    want = [naive(np.asarray(t), order, np.asarray(r), pad) for t, r in zip(TOKENS, RESET)]
    np.testing.assert_allclose(ngram_weights(TOKENS, order, reset=RESET, pad=pad), want, rtol=1e-6)
    head = np.einsum("bij,bjd->bid", want, x)
    for options in ({"method": "sorted"}, {"method": "quadratic"}, {"window": 12, "method": "sorted"}):
        mean = functools.partial(ngram_mean, order=order, vocab_size=3, reset=RESET, pad=pad, **options)
        got, _ = jax.jit(mean)(x, TOKENS)
        np.testing.assert_allclose(got, head, atol=1e-5)


def test_rows_without_a_match_have_finite_gradients():
    x = jnp.ones((1, 4, 2))
    tokens = jnp.arange(4)[None]
    for method in ("sorted", "quadratic"):
        mean = functools.partial(ngram_mean, tokens=tokens, order=1, vocab_size=4, method=method)
        gradient = jax.jit(jax.grad(lambda x, mean=mean: mean(x)[0].sum()))(x)
        assert np.all(np.asarray(gradient) == 0)


@pytest.mark.parametrize("window", [None, 4])
def test_a_model_with_heads_decodes_as_it_reads(window):
    """Table and window; heads between layers that are scanned over; packed documents."""
    fields = with_ngram_heads(
        {1: 1, 2: 2}, pattern=("lru",), depth=2, mlp="gelu", vocab_size=None if window else 3, window=window
    )
    assert [s if isinstance(s, str) else s["name"] for s in fields["pattern"]] == [
        "lru",
        "ngram_head",
        "ngram_head",
        "lru",
    ]
    assert fields["mlp"] == ("gelu", "none", "none", "gelu")
    model = zoo.LanguageModel(vocab_size=3, dim=4, remat=True, **fields)
    assert zoo.create(zoo.describe(model)) == model
    params = jax.jit(model.init)(jax.random.key(0), TOKENS)
    call = jax.jit(model.apply)
    y, last = call(params, TOKENS, reset=RESET)
    state, steps = model.initial_state(2), []
    for t in range(12):
        step, state = call(params, TOKENS[:, t : t + 1], state, reset=RESET[:, t : t + 1])
        steps.append(step)
    np.testing.assert_allclose(jnp.concatenate(steps, axis=1), y, atol=2e-5)
    assert jax.tree.map(jnp.shape, state) == jax.tree.map(jnp.shape, last)
    alone, _ = call(params, TOKENS[:1, 5:])
    np.testing.assert_allclose(y[:1, 5:], alone, atol=2e-5)


def test_a_classifier_hands_on_its_tokens_and_features_have_none():
    fields = with_ngram_heads({0: 1}, pattern=("lru",), mlp="none", vocab_size=3)
    model = SequenceClassifier(num_outputs=2, dim=4, vocab_size=3, **fields)
    key = jax.random.key(0)
    assert jax.eval_shape(model.init_with_output, key, TOKENS)[0].shape == (2, 2)
    with pytest.raises(ValueError, match="tokens"):
        jax.eval_shape(SequenceClassifier(num_outputs=2, dim=4, **fields).init, key, jnp.ones((2, 5, 3)))


def test_what_cannot_be_is_refused(as_users_see_it):
    x = jnp.ones((1, 4, 2))
    tokens = jnp.zeros((1, 4), jnp.int32)
    for wrong, word in (
        ({"order": 0, "vocab_size": 3}, "order"),
        ({"order": 1}, "vocab_size"),
        ({"order": 4, "vocab_size": 50}, "window"),
        ({"order": 1, "window": 0}, "window"),
        ({"order": 1, "vocab_size": 3, "method": "hashed"}, "method"),
    ):
        with pytest.raises(ValueError, match=word):
            ngram_mean(x, tokens, **wrong)
    with pytest.raises(ValueError, match="tokens"):
        ngram_mean(x, tokens[:, :3], order=1, vocab_size=3)
    with pytest.raises(ValueError, match="index 3"):
        with_ngram_heads({3: 1}, pattern=("lru",), depth=2, vocab_size=3)
    with pytest.raises(ValueError, match="order"):
        with_ngram_heads({1: 0}, pattern=("lru",), depth=2, vocab_size=3)


def test_lower_bounds_rise_from_0():
    bounds = rising_lower_bounds(jnp.zeros((4, 2)))
    np.testing.assert_allclose(bounds[:, 0], [0, 0.25, 0.5, 0.75], atol=1e-6)
    assert [spec["lower_bound"] for spec in rising_pattern({"name": "hgrn"}, 4)] == [0, 0.25, 0.5, 0.75]
    with pytest.raises(ValueError, match="lower_bound"):
        jax.eval_shape(zoo.create("hgrn", dim=4, lower_bound=1.0).init, jax.random.key(0), jnp.ones((1, 2, 4)))
