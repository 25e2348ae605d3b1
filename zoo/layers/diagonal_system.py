"""A diagonal linear system that does not change in time, one per channel, by convolution or by a scan.

With u_t [D] the inputs and h_t [D, N] the complex state, all products elementwise:

    h_t = decay h_{t-1} + gain u_t          decay, gain, readout [D, N] complex
    y_t = Re sum_n readout h_t              (a system of conjugate pairs has its factor 2 in ``readout``)

Forms, the same numbers up to rounding:

    kernel  y = K * u + R, an FFT convolution with the impulse response K_l = Re sum_n readout gain decay^l, plus the
            response R_l = Re sum_n readout decay^(l+1) h_{-1} to the state that came in; the last state is
            decay^T h_{-1} + sum_s decay^(T-1-s) gain u_s. O(T log T + T N) per row and channel, never a state per step
    scan    ``linear_scan``: the states of all steps, O(T N) time and memory per row and channel; documents may end within

All three sums over n and l are products with a Vandermonde matrix V_nl = decay_n^l. It is never made: with l = i J +
j, J about sqrt(T), decay^l = (decay^J)^i decay^j, and a sum is one product of matrices of sqrt(T) columns each.

Rounding. Powers come from repeated products, so that decay^l has a relative error of about 2 l eps, whatever the
frequency. That is what rounding ``decay`` once costs any form: the phase of a mode that does not decay is known to
about l eps after l steps, 1e-4 rad after a thousand and 1e-2 after a hundred thousand steps in float32.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Complex, Float

from zoo.checks import check_choice, check_positive
from zoo.scans import fft_convolution, linear_scan

FORMS = ("auto", "kernel", "scan")


def choose_form(form: str, time: int, reset: Bool[Array, "B T"] | None) -> str:
    """The form to take, "kernel" or "scan": the kernel form is for whole documents of more than one step.

    Raises:
      ValueError: an unknown form, or form="kernel" with document resets.
    """
    check_choice("form", form, FORMS)
    if form == "kernel" and reset is not None:
        raise ValueError("form='kernel' is one convolution over the whole sequence, it cannot have resets; use 'scan'")
    if form == "auto":
        return "kernel" if reset is None and time > 1 else "scan"
    return form


def diagonal_system(
    decay: Complex[Array, "D N"],
    gain: Complex[Array, "D N"],
    readout: Complex[Array, "D N"],
    inputs: Float[Array, "B T D"],
    initial: Complex[Array, "B D N"] | None = None,
    *,
    reset: Bool[Array, "B T"] | None = None,
    form: str = "auto",
) -> tuple[Float[Array, "B T D"], Complex[Array, "B D N"]]:
    """Runs the system of the module docstring.

    Args:
      decay: factor of the state per step.
      gain: of the input into the state.
      readout: of the state into the output.
      inputs: u, in the dtype of the recurrence.
      initial: h_{-1}; None for zeros.
      reset: True at the first token of a new document: the scan form, then.
      form: "auto", "kernel" or "scan"; auto takes the kernel for more than one step without resets.

    Returns:
      (y, the state after the last step).
    """
    batch, time, _ = inputs.shape
    if choose_form(form, time, reset) == "kernel":
        y = fft_convolution(inputs, diagonal_kernel(decay, readout * gain, time))
        last = _final_state(decay, gain, inputs)
        if initial is not None:
            y = y + diagonal_kernel(decay, readout * decay * initial, time)
            last = last + decay**time * initial
        return y, last
    if initial is None:
        initial = jnp.zeros((batch, *decay.shape), decay.dtype)
    transition = decay[None, None]
    if reset is not None:
        transition = jnp.where(reset[..., None, None], 0, transition)
    hidden, last = linear_scan(transition, gain * inputs[..., None], initial)
    return jnp.sum((readout * hidden).real, axis=-1), last


def diagonal_kernel(
    decay: Complex[Array, "D N"], weights: Complex[Array, "*B D N"], length: int
) -> Float[Array, "*B L D"]:
    """Re sum_n weights_n decay_n^l for l = 0 .. ``length`` - 1: a real Vandermonde product."""
    check_positive("length", length)
    fine, coarse = _two_levels(decay, length)
    left = weights[..., None] * coarse
    left = jnp.concatenate([left.real, -left.imag], axis=-2)
    right = jnp.concatenate([fine.real, fine.imag], axis=-2)
    kernel = jnp.einsum("...dni,dnj->...ijd", left, right, precision=jax.lax.Precision.HIGHEST)
    return kernel.reshape(*kernel.shape[:-3], -1, kernel.shape[-1])[..., :length, :]


def powers(base: Complex[Array, "*N"], count: int) -> Complex[Array, "*N K"]:
    """base^0 .. base^(count - 1) on a new last axis, by doubling: log2(count) products."""
    table, factor = jnp.ones((*base.shape, 1), base.dtype), base[..., None]
    while table.shape[-1] < count:
        table = jnp.concatenate([table, table * factor], axis=-1)
        factor = factor * factor
    return table[..., :count]


def _two_levels(decay, length):
    """(decay^j for j < J, decay^(i J) for i < I) with I J >= length."""
    inner = math.isqrt(length - 1) + 1
    fine = powers(decay, inner)
    return fine, powers(fine[..., -1] * decay, -(-length // inner))


def _final_state(decay, gain, inputs):
    """gain sum_s decay^(T-1-s) u_s."""
    time = inputs.shape[1]
    fine, coarse = _two_levels(decay, time)
    sizes = coarse.shape[-1], fine.shape[-1]
    padded = jnp.pad(inputs, ((0, 0), (sizes[0] * sizes[1] - time, 0), (0, 0)))
    padded = padded.reshape(len(inputs), *sizes, -1)[:, ::-1, ::-1]  # newest first: place i J + j is i J + j steps ago
    split = jnp.concatenate([fine.real, fine.imag], axis=-2)
    parts = jnp.einsum("bijd,dnj->bdni", padded, split, precision=jax.lax.Precision.HIGHEST)
    parts = jax.lax.complex(*jnp.split(parts, 2, axis=2))
    return gain * jnp.sum(parts * coarse, axis=-1)
