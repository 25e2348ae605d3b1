"""Static n-gram head: the mean of what followed the earlier occurrences of the last n tokens, an induction head by hand.

Akyurek, Wang, Kim and Andreas (2024), In-Context Language Learning: Architectures and Algorithms, arXiv 2401.12973: NGH(n).

With x_t [D] the (normalised) input and w_t the token there, i and j in one document:

    m_ij   = 1 if j < i and (w_{j-n}, ..., w_{j-1}) = (w_{i-n+1}, ..., w_i), else 0
    head_i = sum_j m_ij x_j / sum_j m_ij                   0 where nothing matches
    y_i    = W_0 head_i + b_0 + W_1 x_i + b_1              W_0, W_1 [D, D]

NGH(1) finds what followed the current token (a bigram statistic), NGH(2) what followed the last two. The matching is given,
not learned: this mixer reads the tokens besides x (``reads_tokens``; ``zoo.models.Stack`` hands them on). Positions whose
last n tokens are not all in the document match nothing. With ``pad`` no n-gram with that token matches, and no x at that
token is part of a mean.

Forms, all with the same numbers up to rounding:

    quadratic   the matrix m, O(T^2 (n + D)); T^2 numbers at a time
    sorted      positions sorted by document, n-gram and time: equal n-grams are neighbours, and the sums over earlier
                ones a scan over them. O(T (n log T + D))
    banded      with a window: blocks of W queries against 2 W keys

State, one of two:

    table       for every n-gram the sum of x_j behind it and their number, V^n (D + 1) numbers a row: vocabulary and order
                are to be small. The entry is read before the x that follows is added. O(V^n) memory, O(D) a token
    window W    the last W values of x and their tokens, and j >= i - W is part of the definition: for large vocabularies.
                The same as no window up to W tokens. O(W D) a token

Sums are float32 whatever ``dtype``.
"""

from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp
from flax import struct
from jax import lax, vmap
from jaxtyping import Array, Bool, Float, Int

from zoo.checks import check_choice, check_positive, check_sequence, check_state, check_tokens
from zoo.dtypes import accumulator
from zoo.layers.attention import document_positions
from zoo.layers.projections import linear
from zoo.registry import register
from zoo.scans import linear_scan

METHODS = ("auto", "quadratic", "sorted")
LARGEST_TABLE = 2**17  # n-grams
# "auto" sorts calls of more tokens than this. On 2 CPU cores, B = 4, D = 64 and 256, forward and backward: quadratic 1.3
# and 2.8 ms against 2.1 and 1.8 at T = 256, 7.0 and 8.2 against 2.2 and 4.9 at T = 512. GPU and TPU: not timed.
_SORT_ABOVE = 256


@struct.dataclass
class NGramHeadState:
    """Carried state: ``tokens``, the last n (with a window W + n) [B, N]; ``age`` [B], tokens of the document so far; and
    without a window ``sums`` [B, V^n, D], ``counts`` [B, V^n], with one ``recent`` [B, W, D], the last values of x."""

    tokens: Int[Array, "B N"]
    age: Int[Array, " B"]
    sums: Float[Array, "B E D"] | None = None
    counts: Float[Array, "B E"] | None = None
    recent: Float[Array, "B W D"] | None = None


def ngram_weights(
    tokens: Int[Array, "B T"],
    order: int,
    *,
    reset: Bool[Array, "B T"] | None = None,
    pad: int | None = None,
    window: int | None = None,
) -> Float[Array, "B T T"]:
    """The weights m_ij / sum_j m_ij of the module docstring, rows of zeros where nothing matches.

    Raises:
      ValueError: ``order`` or ``window`` below 1.
      TypeError: tokens that are not integers.
    """
    check_tokens("tokens", tokens)
    _check_sizes(order, window)
    matches = _fresh_matches(tokens, order, reset, pad, window).astype(jnp.result_type(float))
    total = jnp.sum(matches, axis=-1, keepdims=True)
    return matches / jnp.maximum(total, 1)


def _fresh_matches(tokens, order, reset, pad, window):
    """m for rows that begin with a document: bool [B, T, T]."""
    known = jnp.pad(tokens, ((0, 0), (order, 0)))
    position = document_positions(reset, shape=tokens.shape)
    return _matches(known, jnp.zeros((), jnp.int32), position, 0, order, pad, window)


