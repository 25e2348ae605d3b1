"""Sequential digits: the fixed split, the orders of pixels, and the idx files."""

import gzip
import struct

import jax
import numpy as np
import pytest

from zoo.tasks.digits import Digits, IdxDigits, read_idx


def test_the_split_is_fixed_disjoint_and_complete():
    train, test = Digits("train").data(), Digits("test").data()
    assert train["inputs"].shape == (1400, 64, 1) and test["inputs"].shape == (397, 64, 1)
    assert train["inputs"].min() == 0 and train["inputs"].max() == 1
    rows = {image.tobytes() for image in train["inputs"]}
    assert len(rows) == 1400 and not any(image.tobytes() in rows for image in test["inputs"])
    assert train["targets"][:8].tolist() == Digits("train", "rows").data()["targets"][:8].tolist()
    assert np.bincount(train["targets"], minlength=10).min() > 100


def test_rows_pixels_and_permuted_pixels_hold_the_same_images():
    pixels, rows, permuted = (Digits("test", form).data()["inputs"] for form in ("pixels", "rows", "permuted"))
    assert rows.shape == (397, 8, 8) and np.array_equal(rows.reshape(397, 64, 1), pixels)
    assert not np.array_equal(permuted, pixels)
    assert np.array_equal(np.sort(permuted, axis=1), np.sort(pixels, axis=1))
    order = np.random.default_rng(0).permutation(64)
    assert np.array_equal(permuted, pixels[:, order])
    assert not np.array_equal(Digits("test", "permuted", 1).data()["inputs"], permuted)


def test_examples_are_images_with_their_labels():
    task = Digits("train")
    data = task.data()
    batch = jax.jit(lambda k, d: task.batch(k, 16, d))(jax.random.key(0), data)
    assert batch.inputs.shape == (16, 64, 1) and batch.targets.shape == (16,)
    for image, label in zip(np.asarray(batch.inputs), np.asarray(batch.targets)):
        index = np.flatnonzero((data["inputs"] == image).all(axis=(1, 2)))
        assert label in data["targets"][index]
    assert len(set(np.asarray(batch.targets))) > 3


@pytest.fixture
def folder(tmp_path):
    """Twelve 4 x 3 images for training, as they are; six for testing, gzipped."""
    generator = np.random.default_rng(0)
    for name, count, opener in (("train", 12, open), ("t10k", 6, gzip.open)):
        suffix = ".gz" if opener is gzip.open else ""
        images = generator.integers(0, 256, (count, 4, 3), np.uint8)
        labels = np.arange(count, dtype=np.uint8) % 10
        with opener(tmp_path / f"{name}-images-idx3-ubyte{suffix}", "wb") as file:
            file.write(bytes((0, 0, 8, 3)) + struct.pack(">3I", count, 4, 3) + images.tobytes())
        with opener(tmp_path / f"{name}-labels-idx1-ubyte{suffix}", "wb") as file:
            file.write(bytes((0, 0, 8, 1)) + struct.pack(">I", count) + labels.tobytes())
    return tmp_path


def test_idx_files_are_read_and_standardised(folder):
    train, test = IdxDigits(str(folder)), IdxDigits(str(folder), "test", "rows")
    assert train.time == 12 and test.time == 4
    inputs = train.data()["inputs"]
    assert inputs.shape == (12, 12, 1) and inputs.dtype == np.float32
    assert abs(inputs.mean()) < 1e-5 and abs(inputs.std() - 1) < 1e-5
    assert test.data()["inputs"].shape == (6, 4, 3) and test.data()["targets"].tolist() == list(range(6))
    raw = read_idx(folder / "train-images-idx3-ubyte", 3).reshape(12, 12, 1).astype(float)
    assert np.allclose(inputs, (raw - raw.mean()) / raw.std(), atol=1e-5)


def test_one_pair_of_files_can_give_both_splits(folder):
    train, test = (IdxDigits(str(folder), split, part="t10k").data() for split in ("train", "test"))
    assert sorted([*train["targets"], *test["targets"]]) == list(range(6)) and len(test["targets"]) == 1


def test_what_is_missing_or_broken_is_named(folder, as_users_see_it):
    with pytest.raises(ValueError, match="did you mean 'permuted'"):
        Digits("train", "permute")
    with pytest.raises(FileNotFoundError, match="train-images-idx3-ubyte"):
        IdxDigits(str(folder / "nowhere")).data()
    images = folder / "train-images-idx3-ubyte"
    whole = images.read_bytes()
    images.write_bytes(whole[:-1])
    with pytest.raises(ValueError, match="holds 143 values"):
        read_idx(images, 3)
    images.write_bytes(b"\x89PNG" + whole)
    with pytest.raises(ValueError, match="not an idx file"):
        read_idx(images, 3)
    zipped = folder / "t10k-images-idx3-ubyte.gz"
    zipped.write_bytes(zipped.read_bytes()[:-9])
    with pytest.raises(ValueError, match="not a whole gzip file"):
        read_idx(zipped, 3)
