"""Pallas kernels for the recurrences that decide speed on GPU and TPU. Imports jax only; zoo calls it, never the reverse.

One folder per operation, always with the same files::

    pallas_kernels/<operation>/
      __init__.py    the one public function, named like the operation: checks, padding, backend choice, derivative
      reference.py   plain jnp: the meaning
      gpu.py         Pallas, Triton lowering, compiler parameters given explicitly
      tpu.py         Pallas, Mosaic lowering
      tiles.py       tile sizes from shapes, dtype and the chip's on-chip budget

``operation(name)`` returns the public function, ``available(name, platform)`` says whether it has a kernel for a
platform. An operation is entered in ``OPERATIONS`` below with the platforms it is written for. Every kernel is checked
four ways without an accelerator (tests/kernels): numerics in interpret mode against the reference and a float64 oracle,
lowering for cuda and tpu, and ahead-of-time compilation for TPU and H100. What differs between JAX versions is in
``pallas_kernels.compat``.
"""

import importlib
from collections.abc import Callable

# operation -> platforms ("gpu", "tpu") that have a kernel
OPERATIONS: dict[str, tuple[str, ...]] = {
    "block_scan": ("gpu", "tpu"),
    "chunked": ("gpu", "tpu"),
    "delta_rule": ("gpu", "tpu"),
    "linear_scan": ("gpu", "tpu"),
    "newton": ("gpu", "tpu"),
    "rnn": ("gpu", "tpu"),
    "selective_scan": ("gpu", "tpu"),
}


def available(name: str, platform: str) -> bool:
    """Returns whether operation ``name`` has a kernel for ``platform`` ("cpu", "gpu" or "tpu")."""
    return platform in OPERATIONS.get(name, ())


def operation(name: str) -> Callable:
    """Returns the public function of operation ``name``.

    Raises:
      ValueError: there is no such operation; the message lists those there are.
    """
    if name not in OPERATIONS:
        raise ValueError(f"no kernel for {name!r}; there are: {', '.join(sorted(OPERATIONS)) or 'none yet'}")
    return getattr(importlib.import_module(f"pallas_kernels.{name}"), name)
