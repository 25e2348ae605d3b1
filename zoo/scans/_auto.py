"""The one table behind ``method="auto"``: which form of a scan runs on which platform for which shape."""

import math

import jax
import numpy as np

from pallas_kernels import available


def linear_form(method: str, chunk_size: int | None, shape: tuple[int, ...], dtype: np.dtype) -> tuple[str, int]:
    """Resolves method and chunk size of ``linear_scan`` for inputs of ``shape`` [B, T, ...].

    Returns:
      (form, steps per chunk); the size is only used by the chunked form.
    """
    steps = shape[1]
    platform = jax.default_backend()
    if method == "pallas":
        require_kernel("linear_scan", platform)
    if method == "auto":
        method = "sequential" if platform == "cpu" else "associative"
    return method, chunk_size or max(1, math.isqrt(steps))


def require_kernel(operation: str, platform: str) -> None:
    """Raises ValueError unless ``pallas_kernels`` has ``operation`` for ``platform``."""
    if not available(operation, platform):
        raise ValueError(
            f"method='pallas': there is no {operation} kernel for platform {platform!r}; "
            "sequential, chunked, associative and auto are available"
        )


def affine_form(method: str, chunk_size: int | None, shape: tuple[int, ...]) -> tuple[str, int]:
    """Resolves method and chunk size of ``affine_scan`` for inputs of ``shape`` [B, T, ..., N]."""
    if method == "auto":
        method = "sequential" if jax.default_backend() == "cpu" else "associative"
    return method, chunk_size or max(1, math.isqrt(shape[1]))
