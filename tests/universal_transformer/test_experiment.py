"""The experiment: its arms are what they claim to be, and its numbers mean what their names say."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.experiment import Trained, get
from experiments.papers import universal_transformer as paper
from experiments.papers import universal_transformer_problems as problems
from zoo.tasks import ChainRoot, HostTask
from zoo.tasks.parallel_text import prepare

QUICK = paper.PointerChasing()
SMALL = dataclasses.replace(paper.SMOKE, test_size=60)


def parameters(tree):
    return sum(x.size for x in jax.tree.leaves(tree))


def abstract(arm):
    """Shapes of parameters, a batch and the evaluation's numbers, without computing anything."""
    if isinstance(arm.task, HostTask):
        batch = arm.task.read(0, 0, range(2), 2)
    else:
        data = arm.task.data()
        batch = jax.eval_shape(lambda key: arm.task.batch(key, arm.training.batch_size, data), jax.random.key(0))
    params = jax.eval_shape(arm.init, jax.random.key(0), batch)
    loss, (metrics, _) = jax.eval_shape(arm.loss, params, batch, jax.random.key(0), jnp.int32(0), None)
    assert loss.shape == () and all(m.shape == () for m in metrics.values())
    scores = jax.eval_shape(arm.evaluate, params, jax.random.key(0), arm.evaluation_data)
    assert all(s.shape == () for s in scores.values())
    return params, scores


def test_arms_of_the_quick_preset_have_the_stated_sizes():
    arms = QUICK.arms()
    scores = {}
    for name, arm in arms.items():
        params, metrics = abstract(arm)
        block = params["params"]["encoder"]["block"]
        assert parameters(block) == (50_496 if name == "untied" else 8_416)
        scores |= {f"{name}/{metric}": 0 for metric in metrics}
    derived = {"deep_over_untied", "deep_over_single_step"}
    for check in get("universal_transformer").checks["quick"]:
        assert check.value in scores or check.value in derived  # no check asks for a number that nobody reports


def test_unused_slots_reach_nothing():
    arm = SMALL.arms()["universal"]
    batch = ChainRoot(max_edges=2).batch(jax.random.key(1), 16)
    assert not batch.mask.all()
    params = jax.jit(arm.init)(jax.random.key(0), batch)
    loss = jax.jit(lambda batch: arm.loss(params, batch, jax.random.key(0), jnp.int32(0), None)[0])
    other = batch._replace(inputs=jnp.where(batch.mask[..., None], batch.inputs, 7))
    assert loss(batch) == loss(other)
    changed = batch._replace(inputs=jnp.where(batch.mask[..., None], 7, batch.inputs))
    assert loss(changed) != loss(batch)


def test_accuracy_by_depth_is_what_counting_gives():
    arm = SMALL.arms()["universal"]
    key = jax.random.key(3)
    batch = ChainRoot(min_edges=3, max_edges=3).batch(key, 60)
    params = jax.jit(arm.init)(jax.random.key(0), batch)
    scores = jax.jit(arm.evaluate)(params, key, None)
    logits, _ = jax.jit(arm.model.apply)(params, batch.inputs, batch.mask)
    hits = np.asarray(jnp.argmax(logits, -1) == batch.targets)
    by_depth = [hits[np.asarray(batch.extra) == d].mean() for d in range(4)]
    for d in range(4):
        assert float(scores[f"depth_{d}"]) == pytest.approx(by_depth[d], abs=1e-6)
    assert float(scores["shallow"]) == pytest.approx(np.mean(by_depth[1:3]), abs=1e-6)  # trained on up to 2 edges
    assert float(scores["deep"]) == pytest.approx(by_depth[3], abs=1e-6)


def test_ponder_cost_is_switched_on_halfway():
    arm = SMALL.arms()["halting"]
    begin = SMALL.hop_training.steps // 2
    batch = arm.task.batch(jax.random.key(0), 8)
    params = jax.jit(arm.init)(jax.random.key(0), batch)
    loss = jax.jit(lambda step: arm.loss(params, batch, jax.random.key(0), step, None)[0])
    _, depth = jax.jit(arm.model.apply)(params, batch.inputs, batch.mask)
    cost = float(jnp.mean(depth.steps + depth.remainder))
    assert cost > 1
    assert float(loss(0)) == float(loss(begin - 1))
    assert float(loss(begin) - loss(begin - 1)) == pytest.approx(0.1 * cost, rel=1e-5)


def test_figures_and_differences_come_from_the_metrics():
    arms = SMALL.arms()
    rng = np.random.default_rng(0)
    trained = {}
    for name, arm in arms.items():
        metrics = {metric: float(rng.random()) for metric in abstract(arm)[1]}
        trained[name] = Trained(arm, None, metrics, [], 1.0)
    config = paper.Config(pointer_chasing=SMALL)
    metrics = paper.measure(config, trained, jax.random.key(0))
    assert metrics["deep_over_untied"] == trained["universal"].metrics["deep"] - trained["untied"].metrics["deep"]
    figures = paper.figures(config, trained, metrics)
    assert set(figures) == {"accuracy_by_depth.png", "steps_by_hops.png"}


