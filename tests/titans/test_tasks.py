"""Needles, long stories and DNA: what the batches and prompts hold, and that answers are counted."""

import jax
import numpy as np
import pytest

from experiments import stand_ins
from zoo.tasks.babi import generate, read_stories
from zoo.tasks.genomics import GenomicsBenchmark
from zoo.tasks.needles import (
    KINDS,
    KeyValueNeedle,
    draw_needle,
    long_story,
    needle_accuracy,
    needle_prompt,
    story_accuracy,
)

TEXT = "It was a long winter. Nobody came to the village. The old road lay under snow."


def test_the_needle_can_be_found_and_keys_differ():
    task = KeyValueNeedle()
    batch = task.batch(jax.random.key(0), 64)
    inputs, targets = np.asarray(batch.inputs), np.asarray(batch.targets)
    assert task.vocab_size == 40 and inputs.shape == (64, 32)
    keys, values = inputs[:, 0:12:3], inputs[:, 1:12:3]
    assert np.all((keys >= 1) & (keys <= 8)) and np.all((values >= 9) & (values <= 16))
    assert all(len(set(row)) == 4 for row in keys.tolist())
    places = np.argmax(keys == inputs[:, -1:], axis=1)
    assert np.all(np.take_along_axis(keys, places[:, None], 1) == inputs[:, -1:])
    assert np.array_equal(np.take_along_axis(values, places[:, None], 1)[:, 0], targets[:, -1])
    noise = np.delete(inputs, [*range(0, 12, 3), *range(1, 12, 3), 31], axis=1)
    assert np.all(noise >= 17) and np.all(noise <= 39)
    assert np.array_equal(np.asarray(batch.mask), np.broadcast_to(np.arange(32) == 31, (64, 32)))
    assert len(set(places.tolist())) == 4, "every pair is asked for"


@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_has_the_needle_at_its_depth_and_asks_for_it(kind):
    label, value = draw_needle(kind, 3)
    prompts = [needle_prompt(str.split, kind, 120, depth, label, value, text=TEXT) for depth in (0, 0.5, 1)]
    needle = f"of {label} is {value}."
    for prompt in prompts:
        assert prompt.count(value) == 1 and prompt.endswith(f"of {label} is") and 100 <= len(prompt.split()) <= 120
    places = [prompt.index(needle) / len(prompt) for prompt in prompts]
    assert places[0] < 0.35 < places[1] < 0.75 < places[2]


def test_needles_found_are_counted():
    def find(prompts):
        """What stands behind the words that the prompt ends in, where they come first."""
        texts = ["".join(chr(c) for c in prompt) for prompt in prompts]
        return [text.split(text.rsplit("? ", 1)[1] + " ")[1].split(".")[0] for text in texts]

    def letters(text):
        return [ord(c) for c in text]

    for kind in KINDS:
        shares = needle_accuracy(find, letters, kind, (500, 900), samples=4, text=TEXT, batch_size=3)
        np.testing.assert_array_equal(shares, 1)
    with_nothing = needle_accuracy(lambda p: [""] * len(p), letters, "number", (500,), samples=3, text=TEXT)
    np.testing.assert_array_equal(with_nothing, 0)


def test_a_story_keeps_its_order_in_a_long_text():
    questions = read_stories(generate(1, 6).splitlines(), 1)
    question = questions[3]
    prompt = long_story(str.split, question, 200, TEXT, seed=1)
    facts = [" ".join(fact).capitalize() + "." for fact in question.facts]
    places = [prompt.index(fact) for fact in dict.fromkeys(facts)]
    assert places == sorted(places) and 180 <= len(prompt.split()) <= 200
    assert prompt.endswith(" ".join(question.question).capitalize() + "? Answer with one word:")
    answers = iter(q.answer for q in questions)
    shares = story_accuracy(lambda p: [next(answers)] * len(p), str.split, questions, (200,), TEXT)
    np.testing.assert_array_equal(shares, 1)


def test_prompts_say_what_is_wrong():
    with pytest.raises(ValueError, match="did you mean 'number'"):
        needle_prompt(str.split, "numbers", 100, 0.5, "amber", "1", text=TEXT)
    with pytest.raises(ValueError, match="text must be given"):
        needle_prompt(str.split, "word", 100, 0.5, "amber", "1")
    with pytest.raises(ValueError, match="leaves no room"):
        needle_prompt(str.split, "passkey", 30, 0.5, "amber", "1")
    with pytest.raises(ValueError, match="depth must lie"):
        needle_prompt(str.split, "passkey", 100, 2.0, "amber", "1")
    with pytest.raises(ValueError, match="no room for the story"):
        long_story(str.split, read_stories(generate(1, 1).splitlines(), 1)[0], 5, TEXT)
    with pytest.raises(ValueError, match="pairs=9"):
        KeyValueNeedle(pairs=9)
    with pytest.raises(ValueError, match="time must be at least 12"):
        KeyValueNeedle(time=11)


def test_dna_is_read_from_folders_of_classes(tmp_path):
    for split in ("train", "test"):
        for name, sequence in (("promoter", "ACGTN"), ("other", "ttgacca")):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            (folder / "0.txt").write_text(sequence + "\n")
    task = GenomicsBenchmark(str(tmp_path), time=6)
    assert task.classes == ("other", "promoter") and task.count == 2 and task.vocab_size == 6
    batch = task.rows_at(np.array([1, 0]))
    np.testing.assert_array_equal(batch.inputs, [[1, 2, 3, 4, 5, 0], [4, 4, 3, 1, 2, 2]])
    np.testing.assert_array_equal(batch.targets, [1, 0])
    np.testing.assert_array_equal(batch.lengths, [5, 6])
    assert sorted(task.read(0, 0, range(2), 2).targets.tolist()) == [0, 1]
    (tmp_path / "train" / "other" / "0.txt").write_text("ACGX")
    with pytest.raises(ValueError, match="letters of ACGTN"):
        task.rows_at(np.array([0]))
    with pytest.raises(FileNotFoundError, match="GenomicsBenchmarks"):
        GenomicsBenchmark("nowhere").rows_at(np.array([0]))


def test_the_stand_in_of_dna_is_read(tmp_path):
    task = GenomicsBenchmark(stand_ins.dna(tmp_path, time=16, sequences=3), "test", 20)
    assert task.count == 6 and set(task.rows_at(np.arange(6)).lengths.tolist()) == {16}
