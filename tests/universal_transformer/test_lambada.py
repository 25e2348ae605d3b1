"""LAMBADA: files, encoding, and the attention-sum score against sums in plain Python."""

import collections
import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo.tasks import Batch, Lambada
from zoo.tasks.lambada import UNKNOWN, read_novels, read_passages, reading_loss, word_probabilities

NOVEL = "a b a c . a b d . c c a b ! e a"


@pytest.fixture
def files(tmp_path):
    (tmp_path / "novels").mkdir()
    (tmp_path / "novels" / "one.txt").write_text(NOVEL)
    (tmp_path / "test.txt").write_text("a b c d e f g h a\n\nb zebra b\n")
    (tmp_path / "test.jsonl").write_text(json.dumps({"text": "Don't go, said Ann. I don't"}) + "\n")
    return tmp_path


def test_passages_end_in_their_answer(files):
    assert read_passages(files / "test.txt") == [tuple("abcdefgha"), ("b", "zebra", "b")]
    assert read_passages(files / "test.jsonl") == [("don't", "go", ",", "said", "ann", ".", "i", "don't")]


def test_novels_are_cut_without_losing_a_word(files):
    passages = read_novels(files / "novels", 4)
    words = NOVEL.split()
    assert [p[0] for p in passages] == words[:-1:4]
    assert [w for p in passages for w in p[1:]] == words[1:]  # every word but the first is predicted once


def test_language_model_counts_every_word_of_novels_and_the_last_of_passages(files):
    task = Lambada(str(files / "novels"), vocab_size=6, max_length=4)
    assert list(task.vocabulary) == ["a", "b", "c", "."]
    novels = task.data()
    tests = dataclasses.replace(task, passages=str(files / "test.txt")).data()
    assert novels.mask.sum() == len(NOVEL.split()) - 1
    assert tests.inputs.tolist() == [[UNKNOWN] * 4, [3, UNKNOWN, 0, 0]]
    assert tests.lengths.tolist() == [4, 2] and tests.mask.astype(int).tolist() == [[0, 0, 0, 1], [0, 1, 0, 0]]
    assert tests.extra["answer"].tolist() == [2, 3] and tests.extra["in_context"].tolist() == [False, True]
    batch = jax.jit(task.batch, static_argnums=1)(jax.random.key(0), 8, novels)
    assert batch.inputs.shape == (8, 4)
    assert np.all((batch.targets[:, :3] == batch.inputs[:, 1:]) | ~batch.mask[:, 1:])


def test_reading_trains_on_answers_that_stand_in_the_context(files):
    data = Lambada(str(files / "novels"), objective="reading", max_length=4).data()
    assert data.extra["in_context"].all() and (data.mask.sum(1) == 1).all()


def test_attention_sum_adds_up_equal_words():
    rng = np.random.default_rng(0)
    inputs, lengths = rng.integers(2, 5, (6, 7)).astype(np.int32), np.array([7, 1, 3, 5, 6, 2], np.int32)
    scores = rng.normal(size=(6, 7)).astype(np.float32)
    got = word_probabilities(jnp.asarray(scores), jnp.asarray(inputs), jnp.asarray(lengths))
    want_loss, hits = 0, []
    answers = np.array([2, 3, 4, 2, 9, 3], np.int32)  # 9 stands nowhere
    for b, n in enumerate(lengths):
        weights = np.exp(scores[b, :n] - scores[b, :n].max())
        totals = collections.Counter()
        for word, weight in zip(inputs[b, :n], weights / weights.sum()):
            totals[int(word)] += float(weight)
        np.testing.assert_allclose(got[b], [totals[int(w)] for w in inputs[b, :n]] + [0] * (7 - n), rtol=1e-5)
        want_loss -= np.log(max(totals[int(answers[b])], 1e-9)) / 6
        hits.append(totals.most_common(1)[0][0] == answers[b])
    batch = Batch(jnp.asarray(inputs), None, None, jnp.asarray(lengths), {"answer": jnp.asarray(answers)})
    loss, correct = reading_loss(jnp.asarray(scores), batch)
    assert float(loss) == pytest.approx(want_loss, rel=1e-5) and correct.tolist() == hits


def test_wrong_files_are_named(files):
    (files / "bad.jsonl").write_text('{"text": "two words"}\n{"words": 3}\n')
    with pytest.raises(ValueError, match=r"bad\.jsonl, line 2: expected a JSON object with the field 'text'"):
        read_passages(files / "bad.jsonl")
    (files / "short.txt").write_text("fine here\nalone\n")
    with pytest.raises(ValueError, match=r"short\.txt, line 2: a passage needs two words, got 'alone'"):
        read_passages(files / "short.txt")
    with pytest.raises(FileNotFoundError, match="folder of LAMBADA's training novels"):
        (files / "empty").mkdir()
        Lambada(str(files / "empty")).data()
