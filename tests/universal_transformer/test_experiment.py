"""The experiment: its arms are what they claim to be, and its numbers mean what their names say."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.experiment import Trained, get
from experiments.papers import universal_transformer as paper
from zoo.tasks import ChainRoot

QUICK = paper.PointerChasing()
SMALL = dataclasses.replace(paper.SMOKE, test_size=60)


def parameters(tree):
    return sum(x.size for x in jax.tree.leaves(tree))


def abstract(arm):
    """Shapes of parameters, a batch and the evaluation's numbers, without computing anything."""
    batch = jax.eval_shape(lambda key: arm.task.batch(key, arm.training.batch_size), jax.random.key(0))
    params = jax.eval_shape(arm.init, jax.random.key(0), batch)
    loss, (metrics, _) = jax.eval_shape(arm.loss, params, batch, jax.random.key(0), jnp.int32(0), None)
    assert loss.shape == () and all(m.shape == () for m in metrics.values())
    scores = jax.eval_shape(arm.evaluate, params, jax.random.key(0), arm.evaluation_data)
    assert all(s.shape == () for s in scores.values())
    return params, scores


def test_arms_of_the_quick_preset_have_the_stated_sizes():
    arms = paper.pointer_arms(QUICK)
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
    arm = paper.pointer_arms(SMALL)["universal"]
    batch = ChainRoot(max_edges=2).batch(jax.random.key(1), 16)
    assert not batch.mask.all()
    params = arm.init(jax.random.key(0), batch)
    other = batch._replace(inputs=jnp.where(batch.mask[..., None], batch.inputs, 7))
    losses = [arm.loss(params, b, jax.random.key(0), jnp.int32(0), None)[0] for b in (batch, other)]
    assert losses[0] == losses[1]
    changed = batch._replace(inputs=jnp.where(batch.mask[..., None], 7, batch.inputs))
    assert arm.loss(params, changed, jax.random.key(0), jnp.int32(0), None)[0] != losses[0]


def test_accuracy_by_depth_is_what_counting_gives():
    arm = paper.pointer_arms(SMALL)["universal"]
    key = jax.random.key(3)
    batch = ChainRoot(min_edges=3, max_edges=3).batch(key, 60)
    params = arm.init(jax.random.key(0), batch)
    scores = arm.evaluate(params, key, None)
    logits, _ = arm.model.apply(params, batch.inputs, batch.mask)
    hits = np.asarray(jnp.argmax(logits, -1) == batch.targets)
    by_depth = [hits[np.asarray(batch.extra) == d].mean() for d in range(4)]
    for d in range(4):
        assert float(scores[f"depth_{d}"]) == pytest.approx(by_depth[d], abs=1e-6)
    assert float(scores["shallow"]) == pytest.approx(np.mean(by_depth[1:3]), abs=1e-6)  # trained on up to 2 edges
    assert float(scores["deep"]) == pytest.approx(by_depth[3], abs=1e-6)


def test_ponder_cost_is_switched_on_halfway():
    arm = paper.pointer_arms(SMALL)["halting"]
    begin = SMALL.hop_training.steps // 2
    batch = arm.task.batch(jax.random.key(0), 8)
    params = arm.init(jax.random.key(0), batch)
    loss = jax.jit(lambda step: arm.loss(params, batch, jax.random.key(0), step, None)[0])
    _, depth = arm.model.apply(params, batch.inputs, batch.mask)
    cost = float(jnp.mean(depth.steps + depth.remainder))
    assert cost > 1
    assert float(loss(0)) == float(loss(begin - 1))
    assert float(loss(begin) - loss(begin - 1)) == pytest.approx(0.1 * cost, rel=1e-5)


def test_figures_and_differences_come_from_the_metrics():
    arms = paper.pointer_arms(SMALL)
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
