"""Predictors without training: equal to counting words in text; paths of a hidden Markov model summed one by one."""

import itertools
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo.models import (
    baum_welch,
    in_context_baum_welch,
    in_context_ngram,
    longest_suffix,
    nearest_suffix,
    next_symbol,
    random_edge_hmm,
)
from zoo.models.baum_welch import forbidden_transitions, split_strings
from zoo.scans import forward_backward

SEPARATOR, PAD, VOCAB = 4, 0, 5


def text(seed, length=24):
    """Tokens 1, 2, 3 and separators."""
    return np.random.default_rng(seed).choice([1, 2, 3, SEPARATOR], length, p=[0.4, 0.3, 0.15, 0.15])


def strings_of(tokens):
    strings = [[]]
    for token in tokens:
        if token == SEPARATOR:
            strings.append([])
        else:
            strings[-1].append(int(token))
    return strings


def backoff(tokens, order, add_one=False, uniform=False, with_backoff=True):
    """The definition, by counting windows of padded strings."""
    strings = strings_of(tokens)
    padded = [["_"] * (order - 1) + s for s in strings]
    count = Counter(tuple(s[i : i + m]) for s in padded for m in range(1, order + 1) for i in range(len(s) - m + 1))
    kinds = {w[0] for w in count if len(w) == 1}
    known = sorted(kinds - {"_"})
    total = sum(c for w, c in count.items() if len(w) == 1)

    def probabilities(prefix):
        n = len(prefix) + 1
        found = {}
        for a in known:
            c = count[(*prefix, a)]
            if c and n == 1:
                found[a] = ((c + add_one) / (total + add_one * len(kinds)), 1)
            elif c:
                found[a] = ((c + add_one) / (count[prefix] + add_one * len(known)), n)
        left = 1 - sum(p for p, _ in found.values())
        missing = [a for a in known if a not in found]
        if missing and with_backoff:
            lower = probabilities(prefix[1:])
            weight = sum(lower[a][0] for a in missing)
            found |= {a: (left * lower[a][0] / weight, lower[a][1]) for a in missing}
        return found

    found = probabilities(tuple(padded[-1][len(padded[-1]) - order + 1 :]))
    if uniform:
        for n in range(1, order + 1):
            same = [a for a, (_, m) in found.items() if m == n]
            mean = sum(found[a][0] for a in same) / max(len(same), 1)
            found |= {a: (mean, n) for a in same}
    return np.array([found.get(a, (0.0,))[0] for a in range(VOCAB)])


@pytest.mark.parametrize(
    ("order", "options"),
    [
        (1, {}),
        (2, {}),
        (3, {}),
        (4, {"uniform": True}),
        (3, {"add_one": True}),
        (3, {"with_backoff": False}),
        (1, {"add_one": True}),
    ],
)
def test_back_off_is_counting_words(order, options):
    rows = np.stack([text(0), text(1)])
    named = {("backoff" if name == "with_backoff" else name): value for name, value in options.items()}
    got = in_context_ngram(jnp.asarray(rows), vocab_size=VOCAB, order=order, separator=SEPARATOR, **named)
    for row, probs in zip(rows, np.asarray(got)):
        for t in range(len(row)):
            want = backoff(row[: t + 1], order, **options)
            np.testing.assert_allclose(probs[t], want, atol=2e-6, err_msg=f"position {t}")


def test_padding_behind_a_row_changes_nothing_before_it():
    row = text(2)
    padded = np.concatenate([row, np.zeros(5, int)])
    for predictor in (in_context_ngram, longest_suffix, nearest_suffix):
        options = {"vocab_size": VOCAB, "separator": SEPARATOR}
        alone = predictor(jnp.asarray(row[None]), **options)
        both = predictor(jnp.asarray(padded[None]), pad=PAD, **options)
        np.testing.assert_array_equal(both[:, : len(row)], alone)


def suffix_counts(tokens, k):
    """What followed the last k tokens of the string in progress; None where it is shorter."""
    strings = strings_of(tokens)
    if len(strings[-1]) < k:
        # the start of a string is a mark as well, before which nothing is known
        k = len(strings[-1])
        return Counter(s[k] for s in strings if len(s) > k and s[:k] == strings[-1])
    now = strings[-1][len(strings[-1]) - k :]
    return Counter(s[i + k] for s in strings for i in range(len(s) - k) if s[i : i + k] == now)


def test_the_longest_suffix_that_was_followed_counts():
    row = text(3, 30)
    got = np.asarray(longest_suffix(jnp.asarray(row[None]), vocab_size=VOCAB, order=3, separator=SEPARATOR))[0]
    for t in range(len(row)):
        counts = next((c for k in (2, 1, 0) if (c := suffix_counts(row[: t + 1], k))), None)
        want = [counts[a] / counts.total() if counts else 1 / VOCAB for a in range(VOCAB)]
        np.testing.assert_allclose(got[t], want, rtol=1e-6, err_msg=f"position {t}")


