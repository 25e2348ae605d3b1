"""Long Range Arena: six classification tasks with 1,024 to 16,384 steps (Tay et al. 2021).

    task         class              length    classes  files
    ListOps      ListOpsFiles       2,048     10       lra_release/listops-1000
    Text         MovieReviews       4,096     2        aclImdb (Maas et al. 2011), byte by byte
    Retrieval    DocumentRetrieval  2 x 4,000 2        lra_release/tsv_data (ACL Anthology Network), byte by byte
    Image        SequentialCifar    1,024     10       CIFAR-10, grey, pixel by pixel
    Pathfinder   Pathfinder         1,024     2        lra_release/pathfinder32: are the two dots on one path?
    Path-X       Pathfinder         16,384    2        lra_release/pathfinder128

``ListOps`` (zoo.tasks.listops) makes its own expressions; everything else needs the files. Bytes are tokens 1 .. 256, 0 is
padding; texts are cut off after ``time`` bytes and padded on the right.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from zoo.checks import check_choice, check_positive
from zoo.tasks.base import Batch
from zoo.tasks.indexed import IndexedTask, fixed_split

BYTE_VOCAB = 257
_RELEASE = "the Long Range Arena release (lra_release.gz, see github.com/google-research/long-range-arena)"
_REVIEWS = "the folder aclImdb of aclImdb_v1.tar.gz from ai.stanford.edu/~amaas/data/sentiment"


def byte_rows(texts: Sequence[bytes], time: int) -> tuple[Int[np.ndarray, "B time"], Int[np.ndarray, " B"]]:
    """Texts as padded tokens (byte + 1) and their lengths, cut off after ``time`` bytes; an empty text is one space."""
    rows, lengths = np.zeros((len(texts), time), np.int32), np.zeros(len(texts), np.int32)
    for i, text in enumerate(texts):
        codes = np.frombuffer((text or b" ")[:time], np.uint8)
        rows[i, : len(codes)] = codes.astype(np.int32) + 1
        lengths[i] = len(codes)
    return rows, lengths


@functools.lru_cache(maxsize=4)
def review_files(folder: str, split: str) -> tuple[tuple[str, int], ...]:
    """(file, label) of every review of a split, in the order of their names; label 1 for positive ones.

    Raises:
      FileNotFoundError: no reviews of one of the two kinds there.
    """
    found = []
    for label, kind in enumerate(("neg", "pos")):
        files = sorted((pathlib.Path(folder) / split / kind).glob("*.txt"))
        if not files:
            raise FileNotFoundError(f"no *.txt in {split}/{kind} of {folder!r}; needed: {_REVIEWS}")
        found += [(str(file), label) for file in files]
    return tuple(found)


@dataclasses.dataclass(frozen=True)
class MovieReviews(IndexedTask):
    """Text: is a film review positive? Its bytes are read one by one.

    Maas et al. (2011), Learning Word Vectors for Sentiment Analysis (IMDb): 25,000 reviews for training and as many for
    testing. Batch: ``inputs`` int32 [time], ``targets`` 0 or 1, ``lengths`` bytes.

    Attributes:
      path: the folder aclImdb.
      split: "train" or "test" (there is no validation split).
      time: length of the padded rows.
    """

    path: str = ""
    split: str = "train"
    time: int = 4096

    num_classes = 2
    vocab_size = BYTE_VOCAB

    def __post_init__(self):
        check_choice("split", self.split, ("train", "test"))
        check_positive("time", self.time)

    @property
    def count(self) -> int:
        return len(review_files(self.path, self.split))

    def rows_at(self, indices: Int[np.ndarray, " B"]) -> Batch:
        chosen = [review_files(self.path, self.split)[i] for i in indices]
        tokens, lengths = byte_rows([pathlib.Path(file).read_bytes() for file, _ in chosen], self.time)
        return Batch(tokens, np.array([label for _, label in chosen], np.int32), lengths=lengths)


@functools.lru_cache(maxsize=4)
def open_lines(path: str) -> tuple[np.ndarray, np.ndarray]:
    """A memory-mapped file and where its lines begin, the end of the file last; empty lines at the end do not count."""
    content = np.memmap(path, np.uint8, mode="r")
    block = 1 << 24
    ends = np.concatenate([
        np.flatnonzero(content[at : at + block] == ord("\n")) + at for at in range(0, len(content), block)
    ])  # fmt: skip
    starts = np.concatenate([[0], ends + 1])
    if starts[-1] != len(content):
        starts = np.append(starts, len(content))
    while len(starts) > 1 and not bytes(content[starts[-2] : starts[-1]]).strip():
        starts = starts[:-1]
    return content, starts


@dataclasses.dataclass(frozen=True)
class DocumentRetrieval(IndexedTask):
    """Retrieval: does one paper cite the other? Both are read byte by byte, each by itself.

    Pairs of papers of the ACL Anthology Network (Radev et al. 2013), 147,086 for training, 18,090 for validation, 17,437 for
    testing. Batch: ``inputs`` int32 [2, time], ``targets`` 0 or 1, ``lengths`` [2]: what ``zoo.models.MatchingClassifier``
    takes. The files are memory-mapped and only looked through for ends of lines.

    Attributes:
      path: folder with new_aan_pairs.train.tsv, new_aan_pairs.eval.tsv and new_aan_pairs.test.tsv: label, two names and the
        two texts on every line, separated by tabs.
      split: "train", "validation" or "test".
      time: length of the padded rows.
    """

    path: str = ""
    split: str = "train"
    time: int = 4000

    num_classes = 2
    vocab_size = BYTE_VOCAB

    def __post_init__(self):
        check_choice("split", self.split, ("train", "validation", "test"))
        check_positive("time", self.time)

    def _lines(self) -> tuple[np.ndarray, np.ndarray]:
        name = f"new_aan_pairs.{'eval' if self.split == 'validation' else self.split}.tsv"
        file = pathlib.Path(self.path) / name
        if not file.is_file():
            raise FileNotFoundError(f"no file {name} in {self.path!r}; needed: the folder tsv_data of {_RELEASE}")
        if not file.stat().st_size:
            raise ValueError(f"{file} is empty; needed: the folder tsv_data of {_RELEASE}")
        return open_lines(str(file))

    @property
    def count(self) -> int:
        return len(self._lines()[1]) - 1

    def rows_at(self, indices: Int[np.ndarray, " B"]) -> Batch:
        content, starts = self._lines()
        labels, texts = [], []
        for i in indices:
            fields = bytes(content[starts[i] : starts[i + 1]]).rstrip(b"\r\n").split(b"\t")
            if len(fields) != 5 or fields[0] not in (b"0", b"1", b"0.0", b"1.0"):
                raise ValueError(
                    f"line {i + 1} of the {self.split} pairs in {self.path!r} does not hold a label 0 or 1, two names and "
                    f"two texts separated by tabs, but {len(fields)} fields beginning with {fields[0][:20]!r}"
                )
            labels.append(int(float(fields[0])))
            texts += fields[3:]
        tokens, lengths = byte_rows(texts, self.time)
        targets = np.array(labels, np.int32)
        return Batch(tokens.reshape(-1, 2, self.time), targets, lengths=lengths.reshape(-1, 2))


DIFFICULTIES = {"easy": "curv_baseline", "intermediate": "curv_contour_length_9", "hard": "curv_contour_length_14"}


@functools.lru_cache(maxsize=4)
def pathfinder_index(folder: str) -> tuple[tuple[str, ...], Int[np.ndarray, " N"]]:
    """Images of ``folder``, relative to it, and their labels, from the files metadata/<number>.npy.

    Despite their names these are texts: folder, file name, a number, the label and properties of the drawing on every line.

    Raises:
      FileNotFoundError: there are no such files.
      ValueError: a line without a label; the message names it.
    """
    files = list((pathlib.Path(folder) / "metadata").glob("*.npy"))
    if not files:
        raise FileNotFoundError(
            f"no metadata/*.npy in {folder!r}; needed: the folders pathfinder32 (Pathfinder) and pathfinder128 (Path-X) of "
            f"{_RELEASE}"
        )
    images, labels = [], []
    for file in sorted(files, key=lambda f: (len(f.stem), f.stem)):
        with file.open(encoding="utf-8", errors="replace") as lines:
            for number, line in enumerate(lines, start=1):
                words = line.split()
                if not words:
                    continue
                if len(words) < 4 or words[3] not in ("0", "1"):
                    raise ValueError(
                        f"metadata/{file.name} in {folder!r}, line {number}: expected folder, file, number and label (0 or "
                        f"1), got {line.strip()[:60]!r}"
                    )
                images.append(f"{words[0]}/{words[1]}")
                labels.append(int(words[3]))
    if not images:
        raise ValueError(f"the files metadata/*.npy in {folder!r} name no images")
    return tuple(images), np.array(labels, np.int32)


@dataclasses.dataclass(frozen=True)
class Pathfinder(IndexedTask):
    """Pathfinder and Path-X: does one dashed path join the two dots, among others that distract? Pixel by pixel.

    Linsley et al. (2018), Learning Long-Range Spatial Dependencies with Horizontal Gated Recurrent Units; 200,000 images in
    the release, of which eight, one and one tenths, drawn once, are for training, validation and testing.
    Batch: ``inputs`` float32 [resolution^2, 1] in -1 .. 1, ``targets`` 0 or 1.

    Attributes:
      path: the folder pathfinder32 or pathfinder128 of the release.
      split: "train", "validation" or "test".
      resolution: pixels along an edge: 32 for Pathfinder, 128 for Path-X.
      difficulty: "easy", "intermediate" or "hard" (the one in the tables).
    """

    path: str = ""
    split: str = "train"
    resolution: int = 32
    difficulty: str = "hard"

    num_classes = 2
    vocab_size = None

    def __post_init__(self):
        check_choice("split", self.split, ("train", "validation", "test"))
        check_choice("difficulty", self.difficulty, DIFFICULTIES)
        check_positive("resolution", self.resolution)

    @property
    def time(self) -> int:
        """Steps of a sequence."""
        return self.resolution**2

    @property
    def _folder(self) -> str:
        return str(pathlib.Path(self.path) / DIFFICULTIES[self.difficulty])

    def _chosen(self) -> np.ndarray:
        every = len(pathfinder_index(self._folder)[1])
        return fixed_split(every, self.split, validation=0.1, test=0.1)

    @property
    def count(self) -> int:
        return len(self._chosen())

    def rows_at(self, indices: Int[np.ndarray, " B"]) -> Batch:
        images, labels = pathfinder_index(self._folder)
        chosen = self._chosen()[indices]
        pixels = np.stack([self._image(f"{self._folder}/{images[i]}") for i in chosen])
        return Batch((pixels.reshape(len(chosen), -1, 1) / 127.5 - 1).astype(np.float32), labels[chosen])

    def _image(self, path: str) -> np.ndarray:
        """Grey values [resolution, resolution]."""
        from PIL import Image, UnidentifiedImageError

        try:
            with Image.open(path) as file:
                pixels = np.asarray(file.convert("L"))
        except FileNotFoundError:
            raise FileNotFoundError(f"the metadata names an image {path!r} that is not there") from None
        except (UnidentifiedImageError, OSError, SyntaxError) as error:
            raise ValueError(f"{path} is not a readable image: {error}") from None
        if pixels.shape != (self.resolution, self.resolution):
            raise ValueError(
                f"{path} has {pixels.shape[0]} x {pixels.shape[1]} pixels, but resolution={self.resolution} was wanted"
            )
        return pixels
