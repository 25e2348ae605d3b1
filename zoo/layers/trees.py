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
