"""Prompts of any length on which the states of a language model can be watched.

Chen et al. (2024), Stuffed Mamba, arXiv 2410.07145: a collapse of the state comes with any of them, even the emptiest.

    newlines         one token, over and over
    repeated_facts   a few sentences of common knowledge, over and over
    real_text        text as it stands
"""

import itertools
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Int

from zoo.checks import check_positive

CAPITALS = {
    "Argentina": "Buenos Aires", "Austria": "Vienna", "Canada": "Ottawa", "China": "Beijing", "Egypt": "Cairo",
    "France": "Paris", "India": "New Delhi", "Japan": "Tokyo", "Kenya": "Nairobi", "Peru": "Lima",
}  # fmt: skip
FACTS = tuple(f"The capital of {country} is {city}. " for country, city in CAPITALS.items())
Tokenizer = Callable[[str], Sequence[int]]


def newlines(tokenize: Tokenizer, length: int, text: str = "\n") -> Int[np.ndarray, " T"]:
    """``length`` times the last token of ``text``.

    Raises:
      ValueError: ``length`` is below 1, or ``text`` has no token.
    """
    check_positive("length", length)
    tokens = tokenize(text)
    if not len(tokens):
        raise ValueError(f"{text!r} has no token")
    return np.full(length, tokens[-1], np.int32)


def repeated_facts(tokenize: Tokenizer, length: int, facts: Sequence[str] = FACTS) -> Int[np.ndarray, " T"]:
    """The first ``length`` tokens of ``facts`` said over and over in their order ("capital" in the paper)."""
    check_positive("length", length)
    tokens = [token for fact in facts for token in tokenize(fact)]
    if not tokens:
        raise ValueError("facts have no token")
    return np.fromiter(itertools.islice(itertools.cycle(tokens), length), np.int32, length)


def real_text(tokenize: Tokenizer, length: int, text: str) -> Int[np.ndarray, " T"]:
    """The first ``length`` tokens of ``text``.

    Raises:
      ValueError: ``length`` is below 1, or ``text`` has fewer tokens.
    """
    check_positive("length", length)
    tokens = np.asarray(tokenize(text), np.int32)
    if len(tokens) < length:
        raise ValueError(f"text has {len(tokens)} tokens, but length={length}")
    return tokens[:length]
