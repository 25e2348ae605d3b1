"""The three models of the paper's settings: forecaster, event model, decision model and its rollouts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from zoo.decoding import decision_policy, host_rollout, rollout
from zoo.models import DecisionModel, EventModel, EventPrediction, Forecaster
from zoo.models.event_model import expected_interval, interval_log_density, median_interval
from zoo.tasks import MarkovLogNormal, PointMass

AAREN = ({"name": "aaren", "heads": 2},)
ATTENTION = ({"name": "attention", "heads": 2, "positions": "none", "window": 64},)


@pytest.mark.parametrize("channels", ["independent", "joint"])
def test_forecasts_scale_and_shift_with_the_series(channels):
    model = Forecaster(horizon=5, dim=8, channels=channels, head="all" if channels == "joint" else "last", mlp_dim=8)
    x = jax.random.normal(jax.random.key(0), (3, 14, 2))
    params = jax.jit(model.init)(jax.random.key(1), x)
    run = jax.jit(lambda x: model.apply(params, x))
    y = run(x)
    assert y.shape == (3, 5, 2)
    np.testing.assert_allclose(run(3.0 * x + 7.0), 3.0 * y + 7.0, rtol=1e-4, atol=1e-3)
    swapped = run(x[..., ::-1])[..., ::-1]
    assert np.allclose(swapped, y, atol=1e-5) == (channels == "independent")


def test_a_constant_series_is_forecast_without_nan():
    model = Forecaster(horizon=3, dim=8, mlp_dim=8)
    x = jnp.full((1, 8, 1), 2.0)
    params = jax.jit(model.init)(jax.random.key(0), x)
    value, grad = jax.jit(jax.value_and_grad(lambda x: jnp.sum(model.apply(params, x))))(x)
    assert np.isfinite(value) and np.all(np.isfinite(grad))


def mixture():
    keys = jax.random.split(jax.random.key(0), 3)
    return EventPrediction(
        log_weights=jax.nn.log_softmax(jax.random.normal(keys[0], (2, 4))),
        means=jax.random.normal(keys[1], (2, 4)),
        deviations=jnp.exp(0.5 * jax.random.normal(keys[2], (2, 4)) - 1),
        mark_logits=jnp.zeros((2, 3)),
    )


def test_the_mixture_is_a_density_with_the_mean_and_median_that_are_claimed(float64):
    prediction = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), mixture())
    for row in range(2):
        one = jax.tree.map(lambda a, r=row: a[r], prediction)
        weights, means, deviations = np.exp(one.log_weights), np.asarray(one.means), np.asarray(one.deviations)

        def density(tau, w=weights, m=means, s=deviations):
            return sum(w[i] * stats.lognorm.pdf(tau, s[i], scale=np.exp(m[i])) for i in range(4))

        tau = np.array([0.05, 0.7, 3.0])
        np.testing.assert_allclose(
            [float(interval_log_density(one, jnp.float64(t))) for t in tau], np.log(density(tau)), rtol=1e-9
        )
        mean = integrate.quad(lambda z: np.exp(2 * z) * density(np.exp(z)), -12, 12, limit=200)[0]
        np.testing.assert_allclose(expected_interval(one), mean, rtol=1e-6)
        median = float(median_interval(one))
        below = sum(weights[i] * stats.lognorm.cdf(median, deviations[i], scale=np.exp(means[i])) for i in range(4))
        np.testing.assert_allclose(below, 0.5, atol=1e-8)


@pytest.mark.parametrize("pattern", [AAREN, ATTENTION], ids=["aaren", "attention"])
def test_event_models_stream_and_restart(pattern):
    model = EventModel(num_marks=3, dim=8, components=4, pattern=pattern, mlp_dim=8)
    intervals, marks = MarkovLogNormal(length=9).batch(jax.random.key(0), 2).inputs
    params = jax.jit(model.init)(jax.random.key(1), intervals, marks)
    run = jax.jit(lambda i, m, s, r: model.apply(params, i, m, s, reset=r))
    start, calm = model.initial_state(2), jnp.zeros((2, 9), bool)
    whole, last = run(intervals, marks, start, calm)
    first, state = run(intervals[:, :4], marks[:, :4], start, calm[:, :4])
    second, end = run(intervals[:, 4:], marks[:, 4:], state, calm[:, 4:])
    for a, b, c in zip(jax.tree.leaves(whole), jax.tree.leaves(first), jax.tree.leaves(second)):
        np.testing.assert_allclose(jnp.concatenate([b, c], axis=1), a, atol=1e-5)
    for a, b in zip(jax.tree.leaves(end), jax.tree.leaves(last)):
        np.testing.assert_allclose(a, b, atol=1e-5)
    packed, _ = run(intervals, marks, last, calm.at[:, 0].set(True))
    np.testing.assert_allclose(packed.means, whole.means, atol=1e-5)


@functools.lru_cache
def decision(pattern_name="aaren"):
    pattern = AAREN if pattern_name == "aaren" else ATTENTION
    model = DecisionModel(observation_dim=2, action_dim=1, dim=8, pattern=pattern, depth=2, mlp_dim=8)
    trajectory = PointMass().batch(jax.random.key(0), 3).inputs
    return model, jax.jit(model.init)(jax.random.key(1), *trajectory), trajectory


@pytest.mark.parametrize("pattern", ["aaren", "attention"])
def test_acting_step_by_step_says_what_the_whole_call_says(pattern):
    model, params, trajectory = decision(pattern)
    predicted = model.apply(params, *trajectory)[0]
    act = jax.jit(lambda *a: model.apply(params, *a, method="act"))
    record = jax.jit(lambda *a: model.apply(params, *a, method="record"))
    state = model.initial_state(3)
    for t in range(4):
        to_go, observation, action, step = (leaf[:, t] for leaf in trajectory)
        said, state = act(to_go, observation, step, state)
        np.testing.assert_allclose(said, predicted[:, t], atol=1e-5)
        state = record(action, step, state)
    early = trajectory._replace(actions=trajectory.actions.at[:, 4].add(1.0))
    moved = model.apply(params, *early)[0]
    assert np.array_equal(moved[:, :5], predicted[:, :5]), "an action reaches its own prediction"
    assert not np.array_equal(moved[:, 5:], predicted[:, 5:])


@pytest.mark.parametrize("mode", ["running", "reset", "window"])
def test_context_modes_read_the_steps_they_promise(mode):
    model, params, _ = decision()
    env, horizon, context, episodes = PointMass(), 7, 3, 4
    policy = decision_policy(model, params, context_mode=mode, context=context)
    key = jax.random.key(5)
    got = jax.jit(lambda k: rollout(policy, env, k, episodes=episodes, horizon=horizon, target_return=-0.5))(key)

    # The same episodes with everything so far read again at every step, cut where the mode says that memory begins.
    read = jax.jit(lambda *steps, reset: model.apply(params, *steps, reset=reset)[0])
    advance, shape = jax.jit(jax.vmap(env.step)), (episodes, horizon)
    to_go, seen, done = (np.zeros((*shape, *s), np.float32) for s in ((), (2,), (1,)))
    steps = np.broadcast_to(np.arange(horizon), shape)
    states, observations = jax.vmap(env.reset)(jax.random.split(key, episodes))
    left = np.full(episodes, -0.5, np.float32)
    for t in range(horizon):
        first = {"running": 0, "reset": t - t % context, "window": max(t + 1 - context, 0)}[mode]
        to_go[:, t], seen[:, t] = left, observations
        done[:, t] = read(to_go, seen, done, steps, reset=steps == first)[:, t]
        states, observations, rewards = advance(states, done[:, t])
        left = left - np.asarray(rewards)
    np.testing.assert_allclose(got, -0.5 - left, atol=1e-4)


class HostPointMass:
    """``PointMass`` behind the Gymnasium interface."""

    def reset(self, seed):
        self.state, observation = PointMass().reset(jax.random.key(seed))
        self.steps = 0
        return np.asarray(observation), {}

    def step(self, action):
        self.state, observation, reward = PointMass().step(self.state, jnp.asarray(action))
        self.steps += 1
        return np.asarray(observation), float(reward), False, self.steps == 10, {}


def test_an_environment_on_the_host_gives_the_same_return():
    model, params, _ = decision()
    policy = decision_policy(model, params)
    run = functools.partial(rollout, policy, OneStart(), episodes=1, horizon=10, target_return=-1.0)
    wanted = jax.jit(run)(jax.random.key(0))
    got = host_rollout(policy, HostPointMass(), seed=3, horizon=100, target_return=-1.0)
    np.testing.assert_allclose(got, wanted[0], atol=1e-4)


class OneStart:
    """``PointMass`` that always starts as the host environment does."""

    def reset(self, key):
        return PointMass().reset(jax.random.key(3))

    def step(self, state, action):
        return PointMass().step(state, action)


def test_wrong_input_is_named(as_users_see_it):
    model, params, trajectory = decision()
    with pytest.raises(ValueError, match=r"observations must have shape \[3, 10, 2\]"):
        model.apply(params, trajectory.returns_to_go, trajectory.actions, trajectory.actions, trajectory.timesteps)
    with pytest.raises(ValueError, match="did you mean 'running'"):
        decision_policy(model, params, context_mode="runing")
    with pytest.raises(ValueError, match="channels"):
        Forecaster(horizon=2, dim=8, channels="mixed").init(jax.random.key(0), jnp.zeros((1, 4, 1)))
    with pytest.raises(TypeError, match="x must be a floating-point array"):
        Forecaster(horizon=2, dim=8).init(jax.random.key(0), jnp.zeros((1, 4, 1), int))
    with pytest.raises(ValueError, match="equal shapes"):
        EventModel(num_marks=2, dim=8).init(jax.random.key(0), jnp.ones((1, 4)), jnp.zeros((1, 3), int))
