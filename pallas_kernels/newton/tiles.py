"""Tile sizes of ``newton``, and for what there is a kernel.

GPU. A program owns one row of the batch and a tile of channels, and takes time in chunks of ``segments`` x ``rows`` steps.
Steps of one segment are eliminated one after the other inside a thread; the segments lie across the threads and are
combined by halving. What is live per thread (states, products of Jacobians and offsets of all rows, and of every level of
the halving) has to fit into registers: a thread has one channel of one segment, as 8 warps then cover a chunk, and the
cell with two planes of state has half the rows and half the segments.

TPU. A block is all channels of some steps: as many as a sixth of the VMEM holds with operands double-buffered. Inside, the
work goes tile by tile of at most 512 channels.
"""

import dataclasses

import jax.numpy as jnp
from jax.typing import DTypeLike

VMEM_BLOCKS = 6 * 2**20
MOST_CHANNELS = 16384


@dataclasses.dataclass(frozen=True)
class GpuTile:
    """Of one program: channels, segments of a chunk, steps of a segment, warps."""

    channels: int
    segments: int
    rows: int
    warps: int

    @property
    def chunk(self) -> int:
        return self.segments * self.rows


def fits(platform: str, size: int, channels: int, *dtypes: DTypeLike) -> bool:
    """Whether there is a kernel: 2- and 4-byte floats, 32-bit offsets, and on TPU a row of channels that fits the VMEM."""
    known = (jnp.float32, jnp.bfloat16) if platform == "tpu" else (jnp.float32, jnp.bfloat16, jnp.float16)
    return (
        all(jnp.dtype(d) in known for d in dtypes) and size < 2**31 and (platform == "gpu" or channels <= MOST_CHANNELS)
    )


def gpu_tile(steps: int, channels: int, planes: int) -> GpuTile:
    """The tile for ``steps`` steps of ``channels`` channels with ``planes`` planes of state."""
    rows = min(4 // planes, 1 << (steps - 1).bit_length())
    segments = min(32 // planes, 1 << (-(-steps // rows) - 1).bit_length())
    width = min(8 * planes, 1 << (channels - 1).bit_length())
    return GpuTile(width, segments, rows, max(1, min(8, segments * width // 32)))


def tpu_steps(steps: int, channels: int, row_bytes: int, group: int) -> int:
    """Steps of a block whose operands take ``row_bytes`` bytes per step and channel; a multiple of ``group``."""
    most = VMEM_BLOCKS // (2 * row_bytes * channels)
    return max(group, min(256, most // group * group, steps // group * group))


def tpu_width(channels: int) -> int:
    """Channels of a tile inside a block: a multiple of 128 that divides ``channels``, at most 512."""
    return next(w for w in (512, 384, 256, 128) if channels % w == 0)
