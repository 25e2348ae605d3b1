"""What ``benchmarks.aot`` and ``benchmarks.gpu`` run of every kernel: one module per operation, with ``cases()``."""

import dataclasses
import importlib
import pkgutil
from collections.abc import Callable
from typing import Any


@dataclasses.dataclass(frozen=True)
class Case:
    """One call of one kernel at one size.

    Attributes:
      name: size and direction, such as "B64 T512 N4096 forward"; unique within its operation.
      function: platform ("gpu", "tpu" or None) -> the function to be jitted. For "gpu" and "tpu" it asks for the kernel
        with ``interpret=False``, so that it compiles for that platform wherever it is called; None is this machine's
        kernel, interpreted on a CPU.
      arguments: ``jax.ShapeDtypeStruct`` (or arrays) to call it with, as trees.
      minimum_bytes: bytes of device memory that any implementation has to move: each input read once, each output
        written once.
      flops: useful operations.
      odd: the same at small odd sizes, where its sizes hang together in a way that no one sees who only has the shapes.
    """

    name: str
    function: Callable[[str], Callable]
    arguments: tuple[Any, ...]
    minimum_bytes: float
    flops: float
    odd: "Case | None" = None


def all_cases() -> dict[str, list[Case]]:
    """Operation -> its cases, over every module of this folder."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    return {name: importlib.import_module(f"{__name__}.{name}").cases() for name in names}
