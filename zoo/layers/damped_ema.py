"""Multi-head damped exponential moving average: N decaying sums per channel, mixed into one output.

Ma, Zhou, Kong, He, Gui, Neubig, May, Zettlemoyer (2022), Mega: Moving Average Equipped Gated Attention, arXiv
2209.10655.

For every channel j of D, with N hidden entries and all parameters [D, N] but omega [D]:

    p = sigmoid(delta),  q = 1 - p sigmoid(alpha)        0 < q < 1
    h_t = q h_{t-1} + p beta x_t                         [D, N]
    e_t = sum_n gamma h_t / sqrt(N)                      [D]
    y_t = SiLU(e_t + omega x_t)

It is the convolution with the kernel k_l = sum_n gamma p beta q^l / sqrt(N). With ``truncation`` only its first taps
count, l < truncation; as a recurrence, the input that leaves the window is taken away again: p beta (x_t -
q^truncation x_{t-truncation}) takes the place of p beta x_t. The bidirectional form has a second set of parameters for
the other direction (rows D .. 2D) and adds both; either includes the present step.

Forms, all with the same numbers: "scan", the recurrence (O(T D N) time and memory), which carries a state and is cut
at document starts; "fft", the convolution (O(T D (N + log T)) time, O(T D N) memory for the powers of q, whatever the
batch), for rows that are one document. Both run in at least float32. The FFT's rounding reaches every step,
earlier ones too; the recurrence is causal to the bit.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from zoo.checks import check_choice, check_positive
from zoo.dtypes import accumulator
from zoo.layers.attention import document_positions, unroll_ring
from zoo.scans import fft_convolution, linear_scan

METHODS = ("auto", "fft", "scan")


@struct.dataclass
class EMAState:
    """Carried state: ``hidden`` [B, D, N]; ``ring`` [B, W, D] of the last W = truncation inputs (W = 0: no truncation);
    ``slot`` [B] int32, where the next input goes; ``age`` [B] int32, tokens of the document so far."""

    hidden: Float[Array, "B D N"]
    ring: Float[Array, "B W D"]
    slot: Int[Array, " B"]
    age: Int[Array, " B"]


def damped_ema(
    params: Mapping[str, Array],
    x: Float[Array, "B T D"],
    state: EMAState | None = None,
    *,
    truncation: int | None = None,
    reset: Bool[Array, "B T"] | None = None,
    method: str = "auto",
    scan_method: str = "auto",
) -> tuple[Float[Array, "B T D"], EMAState]:
    """The causal form of the module docstring.

    Args:
      params: ``delta``, ``alpha``, ``beta``, ``gamma`` [D, N]; ``omega`` [D].
      x: inputs.
      state: state before the first token, None for the start.
      truncation: taps that count; None: all.
      reset: True at the first token of a new document.
      method: "fft", "scan" or "auto": the FFT for more than one token of one document.
      scan_method: how the scan is computed, see ``zoo.scans.linear_scan``.

    Returns:
      (y in x's dtype, state after the last token).

    Raises:
      ValueError: "fft" with resets, or with truncation and a state.
    """
    check_choice("method", method, METHODS)
    batch, time = x.shape[:2]
    dtype = accumulator(x.dtype, params["delta"].dtype)
    log_q, into, out_of = coefficients(params, dtype)
    wide = x.astype(dtype)
    age = document_positions(reset, None if state is None else state.age, shape=(batch, time))
    slides = truncation is not None and state is not None
    if method == "fft" and (reset is not None or slides):
        raise ValueError("method='fft' is for one document per row, and for truncation from the start on; use 'scan'")
    scans = method == "scan" or (method == "auto" and (reset is not None or slides or time == 1))
    ring, slot = (None, jnp.zeros((batch,), jnp.int32)) if state is None else (state.ring, state.slot)
    if scans:
        inputs, decay = wide[..., None] * into, jnp.exp(log_q)[None, None]
        if truncation is not None:
            leaving = _delayed(wide, ring, slot, truncation)
            leaving = jnp.where((age >= truncation)[..., None], leaving, 0)
            inputs = inputs - leaving[..., None] * (into * jnp.exp(truncation * log_q))
        if reset is not None:
            decay = jnp.where(reset[..., None, None], 0, decay)
        hidden, last = linear_scan(decay, inputs, None if state is None else state.hidden, method=scan_method)
        e = jnp.einsum("btdn,dn->btd", hidden, out_of)
    else:
        powers = jnp.exp(jnp.arange(time, dtype=dtype)[:, None, None] * log_q)  # [T, D, N]
        taps = time if truncation is None else min(time, truncation)
        e = fft_convolution(wide, jnp.einsum("ldn,dn->ld", powers[:taps], into * out_of))
        last = into * jnp.einsum("bld,ldn->bdn", jnp.flip(wide[:, -taps:], axis=1), powers[:taps])
        if state is not None:
            start = state.hidden.astype(dtype)
            e = e + jnp.einsum("ldn,dn,bdn->bld", powers, out_of * jnp.exp(log_q), start)
            last = last + jnp.exp(time * log_q) * start
    y = jax.nn.silu(e + params["omega"].astype(dtype) * wide).astype(x.dtype)
    return y, EMAState(last, _pushed(wide, ring, slot, truncation or 0), _moved(slot, time, truncation), age[:, -1] + 1)


def bidirectional_damped_ema(
    params: Mapping[str, Array],
    x: Float[Array, "B T D"],
    *,
    truncation: int | None = None,
    reset: Bool[Array, "B T"] | None = None,
) -> Float[Array, "B T D"]:
    """The bidirectional form: ``delta``, ``alpha``, ``beta``, ``gamma`` are [2D, N], forward rows first; ``omega`` [D]."""
    dtype, dim = accumulator(x.dtype, params["delta"].dtype), x.shape[-1]
    log_q, into, out_of = coefficients(params, dtype)
    wide, taps = x.astype(dtype), min(truncation or x.shape[1], x.shape[1])

    def one_way(rows, x, starts):
        if starts is None:
            powers = jnp.exp(jnp.arange(taps, dtype=dtype)[:, None, None] * log_q[rows])
            return fft_convolution(x, jnp.einsum("ldn,dn->ld", powers, (into * out_of)[rows]))
        inputs = x[..., None] * into[rows]
        if truncation is not None:
            leaving = _delayed(x, None, None, truncation)
            leaving = jnp.where((document_positions(starts) >= truncation)[..., None], leaving, 0)
            inputs = inputs - leaving[..., None] * (into * jnp.exp(truncation * log_q))[rows]
        hidden, _ = linear_scan(jnp.where(starts[..., None, None], 0, jnp.exp(log_q[rows])), inputs)
        return jnp.einsum("btdn,dn->btd", hidden, out_of[rows])

    starts = None
    if reset is not None:
        # backwards a document begins at its last token, the one before a first token
        starts = jnp.flip(jnp.concatenate([reset[:, 1:], jnp.zeros_like(reset[:, :1])], axis=1), axis=1)
    e = one_way(slice(0, dim), wide, reset)
    e = e + jnp.flip(one_way(slice(dim, None), jnp.flip(wide, axis=1), starts), axis=1)
    return jax.nn.silu(e + params["omega"].astype(dtype) * wide).astype(x.dtype)


def coefficients(params: Mapping[str, Array], dtype: Any) -> tuple[Array, Array, Array]:
    """(log q, p beta, gamma / sqrt(N)), each [D, N]; q is kept above 0."""
    delta, alpha, beta, gamma = (params[name].astype(dtype) for name in ("delta", "alpha", "beta", "gamma"))
    p = jax.nn.sigmoid(delta)
    # sigmoids round to 1: their product is kept below, so that q is not 0
    lost = jnp.minimum(p * jax.nn.sigmoid(alpha), 1 - jnp.finfo(dtype).epsneg)
    return jnp.log1p(-lost), p * beta, gamma * gamma.shape[-1] ** -0.5


def _delayed(x, ring, slot, delay):
    """x_{t - delay}, from the ring where that is before x."""
    time = x.shape[1]
    if ring is None:
        return jnp.pad(x, ((0, 0), (min(delay, time), 0), (0, 0)))[:, :time]
    if time == 1:
        return ring[jnp.arange(len(x)), slot][:, None].astype(x.dtype)
    known = unroll_ring(ring[:, :, None], slot)[:, :, 0].astype(x.dtype)
    return jnp.concatenate([known, x], axis=1)[:, :time]


def _pushed(x, ring, slot, size):
    """The ring after all of x."""
    batch, time, dim = x.shape
    if not size:
        return jnp.zeros((batch, 0, dim), x.dtype)
    if ring is not None and time == 1:
        return ring.at[jnp.arange(batch), slot].set(x[:, 0].astype(ring.dtype))
    known = jnp.zeros((batch, size, dim), x.dtype) if ring is None else unroll_ring(ring[:, :, None], slot)[:, :, 0]
    last = jnp.concatenate([known.astype(x.dtype), x], axis=1)[:, -size:]
    return unroll_ring(last[:, :, None], -(slot + time) % size)[:, :, 0]


def _moved(slot, time, size):
    return slot if not size else (slot + time) % size


def initial_ema(batch_size: int, dim: int, state_dim: int, truncation: int | None, dtype: Any) -> EMAState:
    """The state before the first token."""
    count = jnp.zeros((batch_size,), jnp.int32)
    return EMAState(
        jnp.zeros((batch_size, dim, state_dim), accumulator(dtype)),
        jnp.zeros((batch_size, truncation or 0, dim), accumulator(dtype)), count, count,
    )  # fmt: skip


def ema_parameters(
    module: nn.Module, *, dim: int, state_dim: int, truncation: int | None = None, bidirectional: bool = False
) -> dict[str, Array]:
    """Checks the sizes and declares the parameters on ``module``.

    At initialisation delta and alpha are N(0, 0.2^2), beta alternates between 1 and -1 plus N(0, 0.02^2), gamma and
    omega are N(0, 1).
    """
    check_positive("state_dim", state_dim)
    if truncation is not None:
        check_positive("truncation", truncation)
    shape = ((2 if bidirectional else 1) * dim, state_dim)

    def alternating(key, shape):
        return jnp.where(jnp.arange(shape[1]) % 2, -1.0, 1.0) + 0.02 * jax.random.normal(key, shape)

    wide = nn.initializers.normal(1.0)
    declared = {
        "delta": nn.initializers.normal(0.2),
        "alpha": nn.initializers.normal(0.2),
        "beta": alternating,
        "gamma": wide,
    }
    return {name: module.param(name, how, shape) for name, how in declared.items()} | {
        "omega": module.param("omega", wide, (dim,))
    }
