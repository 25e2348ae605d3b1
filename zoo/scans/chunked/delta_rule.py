"""The gated delta rule: a matrix memory that writes what its prediction lacks.

    S_t = exp(g_t) S_{t-1} + beta_t k_t (v_t - k_t exp(g_t) S_{t-1})^T      S_t [K, V] per batch row and head
    y_t = q_t S_t

Schlag et al. (2021), Linear Transformers Are Secretly Fast Weight Programmers (the delta rule, without g); Yang et al.
(2024), Parallelizing Linear Transformers with the Delta Rule, arXiv 2406.06484 (chunks); Yang, Kautz and Hatamizadeh
(2024), Gated Delta Networks, arXiv 2412.06464. With keys of length 1, beta = 1 overwrites what is stored under k_t.
Normalising and scaling queries and keys is the caller's. Shapes, with G heads of q and k shared by H = G R heads of v
(head h uses q and k of head h // R), as in ``linear_attention``:

    q, k       [B, T, G, K]
    v          [B, T, H, V]
    beta       [B, T, H]
    log_decay  [B, T, H] or None, g <= 0; -inf at the first token of a document lets exactly nothing through
    initial    [B, H, K, V]

Forms, all with the same numbers up to rounding:

    sequential   T steps, the meaning
    chunked      chunks of C steps. With G_ij = exp(g_{j+1} + ... + g_i) for j <= i, else 0, and p_i = exp(g_1 + ... + g_i),
                 what is written, u_i = beta_i (v_i - k_i exp(g_i) S_{i-1}), solves the unit lower triangular system

                     u_i + beta_i sum_{j<i} G_ij (k_i . k_j) u_j = beta_i (v_i - p_i k_i S_0)

                 whose solution is U - W S_0, with U and W solved for all chunks at once; then y_i = p_i q_i S_0 +
                 sum_j G_ij (q_i . k_j) u_j, and only the state goes from chunk to chunk. T/C dependent steps
    pallas       a kernel of ``pallas_kernels``, interpreted on CPU; first derivatives in reverse mode only, and products
                 of 16-bit operands where q, k and v are

No exponent is positive. Everything else is computed in at least float32, with derivatives of any order in both modes;
reverse mode stores the inputs, U, W and the states at the chunk borders, and computes a chunk again when it gets there.

Cost per head: O(T K V) sequential; O(T K V + T C (C + K + V)) chunked, in matrix products and triangular solves.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float

from pallas_kernels import operation
from zoo.checks import check_choice, check_floating
from zoo.dtypes import accumulator
from zoo.scans import _auto
from zoo.scans.chunked.decay import _bounded, _check, _matmul, _spread, _sums_between

METHODS = ("auto", "sequential", "chunked", "pallas")


def gated_delta_rule(
    q: Float[Array, "B T G K"],
    k: Float[Array, "B T G K"],
    v: Float[Array, "B T H V"],
    beta: Float[Array, "B T H"],
    log_decay: Float[Array, "B T H"] | None = None,
    initial: Float[Array, "B H K V"] | None = None,
    *,
    method: str = "auto",
    chunk_size: int | None = None,
) -> tuple[Float[Array, "B T H V"], Float[Array, "B H K V"]]:
    """Runs the gated delta rule of the module docstring along axis 1.

    Args:
      q: [B, T, G, K], T >= 1; no scale is applied.
      k: [B, T, G, K]; the recurrence is stable where 0 <= beta |k|^2 <= 2.
      v: [B, T, H, V], H a multiple of G.
      beta: [B, T, H], how much of the error is written.
      log_decay: [B, T, H], <= 0, -inf allowed; None: no decay.
      initial: [B, H, K, V], the state before the first step; zeros when None.
      method: one of ``METHODS``; "auto" chooses from platform and shape by the table in ``zoo.scans._auto``.
      chunk_size: steps per chunk of the chunked form (any T is allowed); chosen by the same table when None.

    Returns:
      y: [B, T, H, V] in the result type of q, k and v.
      last: [B, H, K, V], the state after the last step, in the accumulation type (at least float32).

    Raises:
      TypeError: an argument is not floating-point, or complex.
      ValueError: shapes do not fit, T = 0, or an unknown method.
    """
    check_choice("method", method, METHODS)
    _check(q, k, v, log_decay, initial, "auto", chunk_size)
    check_floating("beta", beta)
    batch, steps, groups, keys = q.shape
    heads, values = v.shape[2:]
    for name, array in (("beta", beta), ("log_decay", log_decay)):
        if array is not None and tuple(array.shape) != (batch, steps, heads):
            raise ValueError(f"{name} must have shape {[batch, steps, heads]}, got {list(array.shape)}")
    dtype = jnp.result_type(q, k, v)
    carried = accumulator(*(a.dtype for a in (q, k, v, beta, log_decay, initial) if a is not None))
    form, size = _auto.delta_form(method, chunk_size, steps, keys, values, dtype)
    if form == "pallas":
        return operation("delta_rule")(q, k, v, beta, log_decay, initial, **_auto.kernel_options())
    share = heads // groups

    def cut(array):
        """[B, T, G R or G, X] -> [chunks, B, G, R or 1, C, X]; steps of zeros at the end change no state."""
        array = array.astype(carried).reshape(batch, steps, groups, -1, array.shape[-1])
        array = jnp.pad(array, [(0, 0), (0, -steps % size)] + [(0, 0)] * 3)
        array = array.reshape(batch, -1, size, *array.shape[2:])
        return jnp.transpose(array, (1, 0, 3, 4, 2, 5))

    decay = jnp.zeros_like(beta, carried) if log_decay is None else _bounded(log_decay.astype(carried))
    inputs = tuple(cut(a) for a in (q, k, v, beta[..., None], decay[..., None]))
    if initial is None:
        state = jnp.zeros((batch, groups, share, keys, values), carried)
    else:
        state = initial.astype(carried).reshape(batch, groups, share, keys, values)
    if form == "sequential":
        state, y = lax.scan(jax.checkpoint(_chunk_of_steps, prevent_cse=False), state, inputs)
    else:
        written, read = jax.checkpoint(_solve)(*inputs[1:])
        inputs = (*inputs[:2], written, read, inputs[4])
        state, y = lax.scan(jax.checkpoint(_chunk, prevent_cse=False), state, inputs)
    y = jnp.transpose(y, (1, 0, 4, 2, 3, 5)).reshape(batch, -1, heads, values)[:, :steps]
    return y.astype(dtype), state.reshape(batch, heads, keys, values)


def _chunk_of_steps(state, inputs):
    """The recurrence step by step. state [B, G, R, K, V]; inputs [B, G, R or 1, C, X] -> y [B, G, R, C, V]."""

    def step(state, now):
        q, k, v, beta, decay = now
        state = _spread(decay) * state
        error = v - jnp.sum(k[..., :, None] * state, axis=-2)
        state = state + k[..., :, None] * (beta * error)[..., None, :]
        return state, jnp.sum(q[..., :, None] * state, axis=-2)

    state, y = lax.scan(step, state, jax.tree.map(lambda a: jnp.moveaxis(a, -2, 0), inputs))
    return state, jnp.moveaxis(y, 0, -2)


def _decays(decay):
    """Sums of [..., C, 1] log decays: between steps [..., C, C] (0 above the diagonal), and from the start [..., C, 1]."""
    between = _sums_between(decay[..., 0])
    return between, between[..., :, :1] + decay[..., :1, :]


def _solve(k, v, beta, decay):
    """U [..., C, V] and W [..., C, K] of every chunk."""
    size = k.shape[-2]
    between, prefix = _decays(decay)
    below = jnp.tril(jnp.ones((size, size), bool), -1)
    scores = _matmul(k, jnp.swapaxes(k, -1, -2))
    system = jnp.where(below, beta * scores * jnp.exp(between), 0)
    right = jnp.concatenate([beta * v, beta * jnp.exp(prefix) * k], axis=-1)
    solved = solve_triangular(system, right, lower=True, unit_diagonal=True)
    return solved[..., : v.shape[-1]], solved[..., v.shape[-1] :]


def _chunk(state, inputs):
    """A chunk as matrix products, given U and W; shapes as in ``_chunk_of_steps``."""
    q, k, written, read, decay = inputs
    size = q.shape[-2]
    between, prefix = _decays(decay)
    seen = jnp.tril(jnp.ones((size, size), bool))
    u = written - _matmul(read, state)
    scores = jnp.where(seen, _matmul(q, jnp.swapaxes(k, -1, -2)) * jnp.exp(between), 0)
    y = jnp.exp(prefix) * _matmul(q, state) + _matmul(scores, u)
    suffix = jnp.swapaxes(between[..., -1:, :], -1, -2)
    state = _spread(prefix[..., -1, :]) * state + _matmul(jnp.swapaxes(k, -1, -2), jnp.exp(suffix) * u)
    return state, y