def _matches(known, start, position, before, order, pad, window):
    """m_ij for a block of Q queries from time ``start`` on, and keys from ``start - before`` to its end: [B, Q, before + Q].

    ``known`` [B, before + order + Q]: tokens from time start - before - order on; ``position`` [B, Q] of the queries.
    """
    queries = position.shape[1]
    keys = before + queries
    equal = jnp.ones((len(known), queries, keys), bool)
    for r in range(order):
        i = known[:, before + order - r : before + order - r + queries]
        j = known[:, order - 1 - r : order - 1 - r + keys]
        equal &= i[:, :, None] == j[:, None]
    i = start + jnp.arange(queries)
    j = start - before + jnp.arange(keys)
    # the n-gram in front of j begins in the document of i
    equal &= (j < i[:, None]) & (j[None, None] - order >= (i - position)[:, :, None])
    if window is not None:
        equal &= j >= i[:, None] - window
    if pad is not None:
        equal &= _unpadded(known, order, keys, pad)[:, None]
    return equal


def _unpadded(known, order, keys, pad):
    """Whether key j and the n-gram before it are free of padding: [B, keys], the first with ``order`` tokens before it."""
    real = known != pad
    return jnp.all(jnp.stack([real[:, r : r + keys] for r in range(order + 1)]), axis=0)


def _sorted_sums(x, known, position, order, pad):
    """Sums of x_j over the matches of every i of the call, and their number: [B, T, D], [B, T]."""
    batch, time = position.shape
    # Position p = -1 .. T - 1 stands for the n-gram that ends there; what follows it, x_{p+1}, is added to it.
    grams = [known[:, r : r + time + 1] for r in range(order)]
    starts = jnp.arange(time) - position
    starts = jnp.concatenate([starts[:, :1], starts], axis=1)
    places = jnp.arange(-1, time)
    fits = jnp.arange(time) - order >= starts[:, 1:]  # the n-gram before token j and j are in one document
    if pad is not None:
        fits &= _unpadded(known, order, time, pad)
    values = jnp.concatenate([x, jnp.ones((batch, time, 1), x.dtype)], axis=-1) * fits[..., None]
    values = jnp.pad(values, ((0, 0), (0, 1), (0, 0)))
    order_of = jnp.lexsort((*grams, starts), axis=-1)
    sorted_columns = jnp.take_along_axis(jnp.stack([*grams, starts], axis=-1), order_of[..., None], axis=1)
    new = jnp.any(sorted_columns[:, 1:] != sorted_columns[:, :-1], axis=-1)
    same = jnp.pad(~new, ((0, 0), (1, 0)))  # as the one before in the sorted order
    totals, _ = linear_scan(
        same[..., None].astype(values.dtype), jnp.take_along_axis(values, order_of[..., None], axis=1)
    )

    def earlier(a, steps):
        return jnp.pad(a[:, :-steps], ((0, 0), (steps, 0), *((0, 0),) * (a.ndim - 2)))

    # Where the neighbour is the position just before, what follows it is x_i itself: that one does not count.
    place = places[order_of]
    adjacent = same & (earlier(place, 1) == place - 1)
    found = jnp.where(
        adjacent[..., None],
        jnp.where((same & earlier(same, 1))[..., None], earlier(totals, 2), 0),
        jnp.where(same[..., None], earlier(totals, 1), 0),
    )
    back = jnp.argsort(order_of, axis=-1)
    found = jnp.take_along_axis(found, back[..., None], axis=1)[:, 1:]
    # A query whose n-gram begins before its document matches nothing.
    found = jnp.where((position >= order - 1)[..., None], found, 0)
    return found[..., :-1], found[..., -1]


def _sums(x, known, position, order, pad, method):
    """As ``_sorted_sums``, by either form; ``known`` [B, order + T]."""
    time = position.shape[1]
    if method == "sorted" or (method == "auto" and time > _SORT_ABOVE):
        return _sorted_sums(x, known, position, order, pad)
    matches = _matches(known, jnp.zeros((), jnp.int32), position, 0, order, pad, None).astype(x.dtype)
    return jnp.einsum("bij,bjd->bid", matches, x), jnp.sum(matches, axis=-1)


