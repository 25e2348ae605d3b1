"""Instruments of state collapse: statistics against NumPy, verdicts on made-up curves, reading a model in segments."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import freeze

import zoo
from zoo.analysis import state_collapse as sc
from zoo.models import with_mixer_options

MIXER = {"name": "mamba2", "state_dim": 3, "head_dim": 4, "chunk_size": 4}


@functools.lru_cache
def made(pattern=("a", "a", "b")):
    specs = {"a": freeze(MIXER), "b": freeze({**MIXER, "norm_eps": 1e-4})}
    model = zoo.LanguageModel(vocab_size=7, dim=8, pattern=tuple(specs[p] for p in pattern), mlp="none")
    tokens = jax.random.randint(jax.random.key(1), (2, 15), 0, 7)
    return model, jax.jit(model.init)(jax.random.key(0), tokens), tokens


@functools.partial(jax.jit, static_argnums=0)
def apply(model, params, tokens):
    return model.apply(params, tokens)


read = jax.jit(sc.stream, static_argnames=("model", "every"))
chosen_by = jax.jit(sc.selections, static_argnums=0)


def test_statistics_are_those_of_numpy_with_the_lower_median():
    states = np.random.default_rng(0).standard_normal((5, 3, 4, 2)).astype(np.float32)
    flat = states.reshape(5, 3, 8)
    got = sc.state_statistics(states)
    np.testing.assert_allclose(got.mean, flat.mean(-1), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(got.variance, flat.var(-1, ddof=1), rtol=1e-5)
    np.testing.assert_allclose(got.rms, np.sqrt((flat**2).mean(-1)), rtol=1e-5)
    np.testing.assert_array_equal(got.median, np.sort(flat, axis=-1)[..., 3])
    np.testing.assert_allclose(sc.channel_variance(states), states.var(0, ddof=1), rtol=1e-5)
    with pytest.raises(ValueError, match="at least two entries"):
        sc.state_statistics(states[..., :1, :1])


def test_histograms_share_their_bins():
    early, late, edges = sc.state_histograms(np.zeros(5), np.array([-1.0, 0.0, 3.0]), bins=4)
    assert early.sum() == 5 and late.sum() == 3 and (edges[0], edges[-1]) == (-1, 3)


def test_heads_and_channels_explode_past_training_only():
    positions = np.array([8, 16, 32, 64])
    variance = np.array([[1.0, 1, 5], [2, 2, 50], [3, 21, 51], [1, 1, 50]])
    np.testing.assert_array_equal(sc.exploding_heads(variance, positions, 16), [False, True, False])
    np.testing.assert_array_equal(sc.exploding_heads(variance, positions, 16, factor=1.2), [True, True, False])
    np.testing.assert_array_equal(sc.exploding_channels(-variance, positions, 16), [False, True, False])
    with pytest.raises(ValueError, match="both sides of training_length=64"):
        sc.exploding_heads(variance, positions, 64)


def test_retention_is_the_product_of_decays_and_insertion_what_is_written():
    random = np.random.default_rng(0)
    delta, A, keys = random.random((6, 4)), -random.random(4), random.standard_normal((6, 2, 3))
    want = np.cumprod(0.9 * np.exp(delta * A), axis=0)
    np.testing.assert_allclose(sc.memory_retention(delta, A, 0.9), want, rtol=1e-5)
    got = sc.insertion(jnp.asarray(delta), jnp.asarray(keys))
    np.testing.assert_allclose(got[:, 1], delta[:, 1:2] * keys[:, 0], rtol=1e-5)
    np.testing.assert_allclose(got[:, 2], delta[:, 2:3] * keys[:, 1], rtol=1e-5)


def test_a_stream_in_segments_is_the_whole_and_looks_after_each():
    model, params, tokens = made()
    logits, last = apply(model, params, tokens[:, :-1])
    want = -np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), np.asarray(tokens[:, 1:, None]), axis=-1)[..., 0]
    got = read(model, params, tokens, every=4)
    np.testing.assert_allclose(got.losses, want, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(got.positions, [4, 8, 12])
    assert got.measured.shape == (3, 3, 2, 4, 3, 4)  # looks, layers, rows, heads, N, P
    _, after = apply(model, params, tokens[:, :8])
    np.testing.assert_allclose(got.measured[1], sc.layer_states(after), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(sc.layer_states(got.state), sc.layer_states(last), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("pattern", [("a", "a", "b"), ("a", "b", "a", "b")])
def test_layers_are_in_their_order_whatever_is_scanned_over(pattern):
    """States and selections of layer i are those of the block on its own."""
    model, params, tokens = made(pattern)
    state = sc.layer_states(apply(model, params, tokens)[1])
    options = {"retention_scale": 1e-4}
    for layer in range(1, len(pattern)):
        changed, other = with_mixer_options(model, params, "mamba2", options, layers=[layer])
        moved = sc.layer_states(apply(changed, other, tokens)[1])
        differs = [not np.allclose(a, b, rtol=1e-3) for a, b in zip(state, moved)]
        assert differs[: layer + 1] == [False] * layer + [True], (
            "the first layer that changes is the one that was asked for"
        )
    chosen = chosen_by(model, params, tokens)
    assert chosen.delta.shape == (len(pattern), 2, 15, 4) and chosen.A.shape == (len(pattern), 4)
    assert len(np.unique(np.asarray(chosen.A), axis=0)) == len(pattern)


def test_selections_are_those_that_make_the_states():
    """The state of the first layer again, from step sizes, keys and the state after one token."""
    model, params, tokens = made()
    one = sc.layer_states(apply(model, params, tokens[:, :1])[1])[0]
    chosen = chosen_by(model, params, tokens[:, :1])
    written = sc.insertion(chosen.delta, chosen.keys)[0, :, 0]  # [B, H, N]; the state is its outer product with x
    ratio = np.asarray(one) / np.asarray(written)[..., None]
    np.testing.assert_allclose(ratio, np.broadcast_to(ratio[:, :, :1], ratio.shape), rtol=1e-3)


def test_mixer_options_keep_the_parameters_and_refuse_what_is_not_there():
    model, params, tokens = made()
    same, out = with_mixer_options(model, params, "mamba2", {"window": 50})
    np.testing.assert_allclose(apply(same, out, tokens)[0], apply(model, params, tokens)[0], rtol=1e-4, atol=1e-5)
    short, out = with_mixer_options(model, params, "mamba2", {"window": 2})
    assert not np.allclose(apply(short, out, tokens)[0], apply(model, params, tokens)[0], atol=1e-3)
    with pytest.raises(ValueError, match="no mixer 'mamba'"):
        with_mixer_options(model, params, "mamba", {})
    with pytest.raises(ValueError, match="layers must be among"):
        with_mixer_options(model, params, "mamba2", {}, layers=[3])
    with pytest.raises(ValueError, match="did you mean 'window'"):
        with_mixer_options(model, params, "mamba2", {"windw": 2})


def test_loss_by_position_averages_spans_and_the_shorter_rest():
    ends, mean, perplexity = sc.loss_by_position(np.array([[1.0, 3, 5, 7, 100], [1, 3, 5, 7, 200]]), width=2)
    np.testing.assert_array_equal(ends, [2, 4, 5])
    np.testing.assert_allclose(mean, [2, 6, 150])
    np.testing.assert_allclose(perplexity, np.exp([2, 6, 150]))


def test_a_collapse_is_judged_by_the_last_positions_against_the_worst_in_training():
    losses = jnp.concatenate([jnp.full(10, 4.0), jnp.full(90, 1.0), jnp.full(100, 6.0)])
    worst = (10 * 4 + 10 * 1) / 20  # of 20 consecutive positions in training
    assert float(sc.collapse_ratio(losses, 100, window=20)) == pytest.approx(6 / worst)
    assert sc.state_collapse(losses, 100, window=20) and not sc.state_collapse(losses, 100, window=20, factor=2.5)
    assert not sc.state_collapse(losses.at[150:].set(1.0), 100, window=20), "a passing peak is no collapse"
    assert sc.state_collapse(losses.at[-1].set(jnp.nan), 100, window=20, factor=1e9)
    assert sc.state_collapse(losses, 100, window=500, factor=4.0), "a window is at most the training length"
    with pytest.raises(ValueError, match="T > training_length=200"):
        sc.state_collapse(losses, 200)


def test_lengths_of_forgetting_and_recall():
    assert sc.forgetting_length([16, 32, 64, 128], [True, True, False, False]) == 64
    assert sc.forgetting_length([16, 32], [True, True]) == float("inf")
    assert sc.recall_length([16, 32, 64], [1.0, 0.96, 0.95]) == 32
    assert sc.recall_length([16, 32], [0.5, 0.1]) == 0
    with pytest.raises(ValueError, match="as many values as lengths"):
        sc.forgetting_length([16, 32], [True])


def test_the_laws_of_the_paper_are_found_again():
    sizes = np.array([0.8, 1.6, 2.4, 4.8, 12.9])
    line = sc.fit_linear(sizes, 5.172 * sizes - 4.469)
    assert line.coefficients == pytest.approx({"slope": 5.172, "offset": -4.469}) and line.r_squared > 1 - 1e-9
    curve = sc.fit_exponential(sizes, 4.756 * (1.365**sizes - 1) - 0.742)
    assert curve.coefficients == pytest.approx({"scale": 4.756, "base": 1.365, "offset": -0.742}, rel=1e-3)
    assert curve.r_squared > 1 - 1e-9
    np.testing.assert_allclose(curve.law(sizes), 4.756 * (1.365**sizes - 1) - 0.742, rtol=1e-3)


def test_the_share_explained_is_that_of_the_residual():
    x, y = np.array([0.0, 1, 2, 3]), np.array([0.0, 1, 0, 1])
    assert sc.fit_linear(x, y).r_squared == pytest.approx(np.corrcoef(x, y)[0, 1] ** 2)
    assert sc.fit_linear(x, np.ones(4)).r_squared == 1.0
    with pytest.raises(ValueError, match="at least 2 different x"):
        sc.fit_linear([1, 1], [2, 3])
