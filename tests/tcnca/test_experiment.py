"""The experiment: sizes of the paper, arms that differ in what they say, corpora read as they should be."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zoo
from experiments.experiment import get
from experiments.papers.tcnca import Corpus, Problem, Recall, arms, corpus_arm, corpus_model, recall_model, stand_in
from zoo.tasks import TextStreams

PAPER = get("tcnca").presets["paper"]


@pytest.mark.parametrize("name", ["mega", "tcnca"])
def test_sizes_of_the_paper(name):
    model = corpus_model(PAPER.enwik8, name)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 4), jnp.int32))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) / 1e6 == pytest.approx(39, abs=1.5)


def test_enwik8_is_split_into_90_5_and_5_million_bytes(tmp_path):
    config = stand_in(dataclasses.replace(PAPER, enwik8=dataclasses.replace(PAPER.enwik8, path="")), tmp_path)
    sizes = [
        len(TextStreams(config.enwik8.path, "byte", split).tokens().ids) for split in ("train", "validation", "test")
    ]
    assert sizes == [90_000_000, 5_000_000, 5_000_000]


def test_the_ablation_changes_the_taps_alone():
    usual, random = (recall_model(Recall(), Problem(), name).pattern[0] for name in ("tcnca", "random_taps"))
    assert {k: v for k, v in random.items() if k not in usual or v != usual[k]} == {"decay": None}
    assert set(usual) <= set(random)
    x = jnp.ones((1, 4, 8))
    options = {"dim": 8, "taps": 4, "factor": 4, "depth": 2}
    drawn = zoo.create("tcn", **options).init(jax.random.key(0), x)["params"]["direction"][:, 0]
    np.testing.assert_allclose(drawn.mean(axis=(0, 2)), np.exp(-0.7 * np.arange(3, -1, -1)), rtol=0.2)
    drawn = zoo.create("tcn", decay=None, **options).init(jax.random.key(0), x)["params"]["direction"]
    assert (drawn > 0).any() and (drawn < 0).any()


def test_a_text_adds_its_arms_to_recall():
    quick = get("tcnca").presets["quick"]
    assert not any(name.startswith("text") for name in arms(quick))


def test_a_corpus_arm_reads_bytes_and_is_scored_in_bits(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes(b"abcdefgh" * 200)
    config = Corpus(
        str(path), dim=4, depth=1, mlp_dim=4, key_dim=2, value_dim=4, time=8, chunk=4, taps=2, factor=2, layers=1, rows=2,
        dropout=0.1, test_bytes=32,
    )  # fmt: skip
    arm = corpus_arm(config, "tcnca")
    assert arm.evaluation_data.shape == (2, 17)
    batch = arm.task.read(0, 0, range(2), 2)
    np.testing.assert_array_equal(batch.inputs[:, 1:], batch.targets[:, :-1])
    params = jax.jit(arm.init)(jax.random.key(0), batch)
    value, (metrics, _) = jax.jit(arm.loss)(params, batch, jax.random.key(1), 0, None)
    np.testing.assert_allclose(metrics["bits"], value / np.log(2), rtol=1e-6)
    found = jax.jit(arm.evaluate)(params, jax.random.key(2), arm.evaluation_data)
    np.testing.assert_allclose(found["bits"], found["loss"] / np.log(2), rtol=1e-6)
