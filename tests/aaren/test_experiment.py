"""The experiment: arms on real file layouts, errors for missing files, what is computed from the arms' metrics."""

import dataclasses
import gzip
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.experiment import get
from experiments.papers.aaren import (
    MIXERS,
    Classification,
    Config,
    EventForecasting,
    Forecasting,
    OfflineRL,
    Size,
    arms,
    compare,
    figures,
    gym_return,
    streaming,
)
from tests.aaren.test_tasks import TS, events_file, trajectories_file

TINY = {"data": "files", "size": Size(dim=8, depth=1, heads=2, mlp_dim=8)}


def run(arm):
    """One loss with its gradient and one evaluation of an arm, all compiled."""
    data = jax.tree.map(jnp.asarray, arm.task.data())
    key = jax.random.key(0)
    batch = jax.jit(lambda k, d: arm.task.batch(k, 4, d))(key, data)
    params = jax.jit(arm.init)(key, batch)
    loss, grads = jax.jit(jax.value_and_grad(lambda p, b: arm.loss(p, b, key, 0, None)[0]))(params, batch)
    assert np.isfinite(loss) and all(np.all(np.isfinite(g)) for g in jax.tree.leaves(grads))
    metrics = jax.jit(arm.evaluate)(params, key, jax.tree.map(jnp.asarray, arm.evaluation_data))
    assert all(np.isfinite(v) for v in metrics.values())
    return params, {name: float(value) for name, value in metrics.items()}


def test_forecasting_from_a_file_is_scored_on_every_window(tmp_path):
    series = np.random.default_rng(0).normal(size=(600, 1)).round(3)
    with gzip.open(tmp_path / "x.txt.gz", "wt") as file:
        file.writelines(f"{row[0]}\n" for row in series)
    setting = Forecasting(**TINY, path=str(tmp_path / "x.txt.gz"), input_length=8, horizon=4)
    arm = arms(Config(settings=("forecasting",), forecasting=setting))["forecasting_transformer"]
    params, metrics = run(arm)
    test = np.asarray(arm.evaluation_data)
    windows = np.stack([test[i : i + 12] for i in range(len(test) - 11)])
    forecast = arm.model.apply(params, jnp.asarray(windows[:, :8]))
    np.testing.assert_allclose(metrics["mse"], np.mean((forecast - windows[:, 8:]) ** 2), rtol=1e-5)
    np.testing.assert_allclose(metrics["mae"], np.mean(np.abs(forecast - windows[:, 8:])), rtol=1e-5)


def test_the_other_settings_run_on_files(tmp_path):
    (tmp_path / "Toy_TRAIN.ts").write_text(TS)
    (tmp_path / "Toy_TEST.ts").write_text(TS + "3,4:5,6:up\n")
    event_path, _, _ = events_file(tmp_path)
    trajectory_path, _ = trajectories_file(tmp_path)
    config = Config(
        settings=("classification", "events", "rl"),
        classification=Classification(**TINY, path=str(tmp_path)),
        events=EventForecasting(**TINY, path=str(event_path), length=4, components=2),
        rl=OfflineRL(**TINY, path=str(trajectory_path), context=3, test_size=16),
    )
    made = arms(config)
    assert list(made) == [f"{s}_{m}" for s in config.settings for m in MIXERS]
    _, metrics = run(made["classification_aaren"])
    assert round(metrics["accuracy"] * 3, 4) in (0, 1, 2, 3)
    assert set(run(made["events_aaren"])[1]) == {"loss", "nll", "mark_nll", "accuracy", "rmse"}
    metrics = run(made["rl_aaren"])[1]
    assert set(metrics) == {"loss", "action_mse"}


@pytest.mark.parametrize("setting", ["forecasting", "classification", "events", "rl"])
def test_the_paper_preset_asks_for_its_files(setting):
    config = dataclasses.replace(get("aaren").presets["paper"], settings=(setting,))
    with pytest.raises(ValueError, match=rf"needs --set={setting}.path=PATH: a |JSON"):
        arms(config)


def test_a_return_in_an_environment_on_the_host(tmp_path, monkeypatch):
    path, _ = trajectories_file(tmp_path)
    setting = OfflineRL(**TINY, path=str(path), context=3, environment="Hopper-v5", episodes=2)
    arm = arms(Config(settings=("rl",), rl=setting))["rl_aaren"]
    batch = arm.task.batch(jax.random.key(0), 2, arm.task.data())
    trained = types.SimpleNamespace(arm=arm, params=jax.jit(arm.init)(jax.random.key(0), batch))
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    assert gym_return(setting, trained, 0) is None

    class Environment:
        def reset(self, seed):
            return np.zeros(3), {}

        def step(self, action):
            assert action.shape == (2,) and np.all(np.abs(action) <= 1)
            return np.zeros(3), 3234.3, True, False, {}

    monkeypatch.setitem(sys.modules, "gymnasium", types.SimpleNamespace(make=lambda name: Environment()))
    np.testing.assert_allclose(gym_return(setting, trained, 0), 100.0)


def test_margins_are_counted_from_the_transformer():
    assert compare("forecasting", {"mse": 1.3}, {"mse": 1.0}) == {"mse_ratio": 1.3, "within_margin": 0.0}
    worse = compare("classification", {"accuracy": 0.9}, {"accuracy": 0.93})
    assert worse["within_margin"] == 1.0 and worse["accuracy_behind"] == pytest.approx(0.03)
    assert compare("events", {"nll": 1.3}, {"nll": 1.0})["within_margin"] == 0.0
    assert compare("rl", {"action_mse": 0.1}, {"action_mse": 0.1}) == {}


def test_streaming_costs_a_constant_state_and_linear_operations():
    config = Config(forecasting=Forecasting(size=Size(dim=8, depth=1, heads=2, mlp_dim=8)), stream_tokens=(8, 64))
    found = streaming(config, jax.random.key(0))
    assert found["largest_difference"] <= 1e-5
    assert found["aaren_bytes_8"] == found["aaren_bytes_64"] == 2 * (4 + 2) * 4
    assert found["aaren_flops_ratio"] == pytest.approx(8.0)
    # Keys and values of every token, and two counters.
    assert found["transformer_bytes_64"] == 2 * 64 * 8 * 4 + 8
    assert found["transformer_flops_ratio"] > 12
    drawn = figures(config, {}, {f"streaming/{name}": value for name, value in found.items()})
    assert list(drawn) == ["streaming.png"]
