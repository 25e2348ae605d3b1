"""Sampling from a model: one parallel call reads the prompts, then a compiled loop of one-token calls continues them."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from zoo.checks import check_positive, check_tokens
from zoo.decoding.sampling import Sampling, sample


class Generated(NamedTuple):
    """What ``generate`` returns.

    Attributes:
      tokens: [B, max_new_tokens] new tokens; after the stop token, ``pad_token``.
      lengths: [B] number of new tokens, the stop token included.
      log_probs: [B, max_new_tokens] log-probability of each token under the unfiltered model; 0 after the stop.
      state: the model's state after the last step, to go on from.
    """

    tokens: Int[Array, "B N"]
    lengths: Int[Array, " B"]
    log_probs: Float[Array, "B N"]
    state: Any


def generate(
    model: Any,
    params: Any,
    prompts: Sequence[Sequence[int]] | Int[Array, "B T"],
    *,
    max_new_tokens: int,
    key: jax.Array | None = None,
    lengths: Any = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    stop_token: int | None = None,
    pad_token: int = 0,
    state: Any = None,
    method: str | None = None,
) -> Generated:
    """Continues every prompt.

    Prompts of unequal length are padded on the left and cut off from the padding by a reset at their first token, so
    each row is continued exactly as if it were alone.

    Args:
      model: Flax module with ``apply(params, tokens, state, reset=...) -> (logits, state)``.
      params: its variables.
      prompts: list of token lists, of any lengths of at least 1, or an integer array [B, T].
      max_new_tokens: how many tokens to add.
      key: one key, from which every row gets its own by ``fold_in(key, row)``; or an array of B keys, one per row.
        A row's samples depend on its own key alone, whatever else is in the batch. May be None for temperature 0.
      lengths: valid tokens per row when ``prompts`` is a right-padded array.
      temperature, top_k, top_p, min_p: see ``Sampling``.
      stop_token: ends a row when drawn; the loop ends when all rows have ended.
      pad_token: fills rows after their end.
      state: what the model has read before the prompts (``lengths`` must then be None and prompts equally long), such as
        an encoder's state.
      method: name of the model's method to call instead of ``__call__``, e.g. "decode".

    Raises:
      ValueError: an empty prompt, a value out of range, or a key missing.
    """
    how = Sampling(temperature, top_k, top_p, min_p)
    how.check()
    check_positive("max_new_tokens", max_new_tokens)
    tokens, start = left_pad(prompts, lengths)
    batch = tokens.shape[0]
    if key is None:
        if temperature != 0:
            raise ValueError("generate needs a key, unless temperature is 0")
        key = jax.random.key(0)
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.wrap_key_data(key)
    keys = key if key.ndim else jax.vmap(lambda row: jax.random.fold_in(key, row))(jnp.arange(batch))
    if keys.shape != (batch,):
        raise ValueError(f"key must be one key or {batch} keys, one per prompt, got shape {list(keys.shape)}")
    reset = None
    if np.any(np.asarray(start) > 0):
        if state is not None:
            raise ValueError("with a state, all prompts must have the same length")
        reset = jnp.arange(tokens.shape[1])[None] == start[:, None]
    stop = -1 if stop_token is None else stop_token
    return _generate(model, method, max_new_tokens, params, tokens, reset, state, keys, how, stop, pad_token)


def left_pad(
    prompts: Sequence[Sequence[int]] | Int[Array, "B T"], lengths: Any = None
) -> tuple[Int[Array, "B T"], Int[Array, " B"]]:
    """Aligns prompts to end together: (tokens [B, T], index of each row's first real token [B])."""
    if hasattr(prompts, "dtype"):
        check_tokens("prompts", prompts)
        rows, time = prompts.shape
        sizes = np.full(rows, time) if lengths is None else np.asarray(lengths)
        if sizes.shape != (rows,) or np.any(sizes < 1) or np.any(sizes > time):
            raise ValueError(f"lengths must be {rows} integers from 1 to {time}, got {sizes.tolist()}")
        if np.all(sizes == time):
            return jnp.asarray(prompts), jnp.zeros(rows, jnp.int32)
        prompts = [row[:size] for row, size in zip(np.asarray(prompts), sizes)]
    elif lengths is not None:
        raise ValueError("lengths goes with a padded array of prompts, not with a list")
    sizes = [len(row) for row in prompts]
    if not sizes or min(sizes) == 0:
        raise ValueError("every prompt needs at least one token")
    padded = np.zeros((len(sizes), max(sizes)), np.int32)
    for i, row in enumerate(prompts):
        padded[i, max(sizes) - len(row) :] = row
    return jnp.asarray(padded), jnp.asarray([max(sizes) - size for size in sizes], jnp.int32)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _generate(model, method, count, params, tokens, reset, state, keys, how, stop, pad):
    resets = {} if reset is None else {"reset": reset}
    logits, state = model.apply(params, tokens, state, method=method, **resets)
    batch = tokens.shape[0]

    def unfinished(carry):
        n, *_, ended = carry
        return (n < count) & ~jnp.all(ended)

    def step(carry):
        n, logits, state, out, log_probs, lengths, ended = carry
        token = sample(jax.vmap(jax.random.fold_in, (0, None))(keys, n), logits, how)
        chosen = jnp.take_along_axis(logits, token[:, None], axis=-1)[:, 0] - jax.nn.logsumexp(logits, axis=-1)
        out = out.at[:, n].set(jnp.where(ended, pad, token))
        log_probs = log_probs.at[:, n].set(jnp.where(ended, 0.0, chosen))
        lengths = lengths + ~ended
        ended = ended | (token == stop)
        logits, state = model.apply(params, token[:, None], state, method=method)
        return n + 1, logits[:, -1], state, out, log_probs, lengths, ended

    out = jnp.full((batch, count), pad, tokens.dtype)
    zeros = jnp.zeros((batch, count), jnp.float32)
    carry = (0, logits[:, -1], state, out, zeros, jnp.zeros(batch, jnp.int32), jnp.zeros(batch, bool))
    _, _, state, out, log_probs, lengths, _ = jax.lax.while_loop(unfinished, step, carry)
    return Generated(out, lengths, log_probs, state)
