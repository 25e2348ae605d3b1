"""Files of Long Range Arena and CIFAR-10, made small: what is read is what was written, and what is broken is named."""

import numpy as np
import pytest

from zoo.tasks import DocumentRetrieval, MovieReviews, Pathfinder, SequentialCifar
from zoo.tasks.indexed import shuffled

ALL = np.arange


@pytest.fixture
def reviews(tmp_path):
    for split in ("train", "test"):
        for kind, texts in (("pos", ("good", "très bon")), ("neg", ("bad", ""))):
            (tmp_path / split / kind).mkdir(parents=True)
            for n, text in enumerate(texts):
                (tmp_path / split / kind / f"{n}_7.txt").write_text(text, encoding="utf-8")
    return tmp_path


def test_reviews_are_bytes_with_the_label_of_their_folder(reviews):
    task = MovieReviews(str(reviews), "test", time=6)
    batch = task.rows_at(ALL(task.count))
    assert batch.targets.tolist() == [0, 0, 1, 1] and batch.lengths.tolist() == [3, 1, 4, 6]
    read = [bytes((row[:n] - 1).astype(np.uint8)) for row, n in zip(batch.inputs, batch.lengths)]
    assert read == [b"bad", b" ", b"good", "très bon".encode()[:6]]
    assert all(not row[n:].any() for row, n in zip(batch.inputs, batch.lengths))
    assert batch.inputs.max() < task.vocab_size


def test_pairs_of_documents_are_two_rows_of_bytes(tmp_path):
    (tmp_path / "new_aan_pairs.eval.tsv").write_bytes(b"1.0\tP1\tP2\tone\ttwo and more\n0.0\tP1\tP3\tone\tx\r\n\n")
    task = DocumentRetrieval(str(tmp_path), "validation", time=5)
    assert task.count == 2
    batch = task.rows_at(np.array([1, 0]))
    assert batch.inputs.shape == (2, 2, 5) and batch.targets.tolist() == [0, 1]
    assert batch.lengths.tolist() == [[3, 1], [3, 5]]
    assert bytes((batch.inputs[1, 1] - 1).astype(np.uint8)) == b"two a"
    assert batch.inputs[0, 1].tolist() == [ord("x") + 1, 0, 0, 0, 0]


def test_a_last_line_without_its_end_counts(tmp_path):
    (tmp_path / "new_aan_pairs.test.tsv").write_bytes(b"1\ta\tb\tone\ttwo\n0\ta\tb\tone\tthree")
    task = DocumentRetrieval(str(tmp_path), "test", time=8)
    assert task.count == 2 and task.rows_at(np.array([1])).lengths.tolist() == [[3, 5]]


@pytest.fixture
def paths(tmp_path):
    """Twenty images of 4 x 4 in two folders; the first pixel is the image's number."""
    from PIL import Image

    root = tmp_path / "curv_contour_length_14"
    (root / "metadata").mkdir(parents=True)
    for folder in range(2):
        (root / "imgs" / str(folder)).mkdir(parents=True)
        lines = []
        for n in range(10):
            pixels = np.full((4, 4), 255, np.uint8)
            pixels[0, 0] = 10 * folder + n
            Image.fromarray(pixels).save(root / "imgs" / str(folder) / f"sample_{n}.png")
            lines.append(f"imgs/{folder} sample_{n}.png {n} {n % 2} 2 0.75 1.0 14\n")
        (root / "metadata" / f"{folder}.npy").write_text("".join(lines))
    return tmp_path


def test_pathfinder_splits_the_images_and_keeps_their_labels(paths):
    seen = []
    for split, count in (("train", 16), ("validation", 2), ("test", 2)):
        task = Pathfinder(str(paths), split, resolution=4)
        batch = task.rows_at(ALL(task.count))
        assert batch.inputs.shape == (count, 16, 1) and batch.inputs.dtype == np.float32
        assert (batch.inputs[:, 1:] == 1).all()
        numbers = np.rint((batch.inputs[:, 0, 0] + 1) * 127.5).astype(int)
        assert np.array_equal(batch.targets, numbers % 2)
        seen += numbers.tolist()
    assert sorted(seen) == list(range(20)), "every image in one split"


@pytest.fixture
def cifar(tmp_path):
    """Four images in every file; pixel p of channel c of image n is (n + 60 c + p) modulo 256."""
    planes = np.arange(3)[:, None] * 60 + np.arange(1024)
    for i, name in enumerate([*(f"data_batch_{b}.bin" for b in range(1, 6)), "test_batch.bin"]):
        records = [
            bytes([(4 * i + n) % 10]) + ((planes + 4 * i + n) % 256).astype(np.uint8).tobytes() for n in range(4)
        ]
        (tmp_path / name).write_bytes(b"".join(records))
    return tmp_path


