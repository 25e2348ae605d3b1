"""Causal convolution over time by FFT: ``y_t = sum_{s <= t} kernel_{t-s} inputs_s``.

The parallel form of a linear system that does not change in time (a state space layer with fixed parameters, a long
convolution), from its impulse response. It has no state: the FFT of a piece needs all inputs before it. For carrying
on from a state use the recurrent form of the same system (``linear_scan``).

Shapes: inputs [B, T, D], kernel [L, D] or [L] (one kernel for all channels), outputs [B, T, D]. L may be shorter or
longer than T; taps beyond T cannot be reached and are dropped.

Both are zero-padded to n >= T + min(L, T) - 1, so that the circular product of their spectra is the causal one, and n
is the next number of the form 2^a 3^b 5^c, for which the FFT is fast.

Cost: O(D B T log T) time, O(B T D) memory; float32 at least. Rounding is relative to the largest output of a channel,
not to each output: about eps * sqrt(log n) * |inputs| * |kernel| in every output.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from zoo.checks import check_floating
from zoo.dtypes import accumulator


def fft_convolution(
    inputs: Float[Array, "B T D"], kernel: Float[Array, "L D"] | Float[Array, " L"]
) -> Float[Array, "B T D"]:
    """Causal convolution of every channel with its kernel.

    Args:
      inputs: [B, T, D], real, T >= 1.
      kernel: [L, D], or [L] for all channels alike, real, L >= 1; ``kernel[0]`` weighs the current step.

    Returns:
      [B, T, D] in the result type of both; computed in at least float32.

    Raises:
      TypeError: an argument is not real floating-point.
      ValueError: shapes do not fit, or T or L is 0.
    """
    for name, array in (("inputs", inputs), ("kernel", kernel)):
        check_floating(name, array)
        if jnp.issubdtype(array.dtype, jnp.complexfloating):
            raise TypeError(f"{name} must be real, got {array.dtype}")
    if inputs.ndim != 3:
        raise ValueError(f"inputs must have shape [batch, time, channels], got {list(inputs.shape)}")
    _, steps, channels = inputs.shape
    if kernel.ndim not in (1, 2) or (kernel.ndim == 2 and kernel.shape[1] not in (1, channels)):
        raise ValueError(f"kernel must have shape [length] or [length, {channels}], got {list(kernel.shape)}")
    if steps == 0 or kernel.shape[0] == 0:
        raise ValueError("inputs and kernel need at least one step each, got "
                         f"T = {steps} and L = {kernel.shape[0]}")  # fmt: skip
    dtype = jnp.result_type(inputs, kernel)
    carried = accumulator(dtype)
    kernel = (kernel if kernel.ndim == 2 else kernel[:, None])[:steps].astype(carried)
    size = fast_length(steps + kernel.shape[0] - 1)
    spectrum = jnp.fft.rfft(inputs.astype(carried), size, axis=1) * jnp.fft.rfft(kernel, size, axis=0)
    return jnp.fft.irfft(spectrum, size, axis=1)[:, :steps].astype(dtype)


def fast_length(least: int) -> int:
    """The smallest number 2^a 3^b 5^c that is at least ``least``."""
    best = 1 << (least - 1).bit_length()
    five = 1
    while five < best:
        three = five
        while three < best:
            rest = -(-least // three)
            best = min(best, three << (rest - 1).bit_length())
            three *= 3
        five *= 5
    return best
