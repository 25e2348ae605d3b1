"""The compiled step equals a plain loop, on any number of devices, and does not take a step that is not finite."""

import dataclasses
import functools

import jax
import numpy as np
import optax
import pytest

import zoo
from experiments.arms import classification
from experiments.experiment import Training
from experiments.optimizers import optimizer
from experiments.steps import (
    Inputs,
    abstract_arguments,
    call_length,
    compile_step,
    initial_state,
    keys,
    state_axes,
    step_keys,
)
from tests.experiments.toy import Config, Model, arm
from zoo.tasks import DelayedRecall, HostTask

TRAINING = Training(steps=5, batch_size=8, steps_per_call=5, learning_rate=1e-2, ema=0.99)


_CALLS = {}


def trained(config: Config, num_devices: int, count: int = 5, seed: int = 0):
    """State and summary after one call on the first ``num_devices`` devices, as NumPy with the device axis."""
    key = (repr(config), num_devices)
    if key not in _CALLS:
        _CALLS[key] = compile_step(arm(config), jax.devices()[:num_devices])
    a = arm(config)
    n = num_devices
    if isinstance(a.task, HostTask):
        per = a.training.batch_size // n
        rows = [[a.task.read(seed, s, range(d * per, (d + 1) * per), 8) for s in range(5)] for d in range(n)]
        rows = jax.tree.map(lambda *x: np.stack(x).reshape(n, 5, *x[0].shape), *[r for device in rows for r in device])
        data, first = None, a.task.read(seed, 0, range(1), 8)
    else:
        rows, data = None, a.task.data()
        first = data
    state = jax.jit(lambda d: initial_state(a, seed, n, d))(first)
    replicate = functools.partial(jax.tree.map, lambda x: np.stack([np.asarray(x)] * n))
    inputs = Inputs(*replicate((step_keys(seed), data)), rows)
    axes = state_axes(a, state, n).opt_state
    parts = jax.tree.map(lambda x, axis: np.stack([x] * n if axis < 0 else np.split(x, n, axis)), state.opt_state, axes)
    state = replicate(state).replace(opt_state=parts)
    return jax.tree.map(np.asarray, _CALLS[key](state, replicate(np.int32(count)), inputs))


def plain_loop(config: Config, steps: int, seed: int = 0):
    """The same training as a Python loop without pmap, scan or freezing: returns params, moving average, losses."""
    a = arm(config)
    transform = optimizer(a.training)
    params = initial_state(a, seed, 1, a.task.data()).params
    opt_state, ema, losses = transform.init(params), params, []
    gradient = jax.jit(jax.value_and_grad(a.loss, has_aux=True))
    for step in range(steps):
        row_keys = jax.random.split(jax.random.fold_in(keys(seed)["data"], step), a.training.batch_size)
        batch = a.task.rows(row_keys, a.task.data())
        (loss, _), grads = gradient(params, batch, None, step, None)
        updates, opt_state = transform.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        decay = min(0.99, (1 + step) / (10 + step))
        ema = jax.tree.map(lambda e, p, d=decay: d * e + (1 - d) * p, ema, params)
        losses.append(float(loss))
    return params, ema, losses


def close(got, wanted, device=0, rtol=2e-5):
    """Float32 rounding over a few Adam steps."""
    jax.tree.map(lambda g, w: np.testing.assert_allclose(g[device], w, rtol=rtol, atol=1e-6), got, wanted)


def test_a_call_equals_a_plain_loop_over_the_documented_batches():
    config = Config(training=TRAINING)
    params, ema, losses = plain_loop(config, 5)
    state, summary = trained(config, 1)
    close(state.params, params)
    close(state.ema, ema)
    np.testing.assert_allclose(summary.metrics["loss"][0], np.mean(losses), rtol=1e-5)
    assert state.step[0] == 5 and state.bad_step[0] == -1


@pytest.mark.parametrize("source", ["device", "host"])
def test_four_devices_equal_one(source):
    config = Config(source=source, training=TRAINING)
    one, _ = trained(config, 1)
    four, summary = trained(config, 4)
    for device in range(4):
        close(four.params, jax.tree.map(lambda x: x[0], one.params), device)
    assert summary.metrics["loss"].shape == (4,) and len(set(summary.metrics["loss"])) == 1


@pytest.mark.parametrize(
    "changes", [{}, {"optimizer": "lion", "weight_decay": 0.1, "slow": ("out",), "clip_value": 0.05}]
)
def test_devices_that_share_the_optimizers_state_take_the_same_steps(changes):
    training = dataclasses.replace(TRAINING, clip_norm=0.1, **changes)  # far below the gradients' norm
    config = Config(training=training, model=Model(width=6))
    shared = dataclasses.replace(config, training=dataclasses.replace(training, shard_optimizer=True))
    want, want_summary = trained(config, 4)
    got, summary = trained(shared, 4)
    close(got.params, jax.tree.map(lambda x: x[0], want.params), 3)
    close(summary.metrics, jax.tree.map(lambda x: x[0], want_summary.metrics))
    axes = state_axes(arm(shared), jax.eval_shape(lambda: initial_state(arm(shared), 0, 4, arm(shared).task.data())), 4)
    # the first axis of the hidden kernel [4, 6] is split; neither the vector [6] nor the scalar can be
    assert sorted(set(jax.tree.leaves(axes.opt_state))) == [-1, 0] and set(jax.tree.leaves(axes.params)) == {-1}

    def whole(parts, axis):
        return parts[2] if axis < 0 else np.concatenate(parts, axis)

    close(jax.tree.map(lambda p, a: whole(p, a)[None], got.opt_state, axes.opt_state),
          jax.tree.map(lambda x: x[0], want.opt_state))  # fmt: skip
    state, *_ = abstract_arguments(arm(shared), 4)
    jax.tree.map(lambda x, s: np.testing.assert_array_equal(x.shape, s.shape), got, state)


