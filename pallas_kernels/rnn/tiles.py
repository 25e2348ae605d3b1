"""Tiles of the fused kernels: how many batch rows, lanes and time steps a program holds, or that no tile fits.

GPU. R of a head stays in the shared memory of one program, next to the tiles that go from one product's layout to the
next. Lanes are the next power of two and at least 16, what a product needs. Rows are 16, and more, up to 64, only while
there are more programs than the chip has cores: a step takes its latency, hardly more for more rows.

TPU. R of a head stays in VMEM, where the pipeline keeps two blocks of everything: twice Gr D^2, and for every step of a
block of time the tiles of all series that the kernel reads and writes. Rows first, since they share the pushing of R into
the matrix unit, then steps.
"""

import dataclasses

import jax.numpy as jnp

from pallas_kernels.constrint import InfeasibleError, solve

GPU = """
    gates * lanes^2 * size + 2 * rows * lanes * 4 <= shared;
    batch <= rows * programs;
    heads * programs <= cores | rows == 64;
    rows * lanes <= 1024 | warps == 8;
"""
SHARED = 227 * 1024  # bytes that one program may take
CORES = 132

# in float32: the states carried, and two blocks each of the first and last ones; the tiles of a step
TPU = """
    2 * gates * lanes^2 * size + 2 * series * steps * rows * lanes * size + 4 * floats * rows * lanes <= vmem;
    padded % rows == 0;
    rows % sublanes == 0;
"""
VMEM = 14 * 2**20  # of the 16 MiB that a TPU kernel gets unless it asks for more


@dataclasses.dataclass(frozen=True)
class Tiles:
    """What one program holds: ``rows`` of the batch, ``lanes`` >= D; ``steps`` of a block of time (TPU), ``warps`` (GPU)."""

    rows: int
    lanes: int
    steps: int = 0
    warps: int = 0


def fits(platform, *dtypes):
    """Returns whether the kernels of ``platform`` compute in ``dtypes``: 16 and 32 bits, but no float16 on a TPU."""
    known = (jnp.float32, jnp.bfloat16, jnp.float16) if platform == "gpu" else (jnp.float32, jnp.bfloat16)
    return all(dtype in known for dtype in dtypes)


def tiles(platform, cell, batch, steps, heads, dim, dtype):
    """Returns the ``Tiles`` of the fused kernels, the same for forward and backward, or None where R does not fit.

    Args:
      platform: "gpu" or "tpu".
      cell: a ``cells.Cell``.
      batch, steps, heads, dim: B, T, N, D.
      dtype: that of Wx and R, the wider of the two.
    """
    known = {"gates": cell.gates_r, "size": jnp.dtype(dtype).itemsize, "batch": batch, "heads": heads}
    try:
        if platform == "gpu":
            known |= {"lanes": max(16, 1 << (dim - 1).bit_length()), "shared": SHARED, "cores": CORES}
            search = {"rows": (16, 32, 64), "programs": range(1, batch + 1), "warps": (4, 8)}
            found = solve(GPU, known | search, dict.fromkeys(search, "smallest"))
            return Tiles(found["rows"], known["lanes"], warps=found["warps"])
        del known["batch"], known["heads"]
        # fewer rows than a tile of the chip has are the whole axis, which needs no padding
        sublanes = min(batch, 32 // known["size"])
        padded = -(-batch // sublanes) * sublanes
        backward = cell.gates_i + cell.gates_t + 2 * cell.states
        known |= {
            "lanes": -(-dim // 128) * 128,
            "series": max(cell.gates_w + cell.gates_i + cell.states, backward),
            "floats": 5 * cell.states + 2 * cell.gates_t + cell.gates_r,
            "sublanes": sublanes,
            "padded": padded,
            "vmem": VMEM,
        }
        search = {"rows": range(sublanes, min(128, padded) + 1), "steps": range(1, min(steps, 64) + 1)}
        found = solve(TPU, known | search, dict.fromkeys(search, "largest"))
        return Tiles(found["rows"], known["lanes"], steps=found["steps"])
    except InfeasibleError:
        return None
