"""Rows of set disjointness; masked prefixes; files, prompts and scores of document recall."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo.tasks import (
    RecallQuestion,
    SetDisjointness,
    contains,
    cut_context,
    load_recall,
    mask_prefix,
    recall_prompt,
    recall_scores,
    token_f1,
)
from zoo.tasks.document_recall import DATASETS, recall_question
from zoo.tasks.set_disjointness import shared_element


def test_rows_have_two_sets_that_share_one_element_and_all_sizes_come():
    task = SetDisjointness(20, ((3, 6), (6, 3), (10, 6)))
    batch = jax.tree.map(np.asarray, task.batch(jax.random.key(0), 200))
    assert batch.inputs.shape == (200, 19) and batch.mask.sum(axis=1).tolist() == [1] * 200 and batch.mask[:, -1].all()
    seen, places = set(), []
    for row, targets, which in zip(batch.inputs, batch.targets, batch.extra):
        first, second = task.sizes[which]
        row = row[19 - (3 + first + second) :]
        assert shared_element(row) == targets[-1] and not targets[:-1].any()
        a, b = row[1 : 1 + first], row[2 + first : -1]
        assert row[1 + first] == 2 and len(set(a)) == first and len(set(b)) == second and min(a.min(), b.min()) >= 4
        seen.add((first, second))
        places.append((list(a).index(targets[-1]) / first, list(b).index(targets[-1]) / second))
    assert seen == set(task.sizes)
    assert np.all(np.abs(np.mean(places, axis=0) - 0.4) < 0.1), "the shared element stands anywhere"


def test_rows_said_twice_and_padded_rows():
    one, two = (SetDisjointness(20, ((2, 3),), repeats, length=10) for repeats in (1, 2))
    once, twice = (np.asarray(task.batch(jax.random.key(1), 4).inputs) for task in (one, two))
    np.testing.assert_array_equal(twice, np.concatenate([once, once], axis=1))
    assert not once[:, :2].any() and (once[:, 2] == 1).all()


def test_a_pool_is_drawn_from_again_and_again():
    rows = np.asarray(SetDisjointness(20, ((2, 3), (3, 2)), pool=3).batch(jax.random.key(1), 100).inputs)
    assert len(np.unique(rows, axis=0)) == 6


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sizes": ((11, 2),)}, "at most |A| = 10 and |B| = 6"),
        ({"sizes": ((2, 7),)}, "at most |A| = 10 and |B| = 6"),
        ({"sizes": ()}, "sizes is empty"),
        ({"sizes": ((2, 3),), "length": 7}, "length must be at least 8"),
    ],
)
def test_sets_that_do_not_fit_are_refused(options, words):
    with pytest.raises(ValueError) as error:
        SetDisjointness(20, **options)
    assert words in str(error.value)


@pytest.mark.parametrize("row", [[1, 5, 6, 2, 7, 8, 3], [1, 5, 2, 5, 2, 3], [5, 1, 5, 2, 5, 3], [1, 5, 6, 2, 5, 6, 3]])
def test_rows_of_another_form_are_refused(row):
    with pytest.raises(ValueError, match=r"a row must be|the sets of a row must share one"):
        shared_element(np.array(row))


def test_a_masked_prefix():
    text = jnp.arange(100)[None].repeat(50, axis=0)
    batch = jax.tree.map(np.asarray, mask_prefix(jax.random.key(0), text, prefix_length=60, mask_token=200))
    hidden = batch.extra
    assert batch.inputs.shape == (50, 99) and not hidden[:, 60:].any() and abs(hidden[:, :60].mean() - 0.15) < 0.03
    np.testing.assert_array_equal(batch.inputs, np.where(hidden, 200, np.asarray(text)[:, :-1]))
    np.testing.assert_array_equal(batch.targets[:, :60], np.asarray(text)[:, :60])
    np.testing.assert_array_equal(batch.targets[:, 60:], np.asarray(text)[:, 61:])
    np.testing.assert_array_equal(batch.mask[0], np.arange(99) >= 60)
    causal = mask_prefix(jax.random.key(0), text, prefix_length=0, mask_token=200)
    np.testing.assert_array_equal(causal.targets, text[:, 1:])
    with pytest.raises(ValueError, match="prefix_length must be from 0 to 99 for 100 tokens, got 100"):
        mask_prefix(jax.random.key(0), text, prefix_length=100, mask_token=200)
    with pytest.raises(ValueError, match="rate must lie in"):
        mask_prefix(jax.random.key(0), text, prefix_length=9, mask_token=200, rate=1.5)


DOCUMENT = "The device is small. It weighs 3 kg."
ROWS = {
    "fda": {"text": f"{DOCUMENT}weight:", "key": "weight", "value": "3 kg"},
    "swde": {"text": f"{DOCUMENT}\nSummary of information above... weight:", "key": "weight", "value": "3 kg"},
    "squad": {"context": f"{DOCUMENT} Question: x", "question": "How heavy is it?", "text": f"{DOCUMENT} It weighs",
              "value": "3 kg"},
    "nq": {"context": f"{DOCUMENT} It weighs", "question": "It weighs", "orig_question": "How heavy is it?",
           "answers": ["3 kg", "three"]},
    "triviaqa": {"context": f"[DOC] [TLE] {DOCUMENT}", "question": "How heavy?", "answers": ["3 kg"]},
    "drop": {"context": DOCUMENT, "question": "How heavy?", "answers": "3 kg"},
}  # fmt: skip
BODY = "The device is small. It weighs 3 kg."
WANTED = {
    "fda": ("Information about Weight.", "Weight:"),
    "swde": ("Information about Weight.", "Weight:"),
    "squad": ("How heavy is it?", "It weighs"),
    "nq": ("How heavy is it?", "It weighs"),
    "triviaqa": ("How heavy?", "How heavy?"),
    "drop": ("How heavy?", "How heavy?"),
}


@pytest.mark.parametrize("dataset", DATASETS)
@pytest.mark.parametrize("ending", [".json", ".jsonl"])
def test_files_and_prompts(dataset, ending, tmp_path):
    path = tmp_path / f"rows{ending}"
    row = ROWS[dataset]
    path.write_text(json.dumps([row, row]) if ending == ".json" else f"{json.dumps(row)}\n\n{json.dumps(row)}\n")
    question, again = load_recall(str(path), dataset)
    intro, asked = WANTED[dataset]
    assert question == again and "3 kg" in question.answers
    assert recall_prompt(question) == f"{BODY} {asked}"
    assert recall_prompt(question, 2) == f"{intro} {BODY}\n{BODY} {asked}"
    assert recall_prompt(question, 3, question_first=False) == f"{BODY}\n{BODY}\n{BODY} {asked}"


def test_files_that_are_not_right_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"give the rows of fda as \.jsonl or \.json"):
        load_recall("", "fda")
    (tmp_path / "rows.json").write_text("{}")
    with pytest.raises(ValueError, match="must hold a list"):
        load_recall(str(tmp_path / "rows.json"), "fda")
    (tmp_path / "rows.csv").write_text("")
    with pytest.raises(ValueError, match="the ending of the file"):
        load_recall(str(tmp_path / "rows.csv"), "fda")
    with pytest.raises(ValueError, match=r"a row of drop needs the fields .* \['answers'\] are missing"):
        recall_question({"context": "", "question": ""}, "drop")
    with pytest.raises(ValueError, match="dataset='fdb' is not one of"):
        recall_question({}, "fdb")


def test_contexts_are_cut_to_their_first_tokens():
    question = RecallQuestion("one two three four", "Which?", "Which?", ("one",))
    cut = cut_context(question, 2, str.split, " ".join)
    assert cut.context == "one two" and cut.answers == ("one",)
    assert cut_context(question, 4, str.split, " ".join) is question


def test_scores():
    assert contains("It is 3 KG heavy", ["4 kg", "3 kg"]) and not contains("It is 3kg", ["3 kg"])
    assert token_f1("The tall man's dog", ["a tall mans dog"]) == 1.0
    assert token_f1("tall dog", ["dog", "big dog"]) == pytest.approx(2 / 3)
    assert token_f1("cat", ["dog"]) == 0.0 and token_f1("the", ["a"]) == 1.0 and token_f1("", ["dog"]) == 0.0


def test_questions_are_asked_in_batches_and_answers_end_at_a_line_break():
    questions = [RecallQuestion("x" * n, "Which?", "Intro", (str(n),)) for n in (5, 1, 3)]
    asked = []

    def answer(prompts):
        asked.append(len(prompts))
        return [f"{p.count('x')}\n 1 3 5" if p.count("x") != 6 else "no\n3" for p in prompts]

    assert recall_scores(answer, questions, batch_size=2) == {"contains": 1.0, "f1": 1.0}
    assert asked == [2, 1]
    twice = recall_scores(answer, questions, repeats=2)
    assert twice["contains"] == 0.0, "contexts said twice have twice the letters; what stands after a line break is cut"
