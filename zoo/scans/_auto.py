"""The one table behind ``method="auto"``: which form of a scan runs on which platform for which shape."""

import math

import jax
import numpy as np


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
    try:
        from pallas_kernels import available
    except ImportError:
        found = False
    else:
        found = available(operation, platform)
    if not found:
        raise ValueError(
            f"method='pallas': there is no {operation} kernel for platform {platform!r}; "
            "sequential, chunked, associative and auto are available"
        )
