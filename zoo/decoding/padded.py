"""Greedy answers of models with a prefix whose prompts are padded to it, as published evaluations of JRT-RNN do.

``zoo.generate`` needs none of this: it cuts the padding off by a reset, and a prompt shorter than the prefix simply has a
shorter prefix. Here short prompts get padding tokens in front, up to the prefix length of training; prefix linear attention
is told where they are, and all other mixers read them as tokens.
"""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from zoo.checks import check_positive
from zoo.decoding.generate import generate
from zoo.mixers.prefix_linear_attention import PrefixLinearAttention
from zoo.models import with_mixer_options


def generate_padded(
    model: Any,
    params: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    padding: str = "clean",
    pad_token: int = 0,
    stop_token: int | None = None,
) -> Int[Array, "B N"]:
    """The most likely continuation of every prompt, padded on the left to the prefix length, or to the longest prompt.

    Args:
      model: language model with mixers ``prefix_linear_attention``.
      params: its variables.
      prompts: token lists of any lengths of at least 1.
      max_new_tokens: how many tokens to add.
      padding: of those mixers, "clean" or "reference", see ``zoo.mixers.prefix_linear_attention``.
      pad_token: in front.
      stop_token: ends a row when drawn; what follows it is ``pad_token``.

    Returns:
      New tokens [B, max_new_tokens].
    """
    check_positive("max_new_tokens", max_new_tokens)
    if not prompts or min(map(len, prompts)) == 0:
        raise ValueError("every prompt needs at least one token")
    model, params = with_mixer_options(model, params, "prefix_linear_attention", {"padding": padding})
    length = max(model.stack().prefix_length, *map(len, prompts))
    tokens = np.full((len(prompts), length), pad_token, np.int32)
    for row, prompt in zip(tokens, prompts):
        row[length - len(prompt) :] = prompt
    real = np.arange(length) >= length - np.array([[len(prompt)] for prompt in prompts])
    first, state = _prefill(model, params, jnp.asarray(tokens), jnp.asarray(real))
    if max_new_tokens == 1:
        return first[:, None]
    rest = generate(
        model, params, first[:, None], max_new_tokens=max_new_tokens - 1, temperature=0.0, stop_token=stop_token,
        pad_token=pad_token, state=state,
    ).tokens  # fmt: skip
    if stop_token is not None:
        rest = jnp.where((first == stop_token)[:, None], pad_token, rest)
    return jnp.concatenate([first[:, None], rest], axis=1)


@functools.partial(jax.jit, static_argnums=0)
def _prefill(
    model: Any, params: Any, tokens: Int[Array, "B T"], real: Bool[Array, "B T"]
) -> tuple[Int[Array, " B"], Any]:
    """The most likely next token and the state, the mixers being handed ``real`` as their mask."""

    def masked(call, args, kwargs, context):
        if isinstance(context.module, PrefixLinearAttention) and context.method_name == "__call__":
            kwargs = {**kwargs, "mask": real}
        return call(*args, **kwargs)

    with nn.intercept_methods(masked):
        logits, state = model.apply(params, tokens)
    return jnp.argmax(logits[:, -1], axis=-1).astype(tokens.dtype), state
