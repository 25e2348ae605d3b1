"""Streams of any length in constant memory: scored piece by piece, the state carried along, and gone on from."""

import functools
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from zoo.checks import check_positive
from zoo.decoding.generate import Generated, generate
from zoo.decoding.sampling import Sampling, sample


class StreamScore(NamedTuple):
    """What has been read of a stream.

    Attributes:
      log_likelihood: sum of log p(token | all tokens before it) in nats, summed in float64.
      scored: tokens in that sum. The very first token of a stream has nothing before it and is not scored.
      tokens: tokens read.
      state: the model's state after the last token, of one row.
      logits: [1, V] for the token that comes next.
    """

    log_likelihood: float
    scored: int
    tokens: int
    state: Any
    logits: Float[Array, "1 V"]

    @property
    def bits_per_token(self) -> float:
        """Mean cost of a scored token."""
        return -self.log_likelihood / max(self.scored, 1) / float(np.log(2))


def stream_log_likelihood(
    model: Any, params: Any, token_iterator: Iterable[Any], *, segment: int = 1024, start: StreamScore | None = None
) -> StreamScore:
    """Log-likelihood of a stream of tokens under a language model, whatever its length, in constant memory.

    The stream is read ``segment`` tokens at a time, in parallel over time, and the state is handed on: the numbers are
    those of one call on the whole stream. What is left at the end is read in pieces of powers of two, so at most
    log2(segment) + 1 programs are compiled.

    Args:
      model: Flax module with ``apply(params, tokens, state) -> (logits, state)`` and ``initial_state``.
      params: its variables.
      token_iterator: yields integers, or one-dimensional integer arrays of any lengths; read once, lazily.
      segment: tokens per call.
      start: what an earlier call returned, to go on from; its counts and sums are continued.

    Returns:
      A ``StreamScore``.

    Raises:
      TypeError: the stream yields something else than integers.
      ValueError: the stream is empty, or a token is negative or beyond ``model.vocab_size``; or the model reads a prefix
        without its order, so that its first logits have seen what they are to predict.
    """
    check_positive("segment", segment)
    prefix = model.stack().prefix_length if hasattr(model, "stack") else 0
    if prefix > 1 and start is None:
        raise ValueError(f"the model sees its first {prefix} tokens at once: their likelihood cannot be read off it")
    vocab = getattr(model, "vocab_size", None)
    total, scored, read = (0.0, 0, 0) if start is None else (start.log_likelihood, start.scored, start.tokens)
    # Copies: the buffers of a state that goes through a piece are reused for the next one.
    carry = None if start is None else jax.tree.map(jnp.copy, (start.state, start.logits))
    for piece in _pieces(token_iterator, segment, vocab):
        if carry is None:
            state = model.initial_state(1)
            value, carry = _first(model, params, piece, state)
            scored -= 1
        else:
            value, carry = _next(model, params, piece, *carry)
        total += float(value)
        scored, read = scored + len(piece), read + len(piece)
    if carry is None:
        raise ValueError("token_iterator yields no tokens")
    return StreamScore(total, scored, read, *carry)


def continue_stream(
    model: Any, params: Any, score: StreamScore, *, max_new_tokens: int, key: jax.Array | None = None, **options: Any
) -> Generated:
    """Goes on from where ``stream_log_likelihood`` stopped, by ``zoo.generate``.

    Args:
      model: as given there.
      params: its variables.
      score: what it returned.
      max_new_tokens: how many tokens to add.
      key: random key; may be None for temperature 0.
      **options: temperature, top_k, top_p, min_p, as for ``zoo.generate``.

    Returns:
      As ``zoo.generate``, for one row; the first token is drawn from ``score.logits``.
    """
    check_positive("max_new_tokens", max_new_tokens)
    how = Sampling(**options)
    how.check()
    if key is None and how.temperature != 0:
        raise ValueError("continue_stream needs a key, unless temperature is 0")
    first_key, rest_key = jax.random.split(jax.random.key(0) if key is None else key)
    first = sample(first_key[None], score.logits, how)
    log_prob = jnp.take_along_axis(jax.nn.log_softmax(score.logits), first[:, None], axis=-1)
    first = first[:, None].astype(jnp.int32)
    if max_new_tokens == 1:
        _, state = model.apply(params, first, score.state)
        return Generated(first, jnp.ones(1, jnp.int32), log_prob, state)
    rest = generate(model, params, first, max_new_tokens=max_new_tokens - 1, key=rest_key, state=score.state, **options)
    return Generated(
        jnp.concatenate([first, rest.tokens], axis=1), rest.lengths + 1,
        jnp.concatenate([log_prob, rest.log_probs], axis=1), rest.state,
    )  # fmt: skip


def _pieces(stream: Iterable[Any], segment: int, vocab: int | None) -> Iterator[np.ndarray]:
    """The stream in arrays of ``segment`` tokens, then the rest in powers of two, large ones first."""
    waiting, count = [], 0
    for item in stream:
        array = np.atleast_1d(np.asarray(item))
        if not np.issubdtype(array.dtype, np.integer) or array.ndim != 1:
            raise TypeError(
                f"token_iterator must yield integers or 1-D integer arrays, got {array.dtype} {array.shape}"
            )
        if array.size and (array.min() < 0 or (vocab is not None and array.max() >= vocab)):
            wanted = f"from 0 to vocab_size - 1 = {vocab - 1}" if vocab else "at least 0"
            raise ValueError(f"tokens must be {wanted}, got {array.min()} to {array.max()}")
        waiting.append(array.astype(np.int32))
        count += array.size
        if count < segment:
            continue
        joined = np.concatenate(waiting)
        whole = count - count % segment
        yield from joined[:whole].reshape(-1, segment)
        waiting, count = [joined[whole:]], count - whole
    rest = np.concatenate(waiting) if waiting else np.empty(0, np.int32)
    while rest.size:
        size = 1 << (rest.size.bit_length() - 1)
        yield rest[:size]
        rest = rest[size:]


@functools.partial(jax.jit, static_argnums=0, donate_argnums=3)
def _first(model, params, tokens, state):
    """The first piece, whose first token is given."""
    logits, state = model.apply(params, tokens[None], state)
    return _sum(logits[0, :-1], tokens[1:]), (state, logits[:, -1])


@functools.partial(jax.jit, static_argnums=0, donate_argnums=(3, 4))
def _next(model, params, tokens, state, before):
    """A later piece; ``before`` [1, V] are the logits for its first token."""
    logits, state = model.apply(params, tokens[None], state)
    predictions = jnp.concatenate([before.astype(logits.dtype), logits[0, :-1]])
    return _sum(predictions, tokens), (state, logits[:, -1])


def _sum(logits, targets):
    chosen = jnp.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]
    return jnp.sum(chosen - jax.nn.logsumexp(logits, axis=-1))
