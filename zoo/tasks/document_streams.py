"""Long documents as streams of segments, for truncated backpropagation with the state carried from segment to segment.

Chen et al. (2024), Stuffed Mamba, arXiv 2410.07145: documents of fewer than 4096 tokens are dropped, because they teach
nothing about long contexts, and sequences are trained in 12 segments with the state, but no gradient, carried between them.
"""

import dataclasses
import functools

import numpy as np
from jaxtyping import Int

from zoo.checks import check_choice, check_positive
from zoo.tasks.base import Batch, HostTask
from zoo.tasks.token_file import DTYPES, open_tokens

_BLOCK = 1 << 24  # tokens that are searched at once


def long_documents(tokens: np.ndarray, end_of_text: int, min_length: int) -> Int[np.ndarray, "N 2"]:
    """(start, stop) of the documents with at least ``min_length`` tokens.

    Args:
      tokens: documents one behind another, each ended by ``end_of_text`` (the last need not be).
      end_of_text: counts as a token of the document that it ends.
      min_length: shortest document that is kept.
    """
    check_positive("min_length", min_length)
    ends = [
        start + 1 + np.flatnonzero(np.asarray(tokens[start : start + _BLOCK]) == end_of_text)
        for start in range(0, len(tokens), _BLOCK)
    ]
    stops = np.unique(np.concatenate([*ends, [len(tokens)]])).astype(np.int64)
    starts = np.concatenate([[0], stops[:-1]])
    return np.stack([starts, stops], axis=1)[stops - starts >= min_length]


@functools.lru_cache(maxsize=4)
def _index(path: str, dtype: str, start: int, stop: int, end_of_text: int, min_length: int) -> np.ndarray:
    """``long_documents`` of a part of a file."""
    return long_documents(open_tokens(path, dtype)[start:stop], end_of_text, min_length)


@dataclasses.dataclass(frozen=True)
class DocumentStreams(HostTask):
    """Segments of ``time`` tokens of parallel streams over the long documents of a file, ``segments`` to a stream.

    The kept documents, one behind another, are the text. The batch of step n holds segment n mod ``segments`` of the
    stream of every row, and the stream begins at a place that depends on (seed, n // ``segments``, row) alone. Batch:
    ``inputs`` and ``targets`` int32 [rows, time]; ``extra`` bool [rows, time], True at the first token of a stream (a reset
    for the carried state), and with ``reset_documents`` at the first token of every document.

    Attributes:
      path: file of tokens, see ``zoo.tasks.token_file``.
      time: tokens per segment.
      segments: segments per stream.
      min_length: shorter documents are dropped.
      end_of_text: number of the token that ends a document.
      split: "train" or "validation".
      dtype: "uint16" or "uint32".
      held_out: tokens at the end of the file that are kept for validation.
      reset_documents: whether a state may not pass from one document to the next.
    """

    path: str = ""
    time: int = 8192
    segments: int = 12
    min_length: int = 4096
    end_of_text: int = 0
    split: str = "train"
    dtype: str = "uint16"
    held_out: int = 2_000_000
    reset_documents: bool = False

    def __post_init__(self):
        for name in ("time", "segments", "min_length", "held_out"):
            check_positive(name, getattr(self, name))
        check_choice("split", self.split, ("train", "validation"))
        check_choice("dtype", self.dtype, DTYPES)

    def documents(self) -> tuple[np.ndarray, Int[np.ndarray, "N 2"]]:
        """(all tokens of the file, start and stop of the split's long documents); ValueError when they are too few."""
        every = open_tokens(self.path, self.dtype)
        cut = max(0, len(every) - self.held_out)
        start, stop = (0, cut) if self.split == "train" else (cut, len(every))
        kept = start + _index(self.path, self.dtype, start, stop, self.end_of_text, self.min_length)
        length = int(np.sum(kept[:, 1] - kept[:, 0]))
        if length <= self.time * self.segments:
            raise ValueError(
                f"the {self.split} split of {self.path} has {length} tokens in documents of at least "
                f"{self.min_length}, too few for streams of {self.segments} segments of {self.time}"
            )
        return every, kept

    def read(self, seed: int, step: int, rows: range, batch_size: int) -> Batch:
        """Rows ``rows`` of the batch of ``step``."""
        _, kept = self.documents()
        stream, segment = divmod(step, self.segments)
        free = int(np.sum(kept[:, 1] - kept[:, 0])) - self.time * self.segments
        places = [np.random.default_rng((seed, stream, row)).integers(free) for row in rows]
        return self.windows(np.array(places) + segment * self.time, first=segment == 0)

    def windows(self, places: Int[np.ndarray, " R"], first: bool = True) -> Batch:
        """The segments that begin at ``places`` of the kept text; ``first``: they begin streams."""
        tokens, kept = self.documents()
        begins = np.concatenate([[0], np.cumsum(kept[:, 1] - kept[:, 0])])  # of the documents in the kept text
        block = np.empty((len(places), self.time + 1), np.int32)
        reset = np.zeros((len(places), self.time), bool)
        for row, place in enumerate(places):
            done = 0
            document = int(np.searchsorted(begins, place, side="right")) - 1
            while done <= self.time:
                offset = int(place + done - begins[document])
                if offset == 0 and done < self.time and self.reset_documents:
                    reset[row, done] = True
                start, stop = kept[document]
                part = tokens[start + offset : min(stop, start + offset + self.time + 1 - done)]
                block[row, done : done + len(part)] = part
                done, document = done + len(part), document + 1
        reset[:, 0] |= first
        return Batch(block[:, :-1], block[:, 1:], extra=reset)
