"""Jacobian profiles: the theory's numbers for plain networks, and what the LSTM's cell does instead."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zoo
from zoo.analysis import jacobian_log_norms, log_norm_bound, mixer_step, weight_sweep

TIME = 12


def test_profile_equals_the_jacobian_by_autodiff(float64):
    lstm = zoo.create("lstm", dim=3, dtype="float64")
    x = jax.random.normal(jax.random.key(0), (TIME, 3))
    params = jax.tree.map(jnp.float64, lstm.init(jax.random.key(1), x[None]))
    start = lstm.initial_state(1)
    profile = jax.jit(lambda p: jacobian_log_norms(mixer_step(lstm), p, x, start))(params)

    def run(flat, steps):
        state = start.replace(hidden=flat[None, :3], cell=flat[None, 3:])
        state = lstm.apply(params, x[None, :steps], state)[1]
        return jnp.concatenate([state.hidden[0], state.cell[0]])

    for steps in (1, TIME):
        jacobian = jax.jacobian(lambda flat, n=steps: run(flat, n))(jnp.zeros(6))
        assert np.isclose(float(profile[steps - 1]), np.log(np.linalg.norm(jacobian, 2)), rtol=1e-10)


def test_the_carousel_of_1997_carries_gradients_unchanged():
    lstm = zoo.create("lstm", dim=4, forget_gate=False)
    x = jax.random.normal(jax.random.key(0), (TIME, 4))
    params = lstm.init(jax.random.key(1), x[None])["params"]
    params = {"params": {**params, "recurrent_kernel": jnp.zeros_like(params["recurrent_kernel"])}}
    norms = jacobian_log_norms(mixer_step(lstm), params, x, lstm.initial_state(1), select=lambda s: s.cell)
    assert np.array_equal(np.exp(norms), np.ones(TIME))


def test_weight_sweep_follows_the_theory_and_never_breaks_the_bound():
    norms = weight_sweep(jax.random.key(0), scales=(0.5, 2.0), activations=("identity", "sigmoid"), dim=8, time=TIME)
    steps = np.arange(1, TIME + 1)
    for scale in (0.5, 2.0):
        np.testing.assert_allclose(norms["identity"][scale], steps * np.log(scale), atol=1e-4)
        bound = log_norm_bound(scale * jnp.eye(8), "sigmoid", TIME)
        assert np.all(norms["sigmoid"][scale] <= bound + 1e-5)
    assert np.all(np.diff(norms["sigmoid"][2.0]) < 0), "a sigmoid network still vanishes at twice an orthogonal matrix"
    far = weight_sweep(jax.random.key(0), scales=(0.5,), activations=("sigmoid",), dim=2, time=200)["sigmoid"][0.5]
    assert np.isfinite(far[-1]) and far[-1] < np.log(1e-150), "smaller than any float32, but not lost"


def test_gradient_flow_refuses(as_users_see_it):
    with pytest.raises(ValueError, match="did you mean 'tanh'"):
        log_norm_bound(jnp.eye(2), "tanhh", 3)
    lru = zoo.create("lru", dim=2)
    with pytest.raises(ValueError, match="real state"):
        jacobian_log_norms(mixer_step(lru), {}, jnp.zeros((3, 2)), lru.initial_state(1))
