"""Beam search: the ``beam_size`` most likely continuations, with length normalisation."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from zoo.checks import check_positive, check_tokens


class Beams(NamedTuple):
    """Continuations per row, best first.

    Attributes:
      tokens: [B, K, max_new_tokens], padded with ``pad_token`` after the stop token.
      lengths: [B, K] number of tokens, the stop token included.
      scores: [B, K] log-probability divided by the length penalty.
      log_probs: [B, K] log-probability.
    """

    tokens: Int[Array, "B K N"]
    lengths: Int[Array, "B K"]
    scores: Float[Array, "B K"]
    log_probs: Float[Array, "B K"]


def beam_search(
    model: Any,
    params: Any,
    prompts: Int[Array, "B T"],
    *,
    beam_size: int,
    max_new_tokens: int,
    stop_token: int,
    length_penalty: float = 0.0,
    pad_token: int = 0,
    source: Int[Array, "B S"] | None = None,
    source_lengths: Int[Array, " B"] | None = None,
) -> Beams:
    """Finds likely continuations of every prompt that end with ``stop_token`` (or at ``max_new_tokens``).

    A finished hypothesis keeps its place among the beams with its score frozen, so the result is the best
    ``beam_size`` hypotheses seen, finished or cut off, ranked by ``log p / ((5 + length) / 6) ** length_penalty``
    (Wu et al. 2016). With ``length_penalty=0`` this is the plain log-probability, and beam_size 1 is greedy search.

    Args:
      model: Flax module: a language model, or with ``source`` an encoder-decoder with ``encode`` and ``decode``.
      params: its variables.
      prompts: equally long prompts, at least one token (for an encoder-decoder: the start token).
      beam_size: number K of hypotheses kept, at most the vocabulary's size.
      max_new_tokens: longest continuation.
      stop_token: token that ends a hypothesis.
      length_penalty: exponent of the length normalisation, at least 0.
      pad_token: fills hypotheses after their end.
      source: what an encoder-decoder translates, right-padded.
      source_lengths: valid tokens of ``source`` per row.

    Raises:
      ValueError: a size that is not positive or a beam larger than the vocabulary.
    """
    check_tokens("prompts", prompts)
    check_positive("beam_size", beam_size)
    check_positive("max_new_tokens", max_new_tokens)
    if length_penalty < 0:
        raise ValueError(f"length_penalty must be at least 0, got {length_penalty}")
    if source is not None:
        check_tokens("source", source)
        if source_lengths is None:
            source_lengths = jnp.full(source.shape[0], source.shape[1], jnp.int32)
    return _beam_search(
        model, beam_size, max_new_tokens, params, prompts, source, source_lengths, stop_token, length_penalty, pad_token
    )


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _beam_search(model, width, count, params, prompts, source, source_lengths, stop, alpha, pad):
    # Every hypothesis is a batch of one under vmap: all leaves of its state then have the hypothesis on axis 0, wherever
    # the model keeps its own batch axis, and beams are reordered by one gather.
    def read(prompt, source_row, length):
        if source_row is None:
            return model.apply(params, prompt[None])
        state = model.apply(params, source_row[None], length[None], method="encode")
        return model.apply(params, prompt[None], state, method="decode")

    def advance(token, state):
        method = None if source is None else "decode"
        logits, state = model.apply(params, token[None, None], state, method=method)
        return logits[0, -1], state

    logits, state = jax.vmap(read)(prompts, source, source_lengths)
    batch, vocabulary = prompts.shape[0], logits.shape[-1]
    if width > vocabulary:
        raise ValueError(f"beam_size={width} is larger than the vocabulary ({vocabulary})")
    log_p = jax.nn.log_softmax(logits[:, 0, -1])
    state = jax.tree.map(lambda s: jnp.repeat(s, width, axis=0), state)
    total = jnp.tile(jnp.where(jnp.arange(width) == 0, 0.0, -jnp.inf), (batch, 1))
    carry = (
        0,
        jnp.repeat(log_p[:, None], width, axis=1),
        state,
        jnp.full((batch, width, count), pad, prompts.dtype),
        jnp.zeros((batch, width), jnp.int32),
        total,
        jnp.zeros((batch, width), bool),
    )

    def penalty(lengths):
        return ((5.0 + lengths) / 6.0) ** alpha

    def unfinished(carry):
        return (carry[0] < count) & ~jnp.all(carry[-1])

    def step(carry):
        n, log_p, state, tokens, lengths, total, ended = carry
        # A finished hypothesis has one continuation: the padding, at no cost.
        frozen = jnp.where(jnp.arange(vocabulary) == 0, 0.0, -jnp.inf)
        candidates = total[..., None] + jnp.where(ended[..., None], frozen, log_p)
        new_lengths = lengths + ~ended
        scores = candidates / penalty(new_lengths)[..., None]
        _, best = jax.lax.top_k(scores.reshape(batch, -1), width)
        parent, token = best // vocabulary, best % vocabulary

        def pick(values):
            return jnp.take_along_axis(values, parent.reshape(batch, width, *(1,) * (values.ndim - 2)), axis=1)

        total = jnp.take_along_axis(candidates.reshape(batch, -1), best, axis=1)
        ended, lengths = pick(ended), pick(new_lengths)
        tokens = pick(tokens).at[:, :, n].set(jnp.where(ended, pad, token))
        ended = ended | (token == stop)
        rows = (jnp.arange(batch)[:, None] * width + parent).reshape(-1)
        state = jax.tree.map(lambda s: s[rows], state)
        logits, state = jax.vmap(advance)(token.reshape(-1).astype(prompts.dtype), state)
        log_p = jax.nn.log_softmax(logits).reshape(batch, width, vocabulary)
        return n + 1, log_p, state, tokens, lengths, total, ended

    _, _, _, tokens, lengths, total, _ = jax.lax.while_loop(unfinished, step, carry)
    scores = total / penalty(lengths)
    order = jnp.argsort(-scores, axis=1)

    def ranked(values):
        return jnp.take_along_axis(values, order.reshape(batch, width, *(1,) * (values.ndim - 2)), axis=1)

    return Beams(ranked(tokens), ranked(lengths), ranked(scores), ranked(total))
