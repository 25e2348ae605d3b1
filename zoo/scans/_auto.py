"""The one table behind ``method="auto"``: which form of a scan runs on which platform for which shape.

How it was measured. CPU: two cores shared with other work, jax 0.10.2, the comparison that
``python -m benchmarks.scans`` makes (alternating repeats, medians), B 1..8, T 256..65,536, D 16..256, real and
complex, forward and forward+backward. Sequential ran near the speed of an elementwise product of the same arrays and
was the fastest form nearly everywhere. Chunked, with 16 chunks, was ahead by up to 1.4x for B = 8, D = 64 and
T >= 4096 with its gradient, and behind by up to 2.9x for B = 1, D = 16; no shape is given to it until that is measured
on a quiet machine. GPU and TPU: not timed. The kernel is chosen there, where there is one for the dtype, by the bytes it
moves, counted from its grid for programs compiled ahead of time (``python -m benchmarks.aot``): the inputs and the states
once each (5/3 of that where time is cut into chunks), against several passes of the associative form. Elsewhere the
associative form is chosen for its depth.

``linear_attention`` on CPU, K and V 16 to 64, chunks of 16 to 128 steps: 32 was the fastest or near it, 10 to 30 times
ahead of the sequential form. ``selective_scan`` on CPU: the sequential form was ahead. GPU and TPU, not timed: the kernels,
where they fit, else the chunked forms.
"""

import contextlib
import contextvars
import importlib
import math
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from pallas_kernels import available

# platform -> form; platforms that are not named take OTHERWISE
LINEAR = {"cpu": "sequential", "gpu": "pallas", "tpu": "pallas"}
AFFINE = {"cpu": "sequential"}
OTHERWISE = "associative"

_COMPILING_FOR: contextvars.ContextVar[str | None] = contextvars.ContextVar("compiling_for", default=None)


@contextlib.contextmanager
def compiling_for(platform: str) -> Iterator[None]:
    """Inside, every scan is traced as on ``platform`` ("cpu", "gpu", "tpu"), for compiling ahead of time.

    Kernels are then not interpreted, whatever this machine is. What is already traced does not change.
    """
    if platform not in ("cpu", "gpu", "tpu"):
        raise ValueError(f"platform={platform!r} is not one of cpu, gpu, tpu")
    token = _COMPILING_FOR.set(platform)
    try:
        yield
    finally:
        _COMPILING_FOR.reset(token)


def platform() -> str:
    """The platform that scans are traced for: that of ``compiling_for``, else this machine's."""
    return _COMPILING_FOR.get() or jax.default_backend()


def kernel_options() -> dict[str, str | bool | None]:
    """``platform`` and ``interpret`` to call a kernel with: as this machine runs it, or as ``compiling_for`` asks."""
    asked = _COMPILING_FOR.get()
    return {"platform": asked, "interpret": False} if asked in ("gpu", "tpu") else {"platform": None, "interpret": None}


MATRIX_CHUNK = 32  # steps per chunk where the state is a matrix; 16 to 128 were tried on CPU, K, V 16 to 64

# Rows of keys and values in a chunk of the delta rule, the size of its triangular systems. Not settled by measurement yet
# (python -m benchmarks.delta_rule --chunks).
DELTA_CHUNK = 64


def linear_form(method: str, chunk_size: int | None, shape: tuple[int, ...], dtype: np.dtype) -> tuple[str, int]:
    """Resolves method and chunk size of ``linear_scan`` for inputs of ``shape`` [B, T, ...].

    Returns:
      (form, steps per chunk); the size is only used by the chunked form.
    """
    if method == "auto":
        method = LINEAR.get(platform(), OTHERWISE)
        if method == "pallas" and not _kernel_fits(math.prod(shape), dtype):
            method = OTHERWISE
    return method, chunk_size or max(1, math.isqrt(shape[1]))


def _kernel_fits(size: int, dtype: np.dtype) -> bool:
    from pallas_kernels.linear_scan.tiles import fits  # Pallas takes a while to import: only where it is used

    return available("linear_scan", platform()) and fits(platform(), size, dtype)


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
        method = AFFINE.get(platform(), OTHERWISE)
    return method, chunk_size or max(1, math.isqrt(shape[1]))


def matrix_form(
    method: str, chunk_size: int | None, steps: int, keys: int, values: int, dtype: np.dtype
) -> tuple[str, int]:
    """Resolves method and chunk size of ``linear_attention`` for T = ``steps`` and a state [``keys``, ``values``].

    Returns:
      (form, steps per chunk); the sequential form is differentiated chunk by chunk as well.
    """
    if method == "auto":
        kernel = "pallas" if _fits("chunked", keys, values, dtype) else "chunked"
        method = "sequential" if steps == 1 else kernel
    return method, min(chunk_size or MATRIX_CHUNK, steps)


def delta_form(
    method: str, chunk_size: int | None, time: int, steps: int, keys: int, values: int, dtype: np.dtype
) -> tuple[str, int]:
    """Resolves method and tokens per chunk of ``delta_product`` for T = ``time`` and ``steps`` a token."""
    if method == "auto":
        kernel = "pallas" if _fits("delta_rule", keys, values, dtype) else "chunked"
        method = "sequential" if time == 1 else kernel
    return method, min(chunk_size or max(1, DELTA_CHUNK // steps), time)


def selective_form(method: str, chunk_size: int | None, steps: int, size: int, dtype: np.dtype) -> tuple[str, int]:
    """Resolves method and chunk size of ``selective_scan`` for T = ``steps`` and a state of ``size`` per channel.

    Returns:
      (form, steps per chunk).
    """
    if method == "auto":
        kernel = "pallas" if _fits("selective_scan", size, dtype) else "chunked"
        method = "sequential" if platform() == "cpu" or steps == 1 else kernel
    return method, min(chunk_size or max(32, math.isqrt(steps)), steps)


def _fits(name: str, *sizes: Any) -> bool:
    """Returns whether there is a kernel for the platform and tiles for these sizes."""
    # imported here, on a platform that has kernels: Pallas takes long to import
    here = platform()
    return available(name, here) and importlib.import_module(f"pallas_kernels.{name}.tiles").fits(here, *sizes)
