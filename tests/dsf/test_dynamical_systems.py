"""Architectures as dynamical systems: extreme decays, heads, groups, rotations, limits, refusals, comparisons."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zoo
from zoo.analysis.dynamical_systems import (
    ARCHITECTURES,
    DynamicalSystem,
    attention_as_ssd,
    attention_system,
    check_equivalence,
    compare_systems,
    comparison_table,
    native,
    random_parameters,
    softmax_kernel,
    taylor_features,
    to_dsf,
)

U = jax.random.normal(jax.random.key(1), (7, 4))


@functools.lru_cache
def made(name, expansion=2):
    return random_parameters(name, jax.random.key(0), 4, expansion)


def by_hand(decay, inputs, outputs, feedthrough, u):
    """The recurrence in float64 NumPy, and Phi by products of decays."""
    decay, inputs, outputs, feedthrough, u = (
        np.asarray(a, np.float64) for a in (decay, inputs, outputs, feedthrough, u)
    )
    h, ys = np.zeros(decay.shape[1]), []
    phi = np.zeros((len(u), len(u), outputs.shape[1], u.shape[1]))
    for t in range(len(u)):
        h = decay[t] * h + inputs[t] @ u[t]
        ys.append(outputs[t] @ h + feedthrough[t] @ u[t])
        for j in range(t + 1):
            phi[t, j] = outputs[t] @ (np.prod(decay[j + 1 : t + 1], axis=0)[:, None] * inputs[j])
        phi[t, t] += feedthrough[t]
    return jnp.asarray(ys, jnp.float32), phi, h


def test_all_forms_are_the_definition_with_decays_of_every_sign():
    keys = jax.random.split(jax.random.key(2), 4)
    decay = jax.random.uniform(keys[0], (7, 5), minval=-1.0, maxval=1.0).at[3, 2].set(0)
    shapes = ((7, 5, 4), (7, 3, 5), (7, 3, 4))
    matrices = [decay, *(jax.random.normal(k, shape) for k, shape in zip(keys[1:], shapes))]
    system = DynamicalSystem.from_matrices(*matrices)
    y, phi, last = by_hand(*matrices, U)
    report = check_equivalence(y, system, U, tol=1e-5)
    assert report.passed and report.max_error == max(report.recurrent, report.scan, report.conv)
    np.testing.assert_allclose(system.kernel(), phi, atol=1e-5)
    for run in (system.run_recurrent, system.run_scan):
        np.testing.assert_allclose(run(U)[1], last, atol=1e-5)
    wrong = check_equivalence(y + 1e-3, system, U, tol=1e-5)
    assert not wrong.passed and wrong.max_error > 9e-4


@pytest.mark.parametrize("name", ["attention", "normalized_attention", "s4", "s6", "seahawk", "qlstm_reversed"])
def test_a_system_is_its_architecture(name):
    options = ARCHITECTURES[name].options
    system, y = jax.jit(lambda p, u: (to_dsf(name, p, u, **options), native(name, p, u, **options)))(made(name), U)
    assert check_equivalence(y, system, U, tol=1e-5).passed
    assert system.states_per_channel == {"attention": 7, "qlstm_reversed": 1}.get(name, 2)


@pytest.mark.parametrize(
    ("name", "options", "asked"),
    [
        ("linear_attention", {"heads": 2, "key_dim": 3}, {}),
        ("normalized_attention", {"heads": 2, "key_dim": 3, "normalizer": "softplus"}, {"normalizer": "softplus"}),
        ("ssd", {"heads": 2, "state_dim": 3}, {}),
        ("rg_lru", {"heads": 2, "unit_start": True}, {"unit_start": True}),
    ],
)
def test_the_parameters_are_those_of_the_layer(name, options, asked):
    """Several heads: what a module computes is what its parameters' system does."""
    module = zoo.create(name, dim=4, **options)
    params = jax.jit(module.init)(jax.random.key(3), U[None])
    system = to_dsf(name, params["params"], U, **asked)
    assert check_equivalence(lambda u: module.apply(params, u[None])[0][0], system, U, tol=1e-5).passed


def test_grouped_rotary_softmax_is_a_system_with_enough_states():
    module = zoo.create("attention", dim=4, heads=2, kv_heads=1)
    params = jax.jit(module.init)(jax.random.key(3), U[None])
    small = 0.3 * U
    y = module.apply(params, small[None])[0][0]
    errors = [
        check_equivalence(
            y, to_dsf("attention", params["params"], small, degree=d, positions="rotary"), small
        ).max_error
        for d in (0, 2)
    ]
    assert errors[0] > 10 * errors[1] and errors[1] < 1e-3, errors
    phi = softmax_kernel(params["params"], small, positions="rotary")
    np.testing.assert_allclose(jnp.einsum("ijod,jd->io", phi, small), y, atol=1e-6)


