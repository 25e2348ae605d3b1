"""Metrics of strings and language models, on the host: plain Python and NumPy."""

import collections
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from zoo.checks import check_choice, check_positive

SMOOTHINGS = ("none", "add_one", "exponential")


def perplexity(negative_log_likelihood: Any, tokens: Any = 1) -> float:
    """exp of the mean negative log-likelihood in nats: ``negative_log_likelihood`` summed over ``tokens`` tokens.

    Infinity where it is too large for a float.
    """
    if tokens <= 0:
        raise ValueError(f"tokens must be positive, got {tokens}")
    try:
        return math.exp(float(negative_log_likelihood) / float(tokens))
    except OverflowError:
        return math.inf


def bleu(
    hypotheses: Sequence[Sequence[Any]],
    references: Sequence[Sequence[Sequence[Any]]],
    *,
    max_order: int = 4,
    smoothing: str = "none",
) -> float:
    """Corpus BLEU in [0, 1] (Papineni, Roukos, Ward, Zhu 2002).

        BLEU = min(1, exp(1 - r/c)) * exp(mean_n log p_n)

    p_n: matched n-grams over n-grams of all hypotheses, matches clipped by the largest count in any one reference;
    c: length of all hypotheses, r: length of the reference that is closest in length (the shorter of two), summed.

    Args:
      hypotheses: one token sequence per sentence.
      references: one or more token sequences per sentence.
      max_order: longest n-gram.
      smoothing: "none"; "add_one": (matches + 1) / (total + 1) for n > 1 (Lin and Och 2004); "exponential": the k-th
        order without a match counts as 1 / (2^k total) (the default of mteval and sacreBLEU).

    Raises:
      ValueError: no sentence, unequal numbers of hypotheses and references, or a sentence without a reference.
    """
    check_positive("max_order", max_order)
    check_choice("smoothing", smoothing, SMOOTHINGS)
    if len(hypotheses) != len(references) or not hypotheses:
        raise ValueError(
            f"need as many references as hypotheses, at least one: got {len(references)} and {len(hypotheses)}"
        )
    matches, totals = [0] * max_order, [0] * max_order
    length = reference_length = 0
    for hypothesis, alternatives in zip(hypotheses, references):
        if not alternatives:
            raise ValueError("every hypothesis needs at least one reference")
        length += len(hypothesis)
        reference_length += min((abs(len(r) - len(hypothesis)), len(r)) for r in alternatives)[1]
        for n in range(1, max_order + 1):
            counts = _ngrams(hypothesis, n)
            allowed: collections.Counter = collections.Counter()
            for reference in alternatives:
                allowed |= _ngrams(reference, n)
            matches[n - 1] += sum((counts & allowed).values())
            totals[n - 1] += sum(counts.values())
    log_precision, missed = 0.0, 0
    for order, (match, total) in enumerate(zip(matches, totals), start=1):
        if smoothing == "add_one" and order > 1:
            match, total = match + 1, total + 1
        elif smoothing == "exponential" and match == 0 and total:
            missed += 1
            match = 0.5**missed
        if match == 0:
            return 0.0
        log_precision += math.log(match / total) / max_order
    return math.exp(min(0.0, 1 - reference_length / length) + log_precision)


def _ngrams(tokens: Sequence[Any], order: int) -> collections.Counter:
    tokens = tuple(tokens)
    return collections.Counter(tokens[i : i + order] for i in range(len(tokens) - order + 1))


def edit_distance(first: Sequence[Any], second: Sequence[Any]) -> int:
    """Fewest insertions, deletions and substitutions that turn ``first`` into ``second`` (Levenshtein 1966)."""
    row = np.arange(len(second) + 1)
    for i, a in enumerate(first, start=1):
        substituted = row[:-1] + np.array([a != b for b in second], int)
        best = np.concatenate([[i], np.minimum(row[1:] + 1, substituted)])
        # Insertions along the row: best[j] = min_k best[k] + (j - k), a running minimum.
        row = np.minimum.accumulate(best - np.arange(best.size)) + np.arange(best.size)
    return int(row[-1])


def error_rate(hypotheses: Sequence[Sequence[Any]], references: Sequence[Sequence[Any]]) -> float:
    """Edit distances summed, over the length of all references: label, character or word error rate; may exceed 1."""
    if len(hypotheses) != len(references):
        raise ValueError(f"got {len(hypotheses)} hypotheses for {len(references)} references")
    total = sum(len(r) for r in references)
    if not total:
        raise ValueError("the references are empty")
    return sum(edit_distance(h, r) for h, r in zip(hypotheses, references)) / total


def word_accuracy(hypotheses: Sequence[Sequence[Any]], references: Sequence[Sequence[Any]]) -> float:
    """1 - word error rate, as Graves et al. (2009) report it; negative when there are more errors than words."""
    return 1 - error_rate(hypotheses, references)