def test_micro_batches_equal_one_batch():
    whole, wanted = trained(Config(training=TRAINING), 1)
    parts, got = trained(Config(training=dataclasses.replace(TRAINING, accumulate=4)), 1)
    close(parts.params, jax.tree.map(lambda x: x[0], whole.params))
    close(got.metrics, jax.tree.map(lambda x: x[0], wanted.metrics))  # among them the gradient's norm


def test_carry_goes_from_step_to_step_by_row():
    one, _ = trained(Config(carry=True, training=TRAINING), 1)
    four, _ = trained(Config(carry=True, training=dataclasses.replace(TRAINING, accumulate=2)), 4)
    assert one.carry.shape == (1, 8, 4) and four.carry.shape == (4, 2, 4) and np.any(one.carry)
    np.testing.assert_allclose(four.carry.reshape(8, 4), one.carry[0], rtol=1e-6, atol=1e-7)


def test_a_shorter_call_stops_exactly_there():
    config = Config(training=TRAINING)
    params, _, losses = plain_loop(config, 3)
    state, summary = trained(config, 1, count=3)
    close(state.params, params)
    assert state.step[0] == 3
    np.testing.assert_allclose(summary.metrics["loss"][0], np.mean(losses), rtol=1e-5)


@pytest.mark.parametrize(("where", "leaf"), [("loss", -1), ("gradient", 1)])
def test_the_state_freezes_before_a_step_that_is_not_finite(where, leaf):
    poisoned = Config(training=TRAINING, nan_at=3, nan_in=where)
    state, summary = trained(poisoned, 1)
    before, _ = trained(dataclasses.replace(poisoned, nan_at=99), 1, count=3)
    assert summary.bad_step[0] == 3 and state.step[0] == 3 and np.isnan(summary.bad_loss[0]) == (where == "loss")
    assert summary.bad_leaf[0] == leaf  # of hidden/kernel, out/bias, out/kernel
    close(state.params, jax.tree.map(lambda x: x[0], before.params), rtol=1e-6)
    close(state.opt_state, jax.tree.map(lambda x: x[0], before.opt_state), rtol=1e-6)


def test_abstract_arguments_are_those_of_the_real_call():
    for config in (Config(carry=True, training=TRAINING), Config(source="host", training=TRAINING)):
        a = arm(config)
        assert compile_step(a, jax.devices()[:2]).lower(*abstract_arguments(a, 2)).as_text()
    state, count, _ = abstract_arguments(arm(Config(training=TRAINING)), 8, 2)
    assert count.shape == (2,) and state.params["out"]["kernel"].shape == (2, 8)


@pytest.mark.parametrize(
    ("steps", "per_call", "evaluate", "save", "wanted"),
    [
        (1000, 50, None, None, 50),
        (97, 50, None, None, 49),
        (10, 50, None, None, 10),
        (100, 50, 30, 20, 20),
        (0, 5, None, None, 1),
    ],
)
def test_calls_are_spread_evenly_between_stops(steps, per_call, evaluate, save, wanted):
    training = Training(steps=steps, steps_per_call=per_call, evaluate_every=evaluate, checkpoint_every=save)
    assert call_length(training) == wanted


def test_running_statistics_are_renewed_by_the_loss_and_averaged_over_devices_and_micro_batches():
    """Batch normalisation: its averages follow the batch statistics; no gradient and no weight decay reaches them."""
    task = DelayedRecall()
    states = {}
    for devices, accumulate, axis in ((1, 1, "devices"), (2, 1, "devices"), (2, 1, None), (1, 2, "devices")):
        model = zoo.SequenceClassifier(
            num_outputs=6, dim=4, vocab_size=task.vocab_size, norm="batch", norm_axis=axis, mlp="none"
        )
        training = dataclasses.replace(TRAINING, weight_decay=0.1, accumulate=accumulate, learning_rate=0.0)
        a = classification(model, task, training)
        call = compile_step(a, jax.devices()[:devices])
        state = jax.jit(lambda a=a, n=devices: initial_state(a, 0, n, None))()
        replicate = functools.partial(jax.tree.map, lambda x, n=devices: np.stack([np.asarray(x)] * n))
        state, _ = call(replicate(state), replicate(np.int32(5)), Inputs(*replicate((step_keys(0), None)), None))
        states[devices, accumulate, axis] = jax.tree.map(np.asarray, state.params["batch_stats"])
    one = states[1, 1, "devices"]
    assert all(np.any(np.abs(leaf) > 1e-3) and np.all(leaf != 1) for leaf in jax.tree.leaves(one))
    close(states[2, 1, "devices"], jax.tree.map(lambda x: x[0], one), device=1)
    # Means of parts average to the mean of the whole, variances do not; only the first norm's inputs are the same.
    for parts in (states[2, 1, None], states[1, 2, "devices"]):
        mean, want = (tree["stack"]["layers"]["run_0"]["mixer_norm"]["norm"]["mean"] for tree in (parts, one))
        np.testing.assert_allclose(mean, np.broadcast_to(want, mean.shape), rtol=2e-5, atol=1e-6)
