"""Mixers of this paper: identities between them, initial values, extreme inputs, dropout, wrong options."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zoo
from zoo.layers.real_gates import decay_initializer, input_scale
from zoo.mixers.linear_attention import linear_attention_layer
from zoo.mixers.normalized_attention import normalized_attention
from zoo.mixers.qlstm import qlstm_gates
from zoo.mixers.rg_lru import rg_lru

X = jax.random.normal(jax.random.key(1), (2, 9, 8))


@functools.lru_cache
def made(name, **options):
    module = zoo.create(name, dim=8, **options)
    return module, jax.jit(module.init)(jax.random.key(0), X)["params"]


def test_linear_attention_averages_values():
    """Positive weights that sum to one: constant values come out unchanged, whatever queries and keys are."""
    module, params = made("linear_attention", key_dim=3)
    x = X.at[:, :, 0].set(1)
    only_first = jnp.zeros_like(params["value"]).at[0].set(2.0)
    params = {**params, "value": only_first, "output": jnp.eye(8)[None]}
    y, _ = linear_attention_layer(params, x, module.initial_state(2))
    np.testing.assert_allclose(y, 2 * np.ones_like(y), rtol=1e-5)


def test_exp_normaliser_scales_by_the_query_alone():
    module, params = made("normalized_attention", key_dim=3)
    plain, _ = normalized_attention({**params, "normalizer": 0 * params["normalizer"]}, X, module.initial_state(2))
    y, _ = normalized_attention(params, X, module.initial_state(2))
    np.testing.assert_allclose(y, plain * jnp.exp(-X @ params["normalizer"]), rtol=2e-4, atol=1e-5)


def test_reversed_sigmoid_is_a_power_of_the_sigmoid_and_one_for_negative_exponents():
    _, params = made("qlstm", reversed_sigmoid=True)
    x = jax.random.normal(jax.random.key(2), (5, 16))
    f = (x @ params["gates"] + params["gates_bias"])[:, :16]
    for alpha in (0.7, -1.0):
        log_decay, *_ = qlstm_gates({**params, "alpha": jnp.float32(alpha)}, x)
        np.testing.assert_allclose(jnp.exp(log_decay), jax.nn.sigmoid(-f) ** max(alpha, 0), rtol=1e-5)


def test_rg_lru_starts_like_recurrent_gemma():
    """With the unit start the first token comes in whole, behind its gate; a reset is another first token."""
    module, params = made("rg_lru", unit_start=True)
    reset = jnp.zeros((2, 9), bool).at[0, 4].set(True)
    y, _ = rg_lru(params, X, module.initial_state(2), unit_start=True, reset=reset)
    gate = jax.nn.sigmoid(jnp.einsum("btd,de->bte", X, params["input_gate"][0]) + params["input_gate_bias"])
    for row, t in ((0, 0), (1, 0), (0, 4)):
        np.testing.assert_allclose(y[row, t], (gate * X)[row, t], rtol=1e-5, atol=1e-6)


def test_decays_begin_in_their_ring_and_uniform_by_area():
    p = decay_initializer(0.9, 0.999)(jax.random.key(0), (4000,))
    decay = np.asarray(jnp.exp(-8 * jax.nn.softplus(p)))
    assert decay.min() >= 0.9 and decay.max() <= 0.99901
    assert abs(np.mean(decay**2) - (0.9**2 + 0.999**2) / 2) < 0.003


def test_the_root_of_a_decay_near_one_keeps_its_digits_and_a_finite_gradient():
    log_decay = jnp.array([-1e-12, -1e-6, -1.0])
    np.testing.assert_allclose(input_scale(log_decay, 0.0), np.sqrt(-np.expm1(2 * np.float64(log_decay))), rtol=1e-5)
    at_one = jax.grad(lambda p: jnp.sum(input_scale(-8 * jax.nn.softplus(p), 0.0)))(jnp.array([-200.0, -50.0, 0.0]))
    assert np.all(np.isfinite(at_one))


@pytest.mark.parametrize(("name", "options"), [("linear_attention", {}), ("normalized_attention", {"key_dim": 3})])
def test_dropout_is_on_the_weights_of_training_alone(name, options):
    module, params = made(name, dropout=0.5, heads=2, **options)
    variables = {"params": params}
    y, state = module.apply(variables, X)
    again, _ = zoo.create(name, dim=8, heads=2, **options).apply(variables, X)
    np.testing.assert_array_equal(y, again)
    # without anything dropped the quadratic form is the recurrent one, across documents and a carried state
    reset = jnp.zeros((2, 9), bool).at[0, 5].set(True)
    none = zoo.create(name, dim=8, heads=2, dropout=1e-9, **options)
    want, _ = module.apply(variables, X, state, reset=reset)
    got, _ = none.apply(variables, X, state, reset=reset, rngs={"dropout": jax.random.key(3)})
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
    keys = jax.random.split(jax.random.key(4), 400)
    many = jax.jit(jax.vmap(lambda key: module.apply(variables, X, rngs={"dropout": key})[0]))(keys)
    spread = jnp.std(many, axis=0) / 400**0.5
    assert np.mean(np.abs(jnp.mean(many, axis=0) - y) < 4 * spread + 1e-6) > 0.99, "unbiased"
    assert jnp.min(jnp.max(spread, axis=-1)) > 0


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("linear_attention", {"heads": 3}, "dim=8 is not divisible by heads=3"),
        ("linear_attention", {"feature_map": "elou"}, "feature_map='elou' is not one of .*elu"),
        ("linear_attention", {"dropout": 1.0}, "dropout must lie in"),
        ("normalized_attention", {"normalizer": "softmax"}, "normalizer='softmax' is not one of"),
        ("normalized_attention", {"key_dim": 0}, "key_dim must be a positive integer"),
        ("rg_lru", {"heads": 3}, "dim=8 is not divisible by heads=3"),
        ("seahawk", {"r_max": 1.0}, "r_min < r_max < 1"),
        ("s6", {"dt_rank": 0}, "dt_rank must be a positive integer"),
        ("ssd", {"dt_min": 0.2}, "dt_min <= dt_max"),
        ("qlstm", {"conv_size": 0}, "conv_size must be a positive integer"),
    ],
)
def test_wrong_options_are_refused(name, options, words):
    with pytest.raises(ValueError, match=words):
        jax.eval_shape(zoo.create(name, dim=8, **options).init, jax.random.key(0), X)
