"""Gradients through time, clipping, penalties and feeding: each against its definition."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import zoo
from zoo.training import (
    clip_by_norm,
    clip_gradients,
    early_stopping,
    free_running,
    full_bptt,
    l2_penalty,
    pascanu_regularizer,
    rtrl,
    safe_global_norm,
    scheduled_sampling,
    sliding_bptt,
    truncated_bptt,
    truth_probability,
    update_early_stopping,
)

BATCH, TIME, INPUTS, HIDDEN = 2, 7, 3, 4


def rnn_problem(dtype=jnp.float64):
    keys = jax.random.split(jax.random.key(0), 6)
    params = {
        "W": jax.random.normal(keys[0], (HIDDEN, HIDDEN), dtype) * 0.7,
        "U": jax.random.normal(keys[1], (INPUTS, HIDDEN), dtype),
        "b": 0.1 * jax.random.normal(keys[2], (HIDDEN,), dtype),
        "V": jax.random.normal(keys[3], (HIDDEN, 1), dtype),
    }
    inputs = {
        "x": jax.random.normal(keys[4], (BATCH, TIME, INPUTS), dtype),
        "y": jax.random.normal(keys[5], (BATCH, TIME, 1), dtype),
    }
    return params, inputs, jnp.full((BATCH, HIDDEN), 0.1, dtype)


def rnn_step(params, x, h):
    return jnp.tanh(x["x"] @ params["U"] + h @ params["W"] + params["b"])


def step_loss(params, x, h):
    return jnp.sum((h @ params["V"] - x["y"]) ** 2)


def rnn_loss(params, chunk, h):
    """Sum of squared errors over the chunk, by a plain Python loop."""
    total = 0.0
    for t in range(chunk["x"].shape[1]):
        x = {k: v[:, t] for k, v in chunk.items()}
        h = rnn_step(params, x, h)
        total = total + step_loss(params, x, h)
    return total, h


def truncated_by_definition(params, inputs, h, reach):
    """Gradient when the loss of step t reaches back to step ``reach(t)``: a loop over losses, states held constant."""
    states, h_t = [h], h
    for t in range(TIME):
        h_t = rnn_step(params, {k: v[:, t] for k, v in inputs.items()}, h_t)
        states.append(h_t)
    grads = jax.tree.map(jnp.zeros_like, params)
    for t in range(TIME):

        def loss(p, t=t):
            h = states[reach(t)]
            for u in range(reach(t), t + 1):
                x = {k: v[:, u] for k, v in inputs.items()}
                h = rnn_step(p, x, h)
            return step_loss(p, x, h)

        grads = jax.tree.map(jnp.add, grads, jax.grad(loss)(params))
    return grads


def close(got, want, tolerance=1e-12):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), got, want)


@pytest.mark.parametrize("k", [1, 3, 10])
def test_chunks_cut_the_gradient_where_they_should(float64, k):
    params, inputs, h = rnn_problem()
    loss, grads, last = jax.jit(truncated_bptt, static_argnums=(0, 4))(rnn_loss, params, inputs, h, k)
    want_loss, want_last = rnn_loss(params, inputs, h)
    close((loss, last), (want_loss, want_last))
    close(grads, truncated_by_definition(params, inputs, h, lambda t: t // k * k))


@pytest.mark.parametrize("k", [1, 3, 10])
def test_every_loss_of_the_sliding_window_looks_back_k_steps(float64, k):
    params, inputs, h = rnn_problem()
    loss, grads, last = jax.jit(sliding_bptt, static_argnums=(0, 4))(rnn_loss, params, inputs, h, k)
    close((loss, last), rnn_loss(params, inputs, h))
    close(grads, truncated_by_definition(params, inputs, h, lambda t: max(t - k + 1, 0)))


def test_rtrl_full_bptt_and_truncation_beyond_the_end_agree(float64):
    params, inputs, h = rnn_problem()
    want = full_bptt(rnn_loss, params, inputs, h)
    close(jax.jit(rtrl, static_argnums=0)(rnn_loss, params, inputs, h), want)
    close(truncated_bptt(rnn_loss, params, inputs, h, TIME), want)


@pytest.mark.parametrize("name", ["lru", "elman"])
def test_any_mixer_can_be_trained_by_all_of_them(name):
    """Also one with complex state: RTRL equals backpropagation, the state is carried on."""
    options = {"lru": {"state_dim": 2}, "elman": {}}[name]
    mixer = zoo.create(name, dim=3, **options)
    params, inputs, _ = rnn_problem(jnp.float32)
    params = jax.jit(mixer.init)(jax.random.key(1), inputs["x"])

    def loss_fn(params, chunk, state):
        y, state = mixer.apply(params, chunk["x"], state)
        return jnp.sum((y - chunk["y"]) ** 2), state

    state = mixer.initial_state(BATCH)
    want = jax.jit(full_bptt, static_argnums=0)(loss_fn, params, inputs, state)
    close(jax.jit(rtrl, static_argnums=0)(loss_fn, params, inputs, state), want, 1e-4)
    _, grads, last = jax.jit(truncated_bptt, static_argnums=(0, 4))(loss_fn, params, inputs, state, 3)
    close(last, want[2], 1e-5)
    gap = max(float(jnp.max(jnp.abs(a - b))) for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(want[1])))
    assert gap > 1e-3, "cutting the gradient changed nothing"


def test_rtrl_leaves_integers_in_the_state_alone(float64):
    params, inputs, h = rnn_problem()

    def counting(params, chunk, state):
        loss, h = rnn_loss(params, chunk, state["h"])
        return loss, {"h": h, "count": state["count"] + chunk["x"].shape[1]}

    loss, grads, last = rtrl(counting, params, inputs, {"h": h, "count": jnp.zeros((), jnp.int32)})
    want = full_bptt(rnn_loss, params, inputs, h)
    close((loss, grads, last["h"]), want)
    assert last["count"] == TIME


def test_training_functions_refuse_what_they_cannot_do(as_users_see_it):
    params, inputs, h = rnn_problem(jnp.float32)
    with pytest.raises(ValueError, match="k must be a positive integer, got 0"):
        truncated_bptt(rnn_loss, params, inputs, h, 0)
    with pytest.raises(ValueError, match="share one number of time steps"):
        sliding_bptt(rnn_loss, params, {**inputs, "y": inputs["y"][:, :-1]}, h, 2)
    with pytest.raises(ValueError, match="time steps"):
        rtrl(rnn_loss, params, jax.tree.map(lambda a: a[:, :0], inputs), h)
    with pytest.raises(ValueError, match="positive"):
        clip_gradients(norm=0.0)
    with pytest.raises(ValueError, match="positive"):
        clip_gradients(value=-1.0)
    with pytest.raises(ValueError, match="probability"):
        scheduled_sampling(None, None, jnp.zeros(1, int), jnp.zeros((1, 2), int), None, truth=1.5)


def test_clipping_is_global_and_survives_zero_huge_and_non_finite_norms():
    clip = jax.jit(lambda g, norm: clip_by_norm(1.0).update(g, optax.EmptyState())[0], static_argnums=1)
    grads = {"a": jnp.array([3.0, 0.0]), "b": jnp.array([[4.0]])}
    clipped = clip(grads, 1.0)
    close(clipped, {"a": jnp.array([0.6, 0.0]), "b": jnp.array([[0.8]])}, 1e-6)
    small = jax.tree.map(lambda g: g / 10, grads)
    close(clip(small, 1.0), small, 0)
    zero = jax.tree.map(jnp.zeros_like, grads)
    close(clip(zero, 1.0), zero, 0)
    close(clip(jax.tree.map(lambda g: g * 1e30, grads), 1.0), clipped, 1e-6)
    tiny = jax.tree.map(lambda g: g * 1e-25, grads)
    assert np.isclose(float(safe_global_norm(tiny)), 5e-25, rtol=1e-6)
    broken = clip({"a": jnp.array([jnp.inf, 1.0]), "b": jnp.array([[jnp.nan]])}, 1.0)
    assert np.isinf(broken["a"][0]) and broken["a"][1] == 1 and np.isnan(broken["b"][0, 0])
    both = clip_gradients(norm=1.0, value=2.0)
    updates, _ = both.update(grads, both.init(grads))
    close(updates, jax.tree.map(lambda g: jnp.minimum(g, 2) / np.sqrt(8), grads), 1e-6)


def test_pascanu_penalty_equals_its_definition_and_its_gradient_is_immediate(float64):
    params, inputs, h0 = rnn_problem()
    got, got_grad = jax.jit(jax.value_and_grad(lambda p: pascanu_regularizer(rnn_step, step_loss, p, inputs, h0)))(
        params
    )

    # By hand: states and error signals in a NumPy loop, then one step's Jacobian at a time.
    p, x, y = jax.tree.map(np.asarray, (params, inputs["x"], inputs["y"]))
    hs = [np.asarray(h0)]
    for t in range(TIME):
        hs.append(np.tanh(x[:, t] @ p["U"] + hs[-1] @ p["W"] + p["b"]))
    signal, signals = np.zeros_like(hs[0]), [None] * (TIME + 1)
    for t in range(TIME, 0, -1):
        signal = signal + 2 * (hs[t] @ p["V"] - y[:, t - 1]) @ p["V"].T
        signals[t] = signal
        signal = (signal * (1 - hs[t] ** 2)) @ p["W"].T

    def omega(w):
        total = 0.0
        for t in range(1, TIME):
            a = x[:, t] @ p["U"] + hs[t] @ w + p["b"]
            pulled = (signals[t + 1] * (1 - np.tanh(a) ** 2)) @ w.T
            ratio = np.linalg.norm(pulled, axis=1) / np.linalg.norm(signals[t + 1], axis=1)
            total += np.mean((ratio - 1) ** 2)
        return total

    assert np.isclose(float(got), omega(p["W"]), rtol=1e-12)
    for i, j in ((0, 1), (2, 2)):
        bump = np.zeros_like(p["W"])
        bump[i, j] = 1e-6
        numeric = (omega(p["W"] + bump) - omega(p["W"] - bump)) / 2e-6
        assert np.isclose(float(got_grad["W"][i, j]), numeric, rtol=1e-5, atol=1e-8)
    assert np.all(np.asarray(got_grad["V"]) == 0), "the read-out acts on no step of the state"


def test_pascanu_penalty_is_finite_where_no_error_arrives(float64):
    params, inputs, h = rnn_problem()
    silent = lambda p, x, h: jnp.zeros(())  # noqa: E731
    value, grads = jax.value_and_grad(lambda p: pascanu_regularizer(rnn_step, silent, p, inputs, h))(params)
    assert value == 0 and all(np.all(np.asarray(g) == 0) for g in jax.tree.leaves(grads))


def test_l2_penalty_leaves_biases_alone():
    assert float(l2_penalty({"W": jnp.full((2, 2), 3.0), "b": jnp.full(2, 100.0)})) == 18


def language_model():
    model = zoo.LanguageModel(vocab_size=5, dim=8)
    tokens = jax.random.randint(jax.random.key(3), (2, 6), 0, 5)
    params = jax.jit(model.init)(jax.random.key(4), tokens)
    return model, params, tokens


def test_scheduled_sampling_ends_are_teacher_forcing_and_greedy_generation():
    model, params, tokens = language_model()
    apply = lambda p, t, s: model.apply(p, t, s)  # noqa: E731
    start, state = jnp.zeros(2, tokens.dtype), model.initial_state(2)
    forced, _ = jax.jit(lambda p: scheduled_sampling(apply, p, start, tokens, state, truth=1.0))(params)
    shifted = jnp.concatenate([start[:, None], tokens[:, :-1]], axis=1)
    close(forced, model.apply(params, shifted)[0], 1e-5)
    _, said = jax.jit(lambda p: free_running(apply, p, start, tokens, state))(params)
    greedy = zoo.generate(model, params, start[:, None], max_new_tokens=6, temperature=0.0)
    assert np.array_equal(said, greedy.tokens)

    both = jax.jit(lambda truth, key: scheduled_sampling(apply, params, start, tokens, state, truth=truth, key=key))
    close(both(1.0, jax.random.key(0))[0], forced, 1e-5)
    assert not np.allclose(both(0.5, jax.random.key(0))[0], forced, atol=1e-3)
    gradient = jax.grad(lambda p: jnp.sum(scheduled_sampling(
        apply, p, start, tokens, state, truth=0.5, key=jax.random.key(1))[0] ** 2))(params)  # fmt: skip
    assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(gradient))


def test_truth_probability_falls_from_one_to_its_floor():
    for kind, rate in (("linear", 100.0), ("exponential", 50.0), ("inverse_sigmoid", 50.0)):
        values = np.asarray(truth_probability(jnp.arange(0, 100_000, 10), kind, rate=rate, floor=0.1))
        assert values[0] > 0.95 and np.all(np.diff(values) <= 0) and np.isclose(values[-1], 0.1)
    assert np.isclose(float(truth_probability(70, "inverse_sigmoid", rate=20.0)), 20 / (20 + np.exp(3.5)), rtol=1e-5)


def test_early_stopping_keeps_the_best_and_stops_after_patience():
    update = jax.jit(lambda s, p, loss: update_early_stopping(s, p, loss, patience=2, min_delta=0.01))
    state, stops = early_stopping({"w": jnp.zeros(())}), []
    for i, loss in enumerate([1.0, 0.5, 0.495, float("nan")]):
        state, stop = update(state, {"w": jnp.asarray(float(i))}, loss)
        stops.append(bool(stop))
    assert stops == [False, False, False, True]
    assert state.params["w"] == 1 and state.best == 0.5 and state.evaluations == 4
