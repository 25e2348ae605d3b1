"""Diagonal linear recurrence ``h_t = decay_t * h_{t-1} + inputs_t`` along axis 1, for GPU and TPU.

Shapes, with ``...`` any trailing axes, N of them together:

    inputs   [B, T, ...]   float32, bfloat16, float16 (GPU) or complex64; a complex array is a pair of real planes inside
    decay    broadcasts to inputs; a decay that is constant in time is read once per tile, never expanded. Trailing axes
             of which only some are 1 are expanded
    initial  [B, ...]      zero when None
    states   [B, T, ...]   in the result type of decay and inputs
    last     [B, ...]      float32 or complex64

Everything is accumulated in float32. Bytes moved: forward decay, inputs and states once each; backward decay, states and
their cotangent once, and both results once; where time is cut into chunks (``tiles.gpu_tile``) the inputs once more.
What there is no kernel for (``tiles.fits``: float64, complex128, arrays of 2^31 elements or more) runs ``reference``.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import Array

from pallas_kernels.compat import resolve
from pallas_kernels.linear_scan import gpu, tpu
from pallas_kernels.linear_scan.planes import outer
from pallas_kernels.linear_scan.reference import reference
from pallas_kernels.linear_scan.tiles import fits

_KERNELS = {"gpu": gpu, "tpu": tpu}


def linear_scan(
    decay: Array,
    inputs: Array,
    initial: Array | None = None,
    *,
    reverse: bool = False,
    after: bool = False,
    platform: str | None = None,
    interpret: bool | None = None,
) -> tuple[Array, Array]:
    """Runs ``h_t = decay_t * h_{t-1} + inputs_t`` over axis 1.

    Args:
      decay: broadcasts to ``inputs``.
      inputs: [B, T, ...], T >= 1.
      initial: [B, ...], the state before the first step run; zeros when None.
      reverse: run from the end.
      after: the transposed recurrence: ``h_t = inputs_t + carry``, ``carry = decay_t * h_t``; ``initial`` and ``last`` are
        carries.
      platform: "gpu" or "tpu"; None is this machine's, "gpu" on a CPU.
      interpret: interpret the kernel; None does so where the machine is not of that platform.

    Returns:
      states: [B, T, ...] in the result type of ``decay`` and ``inputs``.
      last: [B, ...], the state (or carry) after the last step run, accumulated: float32 or complex64.

    Raises:
      TypeError: an argument is not floating-point or complex.
      ValueError: shapes do not fit, T = 0, or an unknown platform.
    """
    platform, interpret = resolve(platform, interpret)
    for name, array in (("decay", decay), ("inputs", inputs), ("initial", initial)):
        if array is not None and not jnp.issubdtype(getattr(array, "dtype", None), jnp.inexact):
            raise TypeError(
                f"{name} must be a floating-point array, got {getattr(array, 'dtype', type(array).__name__)}"
            )
    if inputs.ndim < 2 or inputs.shape[1] == 0:
        raise ValueError(f"inputs must have shape [batch, time, ...] with time >= 1, got {list(inputs.shape)}")
    shape = (1,) * (inputs.ndim - decay.ndim) + decay.shape
    if len(shape) != inputs.ndim or any(d not in (1, n) for d, n in zip(shape, inputs.shape, strict=True)):
        raise ValueError(f"decay of shape {list(decay.shape)} does not broadcast to inputs {list(inputs.shape)}")
    state = (inputs.shape[0], *inputs.shape[2:])
    if initial is not None and initial.shape != state:
        raise ValueError(f"initial must have shape {list(state)}, got {list(initial.shape)}")
    decay, inputs = jnp.asarray(decay).reshape(shape), jnp.asarray(inputs)
    dtype = jnp.result_type(decay, inputs)
    wide = jnp.promote_types(dtype, jnp.float32)
    if initial is None:
        initial = jnp.zeros(state, wide)
    initial = jnp.asarray(initial).astype(jnp.promote_types(wide, initial.dtype))

    if not fits(platform, inputs.size, decay.dtype, inputs.dtype, initial.dtype) or not inputs.size:
        return reference(decay, inputs, initial, reverse=reverse, after=after)
    trailing = math.prod(shape[2:])
    if trailing != math.prod(inputs.shape[2:]):
        decay = jnp.broadcast_to(decay, (*shape[:2], *inputs.shape[2:]))
    flat = (
        decay.reshape(*shape[:2], -1),
        inputs.reshape(*inputs.shape[:2], -1).astype(dtype),
        initial.reshape(len(inputs), -1),
    )
    options = (reverse, after, platform, interpret)
    states, last = scan_planes(options, *(_planes(a) for a in flat))
    return _whole(states).astype(dtype).reshape(inputs.shape), _whole(last).reshape(state)


def _planes(array):
    return (array.real, array.imag) if jnp.iscomplexobj(array) else (array,)


def _whole(planes):
    return jax.lax.complex(*planes) if len(planes) == 2 else planes[0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def scan_planes(options, decay, inputs, initial):
    """The recurrence on planes [B or 1, T or 1, N], [B, T, N], [B, N]; options (reverse, after, platform, interpret)."""
    reverse, after, platform, interpret = options
    return _KERNELS[platform].scan(decay, inputs, initial, reverse=reverse, after=after, interpret=interpret)


def _scan_forward(options, decay, inputs, initial):
    states, last = scan_planes(options, decay, inputs, initial)
    return (states, last), (decay, states, initial)


def _scan_backward(options, kept, cotangents):
    reverse, after, platform, interpret = options
    decay, states, initial = kept
    states_bar, last_bar = cotangents
    if after:
        # the transposed of the transposed recurrence is the plain one; what its carries meet is the next output
        inputs_bar, initial_bar = _KERNELS[platform].scan(
            decay, states_bar, last_bar, reverse=not reverse, after=False, conjugated=True, interpret=interpret
        )
        end = [p[:, None].astype(q.dtype) for p, q in zip(last_bar, inputs_bar, strict=True)]
        beside = tuple(
            jnp.concatenate([e, p[:, :-1]] if reverse else [p[:, 1:], e], axis=1)
            for e, p in zip(end, inputs_bar, strict=True)
        )
        decay_bar = outer(beside, states, len(decay))
    else:
        inputs_bar, decay_bar, initial_bar = _KERNELS[platform].gradient(
            decay, states, initial, states_bar, last_bar, reverse=reverse, interpret=interpret
        )
    decay_bar = tuple(
        jnp.sum(b.astype(jnp.float32), [i for i in (0, 1) if d.shape[i] == 1 < b.shape[i]], keepdims=True).astype(
            d.dtype
        )
        for b, d in zip(decay_bar, decay, strict=True)
    )
    return decay_bar, inputs_bar, initial_bar


scan_planes.defvjp(_scan_forward, _scan_backward)
