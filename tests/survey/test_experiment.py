"""The survey's experiment: every arm can be trained and evaluated, also on corpora; streams carry their state."""

import dataclasses
import gzip

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import experiment
from experiments.papers import critical_review
from experiments.papers.critical_review import Config, Data, arms, ngram_baseline, sentence
from experiments.papers.critical_review_arms import shifted, streaming, translation
from experiments.steps import initial_state, training_step
from zoo.models import EncoderDecoder, LanguageModel
from zoo.tasks import HostTask, Reversal, TextStreams
from zoo.tasks.parallel_text import prepare

SMALL = {"dim": 8, "depth": 1, "test_size": 2}


def shrink(corpus, **options):
    training = dataclasses.replace(corpus.training, steps=2, batch_size=2, steps_per_call=1)
    return dataclasses.replace(corpus, **SMALL, training=training, **options)


def trace(arm):
    """Traces initialisation, loss and evaluation (nothing is compiled); returns the shapes of the metrics."""
    size = arm.training.batch_size
    if isinstance(arm.task, HostTask):
        batch, data = (jax.tree.map(jnp.asarray, arm.task.read(0, 0, range(n), size)) for n in (size, 1))
    else:
        data = arm.task.data()
        batch = jax.eval_shape(lambda: arm.task.batch(jax.random.key(0), size, data))
    state = jax.eval_shape(lambda: initial_state(arm, 0, 1, data))
    key = jax.random.key(0)
    loss, (metrics, carry) = jax.eval_shape(arm.loss, state.params, batch, key, jnp.int32(0), state.carry)
    assert loss.shape == () and all(m.shape == () for m in metrics.values())
    assert jax.tree.map(jnp.shape, carry) == jax.tree.map(jnp.shape, state.carry), "the carry changes its shape"
    evaluated = jax.eval_shape(arm.evaluate, state.params, key, arm.evaluation_data)
    assert all(m.shape == () for m in evaluated.values())
    return set(evaluated)


def test_every_arm_of_the_quick_preset_can_be_traced_and_has_the_metrics_that_are_checked():
    entry = experiment.get("critical_review")
    config = entry.presets["quick"]
    assert config.problems == critical_review.PROBLEMS
    known = {f"{name}/{metric}" for name, arm in arms(config).items() for metric in trace(arm)}
    measured = ("gradient/", "clipping/", "future/both_ways", "reversal/free_accuracy - ")
    for check in entry.checks["quick"]:
        assert check.value in known or check.value.startswith(measured), check.value


