"""Depthwise convolution over time, and the token before, that do not look over the borders of documents."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from zoo.dtypes import accumulator


def depthwise_convolution(
    x: Float[Array, "B T C"],
    kernel: Float[Array, "K C"],
    age: Int[Array, "B T"],
    lengths: Int[Array, "B T"] | None = None,
    history: Float[Array, "B H C"] | None = None,
) -> Float[Array, "B T C"]:
    """y_t = sum_o kernel[o + left] * x_{t+o} over -left <= o <= right and t + o in the document of t.

    Args:
      x: inputs; the sum runs in at least float32 and is returned in x's dtype.
      kernel: one filter of K taps per channel.
      age: position of every step in its document, from 0 (counting steps before this call).
      lengths: steps of the document of every step: centred filter, left = (K - 1) // 2. None: causal, left = K - 1.
      history: the K - 1 inputs before x of a causal filter (None: there are none), as returned by ``recent``.
    """
    taps, time = kernel.shape[0], x.shape[1]
    left = taps - 1 if lengths is None else (taps - 1) // 2
    if history is None:
        history = jnp.zeros((x.shape[0], left, x.shape[2]), x.dtype)
    padded = jnp.concatenate([history.astype(x.dtype), x], axis=1)
    padded = jnp.pad(padded, ((0, 0), (0, taps - 1 - left), (0, 0)))
    total = jnp.zeros((), accumulator(x.dtype))
    for tap in range(taps):
        offset = tap - left
        inside = age >= -offset if offset <= 0 else age + offset < lengths
        total = total + jnp.where(inside[..., None], padded[:, tap : tap + time], 0) * kernel[tap]
    return total.astype(x.dtype)


def recent(x: Float[Array, "B T C"], count: int, history: Float[Array, "B H C"] | None = None) -> Float[Array, "B H C"]:
    """The last ``count`` steps of ``history`` followed by ``x``, zeros in front when there are fewer."""
    if history is None:
        history = jnp.zeros((x.shape[0], count, x.shape[2]), x.dtype)
    return jnp.concatenate([history, x.astype(history.dtype)], axis=1)[:, -count:] if count else history


def previous_token(
    x: Float[Array, "B T D"], last: Float[Array, "B D"], reset: Bool[Array, "B T"] | None = None
) -> Float[Array, "B T D"]:
    """x_{t-1} for every t: ``last`` before the first step of the call, zeros before the first of a document."""
    before = jnp.concatenate([last[:, None].astype(x.dtype), x[:, :-1]], axis=1)
    return before if reset is None else jnp.where(reset[..., None], 0, before)
