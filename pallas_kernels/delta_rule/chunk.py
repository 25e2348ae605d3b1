"""One chunk of the gated delta rule and of its adjoint as matrix products: the body of the kernels of both platforms.

With G_ij = exp(g_{j+1} + ... + g_i) for j <= i and 0 above the diagonal, p_i = exp(g_1 + ... + g_i),
s_i = exp(g_{i+1} + ... + g_C), the state S before the chunk, and u_i = beta_i (v_i - k_i S'_i) what step i writes, where
S'_i = exp(g_i) S_{i-1} is what it finds:

    L_ij = beta_i G_ij (k_i . k_j) for j < i,   M = (I + L)^-1         does not depend on the state,
    A_ij = G_ij (q_i . k_j)                                            nor does this
    U    = M (beta (V - p K S))                                        ``forward``
    Y    = p Q S + A U
    S_C  = p_C S + K^T (s U)

The entries of M are bounded where beta |k|^2 <= 2: M_ij = -beta_i k_i (I - beta k k^T)_{i-1} ... (I - beta k k^T)_{j+1} k_j
without the decays. Those of the powers of L are not (2^n and worse), so M is not made of them.

The adjoint. D_i is the cotangent of S_i with all that comes after, D that of S_C, and d is written before cotangents:

    D_i     = exp(g_{i+1}) (D_{i+1} - beta_{i+1} k_{i+1} du_{i+1}^T) + q_i dy_i^T,     du_i = k_i D_i
    dv_i    = beta_i du_i
    dq_i    = S_i dy_i
    dk_i    = D_i u_i - beta_i z_i,                     z_i = S'_i du_i
    dbeta_i = du_i . (v_i - k_i S'_i) = du_i . v_i - k_i . z_i
    dg_i    = <D_i - k_i dv_i^T, S'_i>

In a chunk, the first line is a system with the transposed matrix, and the rest are products (``backward``, ``gather``,
``gradients``):

    dU   = M^T (s K D + A^T dY)
    D_0  = p_C D + Q^T (p dY) - K^T (p beta dU)         cotangent of S
    dQ   = p dY S^T + [G (dY U^T)] K
    Z    = p dU S^T + [G (dU U^T)] K                    strictly below the diagonal
    dK   = s U D^T + [G (dY U^T)]^T Q - [G (dU U^T)]^T (beta K) - beta Z

The inner products follow each other, <S_i, D_i> = q_i . dq_i + dg_{i+1} = dg_i + v_i . dv_i, so that

    dg_i = <S_C, D> + sum_{j >= i} (q_j . dq_j - v_j . dv_j),   <S_C, D> = p_C <S, D> + sum_j k_j . (s_j D u_j)

and the sum is never longer than a chunk. No exponent is ever positive: sums of g are masked before exp.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax

from pallas_kernels.chunked.chunk import sums_between

LEAF = 16  # steps per block whose inverse is made row by row


class Decays(NamedTuple):
    """Decays of a chunk.

    Attributes:
      prefix, suffix: [C, 1], p and s.
      total: [1, 1], p_C.
    """

    prefix: Any
    suffix: Any
    total: Any


def places(size: int) -> tuple:
    """Row and column numbers [C, C]."""
    return tuple(lax.broadcasted_iota(jnp.int32, (size, size), n) for n in (0, 1))


def factors(decay) -> Decays:
    """The decays of a chunk from log decays [1, C], float32 and finite."""
    row, column = places(decay.shape[1])
    prefix = jnp.sum(jnp.where(column <= row, decay, 0), axis=1, keepdims=True)
    suffix = jnp.sum(jnp.where(column > row, decay, 0), axis=1, keepdims=True)
    return Decays(jnp.exp(prefix), jnp.exp(suffix), jnp.exp(jnp.sum(decay, axis=1, keepdims=True)))


def through(decay) -> Any:
    """G [C, C] of a chunk from log decays [1, C], float32 and finite."""
    row, column = places(decay.shape[1])
    between, _, _ = sums_between(decay, row, column)
    seen = column <= row
    return jnp.where(seen, jnp.exp(jnp.where(seen, between, 0)), 0)


def eliminate(blocks: tuple, size: int) -> tuple:
    """Inverses of unit lower triangular matrices [X, X] that are block diagonal, ``size`` steps per block.

    Rank-one updates, one row of every block at a time: what is below the diagonal and in its block counts, the rest is
    taken as zero.
    """
    row, column = places(blocks[0].shape[0])
    below = ((row & -size) == (column & -size)) & (column < row)
    lower = [jnp.where(below, block, 0) for block in blocks]

    def step(n, found):
        factors = (jnp.sum(jnp.where((column & (size - 1)) == n, block, 0), axis=1, keepdims=True) for block in lower)
        pivots = (jnp.sum(jnp.where((row & (size - 1)) == n, now, 0), axis=0, keepdims=True) for now in found)
        return tuple(
            now - jnp.where((row & -size) == (column & -size), factor * pivot, 0)
            for now, factor, pivot in zip(found, factors, pivots, strict=True)
        )

    identity = jnp.where(row == column, 1.0, 0.0)
    return lax.fori_loop(0, size - 1, step, (identity,) * len(blocks))


def forward(q, k, v, beta, inverse, attention, state, decays: Decays, dot: Callable) -> tuple:
    """One chunk.

    Args:
      q, k: [C, K].
      v: [C, V].
      beta: [C, 1] in float32.
      inverse, attention: M and A [C, C].
      state: [K, V] in float32.
      decays: of the chunk.
      dot: (left, right, form) -> float32 product; form "nn", "nt" or "tn" says what is transposed.

    Returns:
      (y [C, V], u [C, V], the new state), all float32.
    """
    u = dot(inverse, beta * (v - decays.prefix * dot(k, state, "nn")), "nn")
    y = decays.prefix * dot(q, state, "nn") + dot(attention, u, "nn")
    return y, u, decays.total * state + dot(k, decays.suffix * u, "tn")


def backward(q, k, y_bar, beta, inverse, attention, state_bar, decays: Decays, dot: Callable) -> tuple:
    """(dU [C, V], cotangent of the state before the chunk) for ``state_bar`` [K, V], that of the state after it."""
    u_bar = decays.suffix * dot(k, state_bar, "nn") + dot(attention, y_bar, "tn")
    u_bar = dot(inverse, u_bar, "tn")
    state_bar = decays.total * state_bar + dot(q, decays.prefix * y_bar, "tn")
    return u_bar, state_bar - dot(k, decays.prefix * beta * u_bar, "tn")


class Sums(NamedTuple):
    """Products over the columns of V, which may be summed over blocks of columns; cotangents as in the module docstring.

    Attributes:
      read: [C, K], dY S^T.
      found: [C, K], dU S^T.
      written: [C, K], U D^T.
      outputs: [C, C], dY U^T.
      writes: [C, C], dU U^T.
      values: [C, 1], dU . V.
      states: [1, 1], <S, D>.
    """

    read: Any
    found: Any
    written: Any
    outputs: Any
    writes: Any
    values: Any
    states: Any


def gather(v, y_bar, u, u_bar, state, state_bar, dot: Callable) -> Sums:
    """The sums over the columns given: v, y_bar, u, u_bar [C, V], state and state_bar [K, V]."""
    inner = jnp.sum(state.astype(jnp.float32) * state_bar.astype(jnp.float32), axis=1, keepdims=True)
    return Sums(
        dot(y_bar, state, "nt"),
        dot(u_bar, state, "nt"),
        dot(u, state_bar, "nt"),
        dot(y_bar, u, "nt"),
        dot(u_bar, u, "nt"),
        jnp.sum(u_bar.astype(jnp.float32) * v.astype(jnp.float32), axis=1, keepdims=True),
        jnp.sum(inner, axis=0, keepdims=True),
    )


def gradients(q, k, beta, sums: Sums, decay, dot: Callable) -> tuple:
    """(dq [C, K], dk [C, K], dbeta [C, 1], dg [1, C]) of a chunk, float32.

    Where keys are cut into blocks, the last two are sums over the blocks, and ``sums.values`` counts in one of them only.
    """
    row, column = places(q.shape[0])
    decays, weights = factors(decay), through(decay)
    outputs = weights * sums.outputs
    writes = jnp.where(column < row, weights * sums.writes, 0)
    q_bar = decays.prefix * sums.read + dot(outputs, k, "nn")
    found = decays.prefix * sums.found + dot(writes, k, "nn")
    written = decays.suffix * sums.written
    k_bar = written + dot(outputs, q, "tn") - dot(writes, beta * k, "tn") - beta * found

    def each(a, b):
        return jnp.sum(a.astype(jnp.float32) * b, axis=1, keepdims=True)

    last = decays.total * sums.states + jnp.sum(each(k, written), axis=0, keepdims=True)
    change = each(q, q_bar) - beta * sums.values
    decay_bar = last + jnp.sum(jnp.where(column <= row, change, 0), axis=0, keepdims=True)
    return q_bar, k_bar, sums.values - each(k, found), decay_bar
