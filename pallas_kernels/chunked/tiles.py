"""Tile sizes of the ``chunked`` kernels: steps per chunk, columns per program, segments of time."""

from typing import NamedTuple

import jax.numpy as jnp
from jax.typing import DTypeLike

PROGRAMS = 128  # about one per multiprocessor of an H100
STATE = 8192  # floats of the state that one GPU program keeps in registers: 32 per thread of eight warps
NOTHING = -104.0  # log decays below are raised to it: exp is 0 in float32 all the same, and sums keep their digits


class Tiles(NamedTuple):
    """Attributes:
    chunk: steps per chunk.
    width: columns of the content that one program works on.
    segments: pieces of time that run side by side.
    warps: of a GPU program.
    """

    chunk: int
    width: int
    segments: int
    warps: int


def fits(platform: str, keys: int, values: int, dtype: DTypeLike) -> bool:
    """Returns whether there are tiles; otherwise the reference is run."""
    widest = 256 if platform == "gpu" else 512
    return jnp.dtype(dtype) in (jnp.float32, jnp.bfloat16) and max(keys, values) <= widest


def power_of_two(size: int) -> int:
    """The smallest power of two that is at least ``size``."""
    return 1 << (size - 1).bit_length()


def tiles(platform: str, rows: int, steps: int, reads: int, content: int, channels: bool, dtype: DTypeLike) -> Tiles:
    """Tiles of one pass over ``rows`` = batch times heads.

    Chunk and segments are the same whichever of K and V is ``reads`` and which ``content``.
    """
    if platform == "tpu":
        least = 16 if jnp.dtype(dtype).itemsize == 2 else 8
        return Tiles(min(64 if channels else 128, max(least, power_of_two(steps))), content, 1, 0)
    chunk = max(16, min(32 if channels or jnp.dtype(dtype).itemsize == 4 else 64, power_of_two(steps)))
    reads, content = (max(16, power_of_two(n)) for n in (reads, content))
    state = STATE // 2 if channels else STATE  # the products of a decay per channel need registers too
    width = max(16, min(content, state // reads))
    blocks = max(1, reads * content // state)
    segments, chunks = 1, -(-steps // chunk)
    while rows * blocks * segments < PROGRAMS and chunks >= 16 * segments:
        segments *= 2
    return Tiles(chunk, width, segments, 8 if channels or reads * width > 4096 else 4)
