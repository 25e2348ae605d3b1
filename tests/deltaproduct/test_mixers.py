"""What is special about the layers: what one is of the other, initial values, strengths, wrong options."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zoo
from zoo.layers.delta_rule import unit_length, write_strength

applied = functools.partial(jax.jit, static_argnums=0)(lambda module, variables, x: module.apply(variables, x)[0])
X = jax.random.normal(jax.random.key(0), (2, 9, 8))


def test_one_step_without_gate_is_deltanet_and_with_it_gated_deltanet(float64):
    x = X.astype(float)
    product = zoo.create("deltaproduct", dim=8, heads=2, householders=1, head_dim=3, expand_v=2.0, dtype="float64")
    variables = jax.jit(product.init)(jax.random.key(1), x)
    params = variables["params"]
    y = applied(product, variables, x)

    kernel = jnp.concatenate([params[f"{name}_kernel"] for name in ("query", "key", "value")], axis=1)
    shared = {k: v for k, v in params.items() if not k.endswith("_kernel")} | {"kernel": kernel}
    gated = zoo.create("gated_deltanet", dim=8, heads=2, head_dim=6, key_dim=3, allow_neg_eigval=True, norm_eps=1e-5,
                       dtype="float64")  # fmt: skip
    np.testing.assert_allclose(applied(gated, {"params": shared}, x), y, rtol=1e-12, atol=1e-14)

    ungated = {k: v for k, v in params.items() if k not in ("dt", "dt_bias", "A_log")}
    net = zoo.create("deltanet", dim=8, heads=2, head_dim=3, expand_v=2.0, allow_neg_eigval=True, use_output_gate=True,
                     dtype="float64")  # fmt: skip
    got = applied(net, {"params": ungated}, x)
    want = applied(product.clone(use_forget_gate=False), {"params": ungated}, x)
    np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-14)
    assert not np.allclose(got, y, atol=1e-3)


def test_strengths_reach_two_only_where_negative_eigenvalues_are_allowed():
    params = {"beta": jnp.array([[-30.0, 0.0, 30.0]])}
    x = jnp.ones((1, 1, 1))
    np.testing.assert_allclose(write_strength(params, x, False)[0, 0], [0, 0.5, 1], atol=1e-6)
    np.testing.assert_allclose(write_strength(params, x, True)[0, 0], [0, 1, 2], atol=1e-6)


def test_a_key_of_zeros_stays_zero_with_a_finite_gradient():
    zero = jnp.zeros((1, 4))
    np.testing.assert_array_equal(unit_length(zero), zero)
    assert np.isfinite(jax.grad(lambda k: unit_length(k).sum())(zero)).all()
    np.testing.assert_allclose(jnp.linalg.norm(unit_length(zero + 3)), 1, rtol=1e-6)


def test_initial_values_are_those_of_the_public_layer():
    module = zoo.create("deltaproduct", dim=64, heads=256, head_dim=1, expand_v=1.0, householders=2)
    params = jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, 2, 64)))["params"]
    bound = 2**-2.5 * np.sqrt(6 / (64 + 512))
    for name in ("key", "value", "beta"):
        assert params[name].shape == (64, 512)
        assert 0.99 * bound < np.abs(params[name]).max() <= bound
    a, steps = np.exp(params["A_log"]), jax.nn.softplus(params["dt_bias"])
    assert 0 < a.min() < 0.3 and 15.7 < a.max() <= 16
    assert 0.00099 <= steps.min() < 0.0012 and 0.08 < steps.max() <= 0.1001
    assert 0.45 < np.abs(params["key_kernel"]).max() <= 0.5 and np.all(params["scale"] == 1)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("deltaproduct", {"householders": 0}, "householders must be a positive integer"),
        ("deltaproduct", {"heads": 3}, "dim=8 is not divisible by heads=3"),
        ("deltaproduct", {"heads": 2, "value_heads": 3}, "value_heads=3 is not divisible by heads=2"),
        ("deltaproduct", {"head_dim": 3, "expand_v": 1.5}, r"head_dim \* expand_v must be a positive integer"),
        ("deltaproduct", {"conv_size": 0}, "conv_size must be a positive integer"),
        ("deltaproduct", {"dt_min": 0.2}, "0 < dt_min <= dt_max"),
        ("deltaproduct", {"a_range": (3.0, 1.0)}, "a_range must be two numbers"),
        ("deltanet", {"heads": 0}, "heads must be a positive integer"),
        ("deltanet", {"head_dim": 4, "expand_v": 0.1}, r"head_dim \* expand_v must be a positive integer"),
        ("gated_deltanet", {"conv_size": 0}, "conv_size must be a positive integer"),
    ],
)
def test_wrong_options_say_what_would_be_right(name, options, words, as_users_see_it):
    with pytest.raises(ValueError, match=words):
        zoo.create(name, dim=8, **options).init(jax.random.key(0), X)
