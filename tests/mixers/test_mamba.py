"""What is special about Mamba and Mamba-2: forms of the scan, initial values, extreme gates, wrong options."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zoo
from zoo.layers.step_sizes import step_size_bias
from zoo.mixers.mamba import mamba
from zoo.mixers.mamba2 import mamba2

SMALL = {"mamba": {"state_dim": 4}, "mamba2": {"state_dim": 4, "head_dim": 4, "groups": 2}}
FUNCTIONS = {"mamba": mamba, "mamba2": functools.partial(mamba2, groups=2)}


@functools.lru_cache
def made(name, dim=8):
    module = zoo.create(name, dim=dim, **SMALL[name])
    x = jax.random.normal(jax.random.key(1), (2, 13, dim))
    return module, jax.jit(module.init)(jax.random.key(0), x)["params"], x


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("method", ["chunked", "pallas"])
def test_every_form_of_the_scan_gives_the_same_layer(name, method):
    module, params, x = made(name)
    state = module.initial_state(2)
    reset = jnp.zeros((2, 13), bool).at[0, 4].set(True)
    want, last = FUNCTIONS[name](params, x, state, reset=reset, method="sequential")
    got, after = FUNCTIONS[name](params, x, state, reset=reset, method=method)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(after.hidden, last.hidden, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("shift", [-60.0, 60.0])
def test_extreme_step_sizes_give_finite_values_and_gradients(name, shift):
    """Steps of softplus(-60) = 1e-26 write nothing and softplus(60) = 60 forget everything: decays of 1 and of 0."""
    module, params, x = made(name)
    params = {**params, "dt_bias": params["dt_bias"] + shift}
    state = module.initial_state(2)

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def gradients(params):
        y, last = FUNCTIONS[name](params, x, state)
        return jnp.sum(y**2), last

    (value, last), grads = gradients(params)
    assert np.isfinite(value)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(grads))
    assert (np.max(np.abs(last.hidden)) < 1e-20) == (shift < 0)


def test_initial_values_are_those_of_the_papers():
    steps = jax.nn.softplus(step_size_bias(0.001, 0.1)(jax.random.key(0), (4000,)))
    assert 0.00099 <= steps.min() < 0.00105 and 0.095 < steps.max() <= 0.1001
    np.testing.assert_allclose(np.mean(np.log(steps)), np.log(0.01), atol=0.06)  # log-uniform: sd 1.33 / sqrt(4000)
    assert np.all(jax.nn.softplus(step_size_bias(1e-6, 1e-5, 1e-4)(jax.random.key(0), (5,))) >= 0.99e-4)
    _, params, _ = made("mamba")
    np.testing.assert_allclose(np.exp(params["A_log"]), np.tile(np.arange(1, 5), (16, 1)), rtol=1e-6)
    wide = zoo.create("mamba2", dim=256, head_dim=1).init(jax.random.key(0), jnp.zeros((1, 2, 256)))["params"]
    a = np.exp(wide["A_log"])
    assert 1 <= a.min() < 1.2 and 15.8 < a.max() <= 16


def test_step_sizes_stay_between_their_limits():
    module, params, x = made("mamba2")
    state = module.initial_state(2)
    fixed, _ = mamba2(params, x, state, groups=2, dt_limits=(0.02, 0.02))
    other = {**params, "dt_bias": params["dt_bias"] + 3.0}
    np.testing.assert_array_equal(fixed, mamba2(other, x, state, groups=2, dt_limits=(0.02, 0.02))[0])
    assert not np.allclose(fixed, mamba2(other, x, state, groups=2)[0])


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("mamba", {"state_dim": 0}, "state_dim"),
        ("mamba", {"dt_rank": 0}, "dt_rank"),
        ("mamba", {"dt_min": 0.2}, "0 < dt_min <= dt_max"),
        ("mamba2", {"head_dim": 3}, "expand [*] dim=16 is not divisible by head_dim=3"),
        ("mamba2", {"head_dim": 4, "groups": 3}, "not divisible by groups=3"),
        ("mamba2", {"head_dim": 4, "dt_limits": (0.5, 0.1)}, "dt_limits must be two numbers"),
        ("mamba2", {"head_dim": 4, "a_range": (0.0, 1.0)}, "a_range must be two numbers"),
    ],
)
def test_wrong_options_say_what_would_be_right(name, options, words, as_users_see_it):
    with pytest.raises(ValueError, match=words):
        zoo.create(name, dim=8, **options).init(jax.random.key(0), jnp.zeros((1, 4, 8)))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"window": 0}, "window must be a positive integer"),
        ({"retention_scale": 0.0}, r"retention_scale must be in \(0, 1\]"),
        ({"retention_scale": 1.01}, r"retention_scale must be in \(0, 1\]"),
        ({"insertion_scale": (1.0, -1.0, 1.0, 1.0)}, "insertion_scale must be positive"),
        ({"insertion_scale": (1.0, 1.0)}, "a tuple of 4, one per head"),
        ({"dt_scale": 0.0}, "dt_scale must be positive"),
        ({"max_norm": 0.0}, "max_norm must be positive"),
        ({"max_chunk_norm": -1.0, "chunk_size": 2}, "max_chunk_norm must be positive"),
        ({"max_chunk_norm": 1.0}, "max_chunk_norm needs chunk_size"),
        ({"max_norm": 1.0, "window": 2}, "only one of max_norm, max_chunk_norm and window"),
    ],
)
def test_changes_of_the_recurrence_that_cannot_be_are_refused(options, words, as_users_see_it):
    with pytest.raises(ValueError, match=words):
        zoo.create("mamba2", dim=8, head_dim=4, state_dim=2, **options).init(jax.random.key(0), jnp.zeros((1, 4, 8)))


def test_a_window_is_what_starting_anew_on_the_last_tokens_gives():
    """One layer's output at a step hangs on the last ``window`` tokens' keys and values; the convolution sees on."""
    _, _, x = made("mamba2")
    options = {**SMALL["mamba2"], "conv_size": 1}
    plain = zoo.create("mamba2", dim=8, **options)
    params = plain.init(jax.random.key(0), x)
    y, _ = jax.jit(plain.clone(window=5).apply)(params, x)
    np.testing.assert_allclose(y[:, -1], jax.jit(plain.apply)(params, x[:, -5:])[0][:, -1], rtol=1e-4, atol=1e-5)
    assert not np.allclose(y[:, -1], jax.jit(plain.apply)(params, x)[0][:, -1], atol=1e-3)


def test_clipping_at_the_ends_of_chunks_is_another_bound_than_clipping_every_step():
    module, params, x = made("mamba2")
    free, last = module.apply({"params": params}, x)
    bound = 0.5 * float(jnp.min(jnp.linalg.norm(last.hidden, axis=(-2, -1))))
    _, each = module.clone(max_norm=bound).apply({"params": params}, x)
    y, chunked = module.clone(max_chunk_norm=bound, chunk_size=4).apply({"params": params}, x)
    for state in (each, chunked):
        assert np.all(np.linalg.norm(state.hidden, axis=(-2, -1)) <= bound * 1.0001)
    np.testing.assert_allclose(y[:, :4], free[:, :4], rtol=1e-4, atol=1e-5)
    assert not np.allclose(each.hidden, chunked.hidden, rtol=1e-3)
