"""ListOps: values follow from the text by a recursive reader; the rules are those of the release."""

import jax
import numpy as np
import pytest

from zoo.tasks import ListOps, ListOpsFiles
from zoo.tasks.listops import WORDS, expression_text


def value_of(words):
    """(value, depth, numbers of arguments) of the expression at the front of ``words``, which is eaten."""
    word = words.pop(0)
    if word.isdigit():
        return int(word), 1, []
    values, depths, sizes = [], [], []
    while words[0] != "]":
        value, depth, inner = value_of(words)
        values.append(value), depths.append(depth), sizes.extend(inner)
    words.pop(0)
    operations = {"[MIN": min, "[MAX": max, "[MED": lambda v: int(np.median(v)), "[SM": lambda v: sum(v) % 10}
    return operations[word](values), 1 + max(depths), [len(values), *sizes]


@pytest.fixture(scope="module")
def made():
    task = ListOps(time=40, max_depth=4, max_args=5, min_length=6, max_length=36)
    return task, jax.tree.map(np.asarray, jax.jit(lambda key: task.batch(key, 400))(jax.random.key(0)))


def test_targets_are_the_values_of_the_expressions(made):
    _, batch = made
    assert batch.inputs.shape == (400, 40) and batch.inputs.dtype == np.int32
    for tokens, target, length in zip(batch.inputs, batch.targets, batch.lengths):
        assert (tokens[:length] > 0).all() and not tokens[length:].any()
        assert 6 < length < 36
        words = expression_text(tokens).split()
        value, depth, sizes = value_of(words)
        assert value == target and not words, "one whole expression"
        assert 2 <= depth <= 4 and min(sizes) >= 2 and max(sizes) <= 5


def test_all_operators_digits_depths_and_numbers_of_arguments_occur(made):
    _, batch = made
    assert set(np.unique(batch.inputs)) == set(range(len(WORDS)))
    read = [value_of(expression_text(t).split()) for t in batch.inputs]
    assert {depth for _, depth, _ in read} == {2, 3, 4}
    assert {size for _, _, sizes in read for size in sizes} == {2, 3, 4, 5}
    assert set(batch.targets) == set(range(10))


def test_an_example_is_a_function_of_its_key(made):
    task, batch = made
    keys = jax.random.split(jax.random.key(0), 400)
    one = task.example(keys[7])
    assert np.array_equal(one.inputs, batch.inputs[7]) and one.targets == batch.targets[7]


@pytest.fixture
def folder(tmp_path):
    """Files as the release writes them: round brackets around every application, lines that end as in DOS."""
    rows = ["Source\tTarget", "( ( ( [MAX 4 ) ( ( ( [SM 7 ) 8 ) ] ) ) ] )\t5", "( ( ( [MED 1 ) 4 ) ] )\t2"]
    for name in ("train", "val", "test"):
        (tmp_path / f"basic_{name}.tsv").write_text("\r\n".join(rows) + "\r\n", newline="")
    return tmp_path


def test_the_files_of_the_release_are_read_without_their_round_brackets(folder):
    task = ListOpsFiles(str(folder), "validation", time=16)
    batch = task.rows_at(np.array([1, 0]))
    assert [expression_text(t) for t in batch.inputs] == ["[MED 1 4 ]", "[MAX 4 [SM 7 8 ] ]"]
    assert batch.targets.tolist() == [2, 5] and batch.lengths.tolist() == [4, 7]
    assert all(value_of(expression_text(t).split())[0] == v for t, v in zip(batch.inputs, batch.targets))
    cut = ListOpsFiles(str(folder), "test", time=5).rows_at(np.array([0]))
    assert cut.lengths == [5] and cut.inputs.shape == (1, 5)


def test_an_epoch_reads_every_example_once_and_any_step_can_be_read_again(folder):
    lines = "".join(f"( ( [MAX {n} ) {n} ) ] )\t{n}\n" for n in range(10))
    (folder / "basic_train.tsv").write_text("Source\tTarget\n" + lines)
    task = ListOpsFiles(str(folder), time=8)
    steps = [task.read(3, step, range(4), 4).targets for step in range(5)]
    drawn = np.concatenate(steps)
    assert sorted(drawn[:10]) == sorted(drawn[10:]) == list(range(10))
    assert drawn[:10].tolist() != drawn[10:].tolist(), "another order in the next epoch"
    assert np.array_equal(task.read(3, 4, range(1, 3), 4).targets, steps[4][1:3])
    assert not np.array_equal(np.concatenate([task.read(4, s, range(4), 4).targets for s in range(5)]), drawn)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Source\tTarget\n", "holds no expressions"),
        ("( ( [MAX 1 ) 2 ) ] )\t2\n", "does not begin with"),
        ("Source\tTarget\n( ( [MAX 1 ) 2 ) ] )\t2\n( ( [FIRST 1 ) 2 ) ] )\t1\n", "line 3: unknown token '.FIRST'"),
        ("Source\tTarget\n( ( [MAX 1 ) 2 ) ] )\n", "line 2: expected an expression"),
    ],
)
def test_a_broken_file_is_named_with_its_line(text, words, folder):
    (folder / "basic_test.tsv").write_text(text)
    with pytest.raises(ValueError, match=words):
        _ = ListOpsFiles(str(folder), "test").count


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ListOps(time=100), "no room"),
        (lambda: ListOps(time=40, max_depth=1, min_length=1, max_length=20), "max_depth must be at least 2"),
        (lambda: ListOps(time=40, max_depth=2, max_args=3, min_length=5, max_length=40), "no expression has more than"),
        (lambda: ListOps(time=40, min_length=39, max_length=40), "no expression has more than"),
        (lambda: ListOpsFiles("nowhere").count, "lra_release"),
        (lambda: ListOpsFiles(split="dev"), "is not one of train, validation, test"),
    ],
)
def test_impossible_sizes_and_missing_files_are_named(make, words):
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        make()