def test_cifar_is_read_plane_by_plane_and_standardised(cifar):
    colour = SequentialCifar(str(cifar), "test", "rgb").rows_at(ALL(4))
    assert colour.inputs.shape == (4, 1024, 3) and colour.inputs.dtype == np.float32
    assert colour.targets.tolist() == [0, 1, 2, 3]
    pixels = (np.arange(3) * 60 + np.arange(1024)[:, None] + 21) % 256  # image 1 of file 5
    slope = np.polyfit(pixels[:, 0], colour.inputs[1, :, 0], 1)
    assert np.allclose(colour.inputs[1, :, 0], np.polyval(slope, pixels[:, 0]), atol=1e-4) and slope[0] > 0
    tokens = SequentialCifar(str(cifar), "test", "tokens").rows_at(np.array([1])).inputs
    assert np.array_equal(tokens[0], np.rint(pixels @ [0.299, 0.587, 0.114])) and tokens.dtype == np.int32
    parts = [
        SequentialCifar(str(cifar), s).rows_at(ALL(SequentialCifar(str(cifar), s).count))
        for s in ("train", "validation")
    ]
    assert [len(p.targets) for p in parts] == [18, 2]
    grey = np.concatenate([p.inputs for p in parts])
    assert grey.shape == (20, 1024, 1) and abs(grey.mean()) < 1e-4 and abs(grey.std() - 1) < 1e-4
    assert np.array_equal(np.sort(np.concatenate([p.targets for p in parts])), np.sort(np.arange(20) % 10))


def test_rows_of_a_device_are_rows_of_the_batch(cifar):
    task = SequentialCifar(str(cifar))
    whole, part = task.read(0, 3, range(8), 8), task.read(0, 3, range(2, 4), 8)
    assert np.array_equal(whole.inputs[2:4], part.inputs) and np.array_equal(whole.targets[2:4], part.targets)


def test_epochs_that_end_inside_a_batch_are_not_cut():
    drawn = np.concatenate([shuffled(0, step, range(4), 4, 6) for step in range(3)])
    assert sorted(drawn[:6]) == sorted(drawn[6:]) == list(range(6))


def broken(folder, name, content):
    (folder / name).write_bytes(content)
    return str(folder)


def test_what_is_missing_or_broken_is_named(tmp_path, reviews, paths, cifar):
    empty = tmp_path / "empty"
    empty.mkdir()
    cases = [
        (lambda: MovieReviews(str(empty)).count, "no .*train/neg.*aclImdb_v1"),
        (lambda: DocumentRetrieval(str(empty)).count, "new_aan_pairs.train.tsv .*lra_release"),
        (lambda: Pathfinder(str(empty)).count, "metadata.*lra_release"),
        (lambda: SequentialCifar(str(empty)).count, "data_batch_1.bin .*cifar-10-binary"),
        (lambda: DocumentRetrieval(broken(empty, "new_aan_pairs.test.tsv", b""), "test").count, "is empty"),
        (lambda: DocumentRetrieval(broken(empty, "new_aan_pairs.eval.tsv", b"label\tid1\tid2\ta\tb\n"), "validation")
         .rows_at(ALL(1)), "line 1 .*'label'"),
        (lambda: DocumentRetrieval(broken(empty, "new_aan_pairs.train.tsv", b"1\ta\tb\tc\td\n1\ta\tb\tc\n")).rows_at(ALL(2)),
         "line 2 .* 4 fields"),
        (lambda: SequentialCifar(broken(cifar, "test_batch.bin", b"\0" * 3072), "test").count, "3072 bytes"),
        (lambda: SequentialCifar(broken(cifar, "data_batch_3.bin", b"\x0b" * 3073)).count, "names a class 11"),
        (lambda: Pathfinder(str(paths), resolution=5).rows_at(ALL(1)), "4 x 4 pixels, but resolution=5"),
        (lambda: Pathfinder(str(paths), difficulty="easy").count, "metadata"),
        (lambda: Pathfinder(str(paths), "dev"), "is not one of train, validation, test"),
    ]  # fmt: skip
    for make, words in cases:
        with pytest.raises((ValueError, FileNotFoundError), match=words):
            make()


def test_a_broken_image_or_index_is_named(paths):
    root = paths / "curv_contour_length_14"
    for image in (root / "imgs").rglob("*.png"):
        image.write_bytes(image.read_bytes()[:20])
    with pytest.raises(ValueError, match="not a readable image"):
        Pathfinder(str(paths), resolution=4).rows_at(ALL(1))
    (root / "metadata" / "0.npy").write_bytes(b"\x93NUMPY\x01\x00v\x00{'descr': '<f8'}\n")
    from zoo.tasks.long_range_arena import pathfinder_index

    pathfinder_index.cache_clear()
    with pytest.raises(ValueError, match=r"0\.npy .*line 1: expected folder"):
        _ = Pathfinder(str(paths), resolution=4).count
