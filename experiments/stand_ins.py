"""Files of the size and layout of public data sets, with random contents: preflight needs shapes, not downloads.

Each function writes into ``folder`` and returns what a configuration's path field wants. The loaders read these files
as they read the real ones, so the compiled program has the shapes that the real data gives it.
"""

import gzip
import pathlib
import struct
import wave
from collections.abc import Sequence

import numpy as np


def series(folder: pathlib.Path, steps: int = 17_420, channels: int = 7) -> str:
    """A CSV file of a series with a date column, sized like ETTh1."""
    values = np.random.default_rng(0).standard_normal((steps, channels)).round(3)
    lines = ["date," + ",".join(f"c{i}" for i in range(channels))]
    lines += [f"{n}," + ",".join(map(str, row)) for n, row in enumerate(values.tolist())]
    return _write(folder / "series.csv", lines)


def labelled_series(
    folder: pathlib.Path, train: int = 270, test: int = 370, steps: int = 640, channels: int = 9, classes: int = 25
) -> str:
    """A folder with a training and a test file in the ``.ts`` format, sized like a larger problem of the UEA archive."""
    random = np.random.default_rng(0)
    head = ["@problemName StandIn", "@timeStamps false", "@univariate false", f"@dimensions {channels}",
            "@classLabel true " + " ".join(map(str, range(classes))), "@data"]  # fmt: skip
    for split, count in (("TRAIN", train), ("TEST", test)):
        values = random.standard_normal((count, channels, steps)).round(2)
        lines = [
            ":".join([*(",".join(map(str, channel)) for channel in case), str(n % classes)])
            for n, case in enumerate(values.tolist())
        ]
        _write(folder / f"StandIn_{split}.ts", head + lines)
    return str(folder)


def regression_series(
    folder: pathlib.Path, train: int = 200, test: int = 100, steps: int = 4_000, channels: int = 2
) -> str:
    """A folder with a training and a test file in the ``.ts`` format with a number as target; cases sized like BIDMC32's."""
    random = np.random.default_rng(0)
    head = ["@problemName StandIn", "@timeStamps false", "@univariate false", f"@dimensions {channels}",
            "@targetLabel true", "@data"]  # fmt: skip
    for split, count in (("TRAIN", train), ("TEST", test)):
        values = random.standard_normal((count, channels, steps)).round(2)
        targets = (60 + 10 * random.standard_normal(count)).round(2)
        lines = [
            ":".join([*(",".join(map(str, channel)) for channel in case), str(target)])
            for case, target in zip(values.tolist(), targets)
        ]
        _write(folder / f"StandIn_{split}.ts", head + lines)
    return str(folder)


def events(folder: pathlib.Path, sequences: int = 1_000, length: int = 128, marks: int = 22) -> str:
    """A ``.npz`` file of marked event sequences, sized like StackOverflow's first thousand users."""
    random = np.random.default_rng(0)
    times = random.exponential(size=(sequences, length)).cumsum(axis=1)
    path = folder / "events.npz"
    marked = np.arange(sequences * length) % marks
    np.savez(path, times=times.ravel(), marks=marked, lengths=np.full(sequences, length))
    return str(path)


def trajectories(folder: pathlib.Path, episodes: int = 200, length: int = 1_000) -> str:
    """A ``.npz`` file of trajectories with Hopper's sizes: 11 observed numbers, 3 actions."""
    random, steps = np.random.default_rng(0), episodes * length
    path = folder / "trajectories.npz"
    np.savez(
        path,
        observations=random.standard_normal((steps, 11)).astype(np.float32),
        actions=np.tanh(random.standard_normal((steps, 3))).astype(np.float32),
        rewards=random.random(steps).astype(np.float32),
        terminals=np.arange(1, steps + 1) % length == 0,
    )
    return str(path)