TINY = problems.Size(dim=8, heads=2, mlp_dim=8, steps=2)
SHORT = {"size": TINY, "training": dataclasses.replace(problems.Strings().training, batch_size=4)}


def problem_arms(folder):
    """Small versions of every problem of the paper preset, as {name: (arms, names of metrics)}."""
    (folder / "novel.txt").write_text("a b c d a b e f " * 30)
    (folder / "passages.txt").write_text("a b c a\nd e f d\n")
    (folder / "a.txt").write_text("one two\nthree\n" * 9)
    for name in ("train", "test"):
        prepare(folder / "a.txt", folder / "a.txt", folder / name)
    files = {"novels": str(folder / "novel.txt"), "passages": str(folder / "passages.txt")}
    written = {
        "loss",
        "forced_character_accuracy",
        "forced_sequence_accuracy",
        "character_accuracy",
        "sequence_accuracy",
    }
    act = SHORT | {"kinds": ("act",)}
    return {
        "babi": (problems.Stories(tasks=(1, 7), **act), {"accuracy", "error"}),
        "babi joint": (problems.Stories(tasks=(1, 2), joint=True, **act), {"error", "error_1", "error_2", "accuracy"}),
        "agreement": (problems.Verbs(max_length=9, **act), {"accuracy", *(f"accuracy_{k}" for k in range(6))}),
        "reading": (problems.Passages(max_length=6, **files, **SHORT | {"kinds": ("timeless",)}), {"loss", "accuracy"}),
        "words": (problems.Passages(objective="language_model", max_length=6, **files, **act), {"loss", "accuracy"}),
        "algorithmic": (problems.Strings(("addition",), max_length=5, test_length=9, test_size=3, **SHORT), written),
        "execution": (problems.Programs(("program", "double"), memorised=5, test_size=3, **act), written),
        "translation": (
            problems.Translation(str(folder / "train"), str(folder / "test"), (8, 16), 4, **act),
            written - {"character_accuracy", "sequence_accuracy"},
        ),
    }


def test_every_problem_of_the_paper_can_be_trained_and_scored(tmp_path):
    for name, (config, metrics) in problem_arms(tmp_path).items():
        arms = config.arms()
        for arm_name, arm in arms.items():
            assert arm_name.rsplit("_", 1)[1] in problems.SEQUENCE_KINDS + problems.ABLATIONS
            _, scores = abstract(arm)
            assert metrics <= set(scores), (name, arm_name)


def test_scores_of_problems_are_means_over_the_test_set(tmp_path):
    arm = problems.Stories(tasks=(1, 2), joint=True, kinds=("act",), **SHORT).arms()["joint_act"]
    rows = jax.tree.map(lambda x: x[::40], arm.evaluation_data)  # 50 rows, in chunks of 32
    tasks = rows.extra["task"]
    assert set(tasks) == {1, 2}
    params = jax.jit(arm.init)(jax.random.key(0), jax.tree.map(lambda x: x[:2], rows))
    logits = jax.jit(arm.model.apply)(params, rows.inputs, rows.lengths)
    wrong = np.asarray(jnp.argmax(logits, -1)) != rows.targets
    scores = jax.jit(arm.evaluate)(params, jax.random.key(0), rows)
    assert float(scores["error"]) == pytest.approx(100 * wrong.mean(), rel=1e-5)
    for task in (1, 2):  # the counts are those of the whole test set, of which both tasks have half
        assert float(scores[f"error_{task}"]) == pytest.approx(100 * wrong[tasks == task].mean(), rel=1e-5)


def test_gain_is_the_mean_difference_of_the_better_kind():
    scores = {
        "copy_universal": {"character_accuracy": 0.5}, "copy_act": {"character_accuracy": 0.7},
        "copy_transformer": {"character_accuracy": 0.4}, "copy_lstm": {"character_accuracy": 0.9},
        "add_universal": {"character_accuracy": 0.1}, "add_transformer": {"character_accuracy": 0.2},
    }  # fmt: skip
    assert problems.compare(scores, {}) == pytest.approx({"gain": (0.3 - 0.1) / 2})
    stories = {"qa1_act": {"accuracy": 0.9, "error_1": 10.0}, "qa2_act": {"accuracy": 0.99, "error_2": 1.0}}
    assert problems.compare(stories, {}) == {"failed_act": 1.0}
    measured = {"translation_act/bleu": 28.0, "translation_transformer/bleu": 27.0}
    assert problems.compare({"translation_act": {}, "translation_transformer": {}}, measured) == {"gain": 1.0}


def test_missing_data_and_wrong_kinds_are_named():
    with pytest.raises(ValueError, match=r"lambada needs --set=lambada\.novels=FOLDER"):
        problems.Passages().arms()
    with pytest.raises(ValueError, match=r"both made by zoo\.tasks\.parallel_text\.prepare"):
        problems.Translation().arms()
    with pytest.raises(ValueError, match="did you mean 'transformer'"):
        problems.Strings(kinds=("transformers",)).arms()
    with pytest.raises(ValueError, match=r"task='bab' is not one of .* did you mean 'babi'"):
        paper.Config(task="bab")
