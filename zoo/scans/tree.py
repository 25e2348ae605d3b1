"""Balanced reduction along an axis: combine neighbours, then neighbours of those, until one element is left.

For T elements the combinations form a binary tree of depth ceil(log2 T): T - 1 combinations in that many dependent
steps. Neighbours keep their order, so ``combine`` need not be commutative; if it is not associative either (a
recursive network), the tree it is applied in is the balanced one: at every level elements 2i and 2i + 1 combine, and
an odd last element moves up unchanged.

Masked elements are skipped: a pair with one valid element is that element, without a call of ``combine`` having any
effect on value or gradient.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, PyTree


def tree_reduce(
    combine: Callable[[PyTree, PyTree], PyTree],
    elements: PyTree,
    *,
    mask: Bool[Array, "..."] | None = None,
    axis: int = 1,
    identity: PyTree | None = None,
) -> PyTree:
    """Reduces a pytree of arrays along ``axis`` by a balanced binary tree.

    Args:
      combine: (left, right) -> combined, on pytrees like ``elements`` with the pairs along ``axis``; called once per
        level, it must treat the positions along ``axis`` independently and keep structure, shapes and dtypes.
      elements: pytree of arrays with equal sizes up to and including ``axis``.
      mask: bool, of the shape of the leaves up to and including ``axis``; False skips an element.
      axis: the axis to reduce, counted from the front.
      identity: pytree of arrays or scalars that broadcast to one element: the value of a reduction over no element
        at all (a fully masked row). Zeros when None.

    Returns:
      The reduced pytree: the leaves of ``elements`` without ``axis``.

    Raises:
      TypeError: the mask is not bool, or combine changes the structure.
      ValueError: no leaves, unequal or zero length, a mask of the wrong shape, or combine changes a shape.
    """
    elements = jax.tree.map(jnp.asarray, elements)
    leading = _check(elements, mask, axis)
    empty = None
    if mask is not None:
        if identity is None:
            identity = jax.tree.map(lambda leaf: jnp.zeros((), leaf.dtype), elements)
        # Masked places are filled with a valid element of the same row (with the identity in a row that has none):
        # combine runs there too, and what it sees must not turn the gradient of its weights into NaN.
        first = jnp.expand_dims(jnp.argmax(mask, axis=axis), axis)
        empty = ~jnp.any(mask, axis=axis)

        def fill(leaf, neutral):
            source = jnp.take_along_axis(leaf, _expand(first, leaf), axis=axis)
            neutral = jnp.broadcast_to(jnp.asarray(neutral, leaf.dtype), jnp.squeeze(source, axis).shape)
            none = _expand(jnp.expand_dims(empty, axis), leaf)
            source = jnp.where(none, jnp.expand_dims(neutral, axis), source)
            return jnp.where(_expand(mask, leaf), leaf, lax.stop_gradient(source))

        elements = jax.tree.map(fill, elements, identity)

    length = leading[axis]
    while length > 1:
        pairs = length // 2
        left, right, rest = (
            jax.tree.map(lambda leaf, i=i: _take(leaf, axis, *i), elements)
            for i in ((0, 2 * pairs, 2), (1, 2 * pairs, 2), (2 * pairs, length, 1))
        )
        both = _check_combined(combine(left, right), left)
        if mask is not None:
            mask_left, mask_right, mask_rest = (
                _take(mask, axis, *i) for i in ((0, 2 * pairs, 2), (1, 2 * pairs, 2), (2 * pairs, length, 1))
            )
            both = jax.tree.map(
                lambda c, a, b, on_a=mask_left, on_b=mask_right: jnp.where(
                    _expand(on_a & on_b, c), c, jnp.where(_expand(on_b, c), b, a)
                ),
                both,
                left,
                right,
            )
            mask = jnp.concatenate([mask_left | mask_right, mask_rest], axis=axis)
        elements = jax.tree.map(lambda c, r: jnp.concatenate([c, r], axis=axis), both, rest)
        length = length - pairs
    result = jax.tree.map(lambda leaf: jnp.squeeze(leaf, axis), elements)
    if empty is None:
        return result
    return jax.tree.map(
        lambda leaf, neutral: jnp.where(_expand(empty, leaf), jnp.asarray(neutral, leaf.dtype), leaf), result, identity
    )


def _take(array, axis, start, stop, step):
    return array[(slice(None),) * axis + (slice(start, stop, step),)]


def _expand(flags, leaf):
    """Adds trailing axes to ``flags`` until it has the rank of ``leaf``."""
    return flags.reshape(flags.shape + (1,) * (leaf.ndim - flags.ndim))


def _check(elements, mask, axis):
    """Checks the arguments; returns the common leading shape up to and including ``axis``."""
    leaves = jax.tree.leaves(elements)
    if not leaves:
        raise ValueError("elements has no arrays")
    if axis < 0 or any(leaf.ndim <= axis for leaf in leaves):
        raise ValueError(f"axis={axis} must name an axis of every array, counted from the front; "
                         f"ranks are {sorted({leaf.ndim for leaf in leaves})}")  # fmt: skip
    shapes = {tuple(leaf.shape[: axis + 1]) for leaf in leaves}
    if len(shapes) > 1:
        raise ValueError(f"arrays of elements differ in shape up to axis {axis}: {sorted(shapes)}")
    leading = shapes.pop()
    if leading[axis] == 0:
        raise ValueError(f"elements has length 0 along axis {axis}; a reduction needs at least one element")
    if mask is not None:
        if getattr(mask, "dtype", None) != jnp.bool_:
            raise TypeError(f"mask must be a bool array, got {getattr(mask, 'dtype', type(mask).__name__)}")
        if tuple(mask.shape) != leading:
            raise ValueError(f"mask must have shape {list(leading)}, got {list(mask.shape)}")
    return leading


def _check_combined(both, left):
    """Checks that ``combine`` kept structure and shapes."""
    if jax.tree.structure(both) != jax.tree.structure(left):
        raise TypeError(
            f"combine must return the structure of its arguments, {jax.tree.structure(left)}, "
            f"got {jax.tree.structure(both)}"
        )
    for got, want in zip(jax.tree.leaves(both), jax.tree.leaves(left), strict=True):
        if (got.shape, got.dtype) != (want.shape, want.dtype):
            raise ValueError(
                f"combine must keep shapes and dtypes: {want.dtype}{list(want.shape)} became "
                f"{got.dtype}{list(got.shape)}"
            )
    return both
