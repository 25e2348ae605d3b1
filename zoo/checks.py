"""Argument checks at the public boundary: one clear error that says what was wrong and what would be right."""

import difflib
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp


def nearest(name: str, choices: Iterable[str]) -> str:
    """Returns ``"; did you mean 'x'?"`` for the choice closest to ``name``, or an empty string."""
    matches = difflib.get_close_matches(str(name), list(choices), n=1, cutoff=0.5)
    return f"; did you mean {matches[0]!r}?" if matches else ""


def check_choice(argument: str, value: Any, choices: Iterable[str]) -> None:
    """Raises ValueError unless ``value`` is one of ``choices``."""
    choices = tuple(choices)
    if value not in choices:
        raise ValueError(f"{argument}={value!r} is not one of {', '.join(choices)}{nearest(value, choices)}")


def check_positive(argument: str, value: Any) -> None:
    """Raises ValueError unless ``value`` is an integer of at least 1."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{argument} must be a positive integer, got {value!r}")


def check_divides(small_name: str, small: int, large_name: str, large: int) -> None:
    """Raises ValueError unless ``small`` divides ``large``."""
    if large % small:
        raise ValueError(f"{large_name}={large} is not divisible by {small_name}={small}")


def check_floating(argument: str, array: Any) -> None:
    """Raises TypeError unless ``array`` is a real or complex floating-point array."""
    dtype = getattr(array, "dtype", None)
    if dtype is None or not jnp.issubdtype(dtype, jnp.inexact):
        raise TypeError(f"{argument} must be a floating-point array, got {dtype or type(array).__name__}")


def check_sequence(x: Any, dim: int, reset: Any = None) -> None:
    """Checks the input of a mixer: ``x`` is floating [B, T, dim] with T >= 1 and ``reset`` is bool [B, T] or None."""
    check_floating("x", x)
    if x.ndim != 3:
        raise ValueError(f"x must have shape [batch, time, {dim}], got {list(x.shape)}")
    if x.shape[-1] != dim:
        raise ValueError(f"x has width {x.shape[-1]}, but this module was made with dim={dim}")
    if x.shape[1] == 0:
        raise ValueError("x has no time steps (T = 0); a sequence needs at least one")
    check_reset(reset, x.shape[:2])


def check_reset(reset: Any, shape: tuple[int, ...]) -> None:
    """Checks that ``reset`` is None or a bool array of ``shape`` [B, T]."""
    check_flags("reset", reset, shape)


def check_flags(argument: str, flags: Any, shape: tuple[int, ...]) -> None:
    """Checks that ``flags`` is None or a bool array of ``shape``, that of x but for its last axis."""
    if flags is None:
        return
    if getattr(flags, "dtype", None) != jnp.bool_:
        raise TypeError(f"{argument} must be a bool array, got {getattr(flags, 'dtype', type(flags).__name__)}")
    if tuple(flags.shape) != tuple(shape):
        raise ValueError(f"{argument} must have shape {list(shape)} like x, got {list(flags.shape)}")


def check_tokens(argument: str, tokens: Any) -> None:
    """Checks that ``tokens`` is an integer array [B, T] with T >= 1."""
    dtype = getattr(tokens, "dtype", None)
    if dtype is None or not jnp.issubdtype(dtype, jnp.integer):
        raise TypeError(f"{argument} must be an integer array, got {dtype or type(tokens).__name__}")
    if tokens.ndim != 2 or tokens.shape[1] == 0:
        raise ValueError(f"{argument} must have shape [batch, time] with time >= 1, got {list(tokens.shape)}")


def check_state(state: Any, expected: Any) -> None:
    """Checks that the carried ``state`` has the structure and the shapes of ``expected`` (for this batch size).

    Args:
      state: what the caller passed.
      expected: what ``initial_state(batch_size)`` returns; only its structure and shapes are looked at.
    """
    if jax.tree.structure(state) != jax.tree.structure(expected):
        raise TypeError(
            f"state must be a {type(expected).__name__} as made by initial_state(batch_size), "
            f"got {type(state).__name__}"
        )
    wanted = jax.tree_util.tree_leaves_with_path(expected)
    for (path, want), got in zip(wanted, jax.tree.leaves(state), strict=True):
        if tuple(jnp.shape(got)) != tuple(jnp.shape(want)):
            raise ValueError(
                f"state{jax.tree_util.keystr(path)} has shape {list(jnp.shape(got))}, "
                f"but {list(jnp.shape(want))} is needed for this batch size"
            )
