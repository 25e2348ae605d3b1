"""Groups are groups, words are labelled with their products, expressions with their values, and boards with their pieces."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo.tasks import BoardTracking, BracketArithmetic, GroupWords, ModularArithmetic, group, position_accuracy

ORDERS = {
    "S1": 1,
    "S3": 6,
    "S4": 24,
    "A4": 12,
    "A5": 60,
    "S5": 120,
    "Z7": 7,
    "D4": 8,
    "S3xZ2": 12,
    "Z2xZ2xZ3": 12,
    "A5xZ3": 180,
}


@pytest.mark.parametrize("name", ORDERS)
def test_tables_are_those_of_groups(name):
    table = group(name).table
    order = ORDERS[name]
    assert table.shape == (order, order) and group(name).order == order
    np.testing.assert_array_equal(table[0], np.arange(order))
    np.testing.assert_array_equal(table[:, 0], np.arange(order))
    for lines in (table, table.T):  # every element once in every row and column: inverses exist
        np.testing.assert_array_equal(np.sort(lines, axis=1), np.tile(np.arange(order), (order, 1)))
    some = np.random.default_rng(0).integers(0, order, (3, 500))
    a, b, c = some
    np.testing.assert_array_equal(table[table[a, b], c], table[a, table[b, c]])
    assert np.array_equal(table, table.T) == (name in ("S1", "Z7", "Z2xZ2xZ3"))


@pytest.mark.parametrize("name", ["S3", "S4", "A4", "A5"])
def test_products_are_those_of_permutations_composed_by_hand(name):
    n = int(name[1])

    def even(p):
        return np.linalg.det(np.eye(n)[list(p)]) > 0

    elements = [p for p in itertools.permutations(range(n)) if name[0] == "S" or even(p)]
    made = group(name)
    assert made.moved.tolist() == [sum(i != x for i, x in enumerate(p)) for p in elements]
    for a, b in np.random.default_rng(0).integers(0, len(elements), (200, 2)):
        composed = tuple(elements[a][elements[b][i]] for i in range(n))  # first b, then a
        assert elements[made.table[a, b]] == composed


def test_dihedral_and_product_groups_are_those_of_their_matrices():
    """D4 as rotations and reflections of the plane; a pair is multiplied part by part."""
    turn, flip = np.array([[0, -1], [1, 0]]), np.diag([1, -1])
    matrices = [np.linalg.matrix_power(turn, i) @ np.linalg.matrix_power(flip, e) for e in (0, 1) for i in range(4)]
    table = group("D4").table
    for a, b in itertools.product(range(8), repeat=2):
        np.testing.assert_array_equal(matrices[table[a, b]], matrices[a] @ matrices[b])
    pairs, first, second = group("S3xZ2").table, group("S3").table, group("Z2").table
    for a, b in itertools.product(range(12), repeat=2):
        assert pairs[a, b] == 2 * first[a // 2, b // 2] + second[a % 2, b % 2]


@pytest.mark.parametrize("options", [{"group": "S4"}, {"group": "S5", "limit_to": 2}, {"group": "S3xZ2"}])
def test_every_position_is_labelled_with_the_product_so_far(options):
    task = GroupWords(time=9, **options)
    batch = jax.jit(lambda key: task.batch(key, 20, task.data()))(jax.random.key(0))
    made = group(task.group)
    for word, labels in zip(np.asarray(batch.inputs), np.asarray(batch.targets)):
        assert [made.product(word[: t + 1]) for t in range(9)] == labels.tolist()
    assert task.vocab_size == ORDERS[task.group]
    if task.limit_to:
        seen = np.unique(batch.inputs)
        assert 5 < len(seen) <= 11 and made.moved[seen].max() == 2 and made.moved[np.asarray(batch.targets)].max() > 2


def test_inputs_may_be_limited_and_words_drawn_from_a_pool():
    counts = {k: int(GroupWords("S5", limit_to=k).allowed().sum()) for k in (2, 3, 4, 5)}
    assert counts == {2: 11, 3: 31, 4: 76, 5: 120}  # 1 + C(5, k) derangements of k points each
    assert GroupWords("A5", limit_to=3).allowed().sum() == 21
    tasks = [GroupWords("S3", time=8, pool=pool) for pool in (4, None)]
    fixed, new = (jax.jit(lambda k, task=task: task.batch(k, 64).inputs)(jax.random.key(1)) for task in tasks)
    assert len(np.unique(fixed, axis=0)) <= 4 < len(np.unique(new, axis=0))
    parity = jax.jit(GroupWords("Z2", time=20).example)(jax.random.key(0))
    np.testing.assert_array_equal(parity.targets, np.cumsum(parity.inputs) % 2)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"group": "Q8"}, "none of S<n>, A<n>, Z<n>, D<n>"),
        ({"group": "S"}, "none of"),
        ({"group": "S3x"}, "none of"),
        ({"group": "S9"}, "more than 2520 elements"),
        ({"group": "S7"}, "5040 elements, more than 2520"),
        ({"group": "Z60xZ60"}, "3600 elements, more than 2520"),
        ({"group": "Z5", "limit_to": 2}, "limit_to needs a group of permutations"),
        ({"group": "A5", "limit_to": 2}, "leaves only the neutral element of A5: the others move at least 3"),
        ({"group": "S3", "limit_to": 0}, "limit_to must be a positive integer"),
        ({"time": 0}, "time must be a positive integer"),
        ({"pool": 0}, "pool must be a positive integer"),
    ],
)
def test_groups_that_there_are_not_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        GroupWords(**options)


@pytest.mark.parametrize("last_only", [False, True])
def test_sums_and_products_have_the_values_that_python_gives_them(last_only):
    task = ModularArithmetic(time=13, min_time=4, last_only=last_only)
    batch = jax.jit(lambda key: task.batch(key, 50))(jax.random.key(0))
    lengths = set()
    for inputs, targets, mask, length in zip(*map(np.asarray, batch[:4])):
        lengths.add(int(length))
        places = np.flatnonzero(mask)
        assert places.tolist() == ([length - 1] if last_only else list(range(0, length, 2)))
        for place in places:
            assert targets[place] == eval(task.spell(inputs[: place + 1])) % 5
        assert not inputs[length:].any()
    assert lengths == {3, 5, 7, 9, 11, 13} and task.vocab_size == 8


def test_bracketed_expressions_have_the_values_that_python_gives_them():
    task = BracketArithmetic(time=23, min_time=1)
    batch = jax.jit(lambda key: task.batch(key, 120))(jax.random.key(0))
    forms = set()
    for inputs, targets, mask, length in zip(*map(np.asarray, batch[:4])):
        assert np.flatnonzero(mask).tolist() == [length - 1]
        text = task.spell(inputs[:length])
        assert targets[length - 1] == eval(text) % 5, text
        assert not inputs[length:].any()
        forms.add(int(length))
    assert forms == set(range(1, 24)) and task.vocab_size == 10


def test_pieces_are_where_they_were_moved():
    task = BoardTracking(squares=6, pieces=4, moves=10)
    batch = jax.jit(lambda key: task.batch(key, 20))(jax.random.key(0))
    assert task.vocab_size == 6
    for inputs, targets in zip(np.asarray(batch.inputs), np.asarray(batch.targets)):
        board = {i: i + 1 for i in range(4)}
        for start, end, before, after in zip(inputs[::2], inputs[1::2], targets[::2], targets[1::2]):
            assert start != end and board.get(start, 0) == before
            if before:
                board[end] = board.pop(start)
            assert board.get(end, 0) == after


@pytest.mark.parametrize(
    ("task", "options", "words"),
    [
        (ModularArithmetic, {"time": 5, "min_time": 6}, "min_time=6 is larger than time=5"),
        (BracketArithmetic, {"modulus": 0}, "modulus must be a positive integer"),
        (BoardTracking, {"squares": 4, "pieces": 5}, "pieces <= squares"),
    ],
)
def test_options_that_cannot_be_are_refused(task, options, words):
    with pytest.raises(ValueError, match=words):
        task(**options)


def test_accuracy_by_position_counts_what_the_mask_counts():
    predictions, targets = jnp.array([[1, 2, 3], [1, 0, 3]]), jnp.array([[1, 2, 0], [0, 2, 3]])
    np.testing.assert_allclose(position_accuracy(predictions, targets), [0.5, 0.5, 0.5])
    mask = jnp.array([[True, True, False], [False, False, False]])
    np.testing.assert_allclose(position_accuracy(predictions, targets, mask), [1, 1, 0])
