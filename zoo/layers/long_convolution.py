"""Causal convolution over time, of any length, that is carried across cuts and stops at the borders of documents."""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from zoo.checks import check_choice
from zoo.dtypes import accumulator
from zoo.layers.convolution import recent
from zoo.scans import fft_convolution

FORMS = ("auto", "direct", "fft")
_UNROLLED = 8  # most taps that are written out


def causal_convolution(
    x: Float[Array, "B T C"],
    kernel: Float[Array, "K C"],
    history: Float[Array, "B H C"] | None = None,
    *,
    reset: Bool[Array, "B T"] | None = None,
    form: str = "auto",
) -> tuple[Float[Array, "B T C"], Float[Array, "B H C"]]:
    """y_t = sum_l kernel_l x_{t-l} over 0 <= l < K and t - l in the document of t.

    A filter of K taps is no recurrence of fixed size: its state is the K - 1 inputs before, and one step costs O(K). A
    whole sequence is convolved by FFT, in O(T log T); with documents tap by tap, in O(T K), with the memory of one tap.

    Args:
      x: inputs.
      kernel: one filter of K taps per channel; ``kernel[0]`` weighs the present step.
      history: the K - 1 inputs before x, zeros where there was no input or another document; None for the start.
      reset: True at the first token of a new document.
      form: "direct" (tap by tap), "fft", or "auto": FFT for more than a few taps and steps without resets.

    Returns:
      (y in x's dtype, summed in at least float32; the history to carry on with, in the dtype of ``history`` or x).

    Raises:
      ValueError: an unknown form, or form="fft" with document resets.
    """
    check_choice("form", form, FORMS)
    if form == "fft" and reset is not None:
        raise ValueError("form='fft' is one convolution over the whole sequence, it cannot have resets; use 'direct'")
    (batch, time, channels), taps = x.shape, kernel.shape[0]
    wide = accumulator(x.dtype)
    whole = history is None and reset is None
    if history is None:
        history = jnp.zeros((batch, taps - 1, channels), x.dtype)
    after = recent(x, taps - 1, history)
    past = history.astype(wide)
    u, kernel = x.astype(wide), kernel.astype(wide)
    first = None
    if reset is not None:
        # index of the first step of the document of every step; what was carried in counts as all of one document
        first = lax.cummax(jnp.where(reset, jnp.arange(time), 1 - taps), axis=1)
        kept = jnp.arange(time + 1 - taps, time) >= first[:, -1:]
        after = jnp.where(kept[..., None], after, 0)
    if form == "fft" or (form == "auto" and reset is None and min(time, taps) > _UNROLLED):
        y = (
            fft_convolution(u, kernel)
            if whole
            else fft_convolution(jnp.concatenate([past, u], 1), kernel)[:, taps - 1 :]
        )
    elif time == 1:
        if reset is not None:
            past = jnp.where(reset[..., None], 0, past)
        y = jnp.einsum("bkc,kc->bc", jnp.concatenate([past, u], axis=1), kernel[::-1])[:, None]
    else:
        y = _by_taps(jnp.concatenate([past, u], axis=1), kernel, first, time)
    return y.astype(x.dtype), after


def _by_taps(extended, kernel, first, time):
    """The sum over lags; ``extended`` is [history, x]."""
    taps = kernel.shape[0]

    @jax.checkpoint
    def add(total, lag_and_weight):
        lag, weight = lag_and_weight
        shifted = lax.dynamic_slice_in_dim(extended, taps - 1 - lag, time, axis=1)
        if first is not None:
            shifted = jnp.where((jnp.arange(time) - lag >= first)[..., None], shifted, 0)
        return total + weight * shifted, None

    total = jnp.zeros((extended.shape[0], time, extended.shape[2]), extended.dtype)
    if taps <= _UNROLLED:
        for lag in range(taps):
            total, _ = add(total, (lag, kernel[lag]))
        return total
    return lax.scan(add, total, (jnp.arange(taps), kernel))[0]
