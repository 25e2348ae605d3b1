"""The experiment's paper preset has the paper's sizes and reads the file it is given; the baselines are what they say."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.experiment import get
from experiments.papers.pararnn import MIXERS, LanguageModelling, stand_in

PAPER = get("pararnn").presets["paper"]


@pytest.mark.parametrize(("size", "billions"), [("400m", 0.405), ("1b", 1.41), ("3b", 2.74), ("7b", 6.75)])
def test_sizes_of_the_paper(size, billions):
    model = LanguageModelling(size=size).model("paragru")
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 4), jnp.int32))
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert count / 1e9 == pytest.approx(billions, rel=0.01)


def test_mamba2_has_the_parameters_of_the_others():
    def count(mixer):
        shapes = jax.eval_shape(PAPER.lm.model(mixer).init, jax.random.key(0), jnp.zeros((1, 4), jnp.int32))
        return sum(leaf.size for leaf in jax.tree.leaves(shapes))

    assert count("mamba2") == pytest.approx(count("paragru"), rel=0.05)


def test_a_language_model_arm_reads_the_stand_in(tmp_path):
    small = dataclasses.replace(
        PAPER.lm,
        dim=8,
        depth=1,
        vocab_size=300,
        time=8,
        held_out=40,
        validation_rows=2,
        mixers=("paralstm", "linear", "mamba2"),
    )
    config = stand_in(dataclasses.replace(PAPER, lm=small), tmp_path)
    batch = None
    for name, arm in config.lm.arms().items():
        again = arm.task.read(0, 0, range(2), 2)
        assert batch is None or np.array_equal(again.inputs, batch.inputs), "all arms see the same windows"
        batch = again
        params = jax.jit(arm.init)(jax.random.key(0), batch)
        value, (metrics, _) = jax.jit(arm.loss)(params, batch, jax.random.key(1), 0, None)
        assert value > metrics["cross_entropy"] > 4, f"{name}: chance is log 300 = 5.7, and the z-loss is added"
        found = jax.jit(arm.evaluate)(params, jax.random.key(2), arm.evaluation_data)
        np.testing.assert_allclose(found["perplexity"], np.exp(found["loss"]), rtol=1e-4)


def test_without_a_file_it_is_said_what_is_wanted():
    with pytest.raises(FileNotFoundError, match="binary file of uint16"):
        PAPER.lm.arms()


def test_all_arms_of_parity_have_the_same_cell_but_the_linear_one():
    cells = {name: MIXERS[name] for name in get("pararnn").presets["quick"].parity.mixers}
    assert {spec["name"] for name, spec in cells.items() if name != "linear"} == {"paragru"}
    assert cells["linear"]["name"] == "gilr"
