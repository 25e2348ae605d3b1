"""The paper's sizes; every arm is a model; series and DNA train on files; perplexity is that of the held-out tokens."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zoo
from experiments.experiment import Training, get
from experiments.papers.titans import ABLATIONS, ARMS, SIZES, TITANS, Config, LanguageModelling, Layer, stand_in

PAPER = get("titans").presets["paper"]


@pytest.mark.parametrize("size", SIZES)
def test_sizes_of_the_paper(size):
    model = LanguageModelling(size=size).model("lmm")
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 4), jnp.int32))
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert count / 1e6 == pytest.approx(float(size[:-1]), rel=0.03)


def test_the_paper_preset_trains_on_fifteen_billion_tokens():
    lm = PAPER.language
    assert lm.time * lm.training.batch_size == 2**19
    assert lm.training.steps * 2**19 == pytest.approx(15e9, rel=0.01)
    assert (lm.training.schedule, lm.training.learning_rate, lm.training.weight_decay) == ("cosine", 4e-4, 0.1)
    assert set(TITANS) <= set(lm.arms)


TINY = dataclasses.replace(
    PAPER.language, dim=32, depth=1, vocab_size=30, time=8, held_out=100, validation_rows=2, dtype="float32",
    layer=Layer(chunk_size=4, persistent=1, window=4, segment=4, context=8, state_dim=4),
    training=Training(steps=1, batch_size=2),
)  # fmt: skip


def test_every_arm_is_a_model():
    tokens = jnp.zeros((1, 6), jnp.int32)
    for arm in ARMS:
        if arm not in (*TITANS, *ABLATIONS, "transformer", "swa") and arm not in zoo.list("mixer"):
            continue
        model = dataclasses.replace(TINY, dim=32).model(arm)
        logits, _ = jax.eval_shape(lambda m=model: m.init_with_output(jax.random.key(0), tokens)[0])
        assert logits.shape == (1, 6, 30), arm


def test_perplexity_is_that_of_the_held_out_tokens(tmp_path):
    config = stand_in(Config(task="language", language=dataclasses.replace(TINY, arms=("lmm",))), tmp_path)
    arm = config.language.arms_of()["lmm"]
    inputs, targets = arm.evaluation_data
    params = jax.jit(arm.model.init)(jax.random.key(0), inputs)
    found = jax.jit(arm.evaluate)(params, jax.random.key(1), arm.evaluation_data)
    log_p = jax.nn.log_softmax(arm.model.apply(params, inputs)[0])
    want = -np.mean(np.take_along_axis(np.asarray(log_p), np.asarray(targets)[..., None], -1))
    assert float(found["loss"]) == pytest.approx(want, rel=1e-5)
    assert float(found["perplexity"]) == pytest.approx(np.exp(want), rel=1e-5)


def test_series_and_dna_have_a_loss_on_their_files(tmp_path):
    config = Config(
        series=dataclasses.replace(
            PAPER.series, dim=8, depth=1, arms=("lmm",), horizons=(4,), input_length=16, protocol="ratio", test_size=4,
            layer=Layer(memory_heads=2, chunk_size=2),
        ),
        dna=dataclasses.replace(PAPER.dna, dim=8, depth=1, arms=("lmm",), time=12, layer=Layer(chunk_size=4)),
    )  # fmt: skip
    path = tmp_path / "series.csv"
    values = np.random.default_rng(0).standard_normal((200, 2)).round(3)
    path.write_text("date,a,b\n" + "".join(f"{i},{a},{b}\n" for i, (a, b) in enumerate(values)))
    config = dataclasses.replace(config, series=dataclasses.replace(config.series, path=str(path)))
    for task in ("series", "dna"):
        (arm,) = stand_in(dataclasses.replace(config, task=task), tmp_path / task).chosen.arms_of().values()
        if task == "series":
            batch = arm.task.batch(jax.random.key(0), 3, jnp.asarray(arm.task.data()))
        else:
            batch = arm.task.read(0, 0, range(3), 3)
        params = jax.jit(arm.init)(jax.random.key(0), batch)
        loss, _ = jax.jit(arm.loss)(params, batch, jax.random.key(1), 0, None)
        assert np.isfinite(loss)


def test_wrong_fields_say_what_would_be_right():
    with pytest.raises(ValueError, match="did you mean '340m'"):
        LanguageModelling(size="340")
    with pytest.raises(ValueError, match="did you mean 'lmm'"):
        Layer().spec("lm")
    with pytest.raises(FileNotFoundError, match="binary file of uint16"):
        PAPER.chosen.arms_of()
