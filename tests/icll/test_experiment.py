"""Names of arms; the best evaluation counts; sizes of the language models."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.experiment import Trained, get
from experiments.papers.icll import (
    ARCHITECTURES,
    InContext,
    Recall,
    Subset,
    best_row,
    learning_curve,
    parsed,
    probed,
    stand_in,
)
from zoo.tasks import InductionHeads

PAPER = get("icll").presets["paper"]


def test_names_of_arms():
    assert parsed("gla_ngh12") == ("gla", (1, 2)) and parsed("transformer+") == ("transformer+", ())
    for wrong in ("glaa", "gla_ngh", "gla_nghx"):
        with pytest.raises(ValueError, match="gla"):
            parsed(wrong)
    with pytest.raises(ValueError, match="arm 'nothing'"):
        InContext(arms=("nothing",))


def test_the_paper_preset_has_all_architectures_and_sizes():
    config = PAPER.regbench
    assert set(ARCHITECTURES) <= set(config.arms) and config.sizes == (1000, 2500, 5000, 10_000, 20_000, 40_000)
    small = dataclasses.replace(config, sizes=(6, 12), arms=("lru",), data=dataclasses.replace(config.data, held_out=2))
    arms = small.build()
    assert list(arms) == ["lru_n6", "lru_n12"]
    assert [len(arm.task.data().tokens) for arm in arms.values()] == [6, 12]
    np.testing.assert_array_equal(*(arm.task.data().tokens[:6] for arm in arms.values()))
    assert arms["lru_n6"].training.steps == 200 and arms["lru_n6"].training.warmup == 20
    assert isinstance(arms["lru_n6"].task, Subset)


def test_a_sweep_has_a_run_for_every_combination():
    config = dataclasses.replace(InContext(), rates=(1e-4, 5e-4), dims=(8, 16), arms=("lru", "gla"))
    assert len(config.runs()) == 8 and "gla_d16_lr0.0005" in config.runs()
    assert config.grouped(dict.fromkeys(config.runs()))["gla"] == [
        "gla_d8_lr0.0001", "gla_d8_lr0.0005", "gla_d16_lr0.0001", "gla_d16_lr0.0005",
    ]  # fmt: skip


def test_the_evaluation_with_the_least_validation_loss_counts():
    history = [{"step": n, "evaluation/validation_loss": v, "evaluation/accuracy": n} for n, v in ((1, 0.5), (2, 0.3))]
    run = Trained(None, None, {"validation_loss": 0.4, "accuracy": 3}, history, 0.0)
    assert best_row(run)["accuracy"] == 2


def test_the_learning_curve_counts_by_examples_before():
    data = dataclasses.replace(InContext().data, held_out=60, train=1, split="test", time=40)
    batch = data.every_row()
    examples, accuracy = learning_curve(batch.extra.probs, batch, data.separator)
    assert examples[0] == 0 and np.all(accuracy == 1)


@pytest.mark.parametrize("arm", ["transformer+", "gla", "retnet"])
def test_language_models_have_340_million_parameters_and_heads_add_two_matrices_each(arm):
    config = PAPER.language

    def count(name):
        shapes = jax.eval_shape(config.model(name).init, jax.random.key(0), jnp.zeros((1, 4), jnp.int32))
        return sum(leaf.size for leaf in jax.tree.leaves(shapes))

    plain = count(arm)
    assert plain / 1e6 == pytest.approx(340, rel=0.05)
    assert count(f"{arm}_ngh12") - plain == 2 * (2 * config.dim**2 + 2 * config.dim + config.dim)


def test_language_models_read_files_of_tokens(tmp_path):
    config = dataclasses.replace(
        PAPER, task="language", language=dataclasses.replace(
            PAPER.language, dim=8, depth=2, heads=2, mlp_dim=8, vocab_size=50, time=16, held_out=64, validation_rows=2,
            arms=("gla_ngh12",),
        ),
    )  # fmt: skip
    config = stand_in(config, tmp_path)
    arm = get("icll").arms(config)["gla_ngh12"]
    batch = jax.tree.map(jnp.asarray, arm.task.read(0, 0, range(2), 2))
    params = jax.eval_shape(arm.init, jax.random.key(0), batch)
    value = jax.eval_shape(lambda p: arm.loss(p, batch, jax.random.key(0), 0, None)[0], params)
    assert value.shape == ()
    assert set(jax.eval_shape(lambda p, d: arm.evaluate(p, None, d), params, arm.evaluation_data)) == {
        "loss",
        "perplexity",
    }


def test_recall_and_induction_stand_in_the_same_shell():
    for data in (Recall().data, InductionHeads(time=16, symbols=4)):
        arms = Recall(arms=("gla_ngh12",), data=data, dim=8).build()
        batch = jax.eval_shape(lambda k, a=arms["gla_ngh12"]: a.task.batch(k, 2), jax.random.key(0))
        assert jax.eval_shape(arms["gla_ngh12"].init, jax.random.key(0), batch)


@pytest.mark.slow
def test_hidden_states_and_attention_of_an_arm_are_probed():
    config = dataclasses.replace(
        InContext(), arms=("transformer_ngh1",), dims=(8,), sizes=(8,),
        data=dataclasses.replace(InContext().data, held_out=20, time=40),
    )  # fmt: skip
    arm = config.build()["transformer_ngh1"]
    batch = config.held_out()["test"]
    run = Trained(arm, arm.init(jax.random.key(0), batch), {}, [], 0.0)
    found = probed("arm", run, batch, config.data, jax.random.key(1))
    assert sum(key.startswith("probe/arm/layer") for key in found) == 3 * 3 * 2
    assert {key for key in found if key.startswith("induction")} == {
        f"induction/arm/layer {layer}, {n}-gram" for layer in (0, 2) for n in (1, 2)
    }
    assert all(np.isfinite(value) for value in found.values())
    # what has followed the last token is in the output of the n-gram head, and little of it below
    assert found["probe/arm/layer 1/seen, mlp"] > found["probe/arm/layer 0/seen, mlp"]
