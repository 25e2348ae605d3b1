"""A causal map run from both ends of the documents in a row."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def two_directions(
    run: Callable[[int, Array, Array | None], Array], inputs: Float[Array, "B T D"], reset: Bool[Array, "B T"] | None
) -> Float[Array, "B T E"]:
    """``run(0, inputs, reset)`` plus, in the right order of time, ``run(1, reversed inputs, their resets)``.

    Both directions see the present step. ``reset`` is True at the first token of a document; read from the end, a
    document begins with its last token.
    """
    behind = None
    if reset is not None:
        last = jnp.concatenate([reset[:, 1:], jnp.ones_like(reset[:, :1])], axis=1)
        behind = last[:, ::-1]
    return run(0, inputs, reset) + run(1, inputs[:, ::-1], behind)[:, ::-1]
