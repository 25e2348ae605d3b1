"""Streams: scores in pieces equal those of one call, memory stays flat, bad streams are refused."""

import gc
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zoo

VOCAB = 11


def model(*pattern):
    return zoo.LanguageModel(vocab_size=VOCAB, dim=8, pattern=pattern, mlp="none")


MAMBA2 = {"name": "mamba2", "state_dim": 4, "head_dim": 4}
WINDOW = {"name": "attention", "heads": 2, "window": 8}
TOKENS = np.random.default_rng(0).integers(0, VOCAB, 45)


@pytest.fixture(scope="module")
def made():
    m = model(MAMBA2, WINDOW)
    return m, jax.jit(m.init)(jax.random.key(0), jnp.zeros((1, 3), jnp.int32))


def whole(m, params, tokens):
    logits, state = jax.jit(m.apply)(params, jnp.asarray(tokens)[None])
    log_probs = np.asarray(jax.nn.log_softmax(logits[0].astype(jnp.float32)), np.float64)
    return np.sum(log_probs[np.arange(len(tokens) - 1), tokens[1:]]), state, logits[:, -1]


@pytest.mark.parametrize("segment", [16, 64])
def test_a_stream_in_pieces_scores_as_one_call(made, segment):
    m, params = made
    want, state, logits = whole(m, params, TOKENS)
    score = zoo.stream_log_likelihood(m, params, iter(TOKENS.tolist()), segment=segment)
    assert (score.scored, score.tokens) == (44, 45)
    np.testing.assert_allclose(score.log_likelihood, want, rtol=1e-5)
    np.testing.assert_allclose(score.bits_per_token, -want / 44 / np.log(2), rtol=1e-5)
    np.testing.assert_allclose(score.logits, logits, atol=1e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), score.state, state)


def test_arrays_of_any_lengths_are_one_stream_and_scores_go_on(made):
    m, params = made
    want = zoo.stream_log_likelihood(m, params, TOKENS, segment=16)
    parts = (TOKENS[a:b] for a, b in itertools.pairwise((0, 0, 3, 30, 31, 45)))
    np.testing.assert_allclose(
        zoo.stream_log_likelihood(m, params, parts, segment=16).log_likelihood, want.log_likelihood, rtol=1e-6
    )
    first = zoo.stream_log_likelihood(m, params, TOKENS[:20], segment=16)
    second = zoo.stream_log_likelihood(m, params, TOKENS[20:], segment=16, start=first)
    assert (second.scored, second.tokens) == (44, 45)
    np.testing.assert_allclose(second.log_likelihood, want.log_likelihood, rtol=1e-5)
    again = zoo.stream_log_likelihood(m, params, TOKENS[20:], segment=16, start=first)  # first is still whole
    assert again.log_likelihood == second.log_likelihood


@pytest.mark.parametrize("count", [1, 6])
def test_a_stream_goes_on_as_generate_would(made, count):
    m, params = made
    score = zoo.stream_log_likelihood(m, params, TOKENS, segment=16)
    got = zoo.continue_stream(m, params, score, max_new_tokens=count, temperature=0.0)
    want = zoo.generate(m, params, [TOKENS.tolist()], max_new_tokens=count, temperature=0.0)
    np.testing.assert_array_equal(got.tokens, want.tokens)
    np.testing.assert_allclose(got.log_probs, want.log_probs, atol=1e-4)
    assert got.lengths[0] == count
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), got.state, want.state)
    with pytest.raises(ValueError, match="needs a key"):
        zoo.continue_stream(m, params, score, max_new_tokens=3)


@pytest.mark.parametrize(
    ("stream", "error", "words"),
    [
        ([], ValueError, "yields no tokens"),
        ([1, 11], ValueError, "from 0 to vocab_size - 1 = 10, got 11"),
        ([-1], ValueError, "got -1"),
        ([1.5], TypeError, "must yield integers"),
        ([np.zeros((2, 2), int)], TypeError, "must yield integers or 1-D"),
    ],
)
def test_bad_streams(made, stream, error, words):
    with pytest.raises(error, match=words):
        zoo.stream_log_likelihood(*made, stream)


def resident():
    """Bytes of this process that are in memory."""
    gc.collect()
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


@pytest.mark.parametrize("tokens", [20_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
def test_memory_stays_flat_after_the_warm_up(made, tokens):
    m, params = made
    generator, seen, arrays = np.random.default_rng(1), [], []

    def stream():
        for i in range(tokens // 1000):
            if i % (tokens // 10_000) == 0:
                seen.append(resident())
                arrays.append(len(jax.live_arrays()))
            yield generator.integers(0, VOCAB, 1000)

    score = zoo.stream_log_likelihood(m, params, stream(), segment=1000)
    assert score.tokens == tokens and np.isfinite(score.log_likelihood)
    warm = seen[2]
    assert len(set(arrays[3:])) == 1, arrays  # nothing is kept of the pieces; bytes would show it in a long stream only
    assert len(seen) == 10 and max(seen[3:]) - warm < 8 * 2**20, [(s - warm) / 2**20 for s in seen]
