"""Softmax attention for a fixed query, over every prefix of a sequence: attention as a scan.

With one score per step (no dependence of the query on time) the attention output over the steps 0..t is a
recurrence with a state of constant size (Feng et al. 2024, "Attention as an RNN", arXiv 2405.13956).

Shapes: scores s [B, T, H], values v [B, T, H, d], outputs o [B, T, H, d]. For a set A of steps

    m_A = max s_i            maximum     [B, H]
    u_A = sum exp(s_i - m_A)         denominator [B, H]
    w_A = sum exp(s_i - m_A) v_i     numerator   [B, H, d]

    o_A = w_A / u_A

Two disjoint sets merge, associatively and commutatively, into

    m = max(m_A, m_B),  u = u_A e^{m_A - m} + u_B e^{m_B - m},  w = w_A e^{m_A - m} + w_B e^{m_B - m}

and (-inf, 0, 0) is neutral. The scan over prefixes: once the running maximum m_t is known, u and w follow a linear
recurrence with decay e^{m_{t-1} - m_t} <= 1 and inputs e^{s_t - m_t} (1, v_t), so ``linear_scan`` runs it in all of
its forms and with all of its derivatives. Every exponent is <= 0: scores of any size are safe. No gradient passes
through m: o does not depend on it, so its gradient is exact without, to any order.

Steps that are masked, or whose score is -inf, contribute the neutral element. A prefix with no step left gives zeros.
A ``reset`` at step t starts a new document there: nothing before t, nor the initial state, reaches o_t and later.

Cost: O(T H d) time and memory. The state is B * H * (d + 2) numbers, whatever T. Removing steps again (a sliding
window) is not possible: the merge has no inverse.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from zoo.checks import check_choice, check_floating, check_positive
from zoo.dtypes import accumulator
from zoo.scans.linear import linear_scan

METHODS = ("auto", "naive", "sequential", "chunked", "associative")


class SoftmaxState(NamedTuple):
    """Softmax statistics of a set of steps; a pytree of fixed size. Leading axes ``*A``: [B, H], or [B, T, H].

    Attributes:
      maximum: m, the largest score; -inf for the empty set.
      denominator: u, the sum of exp(score - m).
      numerator: w, the sum of exp(score - m) * value.
    """

    maximum: Float[Array, "*A"]
    denominator: Float[Array, "*A"]
    numerator: Float[Array, "*A d"]

    @classmethod
    def empty(cls, batch: int, heads: int, dim: int, dtype: DTypeLike = jnp.float32) -> "SoftmaxState":
        """The neutral element (-inf, 0, 0): no step seen yet. ``dtype`` is raised to at least float32."""
        dtype = accumulator(dtype)
        return cls(
            jnp.full((batch, heads), -jnp.inf, dtype),
            jnp.zeros((batch, heads), dtype),
            jnp.zeros((batch, heads, dim), dtype),
        )

    def merge(self, other: "SoftmaxState") -> "SoftmaxState":
        """Statistics of the union of two disjoint sets of steps; associative and commutative."""
        return softmax_merge(self, other)

    def output(self) -> Float[Array, "*A d"]:
        """The attention output w / u; zeros where the set is empty."""
        seen = self.denominator > 0
        safe = jnp.where(seen, self.denominator, 1)
        return jnp.where(seen[..., None], self.numerator / safe[..., None], 0)


def softmax_merge(first: SoftmaxState, second: SoftmaxState) -> SoftmaxState:
    """Statistics of the union of two disjoint sets of steps, of equal or broadcasting shapes."""
    maximum = lax.stop_gradient(jnp.maximum(first.maximum, second.maximum))
    a = _exp(lax.stop_gradient(first.maximum), maximum)
    b = _exp(lax.stop_gradient(second.maximum), maximum)
    return SoftmaxState(
        maximum,
        first.denominator * a + second.denominator * b,
        first.numerator * a[..., None] + second.numerator * b[..., None],
    )


def softmax_scan(
    scores: Float[Array, "B T H"],
    values: Float[Array, "B T H d"],
    initial: SoftmaxState | None = None,
    *,
    mask: Bool[Array, "B T"] | None = None,
    reset: Bool[Array, "B T"] | None = None,
    method: str = "auto",
    chunk_size: int | None = None,
) -> tuple[Float[Array, "B T H d"], SoftmaxState]:
    """Softmax attention over every prefix: ``o_t = sum_{j<=t} exp(s_j) v_j / sum_{j<=t} exp(s_j)``.

    Args:
      scores: [B, T, H], T >= 1; -inf excludes a step.
      values: [B, T, H, d].
      initial: statistics of the steps before the first; empty when None.
      mask: [B, T], False excludes a step.
      reset: [B, T], True starts a new document at that step.
      method: one of ``METHODS``. "naive" is the O(T^2) definition; "sequential" is the recurrence step by step; the
        others are the forms of ``linear_scan``.
      chunk_size: steps per chunk of the chunked form; chosen from the shape when None.

    Returns:
      outputs: [B, T, H, d] in the result type of scores and values; zeros for a prefix without steps.
      state: statistics after the last step, in at least float32, to be handed on as ``initial``.

    Raises:
      TypeError: scores or values are not floating-point, mask or reset not bool.
      ValueError: shapes do not fit, T = 0, or an unknown method.
    """
    statistics = softmax_prefix_statistics(
        scores, values, initial, mask=mask, reset=reset, method=method, chunk_size=chunk_size
    )
    last = jax.tree.map(lambda leaf: leaf[:, -1], statistics)
    return statistics.output().astype(jnp.result_type(scores, values)), last


def softmax_prefix_statistics(
    scores: Float[Array, "B T H"],
    values: Float[Array, "B T H d"],
    initial: SoftmaxState | None = None,
    *,
    mask: Bool[Array, "B T"] | None = None,
    reset: Bool[Array, "B T"] | None = None,
    method: str = "auto",
    chunk_size: int | None = None,
) -> SoftmaxState:
    """The statistics (m_t, u_t, w_t) of every prefix, [B, T, H] and [B, T, H, d]; arguments as ``softmax_scan``."""
    check_choice("method", method, METHODS)
    if chunk_size is not None:
        check_positive("chunk_size", chunk_size)
    _check(scores, values, initial, mask, reset)
    dtype = accumulator(scores.dtype, values.dtype)
    scores, values = _neutralise(scores.astype(dtype), values.astype(dtype), mask)
    if initial is None:
        initial = SoftmaxState.empty(scores.shape[0], scores.shape[2], values.shape[3], dtype)
    initial = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), initial)
    fixed = lax.stop_gradient(scores)
    start = lax.stop_gradient(initial.maximum)
    if method == "naive":
        return _naive(scores, values, initial, reset)
    maximum = _running_maximum(fixed, start, reset, sequential=method == "sequential")
    before = jnp.concatenate([start[:, None], maximum[:, :-1]], axis=1)
    decay = _exp(before, maximum)
    if reset is not None:
        decay = jnp.where(reset[:, :, None], 0, decay)
    weight = _exp(scores, maximum)[..., None]
    inputs = jnp.concatenate([weight, weight * values], axis=-1)
    carry = jnp.concatenate([initial.denominator[..., None], initial.numerator], axis=-1)
    states, _ = linear_scan(decay[..., None], inputs, carry, method=method, chunk_size=chunk_size)
    return SoftmaxState(maximum, states[..., 0], states[..., 1:])


def softmax_pool(
    scores: Float[Array, "B T H"],
    values: Float[Array, "B T H d"],
    initial: SoftmaxState | None = None,
    *,
    mask: Bool[Array, "B T"] | None = None,
    chunk_size: int | None = None,
) -> tuple[Float[Array, "B H d"], SoftmaxState]:
    """Only the last output: attention over all T steps at once, or block by block.

    Args:
      scores: [B, T, H], T >= 1; -inf excludes a step.
      values: [B, T, H, d].
      initial: statistics of the steps before the first; empty when None.
      mask: [B, T], False excludes a step.
      chunk_size: steps per block; memory beyond the arguments is O(chunk_size). All T at once when None.

    Returns:
      output: [B, H, d], and the statistics including the new steps (``initial`` updated by T steps at once).
    """
    if chunk_size is not None:
        check_positive("chunk_size", chunk_size)
    _check(scores, values, initial, mask, None)
    result = jnp.result_type(scores, values)
    dtype = accumulator(result)
    steps = scores.shape[1]
    state = initial or SoftmaxState.empty(scores.shape[0], scores.shape[2], values.shape[3], dtype)
    state = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), state)
    size = min(chunk_size or steps, steps)
    if mask is None:
        mask = jnp.ones(scores.shape[:2], bool)

    def block_statistics(scores, values, mask):
        scores, values = _neutralise(scores.astype(dtype), values.astype(dtype), mask)
        maximum = lax.stop_gradient(jnp.max(scores, axis=1))
        weight = _exp(scores, maximum[:, None])
        numerator = jnp.einsum("bth,bthd->bhd", weight, values, precision=lax.Precision.HIGHEST)
        return SoftmaxState(maximum, jnp.sum(weight, axis=1), numerator)

    count = steps // size
    if count > 1:

        @jax.checkpoint
        def body(state, i):
            parts = [lax.dynamic_slice_in_dim(array, i * size, size, axis=1) for array in (scores, values, mask)]
            return softmax_merge(state, block_statistics(*parts)), None

        state, _ = lax.scan(body, state, jnp.arange(count))
        scores, values, mask = (array[:, count * size :] for array in (scores, values, mask))
    if scores.shape[1]:
        state = softmax_merge(state, block_statistics(scores, values, mask))
    return state.output().astype(result), state


def _exp(value, maximum):
    """exp(value - maximum), and zero in value and gradient where ``value`` is -inf (even if ``maximum`` is too)."""
    present = value > -jnp.inf
    return jnp.where(present, jnp.exp(jnp.where(present, value - maximum, 0)), 0)


def _neutralise(scores, values, mask):
    """Excluded steps get score -inf and value 0, so that whatever stands there reaches neither value nor gradient."""
    if mask is not None:
        scores = jnp.where(mask[..., None], scores, -jnp.inf)
    return scores, jnp.where((scores > -jnp.inf)[..., None], values, 0)


def _running_maximum(scores, start, reset, sequential):
    """Maximum over each prefix since the last reset; exact, so its form does not change the numbers."""
    if reset is None:
        reset = jnp.zeros(scores.shape[:2], bool)
    if sequential or scores.shape[1] == 1 or jax.default_backend() == "cpu":

        def step(carry, now):
            score, fresh = now
            carry = jnp.maximum(jnp.where(fresh[:, None], -jnp.inf, carry), score)
            return carry, carry

        xs = (jnp.moveaxis(scores, 1, 0), jnp.moveaxis(reset, 1, 0))
        return jnp.moveaxis(lax.scan(step, start, xs)[1], 0, 1)

    def combine(first, second):
        fresh = second[1][..., None]
        return jnp.where(fresh, second[0], jnp.maximum(first[0], second[0])), first[1] | second[1]

    since, restarted = lax.associative_scan(combine, (scores, reset), axis=1)
    return jnp.where(restarted[..., None], since, jnp.maximum(since, start[:, None]))


def _naive(scores, values, initial, reset):
    """The definition: every prefix summed on its own, O(T^2)."""
    steps = scores.shape[1]
    document = jnp.zeros(scores.shape[:2], int) if reset is None else jnp.cumsum(reset, axis=1)
    seen = jnp.tril(jnp.ones((steps, steps), bool)) & (document[:, :, None] == document[:, None, :])  # [B, t, j]
    table = jnp.where(seen[..., None], scores[:, None], -jnp.inf)  # [B, t, j, H]
    carried = (document == 0)[..., None]  # [B, t, 1]: no reset yet, the initial state still counts
    start = jnp.where(carried, lax.stop_gradient(initial.maximum)[:, None], -jnp.inf)
    maximum = lax.stop_gradient(jnp.maximum(jnp.max(table, axis=2), start))
    weight = _exp(table, maximum[:, :, None])
    old = _exp(start, maximum)
    numerator = jnp.einsum("btjh,bjhd->bthd", weight, values, precision=lax.Precision.HIGHEST)
    return SoftmaxState(
        maximum,
        jnp.sum(weight, axis=2) + old * initial.denominator[:, None],
        numerator + old[..., None] * initial.numerator[:, None],
    )


def _check(scores, values, initial, mask, reset):
    """Checks shapes and dtypes of the arguments that all functions here share."""
    for name, array in (("scores", scores), ("values", values)):
        check_floating(name, array)
        if jnp.issubdtype(array.dtype, jnp.complexfloating):
            raise TypeError(f"{name} must be real, got {array.dtype}")
    if scores.ndim != 3:
        raise ValueError(f"scores must have shape [batch, time, heads], got {list(scores.shape)}")
    if scores.shape[1] == 0:
        raise ValueError("scores has no time steps (T = 0); a scan needs at least one")
    if values.ndim != 4 or tuple(values.shape[:3]) != tuple(scores.shape):
        raise ValueError(f"values must have shape {[*scores.shape, 'd']} to go with scores, got {list(values.shape)}")
    for name, flags in (("mask", mask), ("reset", reset)):
        if flags is None:
            continue
        if getattr(flags, "dtype", None) != jnp.bool_:
            raise TypeError(f"{name} must be a bool array, got {getattr(flags, 'dtype', type(flags).__name__)}")
        if tuple(flags.shape) != tuple(scores.shape[:2]):
            raise ValueError(f"{name} must have shape {list(scores.shape[:2])}, got {list(flags.shape)}")
    if initial is None:
        return
    if not isinstance(initial, SoftmaxState):
        raise TypeError(f"initial must be a SoftmaxState, got {type(initial).__name__}")
    small = (scores.shape[0], scores.shape[2])
    for name, wanted in (("maximum", small), ("denominator", small), ("numerator", (*small, values.shape[3]))):
        if tuple(getattr(initial, name).shape) != wanted:
            raise ValueError(f"initial.{name} must have shape {list(wanted)}, got {list(getattr(initial, name).shape)}")
