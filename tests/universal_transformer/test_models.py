"""Universal Transformer models: decoding equals reading, padding is unseen, they search, learn, and describe themselves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zoo
from zoo.decoding import beam_search, generate
from zoo.mixers import ponder_cost
from zoo.models import UniversalTransformerLM, UniversalTransformerReader, UniversalTransformerSeq2Seq
from zoo.registry import entry

ACT = {"heads": 2, "steps": 3, "mlp_dim": 12, "recurrence": "act", "halting_bias": -1.0}
SOURCE = jnp.array([[1, 2, 3, 4, 5, 6], [3, 1, 4, 1, 0, 0]])
LENGTHS = jnp.array([6, 4])
TARGET = jnp.array([[1, 5, 2, 6, 3], [1, 4, 4, 2, 8]])
NAMES = ("universal_transformer_seq2seq", "universal_transformer_lm", "universal_transformer_reader")


@pytest.mark.parametrize("name", NAMES)
def test_describe_and_create_and_hash(name):
    model = zoo.create(name, **entry(name).variants["default"])
    assert zoo.create(zoo.describe(model)) == model
    assert hash(model) == hash(zoo.create(zoo.describe(model)))


@pytest.fixture(scope="module")
def translator():
    decoder = {**ACT, "window": 8, "transition": "sepconv", "mix_before": 1}
    model = UniversalTransformerSeq2Seq(vocab_size=9, dim=8, encoder=ACT, decoder=decoder)
    params = jax.jit(model.init)(jax.random.key(0), SOURCE, TARGET, LENGTHS)
    return model, params


def test_decoding_token_by_token_equals_teacher_forcing(translator):
    model, params = translator
    whole = jax.jit(model.apply)(params, SOURCE, TARGET, LENGTHS)
    state = jax.jit(lambda p: model.apply(p, SOURCE, LENGTHS, method="encode"))(params)
    step = jax.jit(lambda p, token, state: model.apply(p, token, state, method="decode"))
    for t in range(TARGET.shape[1]):
        logits, state = step(params, TARGET[:, t : t + 1], state)
        np.testing.assert_allclose(logits[:, 0], whole[:, t], atol=1e-5)


def test_source_padding_is_unseen_and_takes_no_steps(translator):
    model, params = translator
    run = jax.jit(lambda p, s: model.apply(p, s, TARGET, LENGTHS, target_mask=TARGET != 2, method="run"))
    logits, read, written = run(params, SOURCE)
    changed = run(params, SOURCE.at[1, 4:].set(7))[0]
    np.testing.assert_allclose(changed, logits, atol=1e-6)
    assert np.all(np.asarray(read.steps)[1, 4:] == 0)
    assert np.all((np.asarray(written.steps) == 0) == np.asarray(TARGET == 2))
    assert not np.allclose(run(params, SOURCE.at[1, 3].set(7))[0], logits, atol=1e-3)


def test_beams_are_the_best_of_all_continuations(translator):
    """Beams as wide as the vocabulary over two tokens are an exhaustive search."""
    model, params = translator
    start = jnp.ones((2, 1), jnp.int32)
    beams = beam_search(
        model, params, start, beam_size=9, max_new_tokens=2, stop_token=0, source=SOURCE, source_lengths=LENGTHS
    )
    score = jax.jit(lambda t: jax.nn.log_softmax(model.apply(params, SOURCE, t, LENGTHS)))
    first = score(start)[:, 0]
    best = np.array(first[:, 0])
    for a in range(1, 9):
        second = score(jnp.concatenate([start, jnp.full((2, 1), a)], axis=1))[:, 1]
        best = np.maximum(best, np.asarray(first[:, a] + second.max(-1)))
    np.testing.assert_allclose(beams.log_probs[:, 0], best, atol=1e-5)


def test_language_model_generates_what_it_would_say_when_it_reads():
    model = UniversalTransformerLM(vocab_size=9, dim=8, decoder={**ACT, "window": 16})
    params = jax.jit(model.init)(jax.random.key(0), TARGET)
    prompts = [[1, 5, 2], [4]]
    tokens = np.asarray(generate(model, params, prompts, max_new_tokens=4, temperature=0.0).tokens)
    for row, prompt in zip(tokens, prompts):
        text = [*prompt, *(int(t) for t in row[-4:])]
        logits, _ = jax.jit(model.apply)(params, jnp.array([text]))
        np.testing.assert_array_equal(np.argmax(logits[0, len(prompt) - 1 : -1], -1), row[-4:])


def test_baseline_has_own_weights_in_every_layer():
    decoder = {"heads": 2, "steps": 3, "window": 8}
    universal = UniversalTransformerSeq2Seq(vocab_size=9, dim=8, encoder={"heads": 2, "steps": 3}, decoder=decoder)
    baseline = universal.clone(encoder={"heads": 2, "steps": 3, "shared": False}, decoder={**decoder, "shared": False})

    def blocks(model):
        shapes = jax.eval_shape(model.init, jax.random.key(0), SOURCE, TARGET)["params"]
        return [sum(a.size for a in jax.tree.leaves(shapes[part]["block"])) for part in ("reader", "writer")]

    assert blocks(baseline) == [3 * n for n in blocks(universal)]
    params = jax.jit(baseline.init)(jax.random.key(0), SOURCE, TARGET, LENGTHS)
    whole = jax.jit(baseline.apply)(params, SOURCE, TARGET, LENGTHS)

    @jax.jit
    def in_two_pieces(params):
        state = baseline.apply(params, SOURCE, LENGTHS, method="encode")
        first, state = baseline.apply(params, TARGET[:, :2], state, method="decode")
        return first, baseline.apply(params, TARGET[:, 2:], state, method="decode")[0]

    first, second = in_two_pieces(params)
    np.testing.assert_allclose(jnp.concatenate([first, second], axis=1), whole, atol=1e-5)


def test_reader_of_sentences_sums_masked_words_and_ignores_absent_ones():
    model = UniversalTransformerReader(
        num_outputs=3, dim=8, vocab_size=9, max_words=4, encoder={"heads": 2, "steps": 2}
    )
    stories = jax.random.randint(jax.random.key(0), (2, 5, 4), 0, 9)
    params = jax.jit(model.init)(jax.random.key(1), stories, jnp.array([5, 3]))
    places = params["params"]["places"]
    np.testing.assert_array_equal(places, 1)
    run = jax.jit(model.apply)
    logits = run(params, stories, jnp.array([5, 3]))
    np.testing.assert_allclose(run(params, stories.at[1, 3:].set(2), jnp.array([5, 3])), logits, atol=1e-6)
    swapped = stories[:, :, ::-1]  # with masks of ones a sentence is a bag of words
    np.testing.assert_allclose(run(params, swapped, jnp.array([5, 3])), logits, atol=1e-5)
    uneven = {"params": {**params["params"], "places": places.at[0].set(0.5)}}
    assert not np.allclose(run(uneven, swapped, jnp.array([5, 3])), run(uneven, stories, jnp.array([5, 3])), atol=1e-3)


@pytest.mark.parametrize("vocab_size", [None, 9])
def test_reader_labels_every_position_and_gives_maps(vocab_size):
    model = UniversalTransformerReader(num_outputs=3, dim=8, vocab_size=vocab_size, pooling="none", encoder=ACT)
    x = SOURCE if vocab_size else jax.random.normal(jax.random.key(0), (2, 6, 5))
    params = jax.jit(model.init)(jax.random.key(1), x, LENGTHS)
    logits, depth = jax.jit(lambda p: model.apply(p, x, LENGTHS, maps=True, method="run"))(params)
    assert logits.shape == (2, 6, 3)
    assert np.all(np.asarray(logits)[1, 4:] == 0)
    assert depth.maps.shape == (3, 1, 2, 6, 6)
    np.testing.assert_allclose(jax.jit(model.apply)(params, x, LENGTHS), logits, atol=1e-6)


def test_a_training_step_lowers_the_loss_and_every_parameter_has_a_gradient(translator):
    model, params = translator

    def loss(params):
        logits, read, written = model.apply(params, SOURCE, TARGET[:, :-1], LENGTHS, method="run")
        picked = jnp.take_along_axis(jax.nn.log_softmax(logits), TARGET[:, 1:, None], axis=-1)
        cost = sum(ponder_cost(d.steps, d.remainder, d.steps > 0) for d in (read, written))
        return 0.01 * cost - jnp.mean(picked)

    step = jax.jit(jax.value_and_grad(loss))
    value, grads = step(params)
    for path, g in jax.tree_util.tree_leaves_with_path(grads):
        assert np.all(np.isfinite(g)), path
        assert np.any(np.asarray(g) != 0), f"no gradient reaches {jax.tree_util.keystr(path)}"
    moved = jax.tree.map(lambda p, g: p - 0.01 * g, params, grads)
    assert step(moved)[0] < value


def test_options_of_a_part_are_checked(as_users_see_it):
    def make(**parts):
        model = UniversalTransformerSeq2Seq(vocab_size=9, dim=8, **parts)
        return jax.eval_shape(model.init, jax.random.key(0), SOURCE, TARGET)

    with pytest.raises(ValueError, match="decoder has no option 'step'; did you mean 'steps'"):
        make(decoder={"step": 3})
    with pytest.raises(ValueError, match="encoder may not set 'dim'"):
        make(encoder={"dim": 4})
    with pytest.raises(ValueError, match="lengths must have shape"):
        model = UniversalTransformerSeq2Seq(vocab_size=9, dim=8)
        jax.eval_shape(model.init, jax.random.key(0), SOURCE, TARGET, jnp.array([1, 2, 3]))
    with pytest.raises(TypeError, match="source must be an integer array"):
        model = UniversalTransformerSeq2Seq(vocab_size=9, dim=8)
        jax.eval_shape(model.init, jax.random.key(0), SOURCE.astype(float), TARGET)