def _banded_sums(x, known, position, order, pad, window):
    """The same with a window: x [B, W + T, D], known [B, W + order + T], with what came before the call in front."""
    time = position.shape[1]
    block = time if time <= 2 * window else window
    count = -(-time // block)
    extra = count * block - time
    x, known, position = (jnp.pad(a, ((0, 0), (0, extra), *((0, 0),) * (a.ndim - 2))) for a in (x, known, position))

    def one(start):
        def cut(a, more):
            return lax.dynamic_slice_in_dim(a, start, block + more, axis=1)

        keys = cut(x, window)
        matches = _matches(cut(known, window + order), start, cut(position, 0), window, order, pad, window)
        matches = matches.astype(x.dtype)
        return jnp.einsum("bij,bjd->bid", matches, keys), jnp.sum(matches, axis=-1)

    sums, counts = vmap(one, out_axes=1)(jnp.arange(count) * block)
    return sums.reshape(len(x), count * block, -1)[:, :time], counts.reshape(len(x), -1)[:, :time]


def _table_index(grams, vocab_size):
    """Number of an n-gram [..., n] among V^n."""
    index = jnp.zeros(grams[0].shape, jnp.int32)
    for token in grams:
        index = index * vocab_size + jnp.clip(token, 0, vocab_size - 1)
    return index


def ngram_mean(
    x: Float[Array, "B T D"],
    tokens: Int[Array, "B T"],
    state: NGramHeadState | None = None,
    *,
    order: int,
    vocab_size: int | None = None,
    window: int | None = None,
    pad: int | None = None,
    reset: Bool[Array, "B T"] | None = None,
    method: str = "auto",
) -> tuple[Float[Array, "B T D"], NGramHeadState]:
    """head_i of the module docstring.

    Args:
      x: what is averaged.
      tokens: w, in [0, ``vocab_size``) where there is a table.
      state: state before the first token; None: the start (then no table is read).
      order: n.
      vocab_size: V; only the table needs it.
      window: W; None: a table.
      pad: token that matches nothing; None: there is none.
      reset: True at the first token of a new document.
      method: "quadratic", "sorted" or "auto", for what is matched inside the call; where a window cuts anything off, the
        form is banded.

    Returns:
      (head in at least float32, state after the last token).

    Raises:
      ValueError: sizes below 1, tokens and x of different lengths, an unknown method, no window and no vocabulary, or
        a table of more than 2^17 n-grams.
    """
    check_tokens("tokens", tokens)
    check_choice("method", method, METHODS)
    if tokens.shape != x.shape[:2]:
        raise ValueError(f"tokens must have shape {list(x.shape[:2])} like x, got {list(tokens.shape)}")
    _check_sizes(order, window)
    entries = None if window is not None else _table_size(vocab_size, order)
    batch, time, dim = x.shape
    position = document_positions(reset, None if state is None else state.age, shape=tokens.shape)
    age = position[:, -1] + 1
    kept = order if window is None else order + window
    before = jnp.zeros((batch, kept), tokens.dtype) if state is None else state.tokens.astype(tokens.dtype)
    known = jnp.concatenate([before, tokens], axis=1)
    wide = x.astype(accumulator(x.dtype))
    last_tokens = known[:, -kept:].astype(jnp.int32)
    close = known[:, kept - order :]  # from n tokens before the call on

    if window is not None:
        keys = x if state is None else x.astype(state.recent.dtype)  # a token must look the same in the next call
        past = jnp.zeros((batch, window, dim), x.dtype) if state is None else state.recent
        recent = jnp.concatenate([past, keys], axis=1)
        if state is None and time <= window:
            sums, counts = _sums(wide, close, position, order, pad, method)
        else:
            sums, counts = _banded_sums(recent.astype(wide.dtype), known, position, order, pad, window)
        new = NGramHeadState(last_tokens, age, recent=recent[:, -window:])
        return _mean(sums, counts), new

    sums, counts = _sums(wide, close, position, order, pad, method)
    index = _table_index([close[:, r : r + time + 1] for r in range(order)], vocab_size)  # of p = -1 .. T - 1
    steps = jnp.arange(time)
    if state is not None:
        # the document of token i began before the call, and so far back that its n-gram is whole
        open_still = (position > steps) & (position >= order - 1)
        read = jnp.take_along_axis(state.sums, index[:, 1:, None], axis=1)
        sums = sums + jnp.where(open_still[..., None], read, 0)
        counts = counts + jnp.where(open_still, jnp.take_along_axis(state.counts, index[:, 1:], axis=1), 0)
    begun = age[:, None] > time - steps + order - 1  # the n-gram before j is in the document that the call ends in
    if pad is not None:
        begun &= _unpadded(close, order, time, pad)
    rows = jnp.arange(batch)[:, None]
    if state is None:
        table = (jnp.zeros((batch, entries, dim), wide.dtype), jnp.zeros((batch, entries), wide.dtype))
    else:
        goes_on = age > time
        table = (jnp.where(goes_on[:, None, None], state.sums, 0), jnp.where(goes_on[:, None], state.counts, 0))
    table = (
        table[0].at[rows, index[:, :-1]].add(jnp.where(begun[..., None], wide, 0)),
        table[1].at[rows, index[:, :-1]].add(begun),
    )
    return _mean(sums, counts), NGramHeadState(last_tokens, age, *table)


def _mean(sums, counts):
    """sums / counts, and 0 with gradient 0 where nothing was counted."""
    return sums / jnp.maximum(counts, 1)[..., None]


def ngram_head(
    params: Mapping[str, Array],
    x: Float[Array, "B T D"],
    tokens: Int[Array, "B T"],
    state: NGramHeadState | None = None,
    **options,
) -> tuple[Float[Array, "B T D"], NGramHeadState]:
    """The layer of the module docstring.

    Args:
      params: ``head``, ``skip`` [D, D]; ``head_bias``, ``skip_bias`` [D].
      x: inputs; projections run in their dtype.
      tokens: w.
      state: state before the first token, None for the start.
      **options: of ``ngram_mean``.

    Returns:
      (y, state after the last token); y has x's dtype.
    """
    head, state = ngram_mean(x, tokens, state, **options)
    return linear(head.astype(x.dtype), params, "head") + linear(x, params, "skip"), state


def _check_sizes(order, window):
    check_positive("order", order)
    if window is not None:
        check_positive("window", window)


def _table_size(vocab_size, order):
    if vocab_size is None:
        raise ValueError("give vocab_size, for a table of all n-grams, or a window")
    check_positive("vocab_size", vocab_size)
    if vocab_size**order > LARGEST_TABLE:
        raise ValueError(
            f"a table of vocab_size^order = {vocab_size}^{order} n-grams is too large (limit {LARGEST_TABLE}): give a "
            "window in its place"
        )
    return vocab_size**order


@register(
    "ngram_head",
    variants={"default": {"order": 1, "vocab_size": 3}, "window": {"order": 2, "window": 5, "pad": 2}},
)
class NGramHead(nn.Module):
    """Static n-gram head: mean of what followed earlier occurrences of the last n tokens.

    Attributes:
      dim: width D of input and output.
      order: n, how many tokens have to match.
      vocab_size: number V of tokens, for the table of the state; not needed with a window.
      window: how far back it looks; None: to the beginning of the document.
      pad: token that matches nothing; None: there is none.
      method: form of the matching inside a call, "quadratic", "sorted" or "auto".
      dtype: compute dtype of the projections; sums are at least float32.
    """

    dim: int
    order: int = 1
    vocab_size: int | None = None
    window: int | None = None
    pad: int | None = None
    method: str = "auto"
    dtype: str = "float32"

    causal: ClassVar[bool] = True
    reads_tokens: ClassVar[bool] = True
    paper: ClassVar[str] = "Akyurek et al. 2024, In-Context Language Learning: Architectures and Algorithms"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        state: NGramHeadState | None = None,
        *,
        tokens: Int[Array, "B T"] | None = None,
        reset: Bool[Array, "B T"] | None = None,
    ) -> tuple[Float[Array, "B T D"], NGramHeadState]:
        check_sequence(x, self.dim, reset)
        if tokens is None:
            raise ValueError("ngram_head needs tokens=, the tokens that x was made from (a LanguageModel gives them)")
        if state is not None:
            check_state(state, self.initial_state(x.shape[0]))
        dense = nn.initializers.lecun_normal()
        params = {name: self.param(name, dense, (self.dim, self.dim)) for name in ("head", "skip")}
        params |= {f"{name}_bias": self.param(f"{name}_bias", nn.initializers.zeros, (self.dim,)) for name in params}
        options = {f: getattr(self, f) for f in ("order", "vocab_size", "window", "pad", "method")}
        return ngram_head(params, x.astype(self.dtype), tokens, state, reset=reset, **options)

    def initial_state(self, batch_size: int, dtype: str | None = None) -> NGramHeadState:
        """Nothing seen; ``dtype`` is the storage dtype of the window."""
        _check_sizes(self.order, self.window)
        age = jnp.zeros(batch_size, jnp.int32)
        wide = accumulator(self.dtype)
        if self.window is not None:
            tokens = jnp.zeros((batch_size, self.window + self.order), jnp.int32)
            return NGramHeadState(
                tokens, age, recent=jnp.zeros((batch_size, self.window, self.dim), dtype or self.dtype)
            )
        entries = _table_size(self.vocab_size, self.order)
        tokens = jnp.zeros((batch_size, self.order), jnp.int32)
        return NGramHeadState(
            tokens, age, jnp.zeros((batch_size, entries, self.dim), wide), jnp.zeros((batch_size, entries), wide)
        )
