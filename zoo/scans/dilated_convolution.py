"""Dilated convolution over time: ``y_t = sum_k kernel[k] * inputs_{t - (K - 1 - ahead - k) * dilation}``.

Tap K - 1 - ahead is the current step, taps before it look back, ``ahead`` taps look forward (0: causal). Stacks of
them with dilations 1, f, f^2, ... reach far with few taps (van den Oord et al. 2016, WaveNet; Bai, Kolter, Koltun
2018, An Empirical Evaluation of Generic Convolutional and Recurrent Networks for Sequence Modeling):
``receptive_field`` says how far, and ``choose_dilations`` finds a stack for a wanted length.

Shapes: inputs [B, T, C]; kernel [K, C] (depthwise: a filter per channel) or [K, C, D] (channels are mixed); outputs
[B, T, C] or [B, T, D]. Steps outside of the sequence are zero. It has no state of its own: ``history`` holds the
inputs before the first step.

Computed as K shifted multiply-adds, in at least float32: O(K B T C) time; XLA makes one loop of them. Derivatives: the
gradient of the inputs is the convolution run the other way, that of the kernel one sum per tap. Both are stated to JAX
as transposes of the linear maps in the forward derivative, through ``lax.custom_linear_solve`` (y = C x is the
solution of the triangular system x = b, y - C x = 0), so forward mode and higher derivatives follow. JAX's own
transposes of padded slices are what this avoids; ``python -m benchmarks.tcnca`` measures the operator.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from zoo.checks import check_floating, check_positive
from zoo.dtypes import accumulator


def dilated_convolution(
    inputs: Float[Array, "B T C"],
    kernel: Float[Array, "K C"] | Float[Array, "K C D"],
    *,
    dilation: int = 1,
    ahead: int = 0,
    history: Float[Array, "B H C"] | None = None,
    before: Int[Array, "B T"] | None = None,
    after: Int[Array, "B T"] | None = None,
) -> Float[Array, "B T D"]:
    """The convolution of the module docstring.

    Args:
      inputs: [B, T, C], real, T >= 1.
      kernel: [K, C] or [K, C, D], the oldest step first.
      dilation: steps between taps.
      ahead: taps that look forward.
      history: the H steps before the first one, the latest last; zeros when None.
      before: steps that each step may look back (in a packed row: its position in its document); None: all.
      after: steps that each step may look forward, likewise.

    Returns:
      [B, T, C] or [B, T, D] in the dtype of ``inputs``; summed in at least float32.

    Raises:
      TypeError: an argument is not floating-point.
      ValueError: shapes do not fit, or ``dilation`` or ``ahead`` cannot be.
    """
    for name, array in (("inputs", inputs), ("kernel", kernel)):
        check_floating(name, array)
    check_positive("dilation", dilation)
    if inputs.ndim != 3 or inputs.shape[1] == 0:
        raise ValueError(f"inputs must have shape [batch, time >= 1, channels], got {list(inputs.shape)}")
    if kernel.ndim not in (2, 3) or kernel.shape[0] == 0 or kernel.shape[1] != inputs.shape[2]:
        wanted = f"[taps, {inputs.shape[2]}] or [taps, {inputs.shape[2]}, channels]"
        raise ValueError(f"kernel must have shape {wanted}, got {list(kernel.shape)}")
    taps, time = kernel.shape[0], inputs.shape[1]
    if not isinstance(ahead, int) or not 0 <= ahead < taps:
        raise ValueError(f"ahead must be an integer from 0 to {taps - 1}, got {ahead!r}")
    wide = accumulator(inputs.dtype, kernel.dtype)
    known = 0 if history is None else history.shape[1]
    x = inputs if not known else jnp.concatenate([history.astype(inputs.dtype), inputs], axis=1)
    offsets = [(tap + 1 - taps + ahead) * dilation for tap in range(taps)]
    used = [tap for tap in range(taps) if -known - time < offsets[tap] < time]  # the others read zeros alone
    static = _Taps(tuple(offsets[tap] for tap in used), known, time, wide)
    kernel = jnp.stack([kernel[tap] for tap in used]).astype(wide)
    return _convolution(static, x, kernel, (before, after)).astype(inputs.dtype)


class _Taps(NamedTuple):
    """Static shape: ``offsets`` of the taps in time, ``known`` steps of x before the ``time`` steps of y."""

    offsets: tuple[int, ...]
    known: int
    time: int
    wide: Any

    def inside(self, limits: tuple, offset: int) -> Array | None:
        """[B, T] whether the step at ``offset`` may be read; None: everywhere."""
        limit = limits[0 if offset < 0 else 1]
        return None if limit is None or not offset else limit >= abs(offset)


def _convolve(taps: _Taps, x: Array, kernel: Array, limits: tuple) -> Array:
    """y [B, T, D] from x [B, known + T, C]."""
    left, right = max(0, -taps.offsets[0] - taps.known), max(0, taps.offsets[-1])
    padded = jnp.pad(x, ((0, 0), (left, right), (0, 0)))
    total = jnp.zeros((), taps.wide)
    for offset, weight in zip(taps.offsets, kernel, strict=True):
        here = lax.slice_in_dim(padded, left + taps.known + offset, left + taps.known + offset + taps.time, axis=1)
        inside = taps.inside(limits, offset)
        total = total + _apply(here if inside is None else jnp.where(inside[..., None], here, 0), weight, taps.wide)
    return total


def _pull_back_inputs(taps: _Taps, y: Array, kernel: Array, limits: tuple) -> Array:
    """The transpose of ``_convolve`` in x, [B, known + T, C] from y [B, T, D]."""
    # step s of x is read by the steps t = s - known - offset of y
    left, right = max(0, taps.known + taps.offsets[-1]), max(0, -taps.offsets[0])

    def padded(a, value):
        widths = ((0, 0), (left, right), *((0, 0),) * (a.ndim - 2))
        return jnp.pad(a, widths, constant_values=value)

    wide_y = padded(y, 0)
    wide_limits = tuple(None if limit is None else padded(limit, -1) for limit in limits)
    total = jnp.zeros((), taps.wide)
    for offset, weight in zip(taps.offsets, kernel, strict=True):
        start = left - taps.known - offset
        here = lax.slice_in_dim(wide_y, start, start + taps.known + taps.time, axis=1)
        inside = taps.inside(wide_limits, offset)
        if inside is not None:
            inside = lax.slice_in_dim(inside, start, start + taps.known + taps.time, axis=1)
            here = jnp.where(inside[..., None], here, 0)
        total = total + _apply(here, weight.T, taps.wide)
    return total


def _pull_back_kernel(taps: _Taps, y: Array, x: Array, limits: tuple, depthwise: bool) -> Array:
    """The transpose of ``_convolve`` in the kernel, [taps, C] or [taps, C, D] from y [B, T, D]."""
    sums = []
    for offset in taps.offsets:
        first, last = max(0, -offset - taps.known), min(taps.time, taps.time - offset)
        here = lax.slice_in_dim(x, first + taps.known + offset, last + taps.known + offset, axis=1)
        there = lax.slice_in_dim(y, first, last, axis=1)
        inside = taps.inside(limits, offset)
        if inside is not None:
            there = jnp.where(inside[:, first:last, None], there, 0)
        if depthwise:
            sums.append(jnp.sum(here * there, axis=(0, 1)))
        else:
            sums.append(jnp.einsum("btc,btd->cd", here, there, preferred_element_type=taps.wide))
    return jnp.stack(sums)


def _apply(here: Array, weight: Array, wide: Any) -> Array:
    """``here`` [B, T, C] times one tap, [C] or [C, D]."""
    if weight.ndim == 1:
        return here * weight
    return jnp.einsum("btc,cd->btd", here, weight.astype(here.dtype), preferred_element_type=wide)


def _linear(forward: Callable, backward: Callable, right: Array) -> Array:
    """``forward(right)``, whose transpose is ``backward``: y of the triangular system x = right, y - forward(x) = 0."""

    def matvec(pair):
        return pair[0], pair[1] - forward(pair[0])

    def solve(_, right):
        return right[0], right[1] + forward(right[0])

    def transpose_solve(_, right):
        return right[0] + backward(right[1]).astype(right[0].dtype), right[1]

    # The whole right side must be a linear function of ``right`` in JAX's eyes: zeros grown from an empty slice of it.
    shape = jax.eval_shape(forward, right)
    empty = right[:0].reshape((0,) * len(shape.shape)).astype(shape.dtype)
    zeros = lax.pad(empty, jnp.zeros((), shape.dtype), [(0, size, 0) for size in shape.shape])
    return lax.custom_linear_solve(matvec, (right, zeros), solve, transpose_solve)[1]


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _convolution(taps: _Taps, x: Array, kernel: Array, limits: tuple) -> Array:
    """``_convolve`` with its derivatives."""
    return _convolve(taps, x, kernel, limits)


@_convolution.defjvp
def _convolution_jvp(taps, primals, tangents):
    x, kernel, limits = primals
    x_dot, kernel_dot, _ = tangents
    by_x = _linear(
        lambda x: _convolve(taps, x, kernel, limits), lambda y: _pull_back_inputs(taps, y, kernel, limits), x_dot
    )
    by_kernel = _linear(
        lambda kernel: _convolve(taps, x, kernel, limits),
        lambda y: _pull_back_kernel(taps, y, x, limits, kernel.ndim == 2),
        kernel_dot,
    )
    return _convolution(taps, x, kernel, limits), by_x + by_kernel


def receptive_field(taps: int, factor: int, depth: int, convolutions: int = 1) -> int:
    """Steps that the last layer of a stack reads, its own included: R = 1 + convolutions (taps - 1) sum_l factor^l.

    Args:
      taps: K of every layer.
      factor: f; layer l = 0 .. depth - 1 has dilation f^l.
      depth: layers.
      convolutions: convolutions in each layer, all of its dilation.
    """
    if not isinstance(taps, int) or taps < 2:
        raise ValueError(f"taps must be an integer of at least 2, got {taps!r}")
    for name, value in (("factor", factor), ("depth", depth), ("convolutions", convolutions)):
        check_positive(name, value)
    return 1 + convolutions * (taps - 1) * sum(factor**layer for layer in range(depth))


def choose_dilations(
    length: int, *, max_taps: int = 17, max_factor: int | None = None, depth: int | None = None
) -> tuple[int, int, int]:
    """The cheapest stack without gaps that reads ``length`` steps: (taps, factor, depth).

    Cost is taps times depth, multiply-adds per output. Without gaps means factor <= taps. Among equally cheap stacks
    the shallowest is taken, then the one with the shortest receptive field.

    Args:
      length: steps to be read, at least 2.
      max_taps: largest K.
      max_factor: largest f; None: K.
      depth: number of layers; None: any.

    Raises:
      ValueError: no such stack, or an argument cannot be.
    """
    if not isinstance(length, int) or length < 2:
        raise ValueError(f"length must be an integer of at least 2, got {length!r}")
    if not isinstance(max_taps, int) or max_taps < 2:
        raise ValueError(f"max_taps must be an integer of at least 2, got {max_taps!r}")
    for name, value in (("max_factor", max_factor), ("depth", depth)):
        if value is not None:
            check_positive(name, value)
    deepest = max(1, math.ceil(math.log2(length)))
    stacks = [
        (taps * layers, layers, reached, (taps, factor, layers))
        for layers in (range(1, deepest + 1) if depth is None else (depth,))
        for taps in range(2, max_taps + 1)
        for factor in range(1 if layers == 1 else 2, min(taps, max_factor or taps) + 1)
        if (reached := receptive_field(taps, factor, layers)) >= length
    ]
    if not stacks:
        raise ValueError(
            f"no stack with at most {max_taps} taps{'' if depth is None else f' and depth={depth}'} reads length={length}"
        )
    return min(stacks)[-1]
