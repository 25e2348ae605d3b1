"""Markov chains: n-gram language models from counts, the models that recurrent networks were first set against.

Shannon (1948). With c(h, w) how often token w followed the context h (the last n - 1 tokens), c(h) = sum_w c(h, w),
d(h) the number of different followers, and h' the context without its oldest token:

    witten_bell   P(w | h) = (c(h, w) + d(h) P(w | h')) / (c(h) + d(h))                interpolation
    backoff       P(w | h) = (c(h, w) - D) / c(h) if c(h, w) > 0, else alpha(h) P(w | h')   absolute discount D (Katz form)

and below the unigram the uniform distribution 1/V. alpha(h) makes the probabilities sum to one. Unseen contexts fall
through to the shorter one. Counts are dense tables [V^k, V], k = 0 .. n - 1: fitting is a scatter-add, scoring a gather,
both compiled. Memory O(V^n), so this is for characters, bytes and small vocabularies.
"""

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int

from zoo.checks import check_choice, check_positive, check_tokens

SMOOTHINGS = ("witten_bell", "backoff")
LARGEST = 2**27  # entries of the largest table


@struct.dataclass
class NGram:
    """Counts of an n-gram model: ``tables[k]`` [V^k, V], how often each token followed each context of k tokens."""

    tables: tuple[Float[Array, "C V"], ...]

    @property
    def order(self) -> int:
        """n: tokens looked at, the predicted one included."""
        return len(self.tables)

    @property
    def vocab_size(self) -> int:
        return self.tables[0].shape[1]


def fit_ngram(tokens: Int[Array, "B T"], vocab_size: int, order: int) -> NGram:
    """Counts all 1-grams to ``order``-grams of the rows of ``tokens``; order 2 is the Markov chain.

    Raises:
      ValueError: sizes that are not positive, or tables of more than 2^27 entries.
    """
    check_tokens("tokens", tokens)
    check_positive("vocab_size", vocab_size)
    check_positive("order", order)
    if vocab_size**order > LARGEST:
        raise ValueError(
            f"an n-gram table of {vocab_size}^{order} entries is too large (limit 2^27): lower the order, or use a smaller "
            "vocabulary"
        )
    tables = []
    for k in range(order):
        context = _contexts(tokens, vocab_size, k)
        table = jnp.zeros((vocab_size**k, vocab_size), jnp.float32)
        tables.append(table.at[context[:, k:], tokens[:, k:]].add(1.0))
    return NGram(tuple(tables))


def _contexts(tokens, vocab_size, k):
    """Number of the k tokens before each position (wrong for the first k positions): [B, T]."""
    context = jnp.zeros_like(tokens)
    for lag in range(k, 0, -1):
        context = context * vocab_size + jnp.roll(tokens, lag, axis=1)
    return context


def ngram_log_probs(
    model: NGram, tokens: Int[Array, "B T"], *, smoothing: str = "witten_bell", discount: float = 0.75
) -> Float[Array, "B T V"]:
    """Log-probabilities of every token at every position, given the tokens before it in the row.

    The first positions of a row use the shorter contexts they have.

    Args:
      model: from ``fit_ngram``.
      tokens: rows to score; ``take_along_axis(result, tokens[..., None], -1)`` are their own log-probabilities.
      smoothing: "witten_bell" or "backoff".
      discount: D in (0, 1) of "backoff".
    """
    check_tokens("tokens", tokens)
    check_choice("smoothing", smoothing, SMOOTHINGS)
    if not 0 < discount < 1:
        raise ValueError(f"discount must lie strictly between 0 and 1, got {discount}")
    size = model.vocab_size
    probs = jnp.full((*tokens.shape, size), 1 / size)
    for k, table in enumerate(model.tables):
        counts = table[_contexts(tokens, size, k)]
        total = jnp.sum(counts, axis=-1, keepdims=True)
        seen = counts > 0
        different = jnp.sum(seen, axis=-1, keepdims=True)
        if smoothing == "witten_bell":
            longer = (counts + different * probs) / jnp.maximum(total + different, 1)
        else:
            # What discounting frees is shared out over the unseen tokens in proportion to the shorter context.
            unseen = jnp.sum(jnp.where(seen, 0, probs), axis=-1, keepdims=True)
            freed = jnp.where(unseen > 0, discount * different / jnp.maximum(total, 1), 0)
            kept = jnp.where(seen, counts - jnp.where(unseen > 0, discount, 0), 0) / jnp.maximum(total, 1)
            longer = jnp.where(seen, kept, freed * probs / jnp.where(unseen > 0, unseen, 1))
        usable = (total > 0) & (jnp.arange(tokens.shape[1]) >= k)[:, None]
        probs = jnp.where(usable, longer, probs)
    return jnp.log(probs)


def ngram_entropy(model: NGram, tokens: Int[Array, "B T"], *, smoothing: str = "witten_bell") -> Float[Array, ""]:
    """Mean negative log-likelihood of ``tokens`` in nats per token; its exponential is the perplexity."""
    log_probs = jax.jit(ngram_log_probs, static_argnames="smoothing")(model, tokens, smoothing=smoothing)
    return -jnp.mean(jnp.take_along_axis(log_probs, tokens[..., None], axis=-1))
