"""A nonlinear recurrence solved by Newton's method in one kernel: ParaGRU and ParaLSTM, for GPU and TPU.

    p        [B, T, 3, N] or [B, T, 3 N]   what drives the gates; float32, bfloat16 or float16 (GPU)
    params   {"A": [3, N]} (paragru), {"A": [3, N], "C": [2, N]} (paralstm); rows as in ``reference``
    initial  [B, k N]                      k = 1: h; k = 2: c then h
    states   [B, T, k N]                   float32
    last     [B, k N]                      float32

The cells are in ``reference``. Time goes chunk by chunk, each from the solved last state of the one before; inside a
chunk every iteration evaluates the cell and its Jacobian at all steps, solves the linear recurrence ``d_t = J_t d_{t-1} +
r_t``, and adds it. All of it happens on chip in float32: p is read once, the states are written once. The derivative is
that of the exact solution (implicit function theorem): one kernel runs the transposed recurrence backwards with the
Jacobians computed again, and writes the cotangent of p and sums over time for the weights. On a TPU [B, T, 3 N] spares a
copy, and N is padded to a multiple of 128.

What there is no kernel for (``tiles.fits``: float64, very many channels on TPU) runs ``reference``, which is exact.
"""

import functools
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from pallas_kernels.compat import resolve
from pallas_kernels.newton import gpu, tpu
from pallas_kernels.newton.reference import CELLS, reference
from pallas_kernels.newton.tiles import fits

_KERNELS = {"gpu": gpu, "tpu": tpu}
DEFAULT_TOLERANCE = 64 * 2.0**-23


class NewtonDiagnostics(NamedTuple):
    """What a solve has come to. No derivative passes through it.

    Attributes:
      iterations: done for every row of the batch, tile of channels and chunk of time, [B, tiles, chunks].
      residuals: largest ``|f(h_{t-1}, p_t) - h_t|`` of the returned states, for each of them; infinite for a NaN.
      residual: the largest of all.
      converged: it is at most the tolerance (64 roundings of float32 when none was given).
      finite: it is finite.
    """

    iterations: Array
    residuals: Array
    residual: Array
    converged: Array
    finite: Array


def newton(
    cell: str,
    p: Array,
    params: Mapping[str, Array],
    initial: Array | None = None,
    *,
    iterations: int = 3,
    tolerance: float | None = None,
    platform: str | None = None,
    interpret: bool | None = None,
) -> tuple[Array, Array, NewtonDiagnostics]:
    """Solves ``h_t = cell(h_{t-1}, p_t)`` for all t.

    Args:
      cell: "paragru" or "paralstm".
      p: [B, T, 3, N] or [B, T, 3 N], T >= 1.
      params: recurrent weights, see the module docstring.
      initial: state before the first step; zeros when None.
      iterations: of every chunk of time; with ``tolerance`` the most.
      tolerance: a chunk is done when the residual at the start of an iteration was at most this.
      platform: "gpu" or "tpu"; None is this machine's, "gpu" on a CPU.
      interpret: interpret the kernel; None does so where the machine is not of that platform.

    Returns:
      (states, last, diagnostics). States that have not converged are returned as they are: look at
      ``diagnostics.converged``.

    Raises:
      TypeError: an array is not real floating-point.
      ValueError: an unknown cell or platform, shapes that do not fit, T = 0, iterations or tolerance out of range.
    """
    platform, interpret = resolve(platform, interpret)
    p, weights, initial = _checked(cell, p, params, initial, iterations, tolerance)
    width = weights.shape[1]
    if fits(platform, p.size, width, p.dtype, weights.dtype, initial.dtype) and p.size:
        options = (cell, iterations, tolerance, platform, interpret)
        initial, weights = initial.astype(jnp.float32), weights.astype(jnp.float32)
        states, last, counts, residuals = _solve(options, p, weights, initial)
    else:
        states, last = reference(cell, p.reshape(*p.shape[:2], 3, width), weights, initial)
        counts, residuals = jnp.zeros((len(p), 1, 1), jnp.int32), jnp.zeros((len(p), 1, 1), states.dtype)
        bad = ~jnp.isfinite(states.reshape(len(p), -1)).all(1)
        residuals = jnp.where(bad[:, None, None], jnp.inf, residuals)
    residuals = jax.lax.stop_gradient(residuals)
    residual = jnp.max(residuals)
    limit = DEFAULT_TOLERANCE if tolerance is None else tolerance
    return states, last, NewtonDiagnostics(counts, residuals, residual, residual <= limit, jnp.isfinite(residual))


def _checked(cell, p, params, initial, iterations, tolerance):
    """Checks every argument; returns p [B, T, 3 N], the weights' rows in one array, and ``initial``."""
    if cell not in CELLS:
        raise ValueError(f"cell={cell!r} is not one of {', '.join(CELLS)}")
    known = CELLS[cell]
    if set(params) != {name for name, _ in known.weights}:
        raise ValueError(
            f"params of {cell} are {', '.join(n for n, _ in known.weights)}, got {', '.join(sorted(params))}"
        )
    for name, array in (("p", p), *params.items(), ("initial", initial)):
        if array is not None and not jnp.issubdtype(getattr(array, "dtype", None), jnp.floating):
            raise TypeError(f"{name} must be a real array, got {getattr(array, 'dtype', type(array).__name__)}")
    if p.ndim not in (3, 4) or p.shape[1] == 0 or (p.shape[2] != 3 if p.ndim == 4 else p.shape[2] % 3):
        raise ValueError(
            f"p must have shape [batch, time, 3, N] or [batch, time, 3 N] with time >= 1, got {list(p.shape)}"
        )
    width = p.shape[3] if p.ndim == 4 else p.shape[2] // 3
    for name, rows in known.weights:
        if tuple(params[name].shape) != (rows, width):
            raise ValueError(f"{name} must have shape {[rows, width]}, got {list(params[name].shape)}")
    state = (p.shape[0], known.planes * width)
    if initial is not None and tuple(initial.shape) != state:
        raise ValueError(f"initial must have shape {list(state)}, got {list(initial.shape)}")
    if not isinstance(iterations, int) or iterations < 1:
        raise ValueError(f"iterations must be a positive integer, got {iterations!r}")
    if tolerance is not None and not tolerance >= 0:
        raise ValueError(f"tolerance must be at least 0, got {tolerance}")
    weights = jnp.concatenate([jnp.asarray(params[name]) for name, _ in known.weights])
    if initial is None:
        initial = jnp.zeros(state, jnp.promote_types(p.dtype, jnp.float32))
    return jnp.asarray(p).reshape(*p.shape[:2], 3 * width), weights, jnp.asarray(initial)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _solve(options, p, weights, initial):
    """(states, last, iterations, residuals); the derivative is that of the exact solution."""
    cell, iterations, tolerance, platform, interpret = options
    states, counts, residuals = _KERNELS[platform].solve(
        cell, p, weights, initial, iterations=iterations, tolerance=tolerance, interpret=interpret
    )
    return states, states[:, -1], counts, residuals


def _solve_forward(options, p, weights, initial):
    results = _solve(options, p, weights, initial)
    return results, (p, weights, initial, results[0])


def _solve_backward(options, kept, cotangents):
    cell, _, _, platform, interpret = options
    p, weights, initial, states = kept
    states_bar, last_bar = cotangents[:2]
    p_bar, weights_bar, initial_bar = _KERNELS[platform].gradient(
        cell, p, weights, initial, states, states_bar, last_bar, interpret=interpret
    )
    return p_bar, jnp.sum(weights_bar, axis=0), initial_bar


_solve.defvjp(_solve_forward, _solve_backward)
