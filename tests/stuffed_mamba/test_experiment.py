"""The paper's sizes; language model arms carry states and no gradients; prompts read in segments are prompts read whole."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zoo
from experiments.experiment import Trained, get
from experiments.papers.stuffed_mamba import (
    FROM_SCRATCH,
    PUBLIC,
    SIZES,
    Capacity,
    LanguageModelling,
    Toy,
    greedy_answers,
    passkey_scores,
    query_scores,
    stand_in,
)
from zoo.layers import batch_axes, rows_back
from zoo.tasks import PasskeyStream
from zoo.tasks.passkey import FILLER, PREFIX, SUFFIX, hidden_passkey

PAPER = get("stuffed_mamba").presets["paper"]


@pytest.mark.parametrize("size", SIZES)
def test_sizes_of_the_paper(size):
    """Parameters as in the name; states of heads times 64 times 128, and as the paper counts them with the convolutions'."""
    model = LanguageModelling(size=size).model()
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 4), jnp.int32))
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    named = {"130m": 129, "370m": 368, "780m": 780}.get(size) or float(size[:-1])
    assert count / 1e6 == pytest.approx(named, rel=0.025)
    layer = jax.eval_shape(lambda: model.initial_state(1)).layers[0]
    wanted = SIZES[size]
    assert layer.hidden.size == wanted.depth * wanted.heads * 64 * 128
    assert (layer.hidden.size + layer.history.size) / 1e6 == pytest.approx(wanted.state, abs=0.06)


def test_five_sizes_are_trained_and_three_are_public():
    assert len(FROM_SCRATCH) == 5 and len(PUBLIC) == 3 and {*FROM_SCRATCH, *PUBLIC} == set(SIZES)


def test_the_paper_preset_trains_on_half_a_million_tokens_a_step():
    lm, training = PAPER.lm, PAPER.lm.training
    assert lm.time * training.batch_size == 2**19 and lm.segments == 12 and lm.min_length == 4096
    assert (training.schedule, training.warmup, training.decay_share, training.weight_decay) == ("wsd", 1000, 0.1, 0.1)
    assert training.decay_share * training.steps == 50_000


SMALL = dataclasses.replace(
    PAPER.lm, dim=16, depth=2, state_dim=4, vocab_size=60, time=8, segments=2, min_length=4, held_out=64,
    validation_rows=2, validation_segments=2, window=8, dtype="float32",
)  # fmt: skip


def test_the_carried_arm_goes_on_where_the_last_segment_ended(tmp_path):
    config = stand_in(dataclasses.replace(PAPER, lm=SMALL), tmp_path).lm
    arms = config.arms_of()
    carried, independent = arms["carried"], arms["independent"]
    first, second = (carried.task.read(0, step, range(2), 2) for step in range(2))
    params = jax.jit(carried.init)(jax.random.key(0), first)
    loss = jax.jit(carried.loss)
    _, (_, carry) = loss(params, first, jax.random.key(1), 0, carried.carry(2))
    value, _ = loss(params, second, jax.random.key(1), 1, carry)
    alone, _ = jax.jit(independent.loss)(params, second, jax.random.key(1), 1, None)
    both = np.concatenate([first.inputs, second.inputs], axis=1)
    logits, _ = jax.jit(carried.model.apply)(params, both)
    log_p = np.asarray(jax.nn.log_softmax(logits[:, 8:]))
    want = -np.mean(np.take_along_axis(log_p, second.targets[..., None], axis=-1))
    assert float(value) == pytest.approx(want, rel=1e-5) != pytest.approx(float(alone), rel=1e-5)
    # a stream's first token cuts off the stream before
    after, _ = loss(params, first, jax.random.key(1), 2, carry)
    assert float(after) == pytest.approx(
        float(loss(params, first, jax.random.key(1), 0, carried.carry(2))[0]), rel=1e-5
    )
    state = rows_back(carry, batch_axes(carried.model.initial_state))
    assert int(state.position[0]) == 8 and independent.carry is None
    found = jax.jit(carried.evaluate)(params, jax.random.key(2), carried.evaluation_data)
    assert set(found) == {"loss", "loss_beyond", "perplexity", "perplexity_beyond", "collapse_ratio"}
    assert float(found["perplexity"]) == pytest.approx(np.exp(float(found["loss"])), rel=1e-4)
    assert abs(float(found["loss"]) - np.log(60)) < 1.5


@functools.lru_cache
def tiny():
    model = dataclasses.replace(SMALL, path="-").model()
    return model, jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))


def test_prompts_in_segments_are_answered_as_in_one_call():
    model, params = tiny()
    prompts = [list(range(1, 12)), [5, 3, 9, 30, 2, 2]]
    whole = zoo.generate(model, params, prompts, max_new_tokens=3, temperature=0.0).tokens
    assert greedy_answers(model, params, prompts, segment=4, new_tokens=3) == np.asarray(whole).tolist()
    last = zoo.generate(model, params, [p[-4:] for p in prompts], max_new_tokens=3, temperature=0.0).tokens
    assert greedy_answers(model, params, prompts, segment=4, new_tokens=3, keep=4) == np.asarray(last).tolist()


