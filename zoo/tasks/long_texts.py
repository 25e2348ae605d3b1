"""The public texts that long-range language models are compared on, with their usual splits.

    text          made by                 tokens        train / validation / test      measured in
    enwik8        Hutter (2006)           bytes         90,000,000 / 5,000,000 / 5,000,000   bits per byte
    text8         Mahoney (2006)          bytes         the same                       bits per character
    WikiText-103  Merity et al. (2016)    267,735 words 103,227,021 / 217,646 / 245,569      perplexity per word

``windows`` reads segments at random places (training without a carried state), ``streams`` consecutive segments of parallel
streams (truncated backpropagation, and evaluation with a carried state).
"""

import pathlib

from zoo.tasks.text_streams import TextStreams
from zoo.tasks.token_file import TokenFile

_BYTES = 100_000_000
_HELD_OUT = 5_000_000


def _check_size(path: str, name: str) -> None:
    if not path or not pathlib.Path(path).is_file():
        raise FileNotFoundError(f"no file {path!r}; needed: {name}, unzipped, from mattmahoney.net/dc/{name}.zip")
    size = pathlib.Path(path).stat().st_size
    if size != _BYTES:
        raise ValueError(f"{path} has {size} bytes, but {name} has {_BYTES}: not unzipped, or cut short?")


def enwik8_windows(path: str, split: str = "train", time: int = 2048, name: str = "enwik8") -> TokenFile:
    """Windows of ``time`` bytes of the file enwik8 (or text8), split 90/5/5 million.

    Raises:
      FileNotFoundError: no such file.
      ValueError: it does not have 100,000,000 bytes, or there is no such split.
    """
    _check_size(path, name)
    return TokenFile(path, time, split, dtype="uint8", held_out=_HELD_OUT, tested=_HELD_OUT)


def enwik8_streams(path: str, split: str = "train", time: int = 2048, name: str = "enwik8") -> TextStreams:
    """Consecutive segments of ``time`` bytes of the file enwik8 (or text8), split 90/5/5 million; errors as above."""
    _check_size(path, name)
    return TextStreams(path, "byte", split, time, max_words=None)


def wikitext103_streams(path: str, split: str = "train", time: int = 512) -> TextStreams:
    """Consecutive segments of ``time`` words of WikiText-103: a folder with wiki.{train,valid,test}.tokens.

    Every word of the training split is in the vocabulary, lines end with ``<eos>``, as is usual.
    """
    return TextStreams(path, "word", split, time, max_words=None)
