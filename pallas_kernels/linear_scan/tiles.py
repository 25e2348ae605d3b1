"""Tile sizes of ``linear_scan``, and for what there is a kernel.

GPU. A program owns one row of the batch and a tile of channels, one channel per thread: at most 128 channels, fewer
where that leaves fewer threads idle at the edge. It reads ``rows`` steps ahead before it computes, so that each thread
has that many loads in flight. An H100 needs about 18 KB in flight on each of its 132 multiprocessors to use its
memory; 128 threads with 16 rows of two arrays have 16 KB. Where batch x channels gives fewer than ``ENOUGH_THREADS``
threads and the sequence is long, time is cut into chunks too: every chunk's affine map, the carries between chunks, then
the chunks again from the right carries. That reads the inputs twice (5/3 of the bytes), so it is only done when the
one-level form would leave more than that idle.

TPU. The grid is sequential on a core, so there is nothing to fill: time is the innermost grid axis, the carry stays in
VMEM, and a block is as long in time as an eighth of the VMEM allows with every operand double-buffered. Several batch rows
go into a block where the channels alone would give one short chain of dependent operations.
"""

import dataclasses
import math

import jax.numpy as jnp
from jax.typing import DTypeLike

MULTIPROCESSORS = 132
ENOUGH_THREADS = MULTIPROCESSORS * 128
WANTED_THREADS = MULTIPROCESSORS * 1024
SHORTEST_CHUNK = 64
VMEM_BLOCKS = 4 * 2**20


@dataclasses.dataclass(frozen=True)
class GpuTile:
    """Of one program: channels, steps read ahead, steps per chunk of time, number of chunks."""

    channels: int
    rows: int
    chunk: int
    chunks: int

    @property
    def warps(self) -> int:
        return max(1, self.channels // 32)


@dataclasses.dataclass(frozen=True)
class TpuTile:
    """Of one block: batch rows, time steps, channels, and the group of steps that one register holds."""

    batch: int
    steps: int
    channels: int
    group: int


def fits(platform: str, size: int, *dtypes: DTypeLike) -> bool:
    """Whether there is a kernel: float32, bfloat16, float16 and complex64, and offsets that 32 bits can hold."""
    small = all(jnp.dtype(d) in (jnp.float32, jnp.bfloat16, jnp.float16, jnp.complex64) for d in dtypes)
    half = any(jnp.dtype(d) == jnp.float16 for d in dtypes)
    return small and size < 2**31 and not (half and platform == "tpu")


def gpu_tile(batch: int, steps: int, channels: int, planes: int) -> GpuTile:
    """The tile for inputs [batch, steps, channels]; ``planes`` numbers are read per step and channel."""
    width = min(128, 1 << (channels - 1).bit_length())
    while width > 32 and -(-channels // (width // 2)) * (width // 2) < -(-channels // width) * width:
        width //= 2
    threads = batch * -(-channels // width) * max(width, 32)
    chunks = 1
    if threads < ENOUGH_THREADS and steps >= 4 * SHORTEST_CHUNK:
        chunks = min(-(-WANTED_THREADS // threads), steps // SHORTEST_CHUNK)
    chunk = -(-steps // chunks)
    return GpuTile(width, 32 // (1 << (planes - 1).bit_length()), chunk, -(-steps // chunk))


def tpu_tile(batch: int, steps: int, channels: int, operands: int, itemsize: int) -> TpuTile:
    """The block for inputs [batch, steps, channels] when ``operands`` arrays of that size go in or out.

    ``steps`` is at least the group of 8 steps (16 for 2-byte storage).
    """
    group = 8 if itemsize == 4 else 16
    width = channels if channels <= 128 else min(512, channels // 128 * 128)
    lanes = -(-width // 128)
    rows = math.gcd(batch, max(1, 8 // lanes))
    most = VMEM_BLOCKS // (operands * rows * lanes * 128 * itemsize)
    return TpuTile(rows, min(512, max(1, most // group) * group, steps // group * group), width, group)
