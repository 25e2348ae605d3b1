"""FlashRNN's layers, experiment and benchmarks beyond what the laws and the smoke run show."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zoo
from benchmarks.flashrnn import largest_head, measure, table
from experiments.experiment import get
from experiments.papers.flashrnn import Config, LanguageModelling, layer_arrays, stand_in, step_by_step
from tests.oracles.flashrnn import run as oracle
from zoo.analysis import count_parameters
from zoo.scans import register_cell


def test_the_paper_preset_has_about_165_million_parameters_and_15_billion_tokens(tmp_path):
    config = get("flashrnn").presets["paper"]
    for arm in config.lm.arms:
        tokens = jax.ShapeDtypeStruct((1, 8), jnp.int32)
        params = jax.eval_shape(config.lm.model(arm).init, jax.random.key(0), tokens)
        assert 160e6 < count_parameters(params) < 170e6, arm
    training = config.lm.training
    assert abs(training.steps * training.batch_size * config.lm.time / 15e9 - 1) < 0.001
    small = Config(task="lm", lm=LanguageModelling(held_out=500, time=8, validation_rows=2, vocab_size=50))
    filled = stand_in(small, tmp_path)
    assert set(get("flashrnn").arms(filled)) == {"lstm", "slstm", "transformer"}
    assert stand_in(filled, tmp_path) == filled
    with pytest.raises(FileNotFoundError, match="token"):
        get("flashrnn").arms(dataclasses.replace(small))


def test_the_step_by_step_network_is_the_lstm():
    arrays = layer_arrays(jax.random.key(0), "lstm", 2, 5, 2, 3)
    want = oracle("lstm", *(np.asarray(a, np.float64) for a in arrays))
    np.testing.assert_allclose(
        jax.jit(step_by_step)(*arrays), want, atol=2e-6
    )  # a few float32 roundings of numbers below 1


@pytest.mark.parametrize(("name", "options"), [("slstm", {}), ("flashrnn", {"function": "lstm"})])
def test_forget_biases_spread_over_every_head_and_the_rest_starts_at_zero(name, options):
    layer = zoo.create(name, dim=8, heads=2, forget_bias=(1.0, 4.0), **options)
    bias = np.asarray(jax.jit(layer.init)(jax.random.key(0), jnp.zeros((1, 1, 8)))["params"]["bias"])
    np.testing.assert_allclose(bias[1], [[1, 2, 3, 4]] * 2, rtol=1e-6)
    assert np.all(bias[[0, 2, 3]] == 0)


def test_slstm_is_flashrnn_with_that_cell_and_a_group_norm():
    x = jax.random.normal(jax.random.key(1), (2, 5, 8))
    slstm = zoo.create("slstm", dim=8, heads=2)
    other = zoo.create("flashrnn", dim=8, heads=2, function="slstm", group_norm=True)
    params = jax.jit(slstm.init)(jax.random.key(0), x)
    np.testing.assert_array_equal(jax.jit(slstm.apply)(params, x)[0], jax.jit(other.apply)(params, x)[0])


def test_a_cell_of_ones_own_and_orthogonal_matrices_in_a_language_model():
    register_cell("leaky", lambda raw, states: (0.9 * states[0] + 0.1 * jnp.tanh(raw[0]),), (1, 1, 1, 1, 1))
    spec = {"name": "flashrnn", "function": "leaky", "heads": 2, "recurrent_init": "orthogonal"}
    model = zoo.LanguageModel(vocab_size=5, dim=8, pattern=(spec,), mlp="gelu")
    tokens = jnp.arange(6)[None] % 5
    params = jax.jit(model.init)(jax.random.key(0), tokens)
    R = np.asarray(params["params"]["stack"]["layers"]["run_0"]["mixer"]["recurrent_kernel"])[0]
    np.testing.assert_allclose(R @ np.swapaxes(R, -1, -2), np.broadcast_to(np.eye(4), R.shape), atol=1e-5)
    run = jax.jit(model.apply)
    logits, _ = run(params, tokens)
    step, _ = run(params, tokens[:, 3:], run(params, tokens[:, :3])[1])
    np.testing.assert_allclose(step, logits[:, 3:], atol=1e-5)


def test_bad_options_of_the_layers_are_told(as_users_see_it):
    x = jnp.zeros((1, 2, 8))
    for options, message in (
        ({"heads": 3}, "not divisible"),
        ({"function": "lstm2"}, "did you mean 'lstm'"),
        ({"backend": "cudnn"}, "backend='cudnn'"),
        ({"recurrent_init": "zeros"}, "recurrent_init"),
        ({"head_dim": 0}, "head_dim"),
    ):
        with pytest.raises(ValueError, match=message):
            zoo.create("flashrnn", dim=8, **options).init(jax.random.key(0), x)


def test_the_largest_head_is_found():
    for largest in (0, 16, 64, 768, 4096):
        assert largest_head(lambda dim, largest=largest: dim <= largest) == largest


def test_the_benchmark_of_rounding_and_its_table():
    rows = list(measure(("heads", "rounding"), dry=True))
    assert all(row["within_tolerance"] for row in rows if row["section"] == "rounding")
    heads = {(row["platform"], row["dtype"]): row["by_rule"] for row in rows if row["section"] == "heads"}
    assert heads["gpu", "bfloat16"] >= 128 and heads["tpu", "bfloat16"] >= 512
    assert table(rows).count("\n| ") == len(rows) + 2


@pytest.mark.slow
def test_the_benchmark_of_speed():
    rows = list(measure(("speed",), dry=True))
    assert {row["direction"] for row in rows} == {"forward", "forward+backward"}
    assert all(row["ms"] > 0 for row in rows)
