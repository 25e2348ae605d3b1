"""Generation: the compiled loop equals the obvious slow loop, whatever the batch."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zoo
from zoo.decoding import Sampling, beam_search, generate, left_pad, sample

VOCABULARY = 7


@pytest.fixture(scope="module")
def language_model():
    model = zoo.LanguageModel(vocab_size=VOCABULARY, dim=8, pattern=("lru",), depth=2, positions="sinusoidal")
    params = jax.jit(model.init)(jax.random.key(1), jnp.zeros((1, 3), jnp.int32))
    return model, jax.tree.map(lambda p: 1.5 * p, params)


@pytest.fixture(scope="module")
def logits_of(language_model):
    model, params = language_model
    apply = jax.jit(lambda tokens: model.apply(params, tokens)[0][0, -1])
    return lambda tokens: np.asarray(apply(jnp.asarray([tokens])))


def test_greedy_equals_recomputing_everything_for_every_token(language_model, logits_of):
    prompts = [[1, 2, 3], [4], [5, 6]]
    out = generate(*language_model, prompts, max_new_tokens=4, temperature=0)
    for prompt, got, log_probs in zip(prompts, out.tokens, out.log_probs):
        tokens = list(prompt)
        for expected_log_prob in log_probs:
            logits = logits_of(tokens)
            tokens.append(int(np.argmax(logits)))
            assert np.isclose(expected_log_prob, jax.nn.log_softmax(logits)[tokens[-1]], atol=1e-5)
        assert got.tolist() == tokens[len(prompt) :]


def test_a_rows_samples_depend_on_its_own_key_alone(language_model):
    keys = jax.random.split(jax.random.key(5), 3)
    prompts = [[1, 2, 3], [4], [5, 6]]
    together = generate(*language_model, prompts, max_new_tokens=6, key=keys).tokens
    for i, prompt in enumerate(prompts):
        alone = generate(*language_model, [prompt], max_new_tokens=6, key=keys[i : i + 1]).tokens
        assert np.array_equal(alone[0], together[i])
    backwards = generate(*language_model, prompts[::-1], max_new_tokens=6, key=keys[::-1]).tokens
    assert np.array_equal(backwards[::-1], together)


def test_stop_token_ends_a_row_and_the_rest_is_padding(language_model):
    keys = jax.random.split(jax.random.key(0), 8)
    free = generate(*language_model, [[1]] * 8, max_new_tokens=12, key=keys)
    out = generate(*language_model, [[1]] * 8, max_new_tokens=12, key=keys, stop_token=3, pad_token=6)
    assert np.any(np.asarray(out.lengths) < 12)
    for row, length, before, log_probs in zip(out.tokens, out.lengths, free.tokens, out.log_probs):
        n = int(length)
        assert np.array_equal(row[:n], before[:n]), "stopping changes nothing before the stop"
        assert 3 not in row[: n - 1].tolist()
        assert n == 12 or row[n - 1] == 3
        assert np.all(row[n:] == 6)
        assert np.all(log_probs[n:] == 0)


def test_right_padded_arrays_equal_lists(language_model):
    padded = jnp.array([[1, 2, 3], [4, 0, 0]])
    a = generate(*language_model, padded, lengths=[3, 1], max_new_tokens=3, temperature=0).tokens
    b = generate(*language_model, [[1, 2, 3], [4]], max_new_tokens=3, temperature=0).tokens
    assert np.array_equal(a, b)


def test_generation_goes_on_from_a_returned_state(language_model):
    model, params = language_model
    whole = generate(model, params, [[1, 2]], max_new_tokens=6, temperature=0)
    first = generate(model, params, [[1, 2]], max_new_tokens=3, temperature=0)
    # The state has read all tokens of the first call; its next token is what the model says after the last of them.
    second = generate(model, params, whole.tokens[:, 3:4], max_new_tokens=2, temperature=0, state=first.state)
    assert np.array_equal(second.tokens[0], whole.tokens[0, 4:])


@pytest.mark.parametrize(
    ("how", "allowed"),
    [
        (Sampling(), {0, 1, 2, 3}),
        (Sampling(top_k=2), {0, 1}),
        (Sampling(top_p=0.6), {0, 1}),
        (Sampling(top_p=0.5), {0}),
        (Sampling(min_p=0.3), {0, 1}),
        (Sampling(temperature=0), {0}),
        (Sampling(temperature=0.5, min_p=0.3), {0, 1}),
        (Sampling(temperature=0.5, min_p=0.4), {0}),
        (Sampling(top_k=3, top_p=0.95), {0, 1, 2}),
    ],
)
def test_filters_keep_the_right_tokens(how, allowed):
    logits = jnp.log(jnp.array([0.5, 0.3, 0.12, 0.08]))[jnp.array([0, 1, 2, 3])]
    keys = jax.random.split(jax.random.key(3), 600)
    drawn = np.asarray(sample(keys, jnp.tile(logits, (600, 1)), how))
    assert set(drawn.tolist()) == allowed


def test_samples_follow_the_distribution():
    p = np.array([0.1, 0.6, 0.3])
    drawn = np.asarray(sample(jax.random.split(jax.random.key(0), 20000), jnp.tile(jnp.log(p), (20000, 1))))
    shares = np.bincount(drawn, minlength=3) / 20000
    assert np.all(np.abs(shares - p) < 4 * np.sqrt(p * (1 - p) / 20000))


def test_beam_search_as_wide_as_all_sequences_finds_the_best(language_model, logits_of):
    stop, length = 2, 2
    finished = {}
    for tokens in itertools.chain([(stop,)], itertools.product(range(VOCABULARY), repeat=length)):
        if stop in tokens[:-1]:
            continue
        total = 0.0
        for i, token in enumerate(tokens):
            total += float(jax.nn.log_softmax(logits_of([1, *tokens[:i]]))[token])
        finished[tokens] = total / ((5 + len(tokens)) / 6) ** 0.6
    best = max(finished, key=finished.get)
    beams = beam_search(*language_model, jnp.array([[1]]), beam_size=VOCABULARY, max_new_tokens=length,
                        stop_token=stop, length_penalty=0.6)  # fmt: skip
    n = int(beams.lengths[0, 0])
    assert tuple(beams.tokens[0, 0, :n].tolist()) == best
    assert np.isclose(beams.scores[0, 0], finished[best], atol=1e-5)
    assert np.all(np.diff(beams.scores[0]) <= 0)


def test_a_beam_of_one_is_greedy(language_model):
    prompts = jnp.array([[1, 2], [3, 4], [5, 5]])
    greedy = generate(*language_model, prompts, max_new_tokens=5, temperature=0, stop_token=2)
    beams = beam_search(*language_model, prompts, beam_size=1, max_new_tokens=5, stop_token=2)
    assert np.array_equal(beams.tokens[:, 0], greedy.tokens)
    assert np.allclose(beams.log_probs[:, 0], jnp.sum(greedy.log_probs, axis=1), atol=1e-5)


@pytest.mark.parametrize("bridge", ["state", "attention"])
def test_an_encoder_decoder_is_decoded_row_by_row_whatever_the_padding(bridge):
    model = zoo.EncoderDecoder(source_vocab=5, target_vocab=6, dim=8, bridge=bridge, reverse_source=True)
    source = jnp.array([[1, 2, 3, 4], [2, 3, 0, 0]])
    lengths = jnp.array([4, 2])
    start = jnp.zeros((2, 1), jnp.int32)
    params = jax.jit(model.init)(jax.random.key(0), source, start)
    search = {"beam_size": 3, "max_new_tokens": 4, "stop_token": 5}
    both = beam_search(model, params, start, source=source, source_lengths=lengths, **search)
    alone = beam_search(model, params, start[:1], source=source[1:, :2], **search)
    assert np.array_equal(both.tokens[1], alone.tokens[0])
    assert np.allclose(both.scores[1], alone.scores[0], atol=1e-5)
    state = model.apply(params, source, lengths, method="encode")
    greedy = generate(model, params, start, max_new_tokens=4, temperature=0, stop_token=5, state=state, method="decode")
    one = beam_search(model, params, start, source=source, source_lengths=lengths, **{**search, "beam_size": 1})
    assert np.array_equal(one.tokens[:, 0], greedy.tokens)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"prompts": [[1], []]}, "at least one token"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"temperature": -1.0}, "temperature"),
        ({"top_p": 1.5}, "top_p"),
        ({"top_k": 0}, "top_k"),
        ({"key": None}, "key"),
        ({"key": jax.random.split(jax.random.key(0), 3)}, "one per prompt"),
        ({"prompts": jnp.ones((1, 2))}, "integer"),
    ],
)
def test_wrong_arguments_say_what_would_be_right(language_model, change, words, as_users_see_it):
    arguments = {"prompts": [[1], [2, 3]], "max_new_tokens": 2, "key": jax.random.key(0), **change}
    with pytest.raises((ValueError, TypeError), match=words):
        generate(*language_model, arguments.pop("prompts"), **arguments)


def test_left_pad():
    tokens, start = left_pad([[1, 2, 3], [4]])
    assert tokens.tolist() == [[1, 2, 3], [0, 0, 4]]
    assert start.tolist() == [0, 2]
