"""The gated delta rule, and products of several of its steps per token: a matrix memory that writes what it lacks.

    S_t = exp(g_t) S_{t-1} + beta_t k_t (v_t - k_t exp(g_t) S_{t-1})^T      S_t [K, V] per batch row and head
    y_t = q_t S_t

``delta_product`` takes n such steps for every token t, decaying before the first of them and reading after the last:

    S <- exp(g_t) S_{t-1}
    S <- S + beta_tj k_tj (v_tj - k_tj S)^T = (I - beta_tj k_tj k_tj^T) S + beta_tj k_tj v_tj^T      j = 1 .. n
    S_t = S,  y_t = q_t S_t

so that S_t = A_t S_{t-1} + B_t with A_t = exp(g_t) (I - beta_tn k_tn k_tn^T) ... (I - beta_t1 k_t1 k_t1^T), a product of n
generalised Householder matrices, the latest on the left. With keys of length 1 a factor has the eigenvalues 1 and 1 - beta:
beta = 1 overwrites what is stored under k, beta = 2 reflects, and 0 <= beta <= 2 never makes a state longer.

Schlag et al. (2021), Linear Transformers Are Secretly Fast Weight Programmers (the delta rule, without g); Yang et al.
(2024), Parallelizing Linear Transformers with the Delta Rule, arXiv 2406.06484 (chunks); Yang, Kautz and Hatamizadeh
(2024), Gated Delta Networks, arXiv 2412.06464; Siems et al. (2025), DeltaProduct, arXiv 2502.10297. Normalising and scaling
queries and keys is the caller's. Shapes, with G heads of q and k shared by H = G R heads of v (head h uses q and k of head
h // R), as in ``linear_attention``; the axis n only in ``delta_product``:

    q          [B, T, G, K]
    k          [B, T, (n,) G, K]
    v          [B, T, (n,) H, V]
    beta       [B, T, (n,) H]
    log_decay  [B, T, H] or None, g <= 0; -inf at the first token of a document lets exactly nothing through
    initial    [B, H, K, V]

Forms, all with the same numbers up to rounding:

    sequential   T steps, the meaning
    chunked      chunks of C tokens, m = C n rows of k and v. With G_ij = exp(sum of g over the tokens after that of row j,
                 up to that of row i) for j <= i, else 0, and p_i = exp(sum of g from the start to the token of row i),
                 what is written, u_i = beta_i (v_i - k_i S), S the state that row i finds, solves the unit lower
                 triangular system

                     u_i + beta_i sum_{j<i} G_ij (k_i . k_j) u_j = beta_i (v_i - p_i k_i S_0)

                 whose solution is U - W S_0, with U and W solved for all chunks at once; then y_t = p_t q_t S_0 +
                 sum_j G_tj (q_t . k_j) u_j over the rows up to token t, and only the state goes from chunk to chunk. T/C
                 dependent steps
    associative  A_t and B_t as dense matrices, and an associative scan of (A, B) o (A', B') = (A A', A B' + B): for small K,
                 to compare with
    pallas       a kernel of ``pallas_kernels``, interpreted on CPU; first derivatives in reverse mode only, and products
                 of 16-bit operands where q, k and v are

``delta_product`` is ``gated_delta_rule`` over T n tokens, whose g and output count at one of n (``flatten_steps``), without
the queries that nobody reads (the kernel reads them). No exponent is positive. Everything else is computed in at least
float32, the inverse of the system too. Derivatives of any order in both modes; reverse mode stores the inputs, U, W and the
states at the chunk borders, and computes a chunk again when it gets there (associative: all A and S).

Cost per head: O(T n K V) sequential; O(T n K V + T n m (m + K + V)) chunked, in matrix products; O(T K (K + V) (K + n))
associative.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from pallas_kernels import operation
from zoo.checks import check_choice, check_floating
from zoo.dtypes import accumulator
from zoo.scans import _auto
from zoo.scans.chunked.decay import _bounded, _check, _matmul, _spread, _sums_between

METHODS = ("auto", "sequential", "chunked", "associative", "pallas")


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
    _check_per_head(v, beta, log_decay)
    return _product(q, k[:, :, None], v[:, :, None], beta[:, :, None], log_decay, initial, method, chunk_size)


def delta_product(
    q: Float[Array, "B T G K"],
    k: Float[Array, "B T N G K"],
    v: Float[Array, "B T N H V"],
    beta: Float[Array, "B T N H"],
    log_decay: Float[Array, "B T H"] | None = None,
    initial: Float[Array, "B H K V"] | None = None,
    *,
    method: str = "auto",
    chunk_size: int | None = None,
) -> tuple[Float[Array, "B T H V"], Float[Array, "B H K V"]]:
    """Runs n steps of the delta rule per token, as in the module docstring, along axis 1; the state decays once per token.

    Args:
      q: [B, T, G, K], T >= 1; no scale is applied.
      k: [B, T, n, G, K], n >= 1, the first step's first; the recurrence is stable where 0 <= beta |k|^2 <= 2.
      v: [B, T, n, H, V], H a multiple of G.
      beta: [B, T, n, H], how much of the error is written.
      log_decay: [B, T, H], <= 0, -inf allowed; None: no decay.
      initial: [B, H, K, V], the state before the first step; zeros when None.
      method: one of ``METHODS``; "auto" chooses by the table in ``zoo.scans._auto``.
      chunk_size: tokens per chunk (any T is allowed); None: 64 / n, or T where that is less.

    Returns:
      y: [B, T, H, V] in the result type of q, k and v.
      last: [B, H, K, V], the state after the last token, in the accumulation type (at least float32).

    Raises:
      TypeError: an argument is not floating-point, or complex.
      ValueError: shapes do not fit, T = 0, n = 0, or an unknown method.
    """
    check_choice("method", method, METHODS)
    for name, array, wanted in (("k", k, "heads, width"), ("v", v, "heads, width"), ("beta", beta, "heads")):
        check_floating(name, array)
        if array.ndim != 4 + (name != "beta"):
            raise ValueError(f"{name} must have shape [batch, time, steps, {wanted}], got {list(array.shape)}")
    steps = k.shape[2]
    if steps < 1:
        raise ValueError("k has no steps per token (n = 0); a product needs at least one")
    for name, array in (("v", v), ("beta", beta)):
        if array.shape[2] != steps:
            raise ValueError(f"{name} has {array.shape[2]} steps per token on axis 2, but k has {steps}")
    _check(q, k[:, :, 0], v[:, :, 0], log_decay, initial, "auto", chunk_size)
    _check_per_head(v[:, :, 0], beta[:, :, 0], log_decay)
    return _product(q, k, v, beta, log_decay, initial, method, chunk_size)


def gated_delta_rule_step(
    q: Float[Array, "B G K"],
    k: Float[Array, "B G K"],
    v: Float[Array, "B H V"],
    beta: Float[Array, "B H"],
    log_decay: Float[Array, "B H"] | None,
    state: Float[Array, "B H K V"],
) -> tuple[Float[Array, "B H V"], Float[Array, "B H K V"]]:
    """One step of ``gated_delta_rule``: returns (y, the new state). Shapes are those of one step of its arguments."""
    return _one_token(gated_delta_rule, q, k, v, beta, log_decay, state)


def delta_product_step(
    q: Float[Array, "B G K"],
    k: Float[Array, "B N G K"],
    v: Float[Array, "B N H V"],
    beta: Float[Array, "B N H"],
    log_decay: Float[Array, "B H"] | None,
    state: Float[Array, "B H K V"],
) -> tuple[Float[Array, "B H V"], Float[Array, "B H K V"]]:
    """One token of ``delta_product``: returns (y, the new state). Shapes are those of one token of its arguments."""
    return _one_token(delta_product, q, k, v, beta, log_decay, state)


def _one_token(scan, q, k, v, beta, log_decay, state):
    log_decay = None if log_decay is None else log_decay[:, None]
    y, state = scan(q[:, None], k[:, None], v[:, None], beta[:, None], log_decay, state, method="sequential")
    return y[:, 0], state


def flatten_steps(
    q: Float[Array, "B T G K"],
    k: Float[Array, "B T N G K"],
    v: Float[Array, "B T N H V"],
    beta: Float[Array, "B T N H"],
    log_decay: Float[Array, "B T H"] | None = None,
) -> tuple[Array, Array, Array, Array, Array | None]:
    """Arguments of ``gated_delta_rule`` over T n tokens that say the same as these of ``delta_product``.

    The decay stands at the first of n tokens and the query at the last, which is where the outputs are, ``y[:, n - 1::n]``;
    the others are zero. For kernels that know one step per token.
    """
    batch, time, steps = k.shape[:3]
    spread = [(0, 0)] * 2 + [(steps - 1, 0)] + [(0, 0)] * (q.ndim - 2)
    q = jnp.pad(q[:, :, None], spread)
    if log_decay is not None:
        log_decay = jnp.pad(log_decay[:, :, None], [(0, 0), (0, 0), (0, steps - 1), (0, 0)])
    return jax.tree.map(lambda a: a.reshape(batch, time * steps, *a.shape[3:]), (q, k, v, beta, log_decay))


def _check_per_head(v, beta, log_decay):
    """Checks what ``_check`` does not: one beta and one decay per head of v."""
    check_floating("beta", beta)
    for name, array in (("beta", beta), ("log_decay", log_decay)):
        if array is not None and tuple(array.shape) != tuple(v.shape[:3]):
            raise ValueError(f"{name} must have shape {list(v.shape[:3])}, got {list(array.shape)}")


def _product(q, k, v, beta, log_decay, initial, method, chunk_size):
    """``delta_product`` on checked arguments."""
    batch, time, groups, keys = q.shape
    steps, heads, values = v.shape[2:]
    share = heads // groups
    dtype = jnp.result_type(q, k, v)
    carried = accumulator(*(a.dtype for a in (q, k, v, beta, log_decay, initial) if a is not None))
    form, size = _auto.delta_form(method, chunk_size, time, steps, keys, values, dtype)
    if form == "pallas":
        flat = flatten_steps(q, k, v, beta, log_decay)
        y, last = operation("delta_rule")(*flat, initial, **_auto.kernel_options())
        return y[:, steps - 1 :: steps], last
    if form == "associative":
        size = time

    def cut(array, rows=1):
        """[B, T, (rows,) G R or G, X] -> [chunks, B, G, R or 1, C rows, X]; zeros at the end change no state."""
        array = array.astype(carried).reshape(batch, time, rows, groups, -1, array.shape[-1])
        array = jnp.pad(array, [(0, 0), (0, -time % size)] + [(0, 0)] * 4)
        array = array.reshape(batch, -1, size * rows, *array.shape[3:])
        return jnp.transpose(array, (1, 0, 3, 4, 2, 5))

    q, decay = cut(q), None if log_decay is None else cut(_bounded(log_decay.astype(carried))[..., None])
    k, v, beta = (cut(a, steps) for a in (k, v, beta[..., None]))
    if initial is None:
        state = jnp.zeros((batch, groups, share, keys, values), carried)
    else:
        state = initial.astype(carried).reshape(batch, groups, share, keys, values)
    if form == "associative":
        state, y = _dense(state, *jax.tree.map(lambda a: a[0], (q, k, v, beta, decay)))
        y = y[None]
    elif form == "sequential":
        chunk = jax.checkpoint(functools.partial(_chunk_of_steps, steps), prevent_cse=False)
        state, y = lax.scan(chunk, state, (q, k, v, beta, decay))
    else:
        written, read = jax.checkpoint(functools.partial(_solve, steps))(k, v, beta, decay)
        chunk = jax.checkpoint(functools.partial(_chunk, steps), prevent_cse=False)
        state, y = lax.scan(chunk, state, (q, k, written, read, decay))
    y = jnp.transpose(y, (1, 0, 4, 2, 3, 5)).reshape(batch, -1, heads, values)[:, :time]
    return y.astype(dtype), state.reshape(batch, heads, keys, values)


def _tokens(steps, *arrays):
    """Arrays [..., C n, X] by token: [C, ..., n, X]."""
    return [jnp.moveaxis(a.reshape(*a.shape[:-2], -1, steps, a.shape[-1]), -3, 0) for a in arrays]


def _chunk_of_steps(steps, state, inputs):
    """The recurrence token by token. state [B, G, R, K, V]; q, decay [B, G, R or 1, C, X] and k, v, beta [..., C n, X]
    -> y [B, G, R, C, V]."""
    q, k, v, beta, decay = inputs

    def token(state, now):
        (q, decay), k, v, beta = now
        if decay is not None:
            state = _spread(decay) * state
        for j in range(steps):
            key = k[..., j, :, None]
            error = v[..., j, :] - jnp.sum(key * state, axis=-2)
            state = state + key * (beta[..., j, :] * error)[..., None, :]
        return state, jnp.sum(q[..., :, None] * state, axis=-2)

    now = (jax.tree.map(lambda a: jnp.moveaxis(a, -2, 0), (q, decay)), *_tokens(steps, k, v, beta))
    state, y = lax.scan(token, state, now)
    return state, jnp.moveaxis(y, 0, -2)


def _dense(state, q, k, v, beta, decay):
    """All tokens by an associative scan of (A_t, B_t); shapes as in ``_chunk_of_steps``, C = T."""
    keys = k.shape[-1]
    k, v, beta = _tokens(k.shape[-2] // q.shape[-2], k, v, beta)
    q, decay = jax.tree.map(lambda a: jnp.moveaxis(a, -2, 0), (q, decay))  # [T, B, G, R or 1, X]
    transition = jnp.broadcast_to(jnp.eye(keys, dtype=k.dtype), (*beta.shape[:-2], keys, keys))
    if decay is not None:
        transition = _spread(decay) * transition
    update = jnp.zeros((*transition.shape[:-1], v.shape[-1]), k.dtype)
    for j in range(k.shape[-2]):
        key, strength = k[..., j, :, None], beta[..., j, :, None]
        row = jnp.swapaxes(key, -1, -2)
        transition = transition - strength * key * _matmul(row, transition)
        update = update + strength * key * (v[..., j, None, :] - _matmul(row, update))
    update = update.at[0].add(_matmul(transition[0], state))

    def compose(one, two):
        return _matmul(two[0], one[0]), _matmul(two[0], one[1]) + two[1]

    _, states = lax.associative_scan(compose, (transition, update))
    y = jnp.sum(q[..., :, None] * states, axis=-2)
    return states[-1], jnp.moveaxis(y, 0, -2)


def _decays(decay):
    """Sums of log decays [..., C, 1]: between tokens [..., C, C] (0 above the diagonal), and from the start [..., C, 1]."""
    between = _sums_between(decay[..., 0])
    return between, between[..., :, :1] + decay[..., :1, :]


def _rows(steps, array, *axes):
    """Every entry along ``axes`` n times: from tokens to rows of k and v."""
    for axis in axes if steps > 1 else ():
        array = jnp.repeat(array, steps, axis=axis)
    return array


def _solve(steps, k, v, beta, decay):
    """U [..., m, V] and W [..., m, K] of every chunk of m = C n rows."""
    size = k.shape[-2]
    below = jnp.tril(jnp.ones((size, size), bool), -1)
    scores, read = beta * _matmul(k, jnp.swapaxes(k, -1, -2)), beta * k
    if decay is not None:
        between, prefix = _decays(decay)
        scores = scores * _rows(steps, jnp.exp(between), -1, -2)
        read = read * _rows(steps, jnp.exp(prefix), -2)
    system = jnp.where(below, scores, 0)
    right = jnp.concatenate([beta * v, read], axis=-1)
    solved = _matmul(_unit_lower_inverse(system), right)
    return solved[..., : v.shape[-1]], solved[..., v.shape[-1] :]


@jax.custom_jvp
def _unit_lower_inverse(lower):
    """(1 + L)^-1 for L [..., m, m], zero on and above the diagonal.

    Substitution row by row in diagonal blocks of 8, which are then joined two by two: with A and B the inverses of two
    neighbours and C the block of L below the first, the inverse of both is [[A, 0], [-B C A, B]]. As exact as a triangular
    solve, and all of it products of many small matrices at once, which the backends do better than many small solves.
    """
    size = lower.shape[-1]
    full = max(1 << (size - 1).bit_length(), 1)
    lower = jnp.pad(lower, [(0, 0)] * (lower.ndim - 2) + [(0, full - size)] * 2)

    def diagonal(width):
        """The diagonal blocks [..., full / width, width, width]."""
        blocks = lower.reshape(*lower.shape[:-2], full // width, width, full // width, width)
        return jnp.moveaxis(jnp.diagonal(blocks, axis1=-4, axis2=-2), -1, -3)

    width = min(full, 8)
    block, rows = diagonal(width), []
    for i in range(width):
        row = jnp.zeros(block.shape[:-1], lower.dtype).at[..., i].set(1)
        for j, other in enumerate(rows):
            row = row - block[..., i, j, None] * other
        rows.append(row)
    inverse = jnp.stack(rows, axis=-2)
    while width < full:
        first, second = inverse[..., ::2, :, :], inverse[..., 1::2, :, :]
        corner = -_matmul(second, _matmul(diagonal(2 * width)[..., width:, :width], first))
        inverse = jnp.block([[first, jnp.zeros_like(first)], [corner, second]])
        width *= 2
    return inverse[..., 0, :size, :size]


@_unit_lower_inverse.defjvp
def _unit_lower_inverse_jvp(primals, tangents):
    inverse = _unit_lower_inverse(*primals)
    return inverse, -_matmul(inverse, _matmul(*tangents, inverse))


def _chunk(steps, state, inputs):
    """A chunk as matrix products, given U and W; shapes as in ``_chunk_of_steps``."""
    q, k, written, read, decay = inputs
    size = q.shape[-2]
    seen = _rows(steps, jnp.tril(jnp.ones((size, size), bool)), -1)
    u = written - _matmul(read, state)
    scores, before = _matmul(q, jnp.swapaxes(k, -1, -2)), _matmul(q, state)
    left = u
    if decay is not None:
        between, prefix = _decays(decay)
        scores, before = scores * _rows(steps, jnp.exp(between), -1), jnp.exp(prefix) * before
        left = u * _rows(steps, jnp.exp(jnp.swapaxes(between[..., -1:, :], -1, -2)), -2)
        state = _spread(prefix[..., -1, :]) * state
    y = before + _matmul(jnp.where(seen, scores, 0), u)
    return state + _matmul(jnp.swapaxes(k, -1, -2), left), y
