"""Token files: windows are what the file holds, and depend on (seed, step, row) alone."""

import numpy as np
import pytest

from zoo.tasks import TokenFile
from zoo.tasks.long_texts import enwik8_streams, enwik8_windows, wikitext103_streams


@pytest.fixture
def file(tmp_path):
    np.arange(1000, dtype="<u2").tofile(tmp_path / "tokens.bin")
    return str(tmp_path / "tokens.bin")


def test_windows_are_read_again_from_seed_step_and_row(file):
    task = TokenFile(file, time=16, held_out=100)
    batch = task.read(3, 7, range(8), 8)
    assert np.array_equal(batch.inputs + 1, batch.targets) and batch.inputs.dtype == np.int32
    assert np.array_equal(batch.inputs, batch.inputs[:, :1] + np.arange(16))
    again = task.read(3, 7, range(2, 5), 8)
    assert np.array_equal(again.inputs, batch.inputs[2:5]), "a device that holds three rows reads these"
    assert not np.array_equal(task.read(3, 8, range(8), 8).inputs, batch.inputs)


def test_the_end_of_the_file_is_held_out_and_documents_begin_after_their_end(file):
    train, held = (TokenFile(file, 16, split, held_out=100, end_of_text=905) for split in ("train", "validation"))
    assert train.tokens().max() == 899 and held.tokens().min() == 900
    begins = held.windows(np.array([0])).extra[0]
    assert begins.sum() == 1 and begins[6], "token 906 is the first of its document"


def test_a_third_split_can_be_kept_at_the_very_end(file):
    sizes = {"held_out": 100, "tested": 50}
    train, held, test = (TokenFile(file, 16, split, **sizes).tokens() for split in ("train", "validation", "test"))
    assert (train.max(), held.min(), held.max(), test.min(), test.max()) == (849, 850, 949, 950, 999)
    with pytest.raises(ValueError, match=r"the test split .* 0 tokens"):
        TokenFile(file, 16, "test", held_out=100).tokens()


@pytest.fixture
def enwik8(tmp_path):
    """A file of 100,000,000 bytes that takes no room: all zero but at the borders of the splits."""
    path = tmp_path / "enwik8"
    with path.open("wb") as out:
        out.truncate(100_000_000)
        for place, byte in ((89_999_999, 1), (90_000_000, 2), (94_999_999, 3), (95_000_000, 4)):
            out.seek(place)
            out.write(bytes([byte]))
    return str(path)


def test_enwik8_is_split_into_90_5_and_5_million_bytes(enwik8):
    borders = {"train": (90_000_000, 0, 1), "validation": (5_000_000, 2, 3), "test": (5_000_000, 4, 0)}
    for split, (size, first, last) in borders.items():
        for tokens in (enwik8_windows(enwik8, split).tokens(), enwik8_streams(enwik8, split).tokens().ids):
            assert (len(tokens), tokens[0], tokens[-1]) == (size, first, last)
    assert enwik8_windows(enwik8, "test", 8).read(0, 0, range(2), 2).inputs.shape == (2, 8)


def test_texts_that_are_missing_or_cut_short_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="mattmahoney"):
        enwik8_windows(str(tmp_path / "enwik8"))
    (tmp_path / "text8").write_bytes(b"anarchism")
    with pytest.raises(ValueError, match="9 bytes, but text8 has 100000000"):
        enwik8_streams(str(tmp_path / "text8"), name="text8")


def test_wikitext_has_the_vocabulary_of_its_training_split(tmp_path):
    for split, text in (("train", "a b a\n<unk> a\n"), ("valid", "b c\n"), ("test", "a\n")):
        (tmp_path / f"wiki.{split}.tokens").write_text(text)
    task = wikitext103_streams(str(tmp_path), "validation")
    assert task.tokens().words == ("<unk>", "a", "<eos>", "b") and task.vocab_size == 4
    assert task.tokens().ids.tolist() == [3, 0, 2]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda file: TokenFile("", 16).tokens(), "give a binary file"),
        (lambda file: TokenFile(file, 2000, held_out=1).tokens(), "too few"),
        (lambda file: TokenFile(file, dtype="int8"), "uint16"),
    ],
)
def test_wrong_files_say_what_is_wanted(make, words, file):
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        make(file)
