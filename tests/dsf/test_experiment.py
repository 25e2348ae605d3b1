"""The experiment's arms have the paper's sizes and read the files they are given; what is compared is what is named."""

import dataclasses
import types

import jax
import numpy as np
import pytest

from experiments import stand_ins
from experiments.experiment import get
from experiments.papers.dsf import (
    ABLATION,
    Equality,
    LanguageModelling,
    LongRange,
    Recall,
    equality,
    figures,
    measure,
    stand_in,
)

PRESETS = get("dsf").presets


def parameters(arm, batch):
    return jax.eval_shape(arm.init, jax.random.key(0), batch)


def test_language_models_have_about_70_million_parameters(tmp_path):
    config = stand_in(dataclasses.replace(PRESETS["paper"], task="wikitext"), tmp_path)
    for name, arm in config.wikitext.arms().items():
        batch = arm.task.read(0, 0, range(1), 64)
        count = sum(leaf.size for leaf in jax.tree.leaves(parameters(arm, batch)))
        assert 60e6 < count < 80e6, f"{name}: {count:,}"


def test_a_language_model_arm_learns_from_the_files_it_is_given(tmp_path):
    small = LanguageModelling(
        path=stand_ins.words(tmp_path, tokens=400, vocabulary=20), time=8, dim=8, depth=1, heads=2, expansion=4,
        validation_rows=2, mixers=("linear",), attention_dropout=0.1,
    )  # fmt: skip
    arm = small.arms()["linear"]
    batch = arm.task.read(0, 0, range(2), 2)
    params = jax.jit(arm.init)(jax.random.key(0), batch)
    value, (metrics, _) = jax.jit(arm.loss)(params, batch, jax.random.key(1), 0, None)
    np.testing.assert_allclose(metrics["train_perplexity"], np.exp(value), rtol=1e-5)
    found = jax.jit(arm.evaluate)(params, jax.random.key(2), arm.evaluation_data)
    np.testing.assert_allclose(found["perplexity"], np.exp(found["loss"]), rtol=1e-4)


def test_a_long_range_arm_has_the_published_sizes_and_reads_its_files(tmp_path):
    folder = tmp_path / "cifar-10"
    folder.mkdir()
    records = np.random.default_rng(0).integers(0, 10, (4, 3073), dtype=np.uint8)
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        (folder / f"{name}.bin").write_bytes(records.tobytes())
    config = LongRange(root=str(tmp_path), test_size=4, evaluation_chunk=2)
    arms = config.arms()
    linear = arms["linear"]
    assert linear.training.steps == 50 and linear.training.warmup == 5, "18 images are one batch of 64"
    assert (linear.training.learning_rate, linear.training.weight_decay) == (1e-3, 0.0)
    params = parameters(linear, linear.task.read(0, 0, range(2), 2))["params"]
    assert params["embedding"]["embedding"].shape == (256, 128)
    assert jax.tree.leaves(params["stack"]["layers"]["run_0"]["mixer"]["query"])[0].shape == (2, 128, 8, 8)
    assert (
        LongRange(which="text").sizes_of("softmax").dim == 128 and LongRange(which="text").sizes_of("linear").dim == 256
    )
    tiny = dataclasses.replace(
        config, mixers=("norm_exp",),
        sizes=dataclasses.replace(config.sizes_of("norm_exp"), depth=1, dim=8, expansion=4, heads=2, mlp_dim=8),
    )  # fmt: skip
    arm = tiny.arms()["norm_exp"]
    params = jax.jit(arm.init)(jax.random.key(0), arm.task.read(0, 0, range(1), 1))
    found = jax.jit(arm.evaluate)(params, jax.random.key(2), arm.evaluation_data)
    assert 0 <= found["accuracy"] <= 1 and np.isfinite(found["loss"])


def test_without_files_it_is_said_what_is_wanted():
    with pytest.raises(FileNotFoundError, match=r"wiki\.train\.tokens"):
        LanguageModelling(path="nowhere").arms()


