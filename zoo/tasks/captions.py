"""Images and what they show: a generated picture language, and captions of a data set's image features.

For MS-COCO the features of a pretrained network are computed once and read from files; the loader names the layout.
"""

import collections
import dataclasses
import functools
import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from zoo.checks import check_positive
from zoo.tasks.base import Batch, Task

PAD, END, UNKNOWN = 0, 1, 2  # PAD also starts a caption


@dataclasses.dataclass(frozen=True)
class ShapeCaptions(Task):
    """A shape on a dark square: "large cross top left".

    Sizes small, large; shapes square, frame, cross; top, bottom; left, right: 24 captions. Batch: ``inputs`` float32
    [side, side, 1] with noise; ``targets`` int32 [5] (four words, END).

    Attributes:
      side: side of the picture in pixels, at least 12.
      noise: standard deviation of the noise on pixels of 0 and 1.
    """

    side: int = 16
    noise: float = 0.1

    words = ("<pad>", "<end>", "<unk>", "small", "large", "square", "frame", "cross", "top", "bottom", "left", "right")

    def __post_init__(self):
        if not isinstance(self.side, int) or self.side < 12:
            raise ValueError(f"side must be an integer of at least 12, got {self.side!r}")
        if self.noise < 0:
            raise ValueError(f"noise must be at least 0, got {self.noise}")

    @property
    def vocab_size(self) -> int:
        return len(self.words)

    def example(self, key: Key[Array, ""], data: None = None) -> Batch:
        key_what, key_place, key_noise = jax.random.split(key, 3)
        size, shape, vertical, horizontal = jax.random.randint(
            key_what, (4,), jnp.zeros(4, jnp.int32), jnp.array([2, 3, 2, 2])
        )
        half = self.side // 2
        # The centre is jittered by a pixel, so that no single pixel gives the caption away.
        jitter = jax.random.randint(key_place, (2,), 0, 2)
        centre = jnp.stack([vertical, horizontal]) * half + half // 2 + jitter - 1
        radius = 1 + size * (half // 2 - 2)
        grid = jnp.stack(jnp.meshgrid(*(jnp.arange(self.side),) * 2, indexing="ij"), axis=-1)
        away = jnp.abs(grid - centre)
        square = jnp.max(away, axis=-1) <= radius
        shapes = jnp.stack([square, jnp.max(away, axis=-1) == radius, square & (jnp.min(away, axis=-1) == 0)])
        image = shapes[shape].astype(jnp.float32) + self.noise * jax.random.normal(key_noise, (self.side, self.side))
        caption = jnp.array([3, 5, 8, 10]) + jnp.stack([size, shape, vertical, horizontal])
        return Batch(image[..., None], jnp.append(caption, END).astype(jnp.int32))


class CaptionData(NamedTuple):
    """``features`` [images, F]; ``image`` [N] and ``tokens`` [N, time] of every caption; ``words`` of the vocabulary."""

    features: Float[np.ndarray, "I F"]
    image: Int[np.ndarray, " N"]
    tokens: Int[np.ndarray, "N T"]
    words: tuple[str, ...]


@functools.lru_cache(maxsize=4)
def load_captions(path: str, time: int, min_count: int) -> CaptionData:
    """Reads a folder with ``features.npy`` and ``captions.txt``; see ``FeatureCaptions``."""
    root = pathlib.Path(path)
    needed = ("features.npy", "captions.txt")
    if not path or not all((root / name).is_file() for name in needed):
        raise FileNotFoundError(
            f"data.path={path!r} must be a folder with features.npy (float array [images, F], one row of convolutional "
            "features per image) and captions.txt (lines of image number, tab, caption; MS-COCO: cocodataset.org)"
        )
    features = np.load(root / needed[0], mmap_mode="r")
    images, captions = [], []
    for number, line in enumerate((root / needed[1]).read_text(encoding="utf-8").splitlines(), start=1):
        image, tab, caption = line.partition("\t")
        if not tab or not image.strip().isdigit() or not int(image) < len(features):
            raise ValueError(f"captions.txt, line {number}: expected 'image number<TAB>caption', got {line[:60]!r}")
        images.append(int(image))
        captions.append(caption.lower().split())
    if not captions:
        raise ValueError("captions.txt holds no caption")
    counts = collections.Counter(word for caption in captions for word in caption)
    kept = sorted((w for w in counts if counts[w] >= min_count), key=lambda w: (-counts[w], w))
    words = ("<pad>", "<end>", "<unk>", *kept)
    number = {word: i for i, word in enumerate(words)}
    tokens = np.zeros((len(captions), time), np.int32)
    for row, caption in zip(tokens, captions):
        ids = [*(number.get(word, UNKNOWN) for word in caption), END][:time]
        row[: len(ids)] = ids
    return CaptionData(features, np.array(images, np.int32), tokens, words)


@dataclasses.dataclass(frozen=True)
class FeatureCaptions(Task):
    """Captions of image features from files: a random caption with the features of its image.

    Batch: ``inputs`` float32 [F]; ``targets`` int32 [time], END, padding; ``mask`` True up to the END.

    Attributes:
      path: folder with ``features.npy`` and ``captions.txt`` ("image number<TAB>caption" per line).
      time: tokens per caption, END included; longer ones are cut off.
      min_count: rarer words become ``<unk>``.
    """

    path: str = ""
    time: int = 20
    min_count: int = 5

    def __post_init__(self):
        check_positive("time", self.time)
        check_positive("min_count", self.min_count)

    @property
    def vocab_size(self) -> int:
        return len(load_captions(self.path, self.time, self.min_count).words)

    def data(self) -> tuple[Array, Array, Array]:
        read = load_captions(self.path, self.time, self.min_count)
        return jnp.asarray(read.features, jnp.float32), jnp.asarray(read.image), jnp.asarray(read.tokens)

    def example(self, key: Key[Array, ""], data: tuple[Array, Array, Array]) -> Batch:
        features, image, tokens = data
        row = jax.random.randint(key, (), 0, tokens.shape[0])
        return Batch(features[image[row]], tokens[row], tokens[row] != PAD)
