"""Selective scan (Mamba's S6) for GPU and TPU: a diagonal state of size N per channel, discretised on chip.

    h_t = exp(delta_t A) h_{t-1} + delta_t B_t x_t        h_t [D, N], float32, on chip
    y_t = C_t h_t

Shapes:

    x, delta   [B, T, D]     float32 or bfloat16
    a          [D, N]        real
    b, c       [B, T, N]
    initial    [B, D, N]     zero when None
    reset      [B, T] bool   where the incoming state is replaced by zeros
    y          [B, T, D]     in the dtype of x
    last       [B, D, N]     float32

Every array is read once and y is written once; for the backward pass the states before every chunk of 64 (GPU) or 128 (TPU)
steps are written too. It computes the states in between again; gradients of b and c are summed over channels in two levels,
inside of a program and outside. What there is no kernel for (``tiles.fits``) runs ``reference``.
"""

import functools

import jax
import jax.numpy as jnp
from jax import Array

from pallas_kernels.compat import resolve
from pallas_kernels.selective_scan import gpu, tpu
from pallas_kernels.selective_scan.reference import reference
from pallas_kernels.selective_scan.tiles import fits, tiles

_KERNELS = {"gpu": gpu, "tpu": tpu}


def selective_scan(
    x: Array,
    delta: Array,
    a: Array,
    b: Array,
    c: Array,
    initial: Array | None = None,
    *,
    reset: Array | None = None,
    platform: str | None = None,
    interpret: bool | None = None,
) -> tuple[Array, Array]:
    """Runs ``h_t = exp(delta_t a) h_{t-1} + delta_t b_t x_t`` and reads ``y_t = c_t h_t``, along axis 1.

    Args:
      x, delta: [B, T, D], T >= 1.
      a: [D, N], real.
      b, c: [B, T, N].
      initial: [B, D, N], the state before the first step; zeros when None.
      reset: [B, T], True where the incoming state is replaced by zeros.
      platform: "gpu" or "tpu"; None is this machine's, "gpu" on a CPU.
      interpret: interpret the kernel; None does so where the machine is not of that platform.

    Returns:
      y: [B, T, D] in the dtype of x.
      last: [B, D, N], float32 (float64 if an argument is).

    Raises:
      TypeError: an argument is not floating-point, or complex; or reset is not bool.
      ValueError: shapes do not fit, T = 0, or an unknown platform.
    """
    platform, interpret = resolve(platform, interpret)
    _check(x, delta, a, b, c, initial, reset)
    given = [array.dtype for array in (x, delta, a, b, c, initial) if array is not None]
    carried = functools.reduce(jnp.promote_types, given, jnp.dtype(jnp.float32))
    batch, steps, channels = x.shape
    size = a.shape[1]
    initial = jnp.zeros((batch, channels, size), carried) if initial is None else initial.astype(carried)
    if carried != jnp.float32 or not all(fits(platform, size, array.dtype) for array in (x, delta, b, c)):
        return reference(x, delta, a.astype(carried), b, c, initial, reset)
    keep = None if reset is None else jnp.where(reset, 0.0, 1.0).astype(jnp.float32)
    plan = tiles(platform, steps, channels, size)
    arguments = (x, delta, jnp.swapaxes(a, 0, 1).astype(jnp.float32), b, c, keep, jnp.swapaxes(initial, 1, 2))
    y, last = _run((platform, interpret, plan), *arguments)
    return y, jnp.swapaxes(last, 1, 2)


def _check(x, delta, a, b, c, initial, reset):
    """Checks every array."""
    given = {"x": x, "delta": delta, "a": a, "b": b, "c": c, "initial": initial}
    for name, array in given.items():
        if not (array is None and name == "initial") and not jnp.issubdtype(
            getattr(array, "dtype", object), jnp.floating
        ):
            raise TypeError(f"{name} must be a real floating-point array, got {getattr(array, 'dtype', type(array))}")
    if x.ndim != 3 or x.shape[1] == 0 or a.ndim != 2:
        raise ValueError(
            f"x must have shape [batch, time >= 1, channels] and a [channels, state], got {list(x.shape)} and "
            f"{list(a.shape)}"
        )
    batch, steps, channels = x.shape
    column = (batch, steps, a.shape[1])
    wanted = {"delta": x.shape, "a": (channels, a.shape[1]), "b": column, "c": column}
    wanted["initial"] = (batch, channels, a.shape[1])
    for name, shape in wanted.items():
        if given[name] is not None and given[name].shape != shape:
            raise ValueError(f"{name} must have shape {list(shape)}, got {list(given[name].shape)}")
    if reset is not None and reset.dtype != jnp.bool_:
        raise TypeError(f"reset must be a bool array, got {reset.dtype}")
    if reset is not None and reset.shape != (batch, steps):
        raise ValueError(f"reset must have shape {[batch, steps]}, got {list(reset.shape)}")


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _run(options, *arguments):
    platform, interpret, plan = options
    return _KERNELS[platform].forward(*arguments, tiles=plan, borders=False, interpret=interpret)[:2]


def _forward(options, *arguments):
    platform, interpret, plan = options
    y, last, borders = _KERNELS[platform].forward(*arguments, tiles=plan, borders=True, interpret=interpret)
    return (y, last), (*arguments[:-1], borders)


def _backward(options, kept, cotangents):
    platform, interpret, plan = options
    _, _, _, b, c, keep, _ = kept
    y_bar, last_bar = cotangents
    x_bar, delta_bar, a_bar, b_bar, c_bar, start_bar = _KERNELS[platform].backward(
        *kept, y_bar, last_bar, tiles=plan, interpret=interpret
    )
    keep_bar = None if keep is None else jnp.zeros_like(keep)
    return x_bar, delta_bar, jnp.sum(a_bar, axis=0), b_bar.astype(b.dtype), c_bar.astype(c.dtype), keep_bar, start_bar


_run.defvjp(_forward, _backward)
