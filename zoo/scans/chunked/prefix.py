"""Linear attention with a prefix that every step sees whole: the encoder region of prefix linear attention.

Arora, Timalsina, Singhal, Spector, Eyuboglu, Zhao, Rao, Rudra, Re (2024), Just Read Twice, arXiv 2407.05483.

    E   = sum_{j <= M} k^e_j (v^e_j)^T                    the prefix, with keys and values of its own
    S_t = S_{t-1} + k_t v_t^T                             S_0 = initial
    y_t = q_t (S_t + E)                                   for every t, those before M included: not causal there

Since the state is a sum, this is ``linear_attention`` with ``initial + E``, and S_T + E is a state from which
``linear_attention`` (or ``linear_attention_step``) goes on: after the prefix there is nothing left to remember of it but
its sum, and no step costs more. Scale, feature maps and normalisation are the caller's: the sum of weights is one more
channel of values, always 1, in both parts, so that both stand in one denominator. A step whose values are 0, that channel
included, is not there.

Forms, all with the same numbers up to rounding: ``quadratic``, every pair of steps by itself, the meaning; and those of
``linear_attention``.

Documents. With ``starts`` the steps are cut into documents, and a document sees its own prefix only: the steps of
``prefix_k`` that lie in it. Its sum is then collected from both sides, by a scan forwards and one backwards.

Cost per head: O(M K V) more than ``linear_attention``; with ``starts`` three times that.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from zoo.checks import check_choice
from zoo.dtypes import accumulator
from zoo.scans.chunked import decay
from zoo.scans.chunked.decay import FeatureMap, linear_attention

METHODS = ("quadratic", *decay.METHODS)
_CHUNK = 256  # steps whose features are in memory at once while the prefix is summed
_einsum = partial(jnp.einsum, precision=lax.Precision.HIGHEST)


def prefix_linear_attention(
    q: Float[Array, "B T G F"],
    k: Float[Array, "B T G F"],
    v: Float[Array, "B T H V"],
    prefix_k: Float[Array, "B M G F"],
    prefix_v: Float[Array, "B M H V"],
    initial: Float[Array, "B H K V"] | None = None,
    *,
    starts: Bool[Array, "B T"] | None = None,
    method: str = "auto",
    chunk_size: int | None = None,
    feature_map: FeatureMap | None = None,
) -> tuple[Float[Array, "B T H V"], Float[Array, "B H K V"]]:
    """The recurrence of the module docstring, along axis 1; head h of v uses head h // (H / G) of q and k.

    Args:
      q, k, v: queries, and the keys and values that are seen from their own step on.
      prefix_k, prefix_v: keys and values that every step sees; M may be 0.
      initial: [B, H, K, V], the state before the first step; zeros when None.
      starts: True at the first step of a document: neither ``initial`` nor what came before reaches it, and it sees of the
        prefix what lies in its document. Then M = T, and steps outside of any prefix have ``prefix_v`` 0.
      method: one of ``METHODS``, see ``zoo.scans.linear_attention``; "quadratic" makes [T, T] weights.
      chunk_size: steps per chunk, likewise.
      feature_map: queries and keys are these features, likewise.

    Returns:
      y: [B, T, H, V] in the result type of q, k and v.
      last: [B, H, K, V], S_T + E in the accumulation type: the state to go on from.

    Raises:
      TypeError: an argument is not floating-point, or complex.
      ValueError: shapes do not fit, T = 0, or an unknown method.
    """
    check_choice("method", method, METHODS)
    keys = q.shape[-1] if feature_map is None else jax.eval_shape(feature_map, q).shape[-1]
    decay._check(q, k, v, None, initial, "auto", chunk_size, keys)
    (batch, steps, groups, width), (heads, values) = q.shape, v.shape[2:]
    size = prefix_k.shape[1] if prefix_k.ndim == 4 else -1
    for name, array, want in (
        ("prefix_k", prefix_k, (batch, size, groups, width)),
        ("prefix_v", prefix_v, (batch, size, heads, values)),
    ):
        if tuple(array.shape) != want:
            raise ValueError(f"{name} must have shape {[batch, 'M', *want[2:]]}, got {list(array.shape)}")
    if starts is not None and (tuple(starts.shape) != (batch, steps) or size != steps):
        raise ValueError(
            f"starts must have shape {[batch, steps]} and go with a prefix of {steps} steps, "
            f"got {list(starts.shape)} and {size}"
        )
    if method == "quadratic":
        return _quadratic(q, k, v, prefix_k, prefix_v, initial, starts, feature_map)
    run = partial(linear_attention, method=method, chunk_size=chunk_size, feature_map=feature_map)
    if starts is None:
        if size:
            total = _sum_of_products(prefix_k, prefix_v, keys, feature_map)
            initial = total if initial is None else initial + total
        return run(q, k, v, None, initial)
    gate = jnp.where(starts[..., None], -jnp.inf, jnp.zeros(v.shape[:3], accumulator(v.dtype)))
    y, last = run(q, k, v, gate, initial)
    before, total = run(q, prefix_k, prefix_v, gate)
    # From behind: step t reads what comes after it in its document, so keys and values move up by one, and a document
    # begins at its last step.
    ends = jnp.concatenate([starts[:, 1:], jnp.ones_like(starts[:, :1])], axis=1)
    later_k, later_v = (jnp.where(ends[..., None, None], 0, jnp.roll(a, -1, axis=1)) for a in (prefix_k, prefix_v))
    gate = jnp.where(ends[..., None], -jnp.inf, jnp.zeros_like(gate))
    after, _ = run(*(jnp.flip(a, axis=1) for a in (q, later_k, later_v, gate)))
    return y + before + jnp.flip(after, axis=1), last + total


def _sum_of_products(k, v, keys, feature_map):
    """sum_j k_j v_j^T [B, H, K, V] over axis 1, with the features of ``_CHUNK`` steps at a time."""
    dtype = accumulator(k.dtype, v.dtype)
    batch, steps, groups, _ = k.shape
    v = v.reshape(batch, steps, groups, -1, v.shape[-1])
    size = min(_CHUNK, steps)

    def cut(a):
        a = jnp.pad(a.astype(dtype), [(0, 0), (0, -steps % size)] + [(0, 0)] * (a.ndim - 2))
        return jnp.moveaxis(a.reshape(batch, -1, size, *a.shape[2:]), 1, 0)

    def add(total, inputs):
        k, v = inputs
        return total + _einsum("bsgk,bsgrv->bgrkv", k if feature_map is None else feature_map(k), v), None

    total = jnp.zeros((batch, groups, v.shape[3], keys, v.shape[-1]), dtype)
    total, _ = lax.scan(jax.checkpoint(add, prevent_cse=False), total, (cut(k), cut(v)))
    return total.reshape(batch, -1, *total.shape[3:])


def _quadratic(q, k, v, prefix_k, prefix_v, initial, starts, feature_map):
    """Every query against every key that it sees."""
    dtype = jnp.result_type(q, k, v)
    carried = accumulator(*(a.dtype for a in (q, k, v, prefix_k, prefix_v, initial) if a is not None))
    (batch, steps, groups, _), (heads, values) = q.shape, v.shape[2:]
    q, k, prefix_k = (a.astype(carried) for a in (q, k, prefix_k))
    if feature_map is not None:
        q, k, prefix_k = (feature_map(a) for a in (q, k, prefix_k))
    v, prefix_v = (a.astype(carried).reshape(*a.shape[:2], groups, heads // groups, values) for a in (v, prefix_v))
    document = jnp.zeros((batch, steps), jnp.int32) if starts is None else jnp.cumsum(starts, axis=1)
    together = document[:, :, None] == document[:, None]
    everywhere = jnp.ones((batch, steps, prefix_k.shape[1]), bool)
    y, last = 0, 0
    for keys, given, seen in (
        (k, v, together & jnp.tril(jnp.ones((steps, steps), bool))),
        (prefix_k, prefix_v, everywhere if starts is None else together),
    ):
        weights = jnp.where(seen[:, None], _einsum("btgk,bsgk->bgts", q, keys), 0)
        y = y + _einsum("bgts,bsgrv->btgrv", weights, given)
        kept = given if starts is None else jnp.where(together[:, -1][..., None, None, None], given, 0)
        last = last + _einsum("bsgk,bsgrv->bgrkv", keys, kept)
    y, last = y.reshape(batch, steps, heads, values), last.reshape(batch, heads, -1, values)
    if initial is not None:
        first = (document == 0).astype(carried)
        initial = initial.astype(carried)
        grouped = initial.reshape(batch, groups, heads // groups, *initial.shape[2:])
        y = y + first[..., None, None] * _einsum("btgk,bgrkv->btgrv", q, grouped).reshape(y.shape)
        last = last + first[:, -1, None, None, None] * initial
    return y.astype(dtype), last
