"""Tile sizes of ``block_scan``: those of ``linear_scan``, which count the planes read per step."""

from jax.typing import DTypeLike

from pallas_kernels.linear_scan import tiles


def fits(platform: str, size: int, *dtypes: DTypeLike) -> bool:
    """Whether there is a kernel for matrices of ``size`` numbers: real, and otherwise as ``linear_scan``."""
    return tiles.fits(platform, size, *dtypes) and "complex64" not in map(str, dtypes)
