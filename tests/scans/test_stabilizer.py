"""stabilized_gates: the running maximum, and a recurrence that it keeps in range."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.oracles import scans as oracle
from zoo.scans import linear_scan, previous_steps, stabilized_gates


def make(seed=0, size=3.0):
    rng = np.random.default_rng(seed)
    log_decay, log_inputs = -rng.exponential(size=(2, 9, 3)), size * rng.normal(size=(2, 9, 3))
    log_decay[1, 4] = -np.inf
    return log_decay, log_inputs, rng.normal(size=(2, 3))


def test_gates_and_maximum_equal_the_oracle(float64):
    for start in (make()[2], np.full((2, 3), -np.inf)):
        log_decay, log_inputs, _ = make()
        got = stabilized_gates(*map(jnp.asarray, (log_decay, log_inputs, start)))
        for g, w in zip(got, oracle.stabilized(log_decay, log_inputs, start), strict=True):
            np.testing.assert_allclose(g, w, rtol=1e-13, atol=1e-13)


def test_pieces_equal_the_whole(float64):
    log_decay, log_inputs, start = map(jnp.asarray, make())
    whole = stabilized_gates(log_decay, log_inputs, start)
    first = stabilized_gates(log_decay[:, :4], log_inputs[:, :4], start)
    second = stabilized_gates(log_decay[:, 4:], log_inputs[:, 4:], first[2][:, -1])
    for a, b, w in zip(first, second, whole, strict=True):
        np.testing.assert_allclose(np.concatenate([a, b], axis=1), w, rtol=1e-13, atol=1e-13)


def average(log_decay, log_inputs, values):
    """A weighted average of all values so far, through the stabilised state."""
    start = jnp.full(values[:, 0].shape, -jnp.inf)
    gates, inputs, _ = stabilized_gates(log_decay, log_inputs, start)
    factor = jnp.exp(inputs)[..., None] * jnp.stack([values, jnp.ones_like(values)], axis=-1)
    states, _ = linear_scan(jnp.exp(gates)[..., None], factor)
    return states[..., 0] / states[..., 1]


def test_inputs_beyond_the_range_of_floats_give_finite_averages_and_gradients():
    log_decay, log_inputs, _ = map(jnp.float32, make(size=300.0))
    values = jax.random.normal(jax.random.key(0), log_inputs.shape)
    y, gradients = jax.value_and_grad(lambda *a: jnp.sum(average(*a)), (0, 1, 2))(log_decay, log_inputs, values)
    assert np.isfinite(y) and all(np.all(np.isfinite(g)) for g in gradients)
    assert np.all(np.abs(average(log_decay, log_inputs, values)) <= jnp.max(jnp.abs(values)) * (1 + 1e-6))


def test_no_gradient_through_the_maximum_is_the_whole_gradient(float64):
    log_decay, log_inputs, _ = make(size=1.0)
    values = np.random.default_rng(3).normal(size=log_inputs.shape)
    weights = np.random.default_rng(4).normal(size=log_inputs.shape)

    def direct(log_inputs):
        states, state = [], jnp.zeros((*values[:, 0].shape, 2))
        for t in range(values.shape[1]):
            now = jnp.exp(log_inputs[:, t])[..., None] * jnp.stack([values[:, t], jnp.ones_like(values[:, t])], axis=-1)
            state = jnp.exp(log_decay[:, t])[..., None] * state + now
            states.append(state[..., 0] / state[..., 1])
        return jnp.sum(jnp.stack(states, axis=1) * weights)

    got = jax.grad(lambda i: jnp.sum(average(jnp.asarray(log_decay), i, jnp.asarray(values)) * weights))
    np.testing.assert_allclose(got(jnp.asarray(log_inputs)), jax.grad(direct)(jnp.asarray(log_inputs)), rtol=1e-10)


def test_previous_steps():
    states = jnp.arange(6.0).reshape(1, 3, 2)
    np.testing.assert_array_equal(previous_steps(jnp.full((1, 2), 9.0), states)[0], [[9, 9], [0, 1], [2, 3]])


@pytest.mark.parametrize(("change", "words"), [(0, "log_decay must have the shape"), (2, "initial must have")])
def test_shapes_that_do_not_fit_are_refused(as_users_see_it, change, words):
    arguments = list(map(jnp.asarray, make()))
    arguments[change] = arguments[change][..., :-1]
    with pytest.raises(ValueError, match=words):
        stabilized_gates(*arguments)
