"""Files of the size and layout of public data sets, with random contents: preflight needs shapes, not downloads.

Each function writes into ``folder`` and returns what a configuration's path field wants. The loaders read these files
as they read the real ones, so the compiled program has the shapes that the real data gives it.
"""

import gzip
import pathlib
import struct

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


def _write(path: pathlib.Path, lines: list[str]) -> str:
    path.write_text("\n".join(lines) + "\n")
    return str(path)
