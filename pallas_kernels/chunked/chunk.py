"""One chunk of the matrix-state recurrence as masked matrix products: the body of the kernels of both platforms.

The forward pass and all three gradients are one operation on other arguments: content is written to the state along
``writes`` and read back along ``reads``. With M = S^T [V, K],

                                                                             reads  writes  content  decay on
    y_i  = sum_{j <= i} <q_i, e_ij k_j> v_j  + M (exp(prefix_i) q_i)         q      k       v        reads
    dv_j = sum_{i >= j} <k_j, e_ij q_i> dy_i + dM (exp(suffix_j) k_j)        k      q       dy       reads, reversed
    dq_i = sum_{j <= i} <dy_i, v_j> e_ij k_j + exp(prefix_i) (M^T dy_i)      dy     v       k        content
    dk_j = sum_{i >= j} <v_j, dy_i> e_ij q_i + exp(suffix_j) (dM^T v_j)      v      dy      q        content, reversed

where e_ij = exp(g_{j+1} + ... + g_i), prefix_i = g_1 + ... + g_i and suffix_j = g_{j+1} + ... + g_C.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jax import lax


def advance(
    reads, writes, content, log_decay, state, *, side: str, reverse: bool, dot: Callable, partner: Callable
) -> tuple:
    """Runs one chunk.

    Args:
      reads, writes: [C, A].
      content: [C, X].
      log_decay: None, [1, C] (one number per step) or [C, K] in float32; C is 2^n for the last.
      state: float32 [X, A] for side "reads", [A, X] for side "content"; its last axis is K.
      side: what a decay per channel multiplies: "reads" (A = K) or "content" (X = K).
      reverse: from the last step to the first.
      dot: (left, right, form) -> float32 product; form "nn", "nt" or "tn" says what is transposed.
      partner: (array [C, K], width) -> the same with neighbouring blocks of ``width`` rows exchanged.

    Returns:
      (y [C, X] in float32, the new state).
    """
    size = reads.shape[0]
    row = lax.broadcasted_iota(jnp.int32, (size, size), 0)
    column = lax.broadcasted_iota(jnp.int32, (size, size), 1)
    late, early = (column, row) if reverse else (row, column)
    scores = None if side == "reads" and log_decay is not None and log_decay.shape[0] > 1 else dot(reads, writes, "nt")
    if log_decay is None:
        y = dot(jnp.where(early <= late, scores, 0), content, "nn")
        if side == "reads":
            return y + dot(reads, state, "nt"), state + dot(content, writes, "tn")
        return y + dot(reads, state, "nn"), state + dot(writes, content, "tn")
    if log_decay.shape[0] == 1:
        between, prefix, suffix = sums_between(log_decay, row, column)
        between = jnp.where(early <= late, between if not reverse else -between, 0)
        y = dot(jnp.where(early <= late, scores * jnp.exp(between), 0), content, "nn")
        total = jnp.sum(log_decay, axis=1, keepdims=True)
    else:
        y, prefix, suffix = _tree(
            reads, writes, content, log_decay, scores, row, late, early, side=side, dot=dot, partner=partner
        )
        total = jnp.sum(log_decay, axis=0, keepdims=True)
    out, into = jnp.exp(prefix), jnp.exp(suffix)
    if reverse:
        out, into = into, out
    if side == "reads" and log_decay.shape[0] > 1:
        return y + dot(reads * out, state, "nt"), jnp.exp(total) * state + dot(content, writes * into, "tn")
    if side == "reads":
        return y + out * dot(reads, state, "nt"), jnp.exp(total) * state + dot(content * into, writes, "tn")
    return y + out * dot(reads, state, "nn"), jnp.exp(total) * state + dot(writes, content * into, "tn")


def sums_between(decay, row, column):
    """From [1, C]: [C, C] with the sum over (column, row], negative above the diagonal, and prefix and suffix [C, 1].

    A difference of running sums loses the digits of a weak decay behind a strong one, so they are taken of multiples of
    2^-8, which add without rounding, and of the small rests.
    """
    coarse = jnp.floor(decay * 256 + 0.5) / 256
    between = 0
    for part in (coarse, decay - coarse):
        upright = jnp.sum(jnp.where(row == column, part, 0), axis=1, keepdims=True)
        lying = jnp.sum(jnp.where(row <= column, upright, 0), axis=0, keepdims=True)
        between = between + (jnp.sum(jnp.where(column <= row, part, 0), axis=1, keepdims=True) - lying)
    prefix = jnp.sum(jnp.where(column <= row, decay, 0), axis=1, keepdims=True)
    suffix = jnp.sum(jnp.where(column > row, decay, 0), axis=1, keepdims=True)
    return between, prefix, suffix


def _tree(reads, writes, content, decay, scores, row, late, early, *, side, dot, partner):
    """The products inside a chunk for a decay per channel; also the sums up to and with each step, and after it.

    Every pair of steps is treated at the one level of a binary tree where it falls into neighbouring blocks: the later
    step takes the decay from its block's start, the earlier one that to its block's end. No exponent is positive.
    """
    size = reads.shape[0]
    position = lax.broadcasted_iota(jnp.int32, decay.shape, 0)
    own = jnp.sum(reads.astype(jnp.float32) * writes.astype(jnp.float32), axis=1, keepdims=True)
    y = own * content
    prefix, suffix, total = decay, jnp.zeros_like(decay), decay
    gathered = 0
    width = 1
    while width < size:
        odd = position & width != 0
        weight = jnp.exp(jnp.where(odd, prefix, suffix))
        pair = (late & width != 0) & (late & -width == (early & -width) + width)
        if side == "reads":
            gathered = gathered + jnp.where(pair, dot(reads * weight, writes * weight, "nt"), 0)
        else:
            y = y + weight * dot(jnp.where(pair, scores, 0), content * weight, "nn")
        other = partner(total, width)
        prefix = jnp.where(odd, prefix + other, prefix)
        suffix = jnp.where(odd, suffix, suffix + other)
        total = total + other
        width *= 2
    if side == "reads" and size > 1:
        y = y + dot(gathered, content, "nn")
    return y, prefix, suffix
