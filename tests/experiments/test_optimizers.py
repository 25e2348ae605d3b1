"""Schedules, groups of parameters and clipping do what ``Training`` says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zoo
from experiments.errors import UsageError
from experiments.experiment import Training
from experiments.optimizers import OPTIMIZERS, _decayed, learning_rate, optimizer, slow, validate

PARAMS = {"params": {"dense": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}, "log_step": jnp.ones((2, 2))}}


@pytest.mark.parametrize(
    ("schedule", "values"),
    [
        ("constant", {0: 0.0, 5: 0.5, 10: 1.0, 60: 1.0}),
        ("linear", {5: 0.5, 10: 1.0, 60: 0.55, 110: 0.1}),
        ("cosine", {10: 1.0, 60: 0.55, 110: 0.1}),
        ("inverse_sqrt", {5: 0.5, 10: 1.0, 40: 0.5}),
        ("wsd", {5: 0.5, 10: 1.0, 99: 1.0, 104.5: 0.55, 110: 0.1}),
    ],
)
def test_schedules_pass_through_their_corners(schedule, values):
    rate = learning_rate(Training(steps=110, learning_rate=1.0, warmup=10, schedule=schedule, final_scale=0.1))
    for step, value in values.items():
        np.testing.assert_allclose(rate(step), value, rtol=1e-6)


@pytest.mark.parametrize(
    ("share", "values"), [(0.0, {10: 1.0, 110: 1.0}), (0.5, {54: 1.0, 55: 1.0, 110: 0.0}), (1.0, {10: 1.0, 60: 0.5})]
)
def test_a_wsd_schedule_falls_over_its_share_of_all_steps_and_never_in_the_warm_up(share, values):
    rate = learning_rate(Training(steps=110, learning_rate=1.0, warmup=10, schedule="wsd", decay_share=share))
    for step, value in values.items():
        np.testing.assert_allclose(rate(step), value, atol=1e-6)


def test_slow_parameters_get_their_own_rate_and_no_decay():
    training = Training(
        optimizer="sgd",
        b1=0.0,
        learning_rate=1.0,
        slow=("log_step$",),
        slow_scale=0.1,
        clip_norm=None,
        weight_decay=0.0,
    )
    ones = jax.tree.map(jnp.ones_like, PARAMS)
    updates, _ = optimizer(training).update(ones, optimizer(training).init(PARAMS), PARAMS)
    np.testing.assert_allclose(updates["params"]["log_step"], -0.1, rtol=1e-6)
    np.testing.assert_allclose(updates["params"]["dense"]["kernel"], -1.0, rtol=1e-6)
    assert slow(training, PARAMS) == {"params": {"dense": {"kernel": False, "bias": False}, "log_step": True}}


def test_every_slow_pattern_may_have_a_rate_of_its_own():
    """The first pattern that fits decides, and a rate of 0 holds a parameter in place."""
    training = Training(
        optimizer="sgd", b1=0.0, learning_rate=1.0, slow=("kernel$", "dense/", "log_step$"), slow_scale=(0.5, 0.0, 0.25),
        clip_norm=None,
    )  # fmt: skip
    validate(training)
    ones = jax.tree.map(jnp.ones_like, PARAMS)
    updates, _ = optimizer(training).update(ones, optimizer(training).init(PARAMS), PARAMS)
    updates = updates["params"]
    np.testing.assert_allclose(updates["dense"]["kernel"], -0.5)
    np.testing.assert_allclose(updates["dense"]["bias"], 0.0)
    np.testing.assert_allclose(updates["log_step"], -0.25)


@pytest.mark.parametrize("name", ["adamw", "lion"])
def test_decay_pulls_matrices_only(name):
    training = Training(optimizer=name, learning_rate=0.5, weight_decay=0.2, slow=("log_step",))
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    updates, _ = optimizer(training).update(zeros, optimizer(training).init(PARAMS), PARAMS)
    np.testing.assert_allclose(updates["params"]["dense"]["kernel"], -0.1, rtol=1e-5)
    assert not np.any(updates["params"]["dense"]["bias"]) and not np.any(updates["params"]["log_step"])


def test_gradients_are_clipped_by_value_and_then_by_norm():
    training = Training(optimizer="sgd", b1=0.0, learning_rate=1.0, clip_value=3.0, clip_norm=1.0)
    grads = {"a": jnp.array([100.0, 4.0]), "b": jnp.array([0.0])}
    updates, _ = optimizer(training).update(grads, optimizer(training).init(grads), grads)
    np.testing.assert_allclose(updates["a"], -np.array([3.0, 3.0]) / np.sqrt(18), rtol=1e-6)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_descends(name):
    transform = optimizer(Training(optimizer=name, learning_rate=0.01))
    w = {"w": jnp.array([1.0, -2.0])}
    state = transform.init(w)
    for _ in range(20):
        updates, state = transform.update(w, state, w)  # gradient of |w|^2 / 2
        w = jax.tree.map(jnp.add, w, updates)
    assert np.all(np.abs(w["w"]) < [1.0, 2.0])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"optimizer": "adamm"}, "did you mean 'adam'"),
        ({"schedule": "cos"}, "did you mean 'cosine'"),
        ({"batch_size": 0}, "batch_size must be a positive integer"),
        ({"steps": -1}, "steps must not be negative"),
        ({"batch_size": 30}, "the nearest that is: 32"),
        ({"batch_size": 8, "accumulate": 4}, "4 devices x accumulate=4"),
        ({"ema": 1.0}, r"ema must lie in \[0, 1\)"),
        ({"schedule": "wds"}, "did you mean 'wsd'"),
        ({"decay_share": 1.5}, r"decay_share must lie in \[0, 1\]"),
        ({"clip_norm": 0.0}, "clip_norm must be positive or None"),
        ({"optimizer": "sgd", "weight_decay": 0.1}, "needs training.optimizer adamw or lion"),
        ({"slow": ("(",)}, "not a regular expression"),
        ({"slow": ("a", "b"), "slow_scale": (1.0,)}, "has 1 numbers, but training.slow 2"),
        ({"slow": ("a", "b"), "slow_scale": (1.0, -1.0)}, "slow_scale must not be negative"),
        ({"evaluate_every": 0}, "evaluate_every must be a positive integer"),
    ],
)
def test_training_that_cannot_be_is_refused_by_name(fields, message):
    with pytest.raises(UsageError, match=message):
        validate(Training(**fields), num_devices=4)


@pytest.mark.parametrize(("depth", "residual_scale"), [(1, False), (4, False), (4, True)])
def test_decay_does_not_mistake_stacked_vectors_for_matrices(depth, residual_scale):
    """A stack puts the layer axis in front: norm scales and biases stay vectors, kernels matrices."""
    model = zoo.LanguageModel(vocab_size=5, dim=8, pattern=("lru", "gru", "gru"), depth=3 * depth, mlp="gelu")
    model = model.clone(residual_scale=residual_scale)
    params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32))
    mask = _decayed(Training(weight_decay=0.1), params)
    for (path, decays), leaf in zip(jax.tree_util.tree_leaves_with_path(mask), jax.tree.leaves(params)):
        name = jax.tree_util.keystr(path)
        if any(word in name for word in ("scale", "bias", "_log", "'D'")):
            assert not decays, f"{name} {leaf.shape} decays"
        elif any(word in name for word in ("kernel", "embedding", "B_re", "C_im")):
            assert decays, f"{name} {leaf.shape} does not decay"