def test_the_convolution_survives_normalisers_far_outside_of_float32():
    """eta_t is exp(100) and exp(-100) in turn: ratios of 1e86 and their products, which cancel in the last row."""
    z = (100.0 * (-1) ** jnp.arange(7)).at[-1].set(0.5)[:, None]
    q, k = (jax.random.normal(key, (7, 1, 2)) for key in jax.random.split(jax.random.key(4)))
    eye = jnp.eye(4)
    system = attention_system(q, k, eye[:, None], eye[None], log_normalizer=z)
    weights = np.exp(-0.5) * np.asarray(k[:, 0] @ q[-1, 0])
    np.testing.assert_allclose(system.kernel()[-1], weights[:, None, None] * np.eye(4), rtol=1e-4, atol=1e-5)
    assert np.all(np.isfinite(system.decay)) and np.all(np.isfinite(system.inputs))


def test_ssd_is_attention_with_a_fitting_normaliser():
    params, u, system = attention_as_ssd(jax.random.key(0), 9, 4, 3)
    assert check_equivalence(native("ssd", params, u), system, u, tol=1e-5).passed
    assert system.normalizer is not None


def test_the_normaliser_that_makes_attention_ssd_may_grow_beyond_float32():
    params, u, system = attention_as_ssd(jax.random.key(0), 160, 4, 3)
    delta = jax.nn.softplus(u @ params["dt"] + params["dt_bias"])
    assert np.max(np.sum(np.exp(params["A_log"]) * np.asarray(delta), axis=0)) > np.log(np.finfo(np.float32).max)
    assert check_equivalence(native("ssd", params, u), system, u).max_error < 1e-4


def test_ssd_without_decay_and_with_unit_steps_is_attention_without_a_normaliser():
    params = made("ssd")
    inverse_softplus_of_one = jnp.log(jnp.expm1(jnp.ones(1)))
    still = {"A_log": jnp.full(1, -jnp.inf), "dt": jnp.zeros((4, 1)), "dt_bias": inverse_softplus_of_one}
    maps = {"query": params["C"][:, None], "key": params["B"][:, None], "value": params["value"]}
    want = native("linear_attention_unnormalized", {**maps, "output": jnp.eye(4)[None]}, U)
    np.testing.assert_allclose(native("ssd", {**params, **still}, U), want, rtol=1e-5, atol=1e-5)


def test_taylor_features_are_the_series_of_exp():
    q, k = (0.5 * jax.random.normal(key, (3,)) for key in jax.random.split(jax.random.key(5)))
    s = float(q @ k)
    assert taylor_features(q, 4).shape == (1 + 3 + 9 + 27 + 81,)
    np.testing.assert_allclose(
        taylor_features(q, 4) @ taylor_features(k, 4), 1 + s + s**2 / 2 + s**3 / 6 + s**4 / 24, 1e-5
    )


def test_the_comparison_finds_what_hangs_on_the_input_and_what_is_shared():
    names = ("attention", "linear_attention_unnormalized", "qlstm", "rg_lru", "s6", "lru")
    rows = {row.architecture: row for row in compare_systems(names)}
    assert (rows["lru"].decay, rows["lru"].inputs, rows["lru"].feedthrough) == ("fixed", "fixed", "fixed")
    assert (rows["s6"].decay, rows["s6"].inputs, rows["s6"].outputs) == ("input", "input", "input")
    assert set(rows["s6"].coupled) == {"project", "dt", "dt_bias"}
    assert rows["rg_lru"].outputs == "1" or rows["rg_lru"].outputs == "fixed"
    assert set(rows["rg_lru"].coupled) == {"decay", "recurrence_gate"}
    assert rows["qlstm"].coupled == () and rows["qlstm"].decay == "input"
    assert rows["linear_attention_unnormalized"].decay == "1"
    assert rows["linear_attention_unnormalized"].normalizer == "none"
    assert rows["attention"].normalizer == "input" and rows["attention"].states_per_channel == float("inf")
    lines = comparison_table(rows.values()).splitlines()
    assert len(lines) == 8 and "infinite" in lines[2] and len({line.count("|") for line in lines}) == 1


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("lstm", {}, "lstm is not linear in its state"),
        ("linear_atention", {}, "did you mean 'linear_attention'"),
        ("attention", {"degree": 3}, "degree must be an even number"),
        ("linear_attention", {"limit": 100}, "would have .* numbers, more than limit=100"),
        ("normalized_attention", {"normalizer": "tanh"}, "normalizer='tanh' is not one of"),
    ],
)
def test_what_is_no_system_is_refused(name, options, words):
    params = made(name) if name in ARCHITECTURES else {}
    with pytest.raises(ValueError, match=words):
        to_dsf(name, params, U, **options)


def test_the_convolution_has_a_limit_and_inputs_must_fit():
    system = to_dsf("qlstm", made("qlstm"), U)
    with pytest.raises(ValueError, match="the convolution would have 784 numbers, more than limit=783"):
        system.kernel(limit=783)
    with pytest.raises(ValueError, match=r"u must have the shape \[7, 4\]"):
        system.run_scan(U[:3])
    with pytest.raises(ValueError, match="native has shape"):
        check_equivalence(U[:, :2], system, U)
