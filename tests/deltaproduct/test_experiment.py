"""The paper's sizes, the curriculum, and language models that are read beyond their training context."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zoo
from experiments.experiment import Trained, get
from experiments.papers.deltaproduct import (
    BASELINES,
    SIZES,
    Config,
    LanguageModelling,
    Tracking,
    losses_by_position,
    stand_in,
)
from zoo.layers import cross_entropy

PAPER = get("deltaproduct").presets["paper"]


def parameters(model):
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 4), jnp.int32))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes)) / 1e6


@pytest.mark.parametrize("size", SIZES)
def test_language_models_have_the_parameters_of_their_names(size):
    """With n = 3; DeltaNet's at 392 million is the model that is called 340m, and matched models are about as large."""
    assert parameters(LanguageModelling(size=size).model("deltaproduct3")) == pytest.approx(float(size[:-1]), rel=0.005)
    if size == "392m":
        one = parameters(LanguageModelling(size=size).model("deltanet_negative"))
        assert one == pytest.approx(340, rel=0.01)
        matched = LanguageModelling(size=size, match=True)
        for name in ("deltaproduct2", "gated_deltaproduct3"):
            assert parameters(matched.model(name)) == pytest.approx(one, rel=0.03)


def test_the_paper_preset_is_the_papers():
    tracking, lm = PAPER.tracking, PAPER.lm
    assert (tracking.time, tracking.test_time, tracking.dim, tracking.heads, tracking.head_dim) == (
        128,
        512,
        128,
        8,
        32,
    )
    assert tracking.training.steps * tracking.training.batch_size == pytest.approx(100 * 99_000, rel=0.01)
    assert {group for group, _ in tracking.runs} == {"S3", "S4", "A5", "S5"}
    assert lm.time * lm.training.batch_size * lm.training.steps == pytest.approx(35e9, rel=0.01)


@pytest.mark.parametrize("name", ["deltaproduct2", "deltaproduct1_positive", *BASELINES])
def test_models_of_state_tracking_have_states_of_one_size(name):
    tracking = get("deltaproduct").presets["quick"].tracking
    mixer = zoo.create(tracking.mixer(name), dim=tracking.dim)
    assert sum(leaf.size for leaf in jax.tree.leaves(mixer.initial_state(1))) == pytest.approx(8 * 8 * 8, rel=0.5)
    if "delta" in name:
        assert mixer.initial_state(1).memory.size == 8 * 8 * 8
        assert mixer.allow_neg_eigval == (name in ("deltaproduct2", "deltanet_negative", "gated_deltanet_negative"))


def test_words_grow_as_training_goes_on():
    tracking = get("deltaproduct").presets["quick"].tracking
    assert [int(tracking.counted(jnp.int32(s), 1200)) for s in (0, 299, 300, 599, 600, 1199)] == [3, 3, 6, 6, 12, 12]
    assert int(PAPER.tracking.counted(jnp.int32(0), 4834)) == 128


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"runs": (("S3", "deltaproduct0"),)}, "'deltaproduct0' is not one of"),
        ({"runs": (("S3", "deltanets"),)}, "did you mean 'deltanet'"),
        ({"test_time": 12}, "test_time=12 must be longer than time=12"),
        ({"curriculum": ((1.5, 3),)}, "shares must lie between 0 and 1"),
    ],
)
def test_runs_that_cannot_be_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        Tracking(**{"runs": (("S3", "deltanet"),), **options})


TINY = LanguageModelling(
    models=("deltaproduct2",), time=4, test_time=8, test_rows=2, vocab_size=11, dim=8, depth=1, head_dim=4, held_out=32,
    dtype="float32",
)  # fmt: skip


def test_a_language_model_is_read_beyond_its_training_context(tmp_path):
    config = stand_in(Config(task="lm", lm=TINY), tmp_path)
    assert stand_in(config, tmp_path) is config
    arm = config.chosen.arms()["deltaproduct2"]
    data = arm.evaluation_data
    assert data.shape == (2, 9)
    batch = jax.tree.map(jnp.asarray, arm.task.read(0, 0, range(2), 2))
    params = jax.jit(arm.init)(jax.random.key(0), batch)
    loss, _ = jax.jit(arm.loss)(params, batch, jax.random.key(0), 0, None)
    assert np.isfinite(loss) and batch.inputs.shape == (2, 4)
    losses = jax.jit(lambda p: losses_by_position(arm.model, p, data, 4))(params)
    logits, _ = jax.jit(arm.model.apply)(params, data[:, :-1])
    np.testing.assert_allclose(losses.mean(), cross_entropy(logits, data[:, 1:]), rtol=1e-5)
    scores = jax.jit(arm.evaluate)(params, None, data)
    np.testing.assert_allclose(scores["loss_beyond"], losses[:, 4:].mean(), rtol=1e-5)
    trained = {"deltaproduct2": Trained(arm, params, {}, [], 0.0)}
    found = config.chosen.measure(trained, jax.random.key(0))
    assert 1 <= found["effective rank/deltaproduct2 beyond"] <= 4
    assert len(config.chosen.figures(trained, {})) == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [({"size": "1b"}, "213m"), ({"models": ("mamba",)}, "models='mamba'"), ({"test_time": 6000}, "a multiple of time")],
)
def test_language_models_that_cannot_be_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(PAPER.lm, **options)
