"""The (gated) delta rule for GPU and TPU: a matrix memory that writes what its prediction lacks.

    S_t = exp(g_t) S_{t-1} + beta_t k_t (v_t - k_t exp(g_t) S_{t-1})^T      S_t [K, V], float32, on chip
    y_t = q_t S_t

Shapes, with G heads of q and k shared by H = G * R heads of v:

    q, k       [B, T, G, K]                float32 or bfloat16
    v          [B, T, H, V]
    beta       [B, T, H]
    log_decay  None or [B, T, H], <= 0
    initial    [B, H, K, V]                zero when None
    y          [B, T, H, V]                in the result type of q, k and v
    last       [B, H, K, V]                float32

In chunks of C steps (``chunk`` has the equations, also those of the adjoint). The triangular system of a chunk does not
depend on the state: a first kernel inverts the systems of all chunks at once, in float32, and the walk over the chunks is
products only. Products have operands in the storage type and float32 sums; gates, decays and the carried state are float32.

The backward pass needs the states at the chunk borders, what was written, u, and two matrices [C, C] per chunk, all in the
storage type: T (K V / C + V + 2 C) numbers per head, kept by a forward pass that is differentiated. First derivatives, in
reverse mode. What there is no kernel for (``tiles.fits``) runs ``reference``.

Schlag et al. (2021); Yang et al. (2024), arXiv 2406.06484 (chunks); Yang, Kautz and Hatamizadeh (2024), arXiv 2412.06464.
"""

import functools

import jax
import jax.numpy as jnp
from jax import Array

from pallas_kernels.chunked.tiles import NOTHING
from pallas_kernels.compat import resolve
from pallas_kernels.delta_rule import gpu, tpu
from pallas_kernels.delta_rule.reference import reference
from pallas_kernels.delta_rule.tiles import fits, tiles

_KERNELS = {"gpu": gpu, "tpu": tpu}


def delta_rule(
    q: Array,
    k: Array,
    v: Array,
    beta: Array,
    log_decay: Array | None = None,
    initial: Array | None = None,
    *,
    platform: str | None = None,
    interpret: bool | None = None,
) -> tuple[Array, Array]:
    """Runs the recurrence of the module docstring along axis 1.

    Args:
      q: [B, T, G, K], T >= 1.
      k: [B, T, G, K]; the recurrence is stable where 0 <= beta |k|^2 <= 2.
      v: [B, T, H, V], H a multiple of G.
      beta: [B, T, H], how much of the error is written.
      log_decay: [B, T, H] or None; -inf lets nothing through.
      initial: the state before the first step; zeros when None.
      platform: "gpu" or "tpu"; None is this machine's, "gpu" on a CPU.
      interpret: interpret the kernel; None does so where the machine is not of that platform.

    Returns:
      y: [B, T, H, V] in the result type of q, k and v.
      last: [B, H, K, V], float32 (float64 if an argument is).

    Raises:
      TypeError: an argument is not floating-point, or complex.
      ValueError: shapes do not fit, T = 0, or an unknown platform.
    """
    platform, interpret = resolve(platform, interpret)
    _check(q, k, v, beta, log_decay, initial)
    dtype = jnp.result_type(q, k, v)
    carried = jnp.float32
    for array in (q, k, v, beta, log_decay, initial):
        carried = carried if array is None else jnp.promote_types(carried, array.dtype)
    batch, steps, _, keys = q.shape
    heads, values = v.shape[2:]
    if initial is None:
        initial = jnp.zeros((batch, heads, keys, values), carried)
    if log_decay is None:
        log_decay = jnp.zeros((batch, steps, heads), carried)
    q, k, v = (a.astype(dtype) for a in (q, k, v))
    beta, log_decay, initial = (a.astype(carried) for a in (beta, log_decay, initial))
    if not fits(platform, keys, values, dtype) or carried != jnp.float32:
        return reference(q, k, v, beta, log_decay, initial)
    return _run((platform, interpret), q, k, v, beta, log_decay, initial)


def _check(q, k, v, beta, log_decay, initial):
    """Checks every array."""
    given = {"q": q, "k": k, "v": v, "beta": beta, "log_decay": log_decay, "initial": initial}
    for name, array in given.items():
        if array is None and name in ("log_decay", "initial"):
            continue
        if not jnp.issubdtype(getattr(array, "dtype", object), jnp.floating):
            raise TypeError(f"{name} must be a real floating-point array, got {getattr(array, 'dtype', type(array))}")
    if q.ndim != 4 or v.ndim != 4 or q.shape[1] == 0:
        raise ValueError(
            f"q and v must have shape [batch, time >= 1, heads, width], got {list(q.shape)} and {list(v.shape)}"
        )
    batch, steps, groups, keys = q.shape
    heads, values = v.shape[2:]
    if k.shape != q.shape or v.shape[:2] != (batch, steps) or heads % groups:
        raise ValueError(
            f"k must have the shape of q {list(q.shape)}, and v {[batch, steps, f'multiple of {groups}', 'width']}; "
            f"got {list(k.shape)} and {list(v.shape)}"
        )
    for name in ("beta", "log_decay"):
        if given[name] is not None and given[name].shape != (batch, steps, heads):
            raise ValueError(f"{name} must have shape {[batch, steps, heads]}, got {list(given[name].shape)}")
    if initial is not None and initial.shape != (batch, heads, keys, values):
        raise ValueError(f"initial must have shape {[batch, heads, keys, values]}, got {list(initial.shape)}")


def _plan(options, q, v):
    return tiles(options[0], v.shape[0] * v.shape[2], v.shape[1], q.shape[3], v.shape[3], v.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _run(options, q, k, v, beta, log_decay, initial):
    platform, interpret = options
    return _KERNELS[platform].forward(
        q, k, v, beta, log_decay, initial, _plan(options, q, v), keep=False, interpret=interpret
    )[:2]


def _forward(options, q, k, v, beta, log_decay, initial):
    platform, interpret = options
    y, last, kept = _KERNELS[platform].forward(
        q, k, v, beta, log_decay, initial, _plan(options, q, v), keep=True, interpret=interpret
    )
    return (y, last), (q, k, v, beta, log_decay, kept)


def _backward(options, residuals, cotangents):
    platform, interpret = options
    q, k, v, beta, log_decay, kept = residuals
    y_bar, last_bar = cotangents
    q_bar, k_bar, v_bar, beta_bar, decay_bar, initial_bar = _KERNELS[platform].backward(
        q, k, v, beta, log_decay, kept, y_bar.astype(v.dtype), last_bar, _plan(options, q, v), interpret=interpret
    )
    if q.shape[2] < v.shape[2]:
        q_bar, k_bar = (
            jnp.sum(a.reshape(*q.shape[:3], -1, q.shape[3]), axis=3).astype(q.dtype) for a in (q_bar, k_bar)
        )
    decay_bar = jnp.where(log_decay > NOTHING, decay_bar, 0)
    return q_bar, k_bar, v_bar, beta_bar, decay_bar, initial_bar


_run.defvjp(_forward, _backward)
