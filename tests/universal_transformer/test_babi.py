"""bAbI: the reader on files written here, and the generators against an independent reading of their sentences."""

import jax
import numpy as np
import pytest

from zoo.tasks import Babi
from zoo.tasks.babi import DROPS, MOVES, TAKES, UNKNOWN, Vocabulary, encode, error_report, generate, read_stories

STORY = """1 Mary moved to the bathroom.
2 John went to the hallway.
3 Where is Mary? \tbathroom\t1
4 Daniel's dog ate milk, then slept.
5 What is Daniel carrying?\tmilk,football\t4 2
1 Sandra is gray.
2 Is Sandra gray?\tyes\t1
"""


def test_reader_keeps_facts_apart_from_questions():
    first, second, third = read_stories(STORY.splitlines(), task=8)
    assert first.facts == (("mary", "moved", "to", "the", "bathroom"), ("john", "went", "to", "the", "hallway"))
    assert first.question == ("where", "is", "mary") and first.answer == "bathroom" and first.support == (0,)
    assert len(second.facts) == 3 and second.answer == "milk,football" and second.support == (2, 1)
    assert third.facts == (("sandra", "is", "gray"),) and third.task == 8


def test_encoding_puts_the_question_last_and_keeps_the_latest_facts():
    questions = read_stories(STORY.splitlines(), task=8)
    vocabulary = Vocabulary.of(questions[:1] + questions[2:])
    batch = encode(questions, vocabulary, memories=2)
    assert batch.inputs.shape == (3, 3, 6) and batch.lengths.tolist() == [3, 3, 2]
    names = {i: w for w, i in vocabulary.words.items()}
    assert [names.get(i, "?") for i in batch.inputs[1, 0]] == ["john", "went", "to", "the", "hallway", "?"]
    assert batch.inputs[1, 1, 0] == UNKNOWN
    assert batch.targets[1] == -1  # an answer that the vocabulary lacks is never right
    assert batch.extra["support"].tolist() == [[True, False, False], [True, True, False], [True, False, False]]


def test_files_are_found_by_task_and_split(tmp_path):
    for split in ("train", "test"):
        (tmp_path / f"qa1_single-supporting-fact_{split}.txt").write_text(generate(1, 12, seed=len(split)))
        (tmp_path / f"qa10_indefinite-knowledge_{split}.txt").write_text(STORY)
    task = Babi(folder=str(tmp_path), tasks=(1, 10))
    data = task.data()
    assert data.targets.shape == (15,) and np.bincount(data.extra["task"]).tolist() == [0] + [12] + [0] * 8 + [3]
    batch = jax.jit(task.batch, static_argnums=1)(jax.random.key(0), 40, data)
    for row in range(40):  # every row is one of the questions
        same = [np.array_equal(batch.inputs[row], inputs) for inputs in data.inputs]
        assert batch.targets[row] in data.targets[same]
    test = Babi(folder=str(tmp_path), tasks=(1, 10), split="test")
    assert test.vocabulary == task.vocabulary


def simulate(facts):
    """Place of every person and all places of every thing, from the words alone."""
    where, holder, track = {}, {}, {}
    for fact in facts:
        person, verb, last = fact[0], " ".join(fact[1:-1]).removesuffix(" the"), fact[-1]
        thing = fact[-2] if last == "there" else last
        if verb in MOVES:
            where[person] = last
            for carried in [t for t, who in holder.items() if who == person]:
                track[carried].append(last)
        elif verb.removesuffix(f" the {thing}") in TAKES:
            assert thing not in holder
            holder[thing] = person
            assert track.setdefault(thing, [where.get(person)])[-1] == where.get(person)
        else:
            assert verb in DROPS and holder.pop(thing) == person
            track.setdefault(thing, [where.get(person)])
    return where, track


@pytest.mark.parametrize("task", [1, 2, 3])
def test_generated_answers_follow_from_the_sentences(task):
    questions = read_stories(generate(task, 300).splitlines(), task)
    assert len(questions) == 300 and len({q.answer for q in questions}) == 6
    for q in questions:
        assert len(q.support) == task
        where, track = simulate(q.facts)
        if task == 1:
            assert q.answer == where[q.question[-1]]
            assert q.facts[q.support[0]][0] == q.question[-1] and q.facts[q.support[0]][-1] == q.answer
        elif task == 2:
            assert q.answer == track[q.question[-1]][-1]
        else:
            places = track[q.question[3]]
            assert (q.answer, q.question[-1]) == (places[-2], places[-1])
            assert simulate([q.facts[i] for i in sorted(q.support)])[1][q.question[3]][-2:] == places[-2:]


def test_generated_stories_are_reproducible_and_differ_between_splits():
    assert generate(2, 20, seed=3) == generate(2, 20, seed=3) != generate(2, 20, seed=4)
    train, test = (Babi(tasks=(1, 2), split=s, generated=30).data() for s in ("train", "test"))
    assert train.targets.shape == test.targets.shape == (60,)
    assert not np.array_equal(train.targets, test.targets)


def test_error_report_counts_tasks_above_five_per_cent():
    tasks = np.repeat([1, 2, 3], 100)
    correct = np.ones(300, bool)
    correct[:5] = False  # 5 %: not failed
    correct[100:106] = False  # 6 %: failed
    assert error_report(correct, tasks) == pytest.approx(
        {"error_1": 5.0, "error_2": 6.0, "error_3": 0.0, "error": 11 / 3, "failed": 1.0}
    )


def test_bad_files_are_named_with_their_line(tmp_path):
    with pytest.raises(ValueError, match="story, line 2: expected 'ID sentence'"):
        read_stories(["1 Mary slept.", "Mary woke."], source="story")
    with pytest.raises(ValueError, match="line 2: supporting id '7' is no earlier sentence"):
        read_stories(["1 Mary slept.", "2 Who slept?\tmary\t7"])
    with pytest.raises(FileNotFoundError, match="folder 'en' or 'en-10k' of the bAbI tasks data"):
        Babi(folder=str(tmp_path)).data()
    with pytest.raises(ValueError, match="split='dev' is not one of train, test"):
        Babi(split="dev")
