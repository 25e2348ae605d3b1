"""What differs between the supported JAX versions, and how a kernel is checked without the hardware it is for.

Newer JAX lowers a Triton kernel only for a GPU that it knows: without one at hand it must be named as an abstract device.
Older JAX lowers for any.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.experimental.pallas import tpu as _tpu
from jax.experimental.pallas import triton as _triton
from jax.sharding import AbstractMesh, use_abstract_mesh

H100 = "NVIDIA H100 80GB HBM3"


def gpu_params(*, num_warps: int, num_stages: int) -> Any:
    """Compiler parameters of a kernel for the Triton lowering; always given explicitly."""
    return _triton.CompilerParams(num_warps=num_warps, num_stages=num_stages)


def tpu_params(*, dimension_semantics: tuple[str, ...]) -> Any:
    """Compiler parameters of a kernel for the Mosaic lowering: "parallel" or "arbitrary" per grid axis."""
    return _tpu.CompilerParams(dimension_semantics=dimension_semantics)


def resolve(platform: str | None, interpret: bool | None) -> tuple[str, bool]:
    """Which kernel to run, and whether by interpretation: the rule behind ``platform`` and ``interpret`` everywhere.

    Args:
      platform: "gpu" or "tpu"; None is this machine's, or "gpu" on a CPU.
      interpret: None is True exactly when this machine is not of that platform.

    Raises:
      ValueError: another platform.
    """
    here = jax.default_backend()
    if platform is None:
        platform = here if here in ("gpu", "tpu") else "gpu"
    if platform not in ("gpu", "tpu"):
        raise ValueError(f"platform={platform!r} is not one of gpu, tpu")
    return platform, here != platform if interpret is None else interpret


def lower_for(platform: str, function: Callable, *args: Any) -> str:
    """Lowers ``function(*args)`` for "cuda" or "tpu" on any machine, and returns the program's text.

    Args:
      platform: "cuda" (an H100) or "tpu".
      function: what to lower; it may hold Pallas kernels for that platform.
      *args: arrays or ``jax.ShapeDtypeStruct``.

    Raises:
      ValueError: another platform.
    """
    if platform not in ("cuda", "tpu"):
        raise ValueError(f"platform={platform!r} is not one of cuda, tpu")
    trace = jax.jit(function).trace
    if platform == "tpu":
        return trace(*args).lower(lowering_platforms=("tpu",)).as_text()
    device = jax.sharding.AbstractDevice(device_kind=H100, num_cores=None, platform="gpu")
    with use_abstract_mesh(AbstractMesh((), (), abstract_device=device)):
        return trace(*args).lower(lowering_platforms=("cuda",)).as_text()