def test_recall_models_are_the_papers():
    study = PRESETS["paper"].recall
    assert len(study.arms()) == 5 * 4 * 4, "mixers, widths, rates"
    arm = study.arms()["linear_d64_n128_lr1e-04"]
    batch = arm.task.batch(jax.random.key(0), 1)
    shapes = parameters(arm, batch)["params"]
    assert shapes["embedding"].shape == (8192, 64) and shapes["positions"].shape == (512, 64)
    assert "output" not in shapes, "tied"
    assert not any("mlp" in jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(shapes))
    normalised = parameters(study.arms()["norm_exp_d64_n128_lr1e-04"], batch)
    assert any("mlp" in jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(normalised))
    assert "positions" not in parameters(study.arms()["ssd_d64_n128_lr1e-04"], batch)["params"]
    quasi = dataclasses.replace(study, mixers=("qlstm",)).arms()
    assert list(quasi)[:2] == ["qlstm_d64_lr1e-04", "qlstm_d64_lr5e-04"]
    assert quasi["qlstm_d64_lr1e-04"].training.batch_size == 32


def test_tables_begin_with_the_deviation_that_is_said():
    arm = Recall().arm("softmax", 32, 4, 1e-3)
    params = jax.jit(arm.init)(jax.random.key(0), arm.task.batch(jax.random.key(0), 1))["params"]
    for table in (params["embedding"] * 32**0.5, params["positions"]):
        assert np.std(table) == pytest.approx(32**-0.5, rel=0.1)


def test_the_best_rate_and_evaluation_count_and_are_drawn():
    study = dataclasses.replace(
        ABLATION, mixers=("linear", "qlstm", "qlstm_reversed"), widths=(8,), expansions=(2, 4), rates=(1e-3, 1e-2)
    )
    config = dataclasses.replace(PRESETS["quick"], task="ablation", ablation=study, equality=Equality(steps=0))

    def run(last, *earlier):
        history = [{"evaluation/accuracy": a} for a in earlier] + [{"loss": 1.0}]
        return types.SimpleNamespace(metrics={"accuracy": last}, history=history)

    trained = {label: run(0.1 * i) for i, label in enumerate(study.arms())}
    assert len(trained) == (2 + 1 + 1) * 2
    trained["qlstm_d8_lr1e-03"] = run(0.2, 0.9)
    found = measure(config, trained, jax.random.key(0))
    assert found["best/linear_d8_n2"] == pytest.approx(0.1) and found["best/qlstm_d8"] == pytest.approx(0.9)
    assert found["d8: linear, expanded - narrow"] == pytest.approx(0.2)
    assert found["d8: qlstm, reversed - plain"] == pytest.approx(0.7 - 0.9)
    figure = figures(config, trained, found)["heatmap.png"]
    texts = [t.get_text() for axes in figure.axes for t in axes.texts]
    assert texts == ["0.10", "0.30", "0.90", "0.70"]


def test_equality_is_measured_for_every_architecture_and_can_fail(monkeypatch):
    import experiments.papers.dsf as module

    small = Equality(steps=5, dim=2, expansions=(2,), degrees=(0, 2))
    few = {name: module.ARCHITECTURES[name] for name in ("ssd", "qlstm")}
    monkeypatch.setattr(module, "ARCHITECTURES", few)
    found = equality(small, jax.random.key(0))
    assert {f"equality/{name}/float64" for name in few} <= set(found)
    assert found["equality/float32"] < 1e-5 and found["equality/float64"] < 1e-12 and found["taylor/worst_ratio"] < 1
    monkeypatch.setattr(module, "ARCHITECTURES", {"ssd": few["ssd"]})
    wrong = dict(few, ssd=dataclasses.replace(few["ssd"], native=lambda p, u: 1.01 * few["ssd"].native(p, u)))
    monkeypatch.setattr(module, "native", lambda name, p, u, **o: wrong[name].native(p, u, **o))
    assert equality(dataclasses.replace(small, degrees=()), jax.random.key(0))["equality/float64"] > 1e-4
