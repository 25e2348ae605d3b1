"""Accelerators to compile for without having them: TPU slices and H100 hosts, through XLA's ahead-of-time compilers.

``tpu:v5e:4x4``, ``tpu:v5p:4x4x4``, ``tpu:v6e:2x2`` need the package ``libtpu`` (extra [tpu]); ``gpu:h100`` and
``gpu:h100:16`` (two hosts of eight) need jax's CUDA plugin (extra [cuda13], Python >= 3.12). ``cpu`` and ``cpu:4`` compile
for this machine's own CPU devices.
"""

import dataclasses
import importlib.util
import math
import os
import re
import sys
from typing import Any

import jax

from zoo.checks import nearest


@dataclasses.dataclass(frozen=True)
class Chip:
    """One accelerator as the compiler sees it: one JAX device.

    Attributes:
      memory: bytes of high-bandwidth memory.
      bandwidth: bytes per second of that memory.
      flops: dense bfloat16 operations per second at peak.
    """

    memory: float
    bandwidth: float
    flops: float


# Published figures per chip, from the vendors' data sheets.
CHIPS = {
    "v5e": Chip(16e9, 819e9, 197e12),
    "v5p": Chip(95e9, 2765e9, 459e12),
    "v6e": Chip(32e9, 1640e9, 918e12),
    "h100": Chip(84978434048.0, 3352e9, 989e12),
}

H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448 shared_memory_per_core: 233472
  core_count: 132 fpus_per_core: 128 registers_per_core_limit: 65536 registers_per_block_limit: 65536
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 84978434048 cuda_compute_capability { major: 9 }
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 8 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


class MissingPackage(RuntimeError):
    """The compiler for a target is not installed; the message says which extra brings it."""


@dataclasses.dataclass(frozen=True)
class Target:
    """What to compile for.

    Attributes:
      text: as the user wrote it.
      platform: "tpu", "gpu" or "cpu".
      chip: key of ``CHIPS``, or "cpu".
      topology: the slice "4x4x4" (tpu), or the number of devices (gpu, cpu).
    """

    text: str
    platform: str
    chip: str
    topology: str

    @property
    def limits(self) -> Chip | None:
        """The chip's figures; None for the CPU."""
        return CHIPS.get(self.chip)

    def devices(self) -> list[Any]:
        """Devices to hand to ``jax.pmap``; they can be compiled for, not run on.

        Raises:
          MissingPackage: the compiler is not installed.
          ValueError: there is no such slice.
        """
        if self.platform == "cpu":
            count = int(self.topology)
            if count > len(jax.devices("cpu")):
                raise ValueError(
                    f"target {self.text!r}: this process has {len(jax.devices('cpu'))} CPU device(s); set "
                    f"XLA_FLAGS=--xla_force_host_platform_device_count={count}"
                )
            return jax.devices("cpu")[:count]
        from jax.experimental import topologies

        try:
            if self.platform == "tpu":
                if importlib.util.find_spec("libtpu") is None:
                    raise MissingPackage("compiling for a TPU needs the package libtpu: pip install 'scanzoo[tpu]'")
                os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
                name = f"{self.chip}:{self.topology}"
                return list(topologies.get_topology_desc(platform="tpu", topology_name=name).devices)
            if importlib.util.find_spec("jax_plugins") is None or not _has_cuda_plugin():
                newer = "" if sys.version_info >= (3, 12) else " (on Python 3.12 or later)"
                raise MissingPackage(
                    f"compiling for an H100 needs jax's CUDA plugin: pip install 'scanzoo[cuda13]'{newer}"
                )
            hosts, local = _hosts(int(self.topology))
            return list(
                topologies.get_topology_desc(
                    platform="cuda", topology_name="", topology=f"1x{hosts}x{local}", target_config=H100
                ).devices
            )
        except (jax.errors.JaxRuntimeError, NotImplementedError) as error:
            raise ValueError(f"target {self.text!r}: {str(error).splitlines()[0]}") from error


def _has_cuda_plugin() -> bool:
    import jax_plugins

    return any(importlib.util.find_spec(f"jax_plugins.xla_cuda{n}") for n in (13, 12)) and bool(jax_plugins.__path__)


def _hosts(devices: int) -> tuple[int, int]:
    if devices > 8 and devices % 8:
        raise ValueError(f"more than 8 H100 come in hosts of 8, got {devices}")
    return (devices // 8, 8) if devices > 8 else (1, devices)


def parse_target(text: str) -> Target:
    """Parses "tpu:v5p:4x4x4", "gpu:h100", "gpu:h100:8", "cpu" or "cpu:4".

    Raises:
      ValueError: with the nearest valid form.
    """
    forms = "tpu:v5e:2x2, tpu:v5p:2x2x1, tpu:v6e:2x2, gpu:h100, gpu:h100:8 or cpu"
    platform, _, rest = text.partition(":")
    chip, _, topology = rest.partition(":")
    if platform == "cpu" and (not rest or rest.isdigit()):
        return Target(text, "cpu", "cpu", rest or "1")
    if platform not in ("tpu", "gpu"):
        raise ValueError(f"target {text!r}: wanted something like {forms}")
    chips = [c for c in CHIPS if (c == "h100") == (platform == "gpu")]
    if chip not in chips:
        raise ValueError(
            f"target {text!r}: no {platform} {chip!r}{nearest(chip, chips)} (there are {', '.join(chips)})"
        )
    if platform == "gpu":
        topology = topology or "1"
        if not topology.isdigit() or int(topology) < 1:
            raise ValueError(f"target {text!r}: wanted a number of devices such as gpu:h100:8")
        _hosts(int(topology))
    else:
        axes = 3 if chip == "v5p" else 2
        topology = topology or ("2x2x1" if axes == 3 else "2x2")
        if not re.fullmatch("x".join([r"[1-9]\d*"] * axes), topology):
            raise ValueError(
                f"target {text!r}: a {chip} slice has {axes} axes, such as tpu:{chip}:{'x'.join('4' * axes)}"
            )
        if math.prod(map(int, topology.split("x"))) > 8960:
            raise ValueError(f"target {text!r}: no {chip} slice is that large")
    return Target(text, platform, chip, topology)
