"""``block_scan`` for GPUs: the kernel of ``linear_scan`` on factors of four planes."""

from pallas_kernels.linear_scan.gpu import gradient, scan

__all__ = ["gradient", "scan"]
