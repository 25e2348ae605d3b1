"""Tile sizes of the ``delta_rule`` kernels: steps per chunk, columns of the state per program, warps."""

from typing import NamedTuple

import jax.numpy as jnp
from jax.typing import DTypeLike

from pallas_kernels.chunked.tiles import power_of_two
from pallas_kernels.delta_rule.chunk import LEAF

PROGRAMS = 128  # about one per multiprocessor of an H100
STATE = 4096  # floats of the state that one GPU program keeps in registers: 32 per thread of four warps


class Tiles(NamedTuple):
    """Attributes:
    chunk: steps per chunk.
    width: columns of the state that one program of the sequential passes carries.
    keys, gathered: keys of one program of the gradients, and columns that it takes at a time.
    warps: of a GPU program of the sequential passes.
    """

    chunk: int
    width: int
    keys: int
    gathered: int
    warps: int


def fits(platform: str, keys: int, values: int, dtype: DTypeLike) -> bool:
    """Returns whether there are tiles; otherwise the reference is run."""
    widest = 1024 if platform == "gpu" else 512
    return jnp.dtype(dtype) in (jnp.float32, jnp.bfloat16) and keys <= 256 and values <= widest


def tiles(platform: str, rows: int, steps: int, keys: int, values: int, dtype: DTypeLike) -> Tiles:
    """Tiles for ``rows`` = batch times heads."""
    if platform == "tpu":
        return Tiles(max(LEAF, min(128, power_of_two(steps))), values, keys, values, 0)
    keys, values = (max(16, power_of_two(n)) for n in (keys, values))
    narrow = jnp.dtype(dtype).itemsize == 2
    chunk = max(LEAF, min(64 if narrow else 32, power_of_two(steps)))
    width = min(values, max(32, STATE // keys) if narrow else max(16, STATE // 2 // keys))
    while width > 16 and rows * (values // width) < PROGRAMS:
        width //= 2
    gathered = max(16, min(values // 2, 64 if narrow else 32))
    return Tiles(chunk, width, min(keys, 128 if narrow else 64), gathered, 8 if keys * width > STATE else 4)
