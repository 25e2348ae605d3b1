"""Sentence pairs: nothing lost on the way to arrays and back, batches by tokens, any step can be read again."""

import collections
import gzip
import random

import numpy as np
import pytest

from zoo.tasks import ParallelText
from zoo.tasks.parallel_text import END, ByteVocabulary, open_vocabulary, prepare, read_pairs

PAIRS = [(f"line {i} a" + "x" * (i % 23), f"Zeile {i} ü" + "y" * (3 * i % 29)) for i in range(60)]


@pytest.fixture
def files(tmp_path):
    (tmp_path / "a.en").write_text("".join(a + "\n" for a, _ in PAIRS))
    with gzip.open(tmp_path / "a.de.gz", "wt", encoding="utf-8") as file:
        file.write("".join(b + "\n" for _, b in PAIRS))
    return tmp_path


def texts(batch, vocabulary):
    return [(vocabulary.decode(a), vocabulary.decode(b)) for a, b in zip(batch.inputs, batch.targets)]


def test_bytes_come_back_as_they_were(files):
    folder = prepare(files / "a.en", files / "a.de.gz", files / "ready")
    task = ParallelText(str(folder), buckets=(64,))
    batch = task.first(60)
    assert texts(batch, open_vocabulary(folder)) == PAIRS and task.vocab_size == 258
    np.testing.assert_array_equal(batch.lengths, [len(a.encode()) + 1 for a, _ in PAIRS])
    np.testing.assert_array_equal(batch.mask.sum(1), [len(b.encode()) + 1 for _, b in PAIRS])
    assert ByteVocabulary().decode([ByteVocabulary().encode("ü")[0], END, 70]) == "�"


def test_subwords_come_back_as_they_were_and_are_shorter(files):
    folder = prepare(files / "a.en", files / "a.de.gz", files / "ready", subwords=300)
    task = ParallelText(str(folder), buckets=(64,))
    batch = task.first(60)
    assert texts(batch, open_vocabulary(folder)) == PAIRS and task.vocab_size == 300
    assert batch.lengths.sum() < sum(len(a) for a, _ in PAIRS)
    again = prepare(files / "a.en", files / "a.de.gz", files / "test", vocabulary=folder / "subwords.json")
    np.testing.assert_array_equal(ParallelText(str(again), buckets=(64,)).first(9).inputs, batch.inputs[:9])


def test_batches_have_equal_tokens_and_the_smallest_bucket_that_fits(files):
    folder = prepare(files / "a.en", files / "a.de.gz", files / "ready")
    task = ParallelText(str(folder), buckets=(10, 20, 40))
    vocabulary, seen = ByteVocabulary(), collections.Counter()
    for step in range(60):
        batch = task.read(0, step, range(4), 4)
        rows, length = batch.inputs.shape
        assert rows * length == batch.targets.size == 4 * 40
        longest = [max(len(a.encode()), len(b.encode())) + 1 for a, b in texts(batch, vocabulary)]
        assert all({20: 10, 40: 20}.get(length, 0) < n <= length for n in longest)
        assert set(texts(batch, vocabulary)) <= set(PAIRS)
        seen[length] += 1
    sizes = collections.Counter(
        next(b for b in (10, 20, 40) if max(len(x.encode()) for x in pair) + 1 <= b) for pair in PAIRS
    )
    assert set(seen) == set(sizes)  # buckets come in proportion to their sentences
    assert all(abs(seen[b] - sizes[b]) < 5 * np.sqrt(60 / 4) for b in sizes)


def test_any_rows_of_any_step_can_be_read_again(files):
    folder = prepare(files / "a.en", files / "a.de.gz", files / "ready")
    task, other = (ParallelText(str(folder), buckets=(20, 40)) for _ in range(2))
    step = random.Random(1).randrange(1000)
    whole, part = task.read(5, step, range(6), 6), other.read(5, step, range(2, 4), 6)
    share = len(whole.inputs) // 6
    np.testing.assert_array_equal(whole.inputs[2 * share : 4 * share], part.inputs)
    np.testing.assert_array_equal(whole.targets[2 * share : 4 * share], part.targets)


def test_wrong_files_are_refused_and_leave_nothing_behind(files):
    (files / "short.de").write_text("eins\n")
    with pytest.raises(ValueError, match=r"short.de' ends at line 1, .* goes on: not parallel"):
        prepare(files / "a.en", files / "short.de", files / "ready")
    assert sorted(p.name for p in files.iterdir()) == ["a.de.gz", "a.en", "short.de"]
    with pytest.raises(FileNotFoundError, match="is no prepared folder"):
        ParallelText(str(files / "ready"))
    prepare(files / "a.en", files / "a.en", files / "ready")
    with pytest.raises(FileExistsError, match="exists already"):
        prepare(files / "a.en", files / "a.en", files / "ready")
    with pytest.raises(ValueError, match="bucket 30 does not divide the longest, 64"):
        ParallelText(str(files / "ready"), buckets=(30, 64))
    with pytest.raises(ValueError, match=r"no sentence pair of .* fits into 3 tokens"):
        ParallelText(str(files / "ready"), buckets=(3,)).read(0, 0, range(1), 1)
    (files / "gaps").write_text("\none\n\n")
    assert list(read_pairs(files / "gaps", files / "gaps")) == [("one", "one")]
