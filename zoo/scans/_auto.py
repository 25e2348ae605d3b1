"""The one table behind ``method="auto"``: which form of a scan runs on which platform for which shape.

How it was measured. CPU: two cores shared with other work, jax 0.10.2, the comparison that
``python -m benchmarks.scans`` makes (alternating repeats, medians), B 1..8, T 256..65,536, D 16..256, real and
complex, forward and forward+backward. Sequential ran near the speed of an elementwise product of the same arrays and
was the fastest form nearly everywhere. Chunked, with 16 chunks, was ahead by up to 1.4x for B = 8, D = 64 and
T >= 4096 with its gradient, and behind by up to 2.9x for B = 1, D = 16; no shape is given to it until that is measured
on a quiet machine. GPU and TPU: not measured; the associative form is chosen there for its depth.
"""

import math

import jax
import numpy as np

from pallas_kernels import available

# platform -> form; platforms that are not named take OTHERWISE
LINEAR = {"cpu": "sequential"}
AFFINE = {"cpu": "sequential"}
OTHERWISE = "associative"


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
        method = LINEAR.get(platform, OTHERWISE)
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
        method = AFFINE.get(jax.default_backend(), OTHERWISE)
    return method, chunk_size or max(1, math.isqrt(shape[1]))
