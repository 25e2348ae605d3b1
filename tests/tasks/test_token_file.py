"""Token files: windows are what the file holds, and depend on (seed, step, row) alone."""

import numpy as np
import pytest

from zoo.tasks import TokenFile


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
