"""The experiment: what is trained at which rate, the regression problem, the second rate, the memory part."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import stand_ins
from experiments.experiment import get
from experiments.optimizers import optimizer, parameter_path
from experiments.papers import lssl
from zoo.tasks import HostTask


def steps_of(config, name):
    """Size of the first update of every parameter of an arm, by path, for gradients of 1."""
    arm = lssl.arms(config)[name]
    training = dataclasses.replace(arm.training, warmup=0, weight_decay=0.0, clip_norm=None, schedule="constant")
    params = jax.eval_shape(arm.init, jax.random.key(0), arm.task.batch(jax.random.key(0), 1, arm.task.data()))
    ones = jax.tree.map(lambda p: np.ones(p.shape, np.float32), params)
    updates, _ = optimizer(training).update(ones, optimizer(training).init(ones), ones)
    leaves = jax.tree_util.tree_leaves_with_path(updates)
    return {parameter_path(path): float(-leaf.ravel()[0]) for path, leaf in leaves}


def test_A_and_dt_are_trained_at_their_own_rates():
    config = dataclasses.replace(lssl.SMOKE, arms=("lssl", "fixed_legs"))
    rates = steps_of(config, "lssl")
    vectors = {f"/{name}" for name in ("dl", "d", "du", "pl", "pr", "c", "b")}
    assert sum(path.endswith(tuple(vectors)) for path in rates) == 7
    for path, rate in rates.items():
        wanted = 1e-4 if path.endswith(tuple(vectors)) else 1e-3 if path.endswith("log_dt") else config.trained_rate
        assert rate == pytest.approx(wanted, rel=1e-3), path
    fixed = steps_of(config, "fixed_legs")
    assert not any(path.endswith(("log_dt", *vectors)) for path in fixed)
    assert set(round(rate, 6) for rate in fixed.values()) == {config.training.learning_rate}


@pytest.mark.slow
def test_the_regression_problem_measures_in_the_units_of_the_file(tmp_path):
    folder = stand_ins.regression_series(tmp_path, train=6, test=5, steps=9)
    config = dataclasses.replace(lssl.SMOKE, problem="regression", series=folder, evaluation_chunk=2, arms=("lssl",))
    arm = lssl.arms(config)["lssl"]
    data = arm.evaluation_data
    params = arm.init(jax.random.key(0), arm.task.batch(jax.random.key(1), 2, arm.task.data()))
    found = jax.jit(arm.evaluate)(params, jax.random.key(0), data)
    outputs = arm.model.apply(params, jnp.asarray(data["values"]))
    _, deviation = arm.task.target_scale
    rmse = deviation * np.sqrt(np.mean((np.asarray(outputs) - data["labels"]) ** 2))
    np.testing.assert_allclose(found["rmse"], rmse, rtol=1e-4)
    loss, (metrics, _) = arm.loss(
        params, arm.task.batch(jax.random.key(1), 4, arm.task.data()), jax.random.key(0), 0, None
    )
    np.testing.assert_allclose(metrics["rmse"], deviation * np.sqrt(loss), rtol=1e-5)


def test_a_regression_without_a_folder_is_refused():
    with pytest.raises(ValueError, match="needs series"):
        lssl.Config(problem="regression")


def test_the_second_rate_uses_the_same_parameters():
    fitting, trained = (lssl.model_of(lssl.SMOKE, "lssl", step_rescale=rescale) for rescale in (0.5, 1.0))
    x = jax.random.normal(jax.random.key(1), (2, 6, 1))
    params = trained.init(jax.random.key(0), x)
    slow = trained.apply(params, x)
    fast, wrong = (model.apply(params, jnp.repeat(x, 2, axis=1)) for model in (fitting, trained))
    assert np.max(np.abs(fast - slow)) < 0.5 * np.max(np.abs(wrong - slow))


def test_the_paper_preset_names_what_it_reads(tmp_path):
    """Every problem of the paper makes its batches from files of the right layout."""
    experiment = get("lssl")
    shapes = {"images": (784, 1), "regression": (4000, 2), "cifar": (1024, 1), "speech": (16000, 1)}
    for problem, shape in shapes.items():
        config = dataclasses.replace(experiment.presets["paper"], problem=problem, arms=("lssl",))
        (tmp_path / problem).mkdir()
        config = experiment.stand_in(config, tmp_path / problem)
        arm = experiment.arms(config)["lssl"]
        if isinstance(arm.task, HostTask):
            batch = arm.task.read(0, 0, range(2), 2)
        else:
            batch = arm.task.batch(jax.random.key(0), 2, arm.task.data())
        assert batch.inputs.shape == (2, *shape), problem
        assert batch.targets.shape == ((2, 1) if problem == "regression" else (2,)), problem