def words(folder: pathlib.Path, tokens: int = 100_000, vocabulary: int = 10_000) -> str:
    """Penn Treebank's three files with its vocabulary; fewer tokens, since these are read on the host."""
    random = np.random.default_rng(0)
    for split, count in (("train", tokens), ("valid", tokens // 10), ("test", tokens // 10)):
        drawn = np.concatenate([np.arange(vocabulary), random.integers(0, vocabulary, max(0, count - vocabulary))])
        lines = [" ".join(f"w{word}" for word in row) for row in np.array_split(drawn, len(drawn) // 20)]
        _write(folder / f"ptb.{split}.txt", lines)
    return str(folder)


def digit_images(folder: pathlib.Path) -> str:
    """A folder with MNIST's four files: 60,000 and 10,000 images of 28 x 28."""
    random = np.random.default_rng(0)
    for part, count in (("train", 60_000), ("t10k", 10_000)):
        for name, shape in ((f"{part}-images-idx3-ubyte", (count, 28, 28)), (f"{part}-labels-idx1-ubyte", (count,))):
            head = struct.pack(f">BBBB{len(shape)}I", 0, 0, 8, len(shape), *shape)
            values = random.integers(0, 10, shape, dtype=np.uint8)
            with gzip.open(folder / f"{name}.gz", "wb", compresslevel=1) as file:
                file.write(head + values.tobytes())
    return str(folder)


def listops(folder: pathlib.Path, lines: int = 60) -> str:
    """A folder with ListOps' three files, a few expressions each: they are read on the host, row by row."""
    for name in ("train", "val", "test"):
        rows = [f"( ( ( [MAX {n % 10} ) ( ( ( [SM {n // 10 % 10} ) 1 ) ] ) ) ] )\t{max(n % 10, (n // 10 + 1) % 10)}"
                for n in range(lines)]  # fmt: skip
        _write(folder / f"basic_{name}.tsv", ["Source\tTarget", *rows])
    return str(folder)


def movie_reviews(folder: pathlib.Path, count: int = 20) -> str:
    """aclImdb's four folders, a few reviews each."""
    for split in ("train", "test"):
        for kind, word in (("pos", "good"), ("neg", "bad")):
            (folder / split / kind).mkdir(parents=True, exist_ok=True)
            for n in range(count):
                _write(folder / split / kind / f"{n}_{9 if kind == 'pos' else 1}.txt", [f"a {word} film {n}"])
    return str(folder)


def document_pairs(folder: pathlib.Path, lines: int = 60) -> str:
    """A folder with the three files of pairs of papers, a few lines each."""
    for name in ("train", "eval", "test"):
        rows = [f"{n % 2}.0\tP{n}\tQ{n}\tthe first paper {n}\tthe second paper {n}" for n in range(lines)]
        _write(folder / f"new_aan_pairs.{name}.tsv", rows)
    return str(folder)


def cifar_images(folder: pathlib.Path, images: int = 100) -> str:
    """A folder with the six files of CIFAR-10's binary version, a few images each."""
    random = np.random.default_rng(0)
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        records = random.integers(0, 256, (images, 3073), dtype=np.uint8)
        records[:, 0] = np.arange(images) % 10
        (folder / f"{name}.bin").write_bytes(records.tobytes())
    return str(folder)


def pathfinder_images(folder: pathlib.Path, resolution: int = 32, images: int = 60) -> str:
    """A folder of Pathfinder's images with their metadata, a few of them."""
    from PIL import Image

    random, root = np.random.default_rng(0), folder / "curv_contour_length_14"
    for part in ("imgs/0", "metadata"):
        (root / part).mkdir(parents=True, exist_ok=True)
    for n in range(images):
        pixels = random.integers(0, 256, (resolution, resolution), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"imgs/0/sample_{n}.png")
    _write(root / "metadata/0.npy", [f"imgs/0 sample_{n}.png {n} {n % 2} 2 0.75 1.0 14" for n in range(images)])
    return str(folder)


def spoken_words(folder: pathlib.Path, words: Sequence[str], recordings: int = 30) -> str:
    """A folder of Speech Commands with one second of noise per recording and word, by so many speakers."""
    random = np.random.default_rng(0)
    for word in words:
        (folder / word).mkdir(parents=True)
        for n in range(recordings):
            with wave.open(str(folder / word / f"{n:08x}_nohash_0.wav"), "wb") as file:
                file.setparams((1, 2, 16_000, 0, "NONE", ""))
                file.writeframes(random.integers(-1000, 1000, 16_000, dtype=np.int16).tobytes())
    return str(folder)


def hundred_million_bytes(folder: pathlib.Path) -> str:
    """A file of the size of enwik8 and text8, all zero, which takes no room on most file systems."""
    path = folder / "enwik8"
    with path.open("wb") as file:
        file.truncate(100_000_000)
    return str(path)


def wikitext(folder: pathlib.Path, vocabulary: int = 267_733, tokens: int = 50_000) -> str:
    """WikiText-103's three files with its vocabulary; few tokens beyond that, since these are read on the host."""
    random = np.random.default_rng(0)
    for split, count in (("train", 0), ("valid", tokens), ("test", tokens)):
        drawn = np.arange(vocabulary) if split == "train" else random.integers(0, vocabulary, count)
        lines = [" ".join(f"w{word}" for word in row) for row in np.array_split(drawn, len(drawn) // 50)]
        _write(folder / f"wiki.{split}.tokens", lines)
    return str(folder)


def dna(folder: pathlib.Path, time: int = 512, sequences: int = 20) -> str:
    """A data set of GenomicsBenchmarks with two classes, a few sequences each: they are read on the host, row by row."""
    random = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in ("negative", "positive"):
            (folder / split / name).mkdir(parents=True, exist_ok=True)
            for n in range(sequences):
                _write(folder / split / name / f"{n}.txt", ["".join(random.choice(list("ACGT"), time))])
    return str(folder)


def _write(path: pathlib.Path, lines: list[str]) -> str:
    path.write_text("\n".join(lines) + "\n")
    return str(path)
