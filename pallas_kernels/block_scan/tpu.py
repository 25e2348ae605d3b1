"""``block_scan`` for TPUs: the kernel of ``linear_scan`` on factors of four planes."""

from pallas_kernels.linear_scan.tpu import gradient, scan

__all__ = ["gradient", "scan"]