@pytest.mark.slow
def test_passkeys_are_asked_with_a_tokenizer_file(tmp_path):
    """An untrained model finds none; every cell of the heat map is there."""
    tokenizers = pytest.importorskip("tokenizers")
    words = sorted({*(PREFIX + FILLER + SUFFIX + hidden_passkey("11111")).split()})
    level = tokenizers.models.WordLevel({word: i for i, word in enumerate(["?", *words])}, unk_token="?")
    tokenizer = tokenizers.Tokenizer(level)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    config = dataclasses.replace(
        SMALL, time=32, tokenizer=str(tmp_path / "tokenizer.json"), passkey_lengths=(80,), passkey_samples=10
    )
    found = passkey_scores(config, *tiny(), "base")
    assert found["passkey/base_80"] == 0 == found["T_recall, thousand tokens/base"] and len(found) == 12


def test_scores_read_the_last_tokens_of_a_sequence():
    toy = Toy(dim=8, depth=1, state_dim=4, head_dim=8, chunk_size=8, train_length=8)
    model, task = toy.model(), PasskeyStream(16, within=6)
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))
    scores = query_scores(model, params, task, (8, 16), jax.random.key(1), 6, segment=8)
    batch = task.batch(jax.random.key(1), 6)
    for length in (8, 16):
        logits, _ = model.apply(params, batch.inputs[:, -length:])
        want = -np.take_along_axis(
            np.asarray(jax.nn.log_softmax(logits[:, -1])), np.asarray(batch.targets[:, -1:]), axis=1
        )
        assert scores[length]["loss"] == pytest.approx(float(np.mean(want)), rel=1e-4)
    with pytest.raises(ValueError, match="multiples of 8"):
        query_scores(model, params, task, (12,), jax.random.key(1), 6, segment=8)


def test_a_heat_map_has_a_cell_per_length_and_depth():
    lm = dataclasses.replace(SMALL, path="-", passkey_lengths=(80, 160))
    cells = {f"passkey at depth/carried_base_{n}_{d}": (n == 80) * d / 10 for n in (80, 160) for d in range(10)}
    ((name, figure),) = lm.figures({}, {**cells, "carried/loss": 1.0}).items()
    image = np.asarray(figure.axes[0].images[0].get_array())
    assert name == "passkey_carried_base.png" and image.shape == (10, 2)
    np.testing.assert_allclose(image, [[d / 10, 0] for d in range(10)])
    assert lm.figures({}, {"carried/loss": 1.0}) == {}


def test_a_baseline_is_another_mixer_trained_on_the_same():
    toy = Toy(baselines=("mamba",))
    arms = toy.arms()
    assert [zoo.describe(arm.model)["pattern"][0]["name"] for arm in arms.values()] == ["mamba2", "mamba"]
    assert arms["base"].task == arms["mamba"].task and arms["base"].training == arms["mamba"].training


def test_the_sweep_trains_every_size_at_every_length():
    capacity = Capacity()
    assert len(capacity.toys()) == 12 == len(capacity.arms())
    toy = capacity.toys()[8, 64]
    assert (toy.state_dim, toy.train_length, toy.within, toy.test_lengths) == (8, 64, 60, (64, 1024))


def test_the_sweep_measures_growth_recall_and_the_laws():
    """On untrained models: their loss is log 26 at every length, which is no collapse, and they recall nothing."""
    toy = Toy(dim=8, depth=1, head_dim=8, test_size=64)
    capacity = Capacity((2, 3), (8,), 16, (8,), toy=toy)
    trained = {}
    for name, arm in capacity.arms().items():
        params = jax.jit(arm.model.init)(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))
        trained[name] = Trained(arm, params, {}, [], 0.0)
    found = capacity.measure(trained, jax.random.key(1))
    assert found["growth/N2_T8"] == pytest.approx(1, abs=0.2) and found["recall/N3_T8_8"] < 0.5
    assert found["N_S, millions/N3"] == pytest.approx(2 * 8 * 3 / 1e6)
    assert found["T_forget, thousand tokens/N2"] == 0.008 and found["T_recall, thousand tokens/N2"] == 0
    assert found["law of T_forget/slope"] == pytest.approx(0, abs=1e-6) and found["law of T_forget/offset"] == 0.008
    assert "law of T_recall/base" not in found, "two sizes are too few for three numbers"
    assert list(capacity.figures(trained, found)) == ["capacity.png"]


def test_wrong_fields_say_what_would_be_right():
    with pytest.raises(ValueError, match="did you mean '370m'"):
        LanguageModelling(size="370")
    with pytest.raises(ValueError, match="did you mean 'window'"):
        Toy(variants=("windows",))
    with pytest.raises(FileNotFoundError, match="binary file of uint16"):
        PAPER.lm.arms_of()
