"""CTC, n-gram models, the captioner, and the small parts of the Neural Turing Machine."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zoo
from zoo.decoding import ctc_best_path, ctc_prefix_beam_search
from zoo.layers import ctc_loss
from zoo.mixers import content_address, sharpen_address, shift_address, write_memory
from zoo.models import Captioner, fit_ngram, ngram_entropy, ngram_log_probs


def spelled(path):
    return tuple(label for label, _ in itertools.groupby(path) if label != 0)


def all_labellings(log_probs):
    """Probability of every labelling, by going through all alignments."""
    totals = {}
    for path in itertools.product(range(log_probs.shape[1]), repeat=log_probs.shape[0]):
        p = math.exp(sum(log_probs[t, label] for t, label in enumerate(path)))
        totals[spelled(path)] = totals.get(spelled(path), 0.0) + p
    return totals


def test_ctc_loss_sums_over_all_alignments():
    logits = jax.random.normal(jax.random.key(0), (4, 5, 3))
    labels = jnp.array([[1, 2], [1, 1], [2, 0], [0, 0]])
    counts, lengths = jnp.array([2, 2, 1, 0]), jnp.array([5, 5, 3, 4])
    losses = jax.jit(ctc_loss)(logits, lengths, labels, counts)
    for row in range(4):
        log_probs = np.asarray(jax.nn.log_softmax(logits[row, : lengths[row]]), np.float64)
        wanted = all_labellings(log_probs)[tuple(labels[row, : counts[row]].tolist())]
        assert np.isclose(float(losses[row]), -math.log(wanted), rtol=1e-4)
    too_short = ctc_loss(logits[:1], jnp.array([2]), labels[1:2], counts[1:2])  # 1, 1 needs three frames
    assert np.isfinite(float(too_short[0])) and float(too_short[0]) > 1e3


def test_best_path_merges_repeats_and_ignores_padding():
    classes = jnp.array([[0, 1, 1, 0, 1, 2], [2, 2, 2, 1, 1, 1]])
    labels, counts = jax.jit(ctc_best_path)(jax.nn.one_hot(classes, 3), jnp.array([6, 3]))
    assert labels.tolist() == [[1, 1, 2, 0, 0, 0], [2, 0, 0, 0, 0, 0]] and counts.tolist() == [3, 1]


def test_prefix_beam_search_is_exact_with_a_wide_beam_and_beats_the_best_path():
    log_probs = np.log(
        np.array([[0.6, 0.4], [0.6, 0.4]])
    )  # the best path is empty (0.36), the best labelling is "1" (0.64)
    assert ctc_best_path(jnp.asarray(log_probs)[None], jnp.array([2]))[1].tolist() == [0]
    assert ctc_prefix_beam_search(log_probs)[0][0] == (1,)
    log_probs = np.asarray(jax.nn.log_softmax(2 * jax.random.normal(jax.random.key(1), (5, 3))), np.float64)
    found = ctc_prefix_beam_search(log_probs, beam_size=1000)
    exact = all_labellings(log_probs)
    assert len(found) == len(exact)
    for labels, log_p in found:
        assert math.isclose(math.exp(log_p), exact[labels], rel_tol=1e-9)
    assert [p for _, p in found] == sorted((p for _, p in found), reverse=True)


def test_ngram_counts_and_witten_bell_by_hand():
    tokens = jnp.array([[0, 1, 0, 1, 0, 2]])
    model = fit_ngram(tokens, 3, 2)
    assert model.order == 2 and model.vocab_size == 3
    assert np.asarray(model.tables[0])[0].tolist() == [3, 2, 1]
    assert np.asarray(model.tables[1]).tolist() == [[0, 2, 1], [2, 0, 0], [0, 0, 0]]
    probs = np.exp(ngram_log_probs(model, jnp.array([[1, 0, 2, 2]])))[0]
    unigram = (np.array([3, 2, 1]) + 3 * np.full(3, 1 / 3)) / (6 + 3)
    np.testing.assert_allclose(probs[0], unigram, rtol=1e-5)
    np.testing.assert_allclose(probs[1], (np.array([2, 0, 0]) + 1 * unigram) / (2 + 1), rtol=1e-5)
    np.testing.assert_allclose(probs[2], (np.array([0, 2, 1]) + 2 * unigram) / (3 + 2), rtol=1e-5)
    np.testing.assert_allclose(probs[3], unigram, rtol=1e-5)  # 2 was never followed by anything
    backoff = np.exp(ngram_log_probs(model, jnp.array([[1, 0, 2, 2]]), smoothing="backoff", discount=0.5))[0]
    unigram = np.array([3, 2, 1]) / 6  # all seen: nothing to discount
    np.testing.assert_allclose(backoff[0], unigram, rtol=1e-5)
    np.testing.assert_allclose(backoff[1], [1.5 / 2, 0.25 * 2 / 3, 0.25 * 1 / 3], rtol=1e-5)
    np.testing.assert_allclose(backoff[2], [0.5 * 2 / 3, 1.5 / 3, 0.5 / 3], rtol=1e-5)


@pytest.mark.parametrize("smoothing", ["witten_bell", "backoff"])
def test_ngram_probabilities_sum_to_one_and_longer_contexts_help(smoothing):
    generator = np.random.default_rng(0)
    transition = generator.dirichlet(np.full(5, 0.3), size=(5, 5))  # a chain of order 2
    stream = [0, 1]
    for _ in range(6000):
        stream.append(generator.choice(5, p=transition[stream[-2], stream[-1]]))
    train, test = (jnp.asarray(part)[None] for part in (stream[:5000], stream[5000:]))
    models = [fit_ngram(train, 5, order) for order in (1, 2, 3)]
    entropies = [float(ngram_entropy(model, test, smoothing=smoothing)) for model in models]
    log_probs = ngram_log_probs(models[-1], test, smoothing=smoothing)
    np.testing.assert_allclose(np.exp(log_probs).sum(-1), 1, rtol=1e-5)
    truth = -np.mean([np.log(transition[a, b, c]) for a, b, c in zip(stream[5000:], stream[5001:], stream[5002:])])
    assert entropies[0] > entropies[1] > entropies[2] and abs(entropies[2] - truth) < 0.05
    with pytest.raises(ValueError, match="too large"):
        fit_ngram(test, 10_000, 3)


@pytest.mark.parametrize("mode", ["first_input", "initial_state"])
def test_captioner_reads_the_image_and_goes_on_like_a_language_model(mode):
    pattern = ("lru", "lru") if mode == "first_input" else ("lru", "window_mlp", "window_mlp")
    captioner = Captioner(vocab_size=6, dim=8, mode=mode, channels=(3,), pattern=pattern)
    images = jax.random.normal(jax.random.key(0), (3, 12, 12, 1))
    tokens = jax.random.randint(jax.random.key(1), (3, 5), 0, 6)
    params = jax.jit(captioner.init)(jax.random.key(2), images, tokens)
    apply = jax.jit(captioner.apply)
    logits = apply(params, images, tokens)
    others = apply(params, images.at[0].multiply(-1.0), tokens)
    assert np.array_equal(others[1:], logits[1:]), "another row's image changes this row"
    assert not np.allclose(others[0], logits[0], atol=1e-4), "the image changes nothing"
    start = jax.jit(lambda p, i: captioner.apply(p, i, method="encode"))(params, images)
    said = zoo.generate(
        captioner, params, jnp.zeros((3, 1), jnp.int32), max_new_tokens=4, temperature=0.0, state=start, method="decode"
    )
    shifted = jnp.concatenate([jnp.zeros((3, 1), jnp.int32), said.tokens], axis=1)  # five tokens: no new compilation
    greedy = jnp.argmax(apply(params, images, shifted)[:, :4], axis=-1)
    assert np.array_equal(said.tokens, greedy)


def test_captioner_says_what_it_reads(as_users_see_it):
    tokens = jnp.zeros((2, 3), jnp.int32)
    with pytest.raises(ValueError, match="reads features"):
        Captioner(vocab_size=6, dim=8).init(jax.random.key(0), jnp.zeros((2, 4, 4, 1)), tokens)
    with pytest.raises(ValueError, match="did you mean 'first_input'"):
        Captioner(vocab_size=6, dim=8, mode="first_inputs").init(jax.random.key(0), jnp.zeros((2, 4)), tokens)


def test_ntm_shift_moves_weight_forward_and_wraps_around():
    weights, shift = jnp.array([[0.0, 0.0, 1.0]]), jnp.array([[0.1, 0.2, 0.7]])  # offsets -1, 0, +1
    np.testing.assert_allclose(shift_address(weights, shift)[0], [0.7, 0.1, 0.2], rtol=1e-6)


def test_ntm_addresses_survive_empty_slots_and_sharp_heads():
    """Values and gradients stay finite for an all-zero memory and for sharpening that underflows."""
    memory, key = jnp.zeros((1, 3, 2)), jnp.ones((1, 2))

    def loss(memory, key):
        return jnp.sum(content_address(memory, key, jnp.full(1, 5.0)) ** 2)

    value, grads = jax.value_and_grad(loss, (0, 1))(memory, key)
    assert np.isclose(float(value), 1 / 3) and all(np.all(np.isfinite(g)) for g in grads)
    weights, gamma = jnp.full((1, 100), 0.01).at[0, 0].set(0.0), jnp.full(1, 30.0)
    sharp, pull = jax.vjp(sharpen_address, weights, gamma)
    np.testing.assert_allclose(sharp[0, 1:], 1 / 99, rtol=1e-5)
    assert all(np.all(np.isfinite(g)) for g in pull(jnp.arange(100.0)[None]))


def test_ntm_heads_erase_together_before_they_add():
    memory = jnp.ones((1, 2, 1))
    weights = jnp.array([[[1.0, 0.0], [1.0, 0.0]]])
    new = write_memory(memory, weights, jnp.array([[[0.5], [0.5]]]), jnp.array([[[2.0], [3.0]]]))
    np.testing.assert_allclose(new[0, :, 0], [0.25 + 5, 1.0])


def test_new_mixers_refuse_wrong_options(as_users_see_it):
    x = jnp.zeros((1, 2, 4))
    for name, options, word in (
        ("ntm", {"controller": "lstn"}, "did you mean 'lstm'"), ("ntm", {"shifts": 2}, "odd"),
        ("ntm", {"slots": 0}, "slots"), ("ntm", {"hidden_dim": 0}, "hidden_dim"), ("window_mlp", {"window": 0}, "window"),
        ("window_mlp", {"activation": "sine"}, "activation"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=word):
            zoo.create(name, dim=4, **options).init(jax.random.key(0), x)
