"""Gradient clipping by global norm and by value, as optax transformations.

Pascanu, Mikolov, Bengio (2013): g <- g min(1, c / ||g||) over the whole tree; element-wise: g <- clamp(g, -c, c).
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax


def clip_gradients(norm: float | None = None, value: float | None = None) -> optax.GradientTransformation:
    """Clips by value first, then by global norm; None leaves a stage out.

    Raises:
      ValueError: a bound is not positive.
    """
    stages = []
    for name, bound in (("value", value), ("norm", norm)):
        if bound is not None and not bound > 0:
            raise ValueError(f"{name} must be a positive bound, got {bound!r}")
    if value is not None:
        stages.append(optax.clip(value))
    if norm is not None:
        stages.append(clip_by_norm(norm))
    return optax.chain(*stages) if stages else optax.identity()


def clip_by_norm(max_norm: float) -> optax.GradientTransformation:
    """Rescales the whole tree to a global norm of at most ``max_norm``.

    Unlike ``optax.clip_by_global_norm`` the norm cannot overflow (gradients of 1e30 are clipped, not turned into
    zeros), and a tree with an infinite or NaN entry is returned as it is, so that whoever looks for it finds it.
    """
    if not max_norm > 0:
        raise ValueError(f"max_norm must be positive, got {max_norm!r}")

    def update(updates, state, params=None):
        del params
        norm = safe_global_norm(updates)
        scale = jnp.where(norm > max_norm, max_norm / jnp.maximum(norm, max_norm), 1)
        scale = jnp.where(jnp.isfinite(norm), scale, 1)
        return jax.tree.map(lambda g: (g * scale).astype(g.dtype), updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def safe_global_norm(tree: Any) -> jax.Array:
    """Euclidean norm of all leaves, exact where squares would overflow or underflow; infinity or NaN if a leaf has one."""
    leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(tree) if jnp.size(leaf)]
    largest = jnp.max(jnp.stack([jnp.max(jnp.abs(leaf)) for leaf in leaves]))
    unit = jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1)
    return unit * optax.global_norm(jax.tree.map(lambda g: g / unit.astype(g.dtype), leaves))