def test_the_nearest_neighbour_is_the_last_of_the_longest():
    row = np.array([1, 2, 3, 2, 1, 2, 1, 2])
    got = nearest_suffix(jnp.asarray(row[None]), vocab_size=VOCAB, longest=8)[0]
    assert int(jnp.argmax(got[-1])) == 1  # ... 2, 1, 2 was followed by 1; 1, 2 alone before it by 3
    assert int(jnp.argmax(got[3])) == 3  # 2 was followed by 3 once
    assert int(jnp.argmax(got[0])) == 1  # the only token that has come
    shorter = nearest_suffix(jnp.asarray(row[None, :6]), vocab_size=VOCAB, longest=8)[0]
    assert int(jnp.argmax(shorter[-1])) == 3


def test_wrong_arguments_are_refused():
    tokens = jnp.ones((1, 3), jnp.int32)
    with pytest.raises(ValueError, match="order"):
        in_context_ngram(tokens, vocab_size=3, order=0)
    with pytest.raises(TypeError, match="tokens"):
        longest_suffix(jnp.ones((1, 3)), vocab_size=3)


def test_forward_and_backward_are_sums_over_paths():
    states, time = 3, 4
    keys = jax.random.split(jax.random.key(0), 3)
    initial, transition = jax.random.normal(keys[0], (states,)), jax.random.normal(keys[1], (states, states))
    likelihood = jax.random.normal(keys[2], (2, time, states))
    lengths = jnp.array([4, 2])
    results = {
        m: forward_backward(initial, transition, likelihood, lengths, method=m) for m in ("sequential", "associative")
    }
    for row, length in enumerate(lengths.tolist()):
        want = np.zeros((length, states))
        for path in itertools.product(range(states), repeat=length):
            score = initial[path[0]] + sum(likelihood[row, t, s] for t, s in enumerate(path))
            score += sum(transition[a, b] for a, b in itertools.pairwise(path))
            for t, s in enumerate(path):
                want[t, s] += np.exp(score)
        for forward, backward, total in results.values():
            np.testing.assert_allclose(jnp.exp(forward + backward)[row, :length], want, rtol=1e-5)
            np.testing.assert_allclose(jnp.exp(total[row]), want[0].sum(), rtol=1e-5)
            assert np.all(np.isneginf(forward[row, length:]))


def test_expectation_maximisation_raises_the_likelihood_and_keeps_to_the_edges():
    observations = jnp.array([[1, 2, 1, 2, 1], [2, 1, 2, 0, 0], [1, 2, 1, 2, 0]])
    lengths = jnp.array([5, 3, 4])
    hmm = random_edge_hmm(jax.random.key(1), 3, 3)
    fit = jax.jit(lambda hmm: baum_welch(hmm, observations, lengths, states=3, iterations=1))

    def log_likelihood(hmm):
        emitted = jnp.moveaxis(hmm.log_emission[:, observations], 0, -1)
        return float(jnp.sum(forward_backward(hmm.log_initial, hmm.log_transition, emitted, lengths)[2]))

    values = [log_likelihood(hmm)]
    for _ in range(6):
        hmm = fit(hmm)
        values.append(log_likelihood(hmm))
    assert np.all(np.diff(values) > -1e-2), values  # the floor eps may cost a little
    assert values[-1] > values[0] + 3
    forbidden = forbidden_transitions(3)
    allowed_somewhere = ~forbidden.all(axis=1)
    assert allowed_somewhere.sum() == 6
    assert float(jnp.max(jnp.where(forbidden, hmm.log_transition, -jnp.inf)[allowed_somewhere])) < np.log(1e-3)
    after = next_symbol(hmm, jnp.array([1, 2]))
    assert int(jnp.argmax(after)) == 1 and float(after[1]) > 0.8


def test_in_context_fits_see_the_strings_so_far_only():
    tokens = np.array([[1, 2, 1, SEPARATOR, 1, 2, 3, 0], [3, SEPARATOR, 1, 2, 1, 2, 1, 2]])
    strings, lengths, number, place = split_strings(tokens, SEPARATOR)
    assert strings[0].tolist() == [[1, 2, 1, 0, 0, 0], [1, 2, 3, 0, 0, 0]] and lengths.tolist() == [[3, 3], [1, 6]]
    assert number[0].tolist()[:7] == [0, 0, 0, 1, 1, 1, 1] and place[0].tolist()[:7] == [1, 2, 3, 0, 1, 2, 3]
    changed = tokens.copy()
    changed[:, 6:] = [[2, 0], [3, 3]]
    options = {"states": 2, "vocab_size": VOCAB, "separator": SEPARATOR, "iterations": 2}
    positions = np.array([[3, 5], [1, 5]])
    a, b = (in_context_baum_welch(jax.random.key(0), t, positions, **options) for t in (tokens, changed))
    np.testing.assert_allclose(a, b, rtol=1e-5)
    np.testing.assert_allclose(jnp.sum(a, axis=-1), 1, rtol=1e-5)
