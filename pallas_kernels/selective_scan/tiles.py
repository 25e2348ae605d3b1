"""Tile sizes of the ``selective_scan`` kernels: steps per chunk and channels per program."""

from typing import NamedTuple

import jax.numpy as jnp
from jax.typing import DTypeLike

UNROLL = {"gpu": 4, "tpu": 8}  # steps of one loop round; on a GPU the backward pass has their states in registers
VMEM = 4 * 2**20  # bytes for the states of one chunk on a TPU


class Tiles(NamedTuple):
    """Attributes:
    chunk: steps between two states that the backward pass starts again from.
    width: channels of one program.
    """

    chunk: int
    width: int


def fits(platform: str, size: int, dtype: DTypeLike) -> bool:
    """Returns whether there are tiles for a state of ``size`` per channel; otherwise the reference is run."""
    return jnp.dtype(dtype) in (jnp.float32, jnp.bfloat16) and size <= (32 if platform == "gpu" else 64)


def power_of_two(size: int) -> int:
    """The smallest power of two that is at least ``size``."""
    return 1 << (size - 1).bit_length()


def tiles(platform: str, steps: int, channels: int, size: int) -> Tiles:
    """Tiles for x [B, steps, channels] and a state of ``size`` numbers per channel.

    On a GPU one warp has one channel per thread, all of its states in that thread's registers.
    """
    if platform == "gpu":
        return Tiles(min(64, UNROLL["gpu"] * -(-steps // UNROLL["gpu"])), 32)
    chunk = 128 if steps > 128 else 16 * -(-steps // 16)
    width = 512
    while width > 128 and (width * chunk * size * 4 > VMEM or -channels % 128 + channels < width):
        width //= 2
    return Tiles(chunk, width)
