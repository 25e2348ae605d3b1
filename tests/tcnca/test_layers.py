"""Gated attention within chunks: who reads whom, the residual stream, the norm inside, dropout; and the models around it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zoo
from zoo.layers import rms_norm
from zoo.layers.gated_attention import chunked_attention, laplace, relative_bias
from zoo.layers.norms import ScaleNorm
from zoo.models import Block

DIM, TIME, CHUNK = 4, 12, 4
SIZES = {"dim": DIM, "key_dim": 4, "value_dim": 6, "chunk": CHUNK, "weight_std": None, "scale_mean": 1.0}
MIXERS = {
    "mega": {"name": "mega", "state_dim": 2, **SIZES},
    "tcnca": {"name": "tcnca", "taps": 3, "factor": 2, "depth": 2, **SIZES},
}
X = jax.random.normal(jax.random.key(1), (2, TIME, DIM))


def made(name, **options):
    module = zoo.create({**MIXERS[name], **options})
    return module, jax.jit(module.init)(jax.random.key(0), X)


@pytest.mark.parametrize("activation", ["softmax", "laplace", "relu2"])
def test_attention_reads_nothing_of_another_chunk(activation):
    q, k, v = jax.random.normal(jax.random.key(0), (3, 1, TIME, 4))
    run = jax.jit(lambda k, v: chunked_attention(q, k, v, chunk=CHUNK, activation=activation)[0])
    y = run(k, v)
    changed = np.any(np.asarray(run(k.at[:, 5].add(1), v.at[:, 5].add(1)) != y), axis=(0, 2))
    assert set(np.flatnonzero(changed)) <= {5, 6, 7} and changed.any()


@pytest.mark.parametrize("name", MIXERS)
def test_the_operator_carries_information_across_chunks(name):
    module, params = made(name)
    run = jax.jit(lambda x: module.apply(params, x)[0])
    change = np.max(np.abs(run(X.at[:, 3, 0].add(1.0)) - run(X)), axis=(0, 2))
    assert (change[4:6] > 1e-3).all(), "over the border of the chunk"
    assert (change[:3] < 1e-5).all(), "but not backwards, beyond the rounding of an FFT"


def test_the_gate_closes_over_the_stream_without_the_norm():
    module, params = made("mega")
    # gates shut: the layer passes x on; gates open and no h: it takes x away, not norm(x)
    bias = params["params"]["mix_bias"]
    run = jax.jit(lambda p: module.apply({"params": p}, X)[0])
    for value, want in ((-1e4, jnp.zeros_like(X)), (1e4, -X)):
        p = jax.tree.map(jnp.zeros_like, params["params"]) | {"mix_bias": bias.at[:DIM].set(value)}
        np.testing.assert_allclose(run(p), want, atol=1e-6)


def test_a_block_hands_over_x_itself_and_keeps_the_norm_of_its_mlp():
    module, params = made("mega")
    block = Block(mixer=MIXERS["mega"], dim=DIM, mlp="none", norm="layer")
    shapes = jax.eval_shape(block.init, jax.random.key(0), X)["params"]
    assert set(shapes) == {"mixer"} and "norm" in shapes["mixer"]
    y, _ = block.apply({"params": {"mixer": params["params"]}}, X)
    np.testing.assert_allclose(y, X + module.apply(params, X)[0], atol=1e-6)
    whole = Block(mixer=MIXERS["mega"], dim=DIM, mlp="silu", norm="layer")
    assert set(jax.eval_shape(whole.init, jax.random.key(0), X)["params"]) == {"mixer", "mlp_norm", "mlp"}
    post = Block(mixer={**MIXERS["mega"], "norm": "none"}, dim=DIM, mlp="none", norm="layer", norm_position="post")
    assert set(jax.eval_shape(post.init, jax.random.key(0), X)["params"]) == {"mixer", "mixer_norm"}


def test_dropout_acts_in_training_alone():
    module, params = made("tcnca", dropout=0.5, attention_dropout=0.5)
    plain, _ = made("tcnca")
    y = module.apply(params, X)[0]
    np.testing.assert_array_equal(y, plain.apply(params, X)[0])
    one, two = (module.apply(params, X, rngs={"dropout": jax.random.key(i)})[0] for i in (1, 2))
    assert not np.allclose(one, y) and not np.allclose(one, two)


def test_whole_documents_are_one_chunk_up_to_the_most_positions():
    module, params = made("mega", chunk=None, max_positions=TIME)
    np.testing.assert_array_equal(
        module.apply(params, X)[0], zoo.create({**MIXERS["mega"], "chunk": TIME}).apply(params, X)[0]
    )


def test_a_simple_bias_is_looked_up_by_distance_and_must_be_long_enough():
    table = jnp.arange(7.0)  # distances -3 .. 3
    np.testing.assert_array_equal(relative_bias({"relative_bias": table}, 2), [2, 3, 4])
    with pytest.raises(ValueError, match="max_positions=4"):
        relative_bias({"relative_bias": table}, 5)
    with pytest.raises(ValueError, match="chunk=4 is larger than max_positions=3"):
        made("mega", bias="simple", max_positions=3)
    with pytest.raises(ValueError, match="even key_dim"):
        made("mega", key_dim=3)


def test_laplace_is_a_normal_distribution_function():
    np.testing.assert_allclose(laplace(jnp.array([0.707107, 1e3, -1e3])), [0.5, 1, 0], atol=1e-6)


def test_scale_norm_has_one_number_and_unit_length_times_it():
    norm = ScaleNorm(eps=0.0)
    params = {"params": {"scale": jnp.array([3.0])}}
    y = norm.apply(params, X)
    np.testing.assert_allclose(jnp.linalg.norm(y, axis=-1), 3 * DIM**0.5, rtol=1e-5)
    np.testing.assert_allclose(y, rms_norm(X, jnp.full(DIM, 3.0), 0.0), rtol=1e-5)


def test_a_bidirectional_simple_bias_refuses_longer_rows():
    module = zoo.create("mega_bidirectional", dim=DIM, key_dim=4, chunk=None, bias="simple", max_positions=TIME - 1)
    with pytest.raises(ValueError, match=f"max_positions={TIME - 1}"):
        jax.eval_shape(module.init, jax.random.key(0), X)


def test_a_language_model_decodes_with_both_caches():
    model = zoo.LanguageModel(vocab_size=7, dim=DIM, pattern=tuple(MIXERS.values()), norm="layer", mlp="silu")
    tokens = jnp.arange(2 * CHUNK + 2)[None] % 7
    params = jax.jit(model.init)(jax.random.key(0), tokens)
    step, state, logits = jax.jit(model.apply), model.initial_state(1), []
    for t in range(tokens.shape[1]):
        out, state = step(params, tokens[:, t : t + 1], state)
        logits.append(out)
    np.testing.assert_allclose(jnp.concatenate(logits, axis=1), step(params, tokens)[0], atol=1e-4)
