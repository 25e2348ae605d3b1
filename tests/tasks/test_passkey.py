"""Passkeys: where they stand, what is counted, what is refused; the toy stream's targets follow from its tokens."""

import jax
import numpy as np
import pytest

from zoo.tasks.long_prompts import FACTS, newlines, real_text, repeated_facts
from zoo.tasks.passkey import (
    FILLER,
    PREFIX,
    SUFFIX,
    PasskeyStream,
    draw_passkeys,
    hidden_passkey,
    passkey_accuracy,
    passkey_prompt,
)


def words(text):
    return text.split()


PREFIX_SIZE, BLOCK, SUFFIX_SIZE = (len(words(text)) for text in (PREFIX, FILLER, SUFFIX))


@pytest.mark.parametrize(("position", "block"), [(0.0, 0), (0.34, 1), (0.99, 2), (1.0, 3)])
def test_the_passkey_stands_in_place_of_a_block(position, block):
    length = PREFIX_SIZE + SUFFIX_SIZE + 4 * BLOCK + BLOCK - 1  # room for four blocks, and not quite for five
    prompt = passkey_prompt(words, length, position, "01234")
    middle = prompt.removeprefix(PREFIX).removesuffix(SUFFIX)
    want = [FILLER] * 4
    want[block] = hidden_passkey("01234")
    assert middle == "".join(want) and middle.count("01234") == 2


@pytest.mark.parametrize(
    ("arguments", "words_of_it"),
    [
        ((PREFIX_SIZE + SUFFIX_SIZE + BLOCK - 1, 0.5, "01234"), "no room for a block"),
        ((500, 1.01, "01234"), "answer_position must lie in"),
        ((500, -0.01, "01234"), "answer_position must lie in"),
        ((-5, 0.5, "01234"), "context_length must be a positive integer"),
        ((500, 0.5, "1234"), "passkey must be 5 digits"),
    ],
)
def test_prompts_that_cannot_be_are_refused(arguments, words_of_it):
    with pytest.raises(ValueError, match=words_of_it):
        passkey_prompt(words, *arguments)


def test_passkeys_are_uniform_with_their_leading_zeros():
    keys = draw_passkeys(0, 20_000)
    assert all(len(key) == 5 and key.isdigit() for key in keys)
    counts = np.bincount([int(key[0]) for key in keys], minlength=10)
    assert np.all(np.abs(counts - 2000) < 5 * np.sqrt(2000))
    assert keys == draw_passkeys(0, 20_000) != draw_passkeys(1, 20_000)


def test_the_grid_has_one_row_per_length_and_one_column_per_depth():
    """A reader of the last 60 words finds keys at the end alone, however long the prompt."""
    vocabulary: dict[str, int] = {}

    def tokenize(text):
        return [vocabulary.setdefault(word, len(vocabulary)) for word in text.split()]

    seen = []

    def answer(prompts):
        seen.append(prompts)
        names = list(vocabulary)
        said = [[names[t] for t in prompt[-60:] if names[t].strip(".").isdigit()] for prompt in prompts]
        return [" ".join(["it", "is", *(key.strip(".") for key in keys[:1])]) for keys in said]

    grid = passkey_accuracy(answer, tokenize, [80, 300], samples=20, depths=5, batch_size=3)
    assert grid.shape == (2, 5) and sum(map(len, seen)) == 40 and max(map(len, seen)) == 3
    np.testing.assert_array_equal(grid[0], 1)
    np.testing.assert_array_equal(grid[1], [0, 0, 0, 0, 0.75])  # blocks 0 to 13 of 14: only 12 is near the end
    begun = []
    passkey_accuracy(lambda p: begun.extend(p) or [""] * len(p), tokenize, [80], samples=2, depths=1, begin=99)
    assert [prompt[0] for prompt in begun] == [99, 99] and begun[0][1:9] == tokenize(PREFIX)[:8]
    with pytest.raises(ValueError, match="samples=20 is not a multiple of depths=3"):
        passkey_accuracy(answer, tokenize, [80], samples=20, depths=3)


@pytest.mark.parametrize("within", [None, 3, 10])
def test_the_key_behind_the_marker_is_the_target(within):
    task = PasskeyStream(time=12, fillers=3, keys=5, within=within)
    batch = jax.tree.map(np.asarray, task.batch(jax.random.key(0), 200))
    places = []
    for tokens, targets, mask in zip(batch.inputs, batch.targets, batch.mask):
        (place,) = np.flatnonzero(tokens == 8)
        places.append(place)
        assert tokens[-1] == 9 and mask.tolist() == [False] * 11 + [True]
        assert targets[-1] == tokens[place + 1] and 3 <= targets[-1] < 8
        assert np.sum(tokens < 3) == 9
    assert set(places) == set(range(12 - (within or 12), 10)) and task.vocab_size == 10


def test_a_pool_has_so_many_examples():
    rows = np.asarray(PasskeyStream(12, pool=4).batch(jax.random.key(0), 100).inputs)
    assert len(np.unique(rows, axis=0)) == 4
    assert len(np.unique(np.asarray(PasskeyStream(12).batch(jax.random.key(0), 100).inputs), axis=0)) == 100


@pytest.mark.parametrize(
    "options", [{"time": 2}, {"time": -1}, {"within": 2}, {"time": 10, "within": 11}, {"keys": 0}, {"pool": 0}]
)
def test_streams_that_cannot_be_are_refused(options):
    with pytest.raises(ValueError, match="|".join(options)):
        PasskeyStream(**options)


def test_prompts_have_the_length_that_was_asked_for():
    def tokenize(text):
        return list(text.encode())

    assert set(newlines(tokenize, 9).tolist()) == {10} and len(newlines(tokenize, 9)) == 9
    facts = bytes(repeated_facts(tokenize, 1000).tolist()).decode()
    assert facts.startswith(FACTS[0] + FACTS[1]) and facts.count(FACTS[0]) > 2 and len(facts) == 1000
    assert bytes(real_text(tokenize, 5, "abcdefg").tolist()) == b"abcde"
    with pytest.raises(ValueError, match="text has 3 tokens, but length=5"):
        real_text(tokenize, 5, "abc")
    with pytest.raises(ValueError, match="length must be a positive integer"):
        newlines(tokenize, 0)