def test_arms_on_corpora_can_be_traced(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("the cat sat on the mat and the dog sat on the cat\n" * 60)
    config = Config(words=shrink(critical_review.WORDS, time=4), characters=shrink(critical_review.CHARACTERS, time=8),
                    translation=shrink(critical_review.TRANSLATION, time=16), data=Data(str(text)))  # fmt: skip
    for task in ("words", "characters"):
        (arm,) = arms(dataclasses.replace(config, task=task)).values()
        assert trace(arm) == {"loss", "perplexity", "bits"}
    baseline = ngram_baseline(TextStreams(str(text), "word", "train", 4, 10))
    assert baseline["n-gram/order"] == 4 and baseline["n-gram/perplexity"] < 1.5, "the text repeats itself"

    for side, line in (("en", "a cat"), ("de", "eine Katze")):
        with gzip.open(tmp_path / f"pairs.{side}.gz", "wt") as file:
            file.write(f"{line}\n" * 5)
    prepare(tmp_path / "pairs.en.gz", tmp_path / "pairs.de.gz", tmp_path / "pairs")
    (arm,) = arms(dataclasses.replace(config, task="translation", data=Data(str(tmp_path / "pairs")))).values()
    assert trace(arm) == {"loss", "accuracy", "free_accuracy", "free_exact"}

    np.savez(tmp_path / "frames.npz", features=np.ones((12, 3)), lengths=np.array([5, 7]), labels=np.array([1, 2, 2]),
             label_lengths=np.array([1, 2]))  # fmt: skip
    config = dataclasses.replace(
        config,
        task="handwriting",
        handwriting=shrink(critical_review.HANDWRITING),
        data=Data(str(tmp_path / "frames.npz")),
    )
    assert trace(arms(config)["handwriting"]) == {"loss", "exact"}

    np.save(tmp_path / "features.npy", np.ones((2, 6), np.float32))
    (tmp_path / "captions.txt").write_text("0\ta cat\n1\ta dog\n" * 5)
    config = dataclasses.replace(
        config, task="captions", captions=shrink(critical_review.CAPTIONS, time=5), data=Data(str(tmp_path))
    )
    assert trace(arms(config)["captions"]) == {"loss", "perplexity", "free_exact"}


@pytest.mark.parametrize("task", critical_review.CORPORA)
def test_a_missing_corpus_gives_one_clear_line(task, as_users_see_it):
    with pytest.raises(FileNotFoundError) as error:
        arms(Config(task=task))
    assert "data.path" in str(error.value) or "prepare" in str(error.value)


def test_streams_carry_their_state_from_step_to_step(tmp_path):
    """Two steps of two segments see what one pass over the streams sees; a new epoch starts from nothing."""
    text = tmp_path / "text.txt"
    text.write_text("abcabdabcabe" * 30)
    task = TextStreams(str(text), "byte", "train", 4)
    model = LanguageModel(256, 8, pattern=("lru", "lru"), mlp="none")
    training = critical_review.CHARACTERS.training
    arm = streaming(model, task, dataclasses.replace(training, batch_size=3), test=task, rows=3)
    first, second = (task.read(0, step, range(3), 3) for step in range(2))
    params = jax.jit(arm.init)(jax.random.key(0), first)
    loss = jax.jit(lambda batch, carry: arm.loss(params, batch, jax.random.key(0), 0, carry))
    _, (_, carry) = loss(first, arm.carry(3))
    value, (_, last) = loss(second, carry)
    whole, state = model.apply(params, jnp.concatenate([first.inputs, second.inputs], axis=1))
    logits = jax.nn.log_softmax(whole[:, 4:])
    want = -jnp.mean(jnp.take_along_axis(logits, jnp.asarray(second.targets)[..., None], axis=-1))
    assert np.isclose(float(value), float(want), rtol=1e-5)
    assert not np.isclose(float(loss(second, arm.carry(3))[0]), float(want), rtol=1e-3), "the carry makes no difference"
    again = task.read(0, task.segments(3), range(3), 3)
    assert np.isclose(float(loss(again, last)[0]), float(loss(first, arm.carry(3))[0]), rtol=1e-6)
    assert jax.tree.leaves(last)[0].shape[0] == 3 and len(jax.tree.leaves(state)) == len(jax.tree.leaves(last))


def test_scheduled_sampling_starts_as_teacher_forcing_and_can_be_trained():
    task = Reversal(symbols=3, min_length=2, max_length=3)
    model = EncoderDecoder(5, 5, 8, encoder=("elman",), bridge="state", mlp="none", norm="none")
    training = dataclasses.replace(critical_review.ADAM, steps=2, batch_size=4, steps_per_call=2)
    forced = translation(model, task, training, test_size=4)
    mixed = translation(model, task, training, test_size=4, sampling_rate=1e6)
    batch = task.batch(jax.random.key(0), 4)
    params = jax.jit(forced.init)(jax.random.key(1), batch)
    key = jax.random.key(2)
    values = [float(jax.jit(arm.loss)(params, batch, key, 0, None)[0]) for arm in (forced, mixed)]
    assert np.isclose(*values, rtol=1e-4)
    late = float(jax.jit(mixed.loss)(params, batch, key, jnp.int32(10**9), None)[0])
    assert not np.isclose(late, values[0], rtol=1e-4), "the model's own tokens make no difference"
    step = training_step(mixed, 1)
    assert callable(step)


def test_teachers_feed_the_target_before_and_sentences_end_at_the_end():
    assert shifted(jnp.array([[5, 6, 1]])).tolist() == [[0, 5, 6]]
    assert sentence(np.array([4, 3, 1, 2])) == [4, 3] and sentence(np.array([4, 3])) == [4, 3]
