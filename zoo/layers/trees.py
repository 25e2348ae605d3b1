"""States as trees: telling apart the leaves that carry derivatives from those that do not."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp


def split_floating(tree: Any) -> tuple[list[jax.Array], list[jax.Array], Callable[[Sequence, Sequence], Any]]:
    """Splits ``tree`` into (real and complex leaves, other leaves, ``join(floating, others) -> tree``)."""
    leaves, structure = jax.tree.flatten(tree)
    leaves = [jnp.asarray(leaf) for leaf in leaves]
    inexact = [jnp.issubdtype(leaf.dtype, jnp.inexact) for leaf in leaves]

    def join(floating: Sequence, others: Sequence) -> Any:
        first, second = iter(floating), iter(others)
        return jax.tree.unflatten(structure, [next(first if f else second) for f in inexact])

    floating = [leaf for leaf, f in zip(leaves, inexact) if f]
    return floating, [leaf for leaf, f in zip(leaves, inexact) if not f], join


def batch_axes(make: Callable[[int], Any]) -> Any:
    """Which axis of every leaf of ``make(batch_size)`` is the batch: a tree of integers, -1 for leaves without one.

    States of stacked layers have their batch behind the layer axes; this finds it by comparing two batch sizes.
    """
    one, two = (jax.eval_shape(lambda n=n: make(n)) for n in (1, 2))

    def axis(a, b):
        return next((i for i, (m, n) in enumerate(zip(a.shape, b.shape)) if m != n), -1)

    return jax.tree.map(axis, one, two)


def rows_first(tree: Any, axes: Any) -> Any:
    """Moves every leaf's batch axis (from ``batch_axes``) to the front; leaves without one stay."""
    return jax.tree.map(lambda leaf, axis: jnp.moveaxis(leaf, axis, 0) if axis > 0 else leaf, tree, axes)


def rows_back(tree: Any, axes: Any) -> Any:
    """Undoes ``rows_first``."""
    return jax.tree.map(lambda leaf, axis: jnp.moveaxis(leaf, 0, axis) if axis > 0 else leaf, tree, axes)
