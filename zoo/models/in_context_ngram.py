"""Predictors that learn in context and need no training: n-grams counted in the row so far, and its longest known suffix.

Akyurek, Wang, Kim and Andreas (2024), In-Context Language Learning, arXiv 2401.12973, who find that trained Transformers are
close to them. A row is a text of several strings, joined by a separator; every position predicts the next token from
what is before it, the strings so far and the one in progress alike. A context never goes beyond the start of its string.

``in_context_ngram``: back-off of order N. Every string has N - 1 marks "_" in front; c_m counts the windows of m tokens in
the strings so far, the empty one behind a separator too. With h the last N - 1 tokens, h' = h without its first,

    p_N(a | h) = c_N(h a) / c_{N-1}(h)                          where h a was seen
               = beta p_{N-1}(a | h') / sum_b p_{N-1}(b | h')   else, over the b that were not seen after h; beta = 1 -
                                                                 the sum of the seen ones
    p_1(a) = c_1(a) / all tokens and marks

c_{N-1}(h) counts h at the end of a string as well, so that beta > 0. Tokens that are not in the row get nothing. ``add_one``
adds 1 to every count seen, and to c_{N-1}(h) the number of different tokens in the row. ``uniform`` spreads what the tokens
of one order have together evenly over them: which were seen counts, how often does not (binarised counts).

``longest_suffix``: relative frequencies after the longest suffix, of at most N - 1 tokens, that was followed by anything
before. ``nearest_suffix`` copies: what followed the last of the places whose suffixes agree longest (one nearest neighbour).

Positions are compared with each other: time and memory O(N T^2 + T^2 V) a row; rows one after another by ``lax.map`` where
that is too much at once.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from zoo.checks import check_positive, check_tokens


def in_context_ngram(
    tokens: Int[Array, "B T"],
    *,
    vocab_size: int,
    order: int = 3,
    separator: int | None = None,
    pad: int | None = None,
    backoff: bool = True,
    add_one: bool = False,
    uniform: bool = False,
) -> Float[Array, "B T V"]:
    """Probabilities of the token after every position, by the back-off of the module docstring.

    Rows need not sum to 1: where every token of the row was seen after h, what is left over goes to none.

    Args:
      tokens: rows.
      vocab_size: V.
      order: N, the predicted token included.
      separator: token between strings; None: a row is one string.
      pad: token at the end of rows that is nothing; what is predicted there has no meaning.
      backoff: without it p = 0 where h a was not seen.
      add_one: see the module docstring.
      uniform: likewise.

    Raises:
      ValueError: ``order`` or ``vocab_size`` below 1.
      TypeError: tokens that are not integers.
    """
    check_tokens("tokens", tokens)
    check_positive("order", order)
    check_positive("vocab_size", vocab_size)

    def one(row):
        text = _Text(row, vocab_size, separator, pad, order - 1)
        strings = jnp.cumsum(text.starts)  # the one in progress included
        seen_at_all = text.counts(0) > 0
        different = jnp.sum(seen_at_all, axis=-1, keepdims=True)
        # order 1: all windows of one token, marks among them
        total = jnp.sum(text.counts(0), axis=-1, keepdims=True) + ((order - 1) * strings)[:, None]
        kinds = different + (order > 1)
        p = jnp.where(seen_at_all, (text.counts(0) + add_one) / jnp.maximum(total + add_one * kinds, 1), 0)
        level = jnp.ones(p.shape, jnp.int32)
        for n in range(2, order + 1):
            counts = text.counts(n - 1)
            # the marks alone, at the start of a string, fill N - (n - 1) windows of every string
            windows = jnp.where(text.starts, (order - n + 1) * strings, text.windows(n - 1))[:, None]
            seen = counts > 0
            q = jnp.where(seen, (counts + add_one) / (windows + add_one * different), 0)
            left = 1 - jnp.sum(q, axis=-1, keepdims=True)
            others = jnp.where(seen, 0, p)
            weight = jnp.sum(others, axis=-1, keepdims=True)
            shared = left * others / jnp.where(weight > 0, weight, 1)
            p = jnp.where(seen, q, shared if backoff else 0)
            level = jnp.where(seen, n, level)
        if uniform:
            for n in range(1, order + 1):
                here = (level == n) & (p > 0)
                number = jnp.maximum(jnp.sum(here, axis=-1, keepdims=True), 1)
                p = jnp.where(here, jnp.sum(jnp.where(here, p, 0), axis=-1, keepdims=True) / number, p)
        return p[1:]

    return jax.lax.map(one, tokens)


def longest_suffix(
    tokens: Int[Array, "B T"],
    *,
    vocab_size: int,
    order: int = 3,
    separator: int | None = None,
    pad: int | None = None,
    uniform: bool = False,
) -> Float[Array, "B T V"]:
    """Relative frequencies after the longest suffix of at most ``order`` - 1 tokens that was followed by anything.

    Arguments as in ``in_context_ngram``; ``uniform`` counts every follower once. Uniform over all tokens where nothing has
    come yet.
    """
    check_tokens("tokens", tokens)
    check_positive("order", order)
    check_positive("vocab_size", vocab_size)

    def one(row):
        text = _Text(row, vocab_size, separator, pad, order - 1)
        p = jnp.full((len(row) + 1, vocab_size), 1 / vocab_size)
        for k in range(order):
            counts = text.counts(k)
            counts = (counts > 0).astype(p.dtype) if uniform else counts
            total = jnp.sum(counts, axis=-1, keepdims=True)
            p = jnp.where(total > 0, counts / jnp.maximum(total, 1), p)
        return p[1:]

    return jax.lax.map(one, tokens)


def nearest_suffix(
    tokens: Int[Array, "B T"],
    *,
    vocab_size: int,
    longest: int = 16,
    separator: int | None = None,
    pad: int | None = None,
) -> Float[Array, "B T V"]:
    """One-hot: what followed the last of the places whose suffix, of at most ``longest`` tokens, agrees longest.

    Uniform where nothing has come yet. Other arguments as in ``in_context_ngram``.
    """
    check_tokens("tokens", tokens)
    check_positive("longest", longest)
    check_positive("vocab_size", vocab_size)

    def one(row):
        text = _Text(row, vocab_size, separator, pad, longest)
        time = len(row) + 1
        agreeing = sum(text.same(k).astype(jnp.int32) for k in range(longest + 1))
        score = jnp.where(text.followed, agreeing * time + jnp.arange(time), -1)
        best = jnp.argmax(score, axis=-1)
        copied = jax.nn.one_hot(text.following[best], vocab_size)
        known = jnp.max(score, axis=-1, keepdims=True) >= 0
        return jnp.where(known, copied, 1 / vocab_size)[1:]

    return jax.lax.map(one, tokens)


class _Text:
    """A row with a separator in front: positions 0 .. T, position t stands behind t tokens.

    ``starts`` [T + 1]: a string begins behind this position; ``following`` the token behind it.
    """

    def __init__(self, row, vocab_size, separator, pad, longest):
        time = len(row) + 1
        mark = vocab_size  # "_", and what no token is equal to
        self.vocab_size = vocab_size
        ends = jnp.zeros(len(row), bool) if separator is None else row == separator
        self.starts = jnp.concatenate([jnp.ones(1, bool), ends])
        nothing = ends if pad is None else ends | (row == pad)
        self.following = jnp.concatenate([jnp.where(nothing, mark, row), jnp.full(1, mark)])
        steps = jnp.arange(time)
        self.followed = (steps < steps[:, None]) & (
            self.following != mark
        )  # [T + 1, T + 1], known at the row's position
        inside = steps - jax.lax.cummax(jnp.where(self.starts, steps, 0))  # tokens of the string so far
        before = jnp.concatenate([jnp.full(1, mark), row])
        self._same = [jnp.ones((time, time), bool)]  # [t, p]: the last k tokens before t and p agree, marks included
        for r in range(longest):
            token = jnp.where(inside > r, jnp.roll(before, r), mark)
            self._same.append(self._same[-1] & (token[:, None] == token))
        self._no_pad = jnp.concatenate([jnp.ones(1, bool), row != pad]) if pad is not None else jnp.ones(time, bool)
        self._past = steps <= steps[:, None]

    def same(self, k):
        """[t, p]: the k tokens before t and p agree."""
        return self._same[k]

    def counts(self, k):
        """[t, a]: how often a has followed the k tokens before t."""
        followers = jax.nn.one_hot(self.following, self.vocab_size)
        return (self.same(k) & self.followed).astype(followers.dtype) @ followers

    def windows(self, k):
        """[t]: how often the k tokens before t have come, now included."""
        return jnp.sum(self.same(k) & self._past & self._no_pad, axis=-1)
