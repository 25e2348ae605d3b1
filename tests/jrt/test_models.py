"""Layer plans and sizes of the published models, float32 residuals, the losses, padded prompts, streams."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zoo
from experiments.papers.jrt import LanguageModelling
from zoo.decoding import generate_padded
from zoo.decoding.padded import _prefill
from zoo.layers import cross_entropy, prefix_lm_loss
from zoo.models import BASED_MODELS, LayerPlan, based_language_model, sliding_window, with_mixer_options
from zoo.tasks import mask_prefix

TINY = based_language_model(
    "jrt-360m", vocab_size=13, dim=8, heads=2, feature_dim=2, window=3, plan=LayerPlan(4, (1,), (2,)),
    linear={"prefix_length": 4},
)  # fmt: skip
TOKENS = jax.random.randint(jax.random.key(0), (2, 7), 0, 13)


@functools.cache
def params():
    return jax.jit(TINY.init)(jax.random.key(1), TOKENS)


run = jax.jit(TINY.apply)


@pytest.mark.parametrize("name", BASED_MODELS)
def test_layers_of_the_published_models(name):
    model = based_language_model(name)
    names = [spec["name"] for spec in model.stack().layers()]
    linear = "prefix_linear_attention" if name.startswith("jrt") else "based"
    large = "1.3b" in name
    assert [i for i, n in enumerate(names) if n == linear] == [1, 6, 11, 16, 21] + [27, 33] * large
    assert [i for i, n in enumerate(names) if n == "attention"] == [2, 7, 12, 17, 22] + [28, 34] * large
    assert len(names) == {"jrt-360m": 26, "based-360m": 27}.get(name, 36) and model.mlp_dim == 2 * model.dim
    assert names.count("base_conv") == len(names) - (14 if large else 10)
    window = model.stack().layers()[2]
    assert (window["window"], window["positions"], window["heads"]) == (256, "rotary", 16)
    if name == "based-360m":
        assert model.stack().layers()[1]["decay"]


@pytest.mark.parametrize(
    ("size", "arm", "millions"),
    [
        ("360m", "jrt", 357),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                ("360m", "based", 363),
                ("360m", "mamba", 358),
                ("360m", "attention", 354),
                ("1.3b", "jrt", 1375),
            )
        ),
    ],
)
def test_sizes_of_the_paper(size, arm, millions):
    """Millions of parameters, the tied table included: what "360m" and "1.3b" stand for."""
    model = LanguageModelling(size=size).model(arm)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 4), jnp.int32))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) / 1e6 == pytest.approx(millions, abs=0.6)


def test_plans_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="different layers below 3"):
        LayerPlan(3, (1,), (1,))
    with pytest.raises(ValueError, match="different layers below 3"):
        LayerPlan(3, (3,), ())


def test_residuals_are_float32_where_mixers_are_bfloat16():
    model = based_language_model(
        "jrt-360m", vocab_size=13, dim=8, heads=2, feature_dim=2, plan=LayerPlan(3, (1,), (2,)), dtype="bfloat16"
    )
    assert model.dtype == "float32" and model.mlp["dtype"] == "bfloat16"
    assert all(spec["dtype"] == "bfloat16" for spec in model.stack().layers())
    made = jax.eval_shape(model.init, jax.random.key(0), TOKENS)
    shapes = jax.eval_shape(
        lambda p: model.apply(p, TOKENS, capture_intermediates=lambda m, n: n == "__call__", mutable=["intermediates"]),
        made,
    )[1]["intermediates"]["stack"]["layers"]
    for run in (shapes[name] for name in shapes if name.startswith("run_")):
        assert run["__call__"][0][0].dtype == jnp.float32
        assert run["mixer"]["__call__"][0][0].dtype == run["mlp"]["__call__"][0].dtype == jnp.bfloat16


def test_the_sliding_window_decodes_through_a_ring_of_its_last_keys():
    """A window of 3 with rotary positions, token by token over more than two turns of the ring."""
    mixer = zoo.create(sliding_window(3, 2), dim=8)
    x = jax.random.normal(jax.random.key(0), (2, 8, 8))
    made = mixer.init(jax.random.key(1), x)
    y, _ = mixer.apply(made, x)
    state = mixer.initial_state(2)
    assert state.keys.shape == (2, 3, 2, 4)
    step = jax.jit(mixer.apply)
    for t in range(8):
        one, state = step(made, x[:, t : t + 1], state)
        np.testing.assert_allclose(one[:, 0], y[:, t], rtol=1e-5, atol=1e-5)


def test_after_the_prefix_the_model_is_causal_and_in_it_is_not():
    y, _ = run(params(), TOKENS)
    for t, first in ((5, 5), (3, 0)):
        changed, _ = run(params(), TOKENS.at[:, t].set((TOKENS[:, t] + 1) % 13))
        same = np.all(np.isclose(changed, y, rtol=1e-6, atol=1e-6), axis=(0, 2))
        assert same.tolist() == [i < first for i in range(7)]


def test_a_likelihood_of_what_has_been_seen_is_refused():
    with pytest.raises(ValueError, match="sees its first 4 tokens at once"):
        zoo.stream_log_likelihood(TINY, params(), [1, 2, 3])


def test_the_loss_counts_what_it_should():
    """By hand; and a change of a target inside the prefix that is not masked changes nothing."""
    text = jax.random.randint(jax.random.key(2), (2, 8), 0, 13)
    made = mask_prefix(jax.random.key(3), text, prefix_length=4, mask_token=12, rate=0.5)
    logits, _ = run(params(), made.inputs)
    hidden = np.asarray(made.extra)
    assert hidden.any() and not hidden[:, 4:].any()
    log_p = np.asarray(jax.nn.log_softmax(logits))

    def mean(places, of):
        return -np.mean([log_p[b, t, of(b, t)] for b, t in places])

    after = [(b, t) for b in range(2) for t in range(4, 7)]
    following, masked = mean(after, lambda b, t: text[b, t + 1]), mean(np.argwhere(hidden), lambda b, t: text[b, t])
    loss = functools.partial(prefix_lm_loss, logits, prefix_length=4)
    value, metrics = loss(made.targets, masked=made.extra)
    np.testing.assert_allclose(value, following + 0.25 * masked, rtol=1e-5)
    np.testing.assert_allclose(metrics["masked"], masked, rtol=1e-5)
    np.testing.assert_allclose(
        loss(made.targets, masked=made.extra, weight=0.5, normalise=True)[0],
        (following + 0.5 * masked) / 1.5,
        rtol=1e-5,
    )
    plain, metrics = loss(made.targets)
    np.testing.assert_allclose(plain, following, rtol=1e-5)
    assert "masked" not in metrics
    leaked = jnp.where(made.extra | (jnp.arange(7) >= 4), made.targets, 0)
    np.testing.assert_array_equal(loss(leaked, masked=made.extra)[0], value)
    causal, _ = prefix_lm_loss(logits, text[:, 1:], prefix_length=0)
    np.testing.assert_allclose(causal, cross_entropy(logits, text[:, 1:]), rtol=1e-6)


def test_a_masked_token_of_number_zero_counts():
    """The released code drops it, by selecting labels above 0."""
    logits = jnp.zeros((1, 2, 3)).at[0, 0].set(jnp.array([1.0, 0.0, 0.0]))
    targets, masked = jnp.array([[0, 1]]), jnp.array([[True, False]])
    _, metrics = prefix_lm_loss(logits, targets, prefix_length=1, masked=masked)
    np.testing.assert_allclose(metrics["masked"], np.log(1 + 2 / np.e), rtol=1e-6)


def test_padded_prompts():
    """A prompt as long as the prefix is continued as always; a short one as its padding is told to the mixers."""
    prompts = [[1, 2, 3, 4, 5], [6, 7, 8, 9, 10]]
    want = zoo.generate(TINY, params(), prompts, max_new_tokens=3, temperature=0.0).tokens
    for padding in ("clean", "reference"):
        got = generate_padded(TINY, params(), prompts, max_new_tokens=3, padding=padding)
        np.testing.assert_array_equal(got, want)
    stopped = generate_padded(TINY, params(), prompts, max_new_tokens=3, stop_token=int(want[0, 0]), pad_token=12)
    assert stopped[0].tolist() == [int(want[0, 0]), 12, 12]
    with pytest.raises(ValueError, match="every prompt needs at least one token"):
        generate_padded(TINY, params(), [[1], []], max_new_tokens=1)


def test_masks_reach_every_prefix_layer_of_a_model():
    """Two layers with a prefix, no other mixers: padding told by a mask is no padding at all."""
    pattern = ({"name": "prefix_linear_attention", "heads": 2, "feature_dim": 2, "prefix_length": 6},)
    model = zoo.LanguageModel(vocab_size=13, dim=8, pattern=pattern, depth=2)
    made = jax.jit(model.init)(jax.random.key(0), TOKENS)
    short, padded = jnp.array([[3, 1, 4]]), jnp.array([[12, 12, 12, 3, 1, 4]])
    real = padded != 12
    logits, alone = jax.jit(model.apply)(made, short)
    token, clean = _prefill(model, made, padded, real)
    assert int(token[0]) == int(jnp.argmax(logits[0, -1]))
    np.testing.assert_allclose(clean.layers[0].memory, alone.layers[0].memory, rtol=1e-5, atol=1e-5)
    other, same = with_mixer_options(model, made, "prefix_linear_attention", {"padding": "reference"})
    _, leaking = _prefill(other, same, padded, real)
    assert np.abs(leaking.layers[0].memory - clean.layers[0].memory).max() > 0.1
