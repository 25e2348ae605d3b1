"""The paper's sizes of the presets; language model arms mask what they should; the recall questions are asked; the sweep."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.experiment import Trained, get
from experiments.papers.jrt import LanguageModelling, Sets, Sweep, by_order, stand_in
from zoo.tasks import mask_prefix

PRESETS = get("jrt").presets
SMALL = LanguageModelling(
    time=8, prefix_length=4, feature_dim=2, window=3, vocab_size=19, mask_token=18, held_out=20, test_rows=2, dim=8,
    heads=2, depth=1, plan=(3, (1,), (2,)), dtype="float32",
)  # fmt: skip


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    path = tmp_path_factory.mktemp("jrt") / "tokens.bin"
    np.random.default_rng(0).integers(0, 18, 200, np.uint16).tofile(path)
    return dataclasses.replace(SMALL, path=str(path))


def test_the_paper_presets():
    lm = PRESETS["paper"].lm
    small, large = lm.schedule(), dataclasses.replace(lm, size="1.3b").schedule()
    assert (small.steps, small.warmup, large.steps, large.warmup) == (60_000, 600, 100_000, 1000)
    assert small.steps * small.batch_size * lm.time == pytest.approx(30e9, rel=0.05)
    assert large.steps * large.batch_size * lm.time == pytest.approx(50e9, rel=0.05)
    assert (small.learning_rate, small.b1, small.b2, small.weight_decay, small.final_scale) == (
        8e-4,
        0.9,
        0.95,
        0.1,
        0.1,
    )
    assert (lm.prefix_length, lm.mask_token, lm.mlm_weight, lm.mask_rate) == (1024, 50_263, 0.25, 0.15)
    assert dataclasses.replace(SMALL, training=dataclasses.replace(small, steps=5, warmup=0)).schedule().warmup == 0
    sweep = Sweep()
    assert len(sweep.grid()) == 2 * 5 * 4 * 3 and len(sweep.sets.sizes) == 12
    assert sweep.sets.training.steps == 48 * 12 * 20_000 // 128


def test_the_size_of_a_state():
    """H (D / H) (1 + f + f^2) numbers and H (1 + f + f^2) more."""
    assert Sets(dim=36, heads=2, feature_dim=4, storage="full").state_size() == 36 * 21 + 2 * 21


def test_accuracies_by_order():
    scores = {"accuracy_2_4": 0.9, "accuracy_4_2": 0.5, "accuracy_1_8": 0.7}
    assert by_order(scores, ((2, 4), (4, 2), (1, 8))) == {"short_first": pytest.approx(0.8), "long_first": 0.5}


@pytest.mark.parametrize("mlm", [True, False])
def test_the_loss_of_the_language_model_is_that_of_masked_text(small, mlm):
    config = dataclasses.replace(small, mlm=mlm, mask_rate=0.5)
    arm = config.arm("jrt")
    batch = arm.task.read(0, 0, range(4), 4)
    params = jax.jit(arm.init)(jax.random.key(0), batch)
    key = jax.random.key(1)
    value, (metrics, _) = jax.jit(arm.loss)(params, batch, key, 0, None)
    text = jnp.concatenate([batch.inputs, batch.targets[:, -1:]], axis=1)
    made = mask_prefix(key, text, prefix_length=4, mask_token=18, rate=0.5 if mlm else 0.0)
    log_p = jax.nn.log_softmax(jax.jit(arm.model.apply)(params, made.inputs)[0])
    picked = -jnp.take_along_axis(log_p, text[:, 1:, None], axis=2)[:, 4:].mean()
    np.testing.assert_allclose(metrics["next_token"], picked, rtol=1e-5)
    assert np.array_equal(made.inputs, batch.inputs) != mlm and ("masked" in metrics) == mlm
    want = picked + 0.25 * metrics["masked"] if mlm else picked
    np.testing.assert_allclose(value, want, rtol=1e-5)


def test_ablations_reach_the_models(small):
    def mixer(arm, **options):
        return dataclasses.replace(small, **options).model(arm).stack().layers()[1]

    assert mixer("jrt")["prefix_length"] == 4 and not mixer("jrt")["shared"] and mixer("jrt", shared=True)["shared"]
    assert mixer("based")["decay"] and not mixer("based", decay=False)["decay"]
    assert "decay" not in mixer("based", size="1.3b") and mixer("based", feature_dim=6)["feature_dim"] == 6


class Letters:
    """A tokenizer of letters."""

    def encode(self, text):
        return dataclasses.make_dataclass("Encoding", ["ids"])([ord(c) % 18 for c in text])

    def decode(self, ids):
        return "".join(chr(97 + i) for i in ids)


@pytest.mark.parametrize(
    ("padding", "repeats"), [("none", (1, 2)), pytest.param("reference", (1,), marks=pytest.mark.slow)]
)
def test_recall_questions_are_asked_once_and_twice(small, padding, repeats, tmp_path, monkeypatch):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([{"context": "ab", "question": "q", "answers": list("abcdefghijklmnopqr")}]))
    config = dataclasses.replace(
        small, recall=(("drop", str(path)),), tokenizer="letters", padding=padding, arms=("jrt",), repeats=repeats
    )
    tokenizers = pytest.importorskip("tokenizers")
    monkeypatch.setattr(tokenizers, "Tokenizer", type("T", (), {"from_file": staticmethod(lambda path: Letters())}))
    arm = config.arm("jrt")
    params = jax.jit(arm.init)(jax.random.key(0), arm.task.read(0, 0, range(2), 2))
    trained = {"jrt": Trained(arm, params, {"perplexity": 2.0}, [], 0.0)}
    found = config.measure(trained, jax.random.key(0))
    for n in repeats:
        assert found[f"drop x{n}/jrt_contains"] == 1.0 == found[f"recall x{n}/jrt"], "every letter is an answer"
    assert found.get("gain of JRT-Prompt/jrt", 0.0) == 0.0 and ("gain of JRT-Prompt/jrt" in found) == (
        repeats == (1, 2)
    )
    assert set(config.figures(trained, found)) == {"recall.png"}


def test_perplexities_are_compared_with_those_of_based():
    trained = {
        name: Trained(None, None, {"perplexity": value}, [], 0.0) for name, value in (("based", 4.0), ("jrt", 3.0))
    }
    assert SMALL.measure(trained, jax.random.key(0)) == {
        "perplexity over based/based": 1.0,
        "perplexity over based/jrt": 0.75,
    }


def test_a_stand_in_is_enough_for_a_batch(tmp_path):
    config = dataclasses.replace(PRESETS["paper"], lm=SMALL)
    filled = stand_in(config, tmp_path)
    assert filled.lm.path and stand_in(filled, tmp_path) is filled
    batch = filled.lm.arm("jrt").task.read(0, 0, range(3), 3)
    assert batch.inputs.shape == (3, 8) and batch.inputs.max() < 19


@pytest.mark.slow
def test_a_small_sweep_and_its_figure():
    sets = dataclasses.replace(PRESETS["smoke"].sets, pool=4, vocab_size=24)
    sweep = Sweep(dims=(8,), feature_dims=(2, 3), learning_rates=(1e-3,), longer=((2, 6),), sets=sets)
    trained = {}
    for name, arm in sweep.arms_of().items():
        params = jax.jit(arm.init)(jax.random.key(0), arm.task.batch(jax.random.key(0), 2))
        metrics = {k: float(v) for k, v in jax.jit(arm.evaluate)(params, jax.random.key(1), None).items()}
        trained[name] = Trained(arm, params, metrics, [], 0.0)
    found = sweep.measure(trained, jax.random.key(2))
    assert found["based at d8 f2/state_size"] == 6 * 10 and np.isfinite(found["order/shared"])
    assert set(sweep.figures(trained, found)) == {"accuracy_by_state_size.png"}
