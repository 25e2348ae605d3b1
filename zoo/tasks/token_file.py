"""Windows of a text that is already tokens: a flat binary file of unsigned integers, as written for pre-training.

Such a file is made from any corpus by writing the token numbers of its documents one behind another, each ended by an
end-of-text token, as little-endian uint16 (or uint32 for vocabularies above 65,536), e.g. SlimPajama with the GPT-NeoX-20B
tokeniser (50,277 tokens). A text file read as uint8 is the case of bytes. It is memory-mapped, never loaded.
"""

import dataclasses
import functools
import pathlib

import numpy as np

from zoo.checks import check_choice, check_positive
from zoo.tasks.base import Batch, HostTask

DTYPES = ("uint8", "uint16", "uint32")


@functools.lru_cache(maxsize=4)
def open_tokens(path: str, dtype: str) -> np.ndarray:
    """The file as a memory-mapped array; FileNotFoundError says what is wanted."""
    if not path or not pathlib.Path(path).is_file():
        raise FileNotFoundError(
            f"data.path={path!r}: give a binary file of {dtype} token numbers (see zoo.tasks.token_file)"
        )
    return np.memmap(path, np.dtype(dtype).newbyteorder("<"), mode="r")


@dataclasses.dataclass(frozen=True)
class TokenFile(HostTask):
    """Windows of ``time`` tokens at random places; the targets are the tokens that follow.

    Batch: ``inputs`` and ``targets`` int32 [rows, time]; ``extra`` bool [rows, time], True at the first token of a document
    (a reset), when ``end_of_text`` is given. The place of a window depends on (seed, step, row) alone. The last
    ``tested`` tokens of the file are the test split, and the ``held_out`` before them the validation split.

    Attributes:
      path: the file.
      time: tokens per window.
      split: "train", "validation" or "test".
      dtype: "uint8" (bytes), "uint16" or "uint32".
      held_out: tokens at the end of the file, before those for testing, that are kept for validation.
      end_of_text: number of the token that ends a document, None where documents do not matter.
      tested: tokens at the end of the file that are kept for testing.
    """

    path: str = ""
    time: int = 2048
    split: str = "train"
    dtype: str = "uint16"
    held_out: int = 2_000_000
    end_of_text: int | None = None
    tested: int = 0

    def __post_init__(self):
        check_positive("time", self.time)
        check_positive("held_out", self.held_out)
        check_choice("split", self.split, ("train", "validation", "test"))
        check_choice("dtype", self.dtype, DTYPES)

    def tokens(self) -> np.ndarray:
        """The tokens of the split; ValueError when they are too few for one window."""
        every = open_tokens(self.path, self.dtype)
        tested = max(0, len(every) - self.tested)
        validated = max(0, tested - self.held_out)
        places = {"train": slice(validated), "validation": slice(validated, tested), "test": slice(tested, None)}
        part = every[places[self.split]]
        if len(part) <= self.time:
            raise ValueError(
                f"the {self.split} split of {self.path} has {len(part)} tokens, too few for windows of time={self.time}"
            )
        return part

    def read(self, seed: int, step: int, rows: range, batch_size: int) -> Batch:
        """Rows ``rows`` of the batch of ``step``."""
        tokens = self.tokens()
        places = [np.random.default_rng((seed, step, row)).integers(len(tokens) - self.time) for row in rows]
        return self.windows(np.array(places))

    def windows(self, places: np.ndarray) -> Batch:
        """The windows that begin at ``places`` [rows]."""
        tokens = self.tokens()
        block = np.stack([tokens[p : p + self.time + 1] for p in places]).astype(np.int32)
        begins = None
        if self.end_of_text is not None:
            begins = np.zeros((len(block), self.time), bool)
            begins[:, 1:] = block[:, : self.time - 1] == self.end_of_text
        return Batch(block[:, :-1], block[:, 1:], extra=begins)
