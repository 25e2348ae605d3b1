"""Test set-up: four virtual CPU devices, a shared compilation cache, and shapes checked on every call into the zoo."""

import gc
import importlib.metadata
import os
import pathlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Tests compile far more than they compute: LLVM's optimisation would cost a third of the whole run, and the newer of XLA's
# two emitters for the CPU, which later versions have alone, another third.
os.environ["XLA_FLAGS"] = " ".join([
    os.environ.get("XLA_FLAGS", ""), "--xla_force_host_platform_device_count=4",
    "--xla_backend_optimization_level=0", "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_use_fusion_emitters=false" if importlib.metadata.version("jaxlib").startswith("0.10.") else "",
])  # fmt: skip
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(pathlib.Path(__file__).parents[1] / ".jax_cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
os.environ.setdefault("MPLBACKEND", "Agg")

import flax.struct
import jax
import jaxtyping
import pytest

import tests.typecheck  # noqa: F401  (the hook below looks it up by name)

_struct_dataclass = flax.struct.dataclass


def _unchecked_container(cls=None, **options):
    """flax.struct.dataclass, left alone by the shape hook: tree maps fill states with dtypes, or stack them in scans."""
    if cls is None:
        return lambda c: _unchecked_container(c, **options)
    cls = _struct_dataclass(cls, **options)
    cls.__no_type_check__ = True
    return cls


# Every compiled program takes memory maps. Linux gives a process 65,530 of them; past that XLA ends in a segmentation fault.
_MOST_MAPS = 45_000
_MAPS = pathlib.Path("/proc/self/maps")


def pytest_runtest_teardown(nextitem):
    """Lets go of the compiled programs when there are too many of them to hold."""
    if nextitem is None or not _MAPS.exists():
        return
    with _MAPS.open("rb") as lines:
        count = sum(1 for _ in lines)
    if count > _MOST_MAPS:
        jax.clear_caches()
        gc.collect()


flax.struct.dataclass = _unchecked_container
jaxtyping.install_import_hook(["zoo", "pallas_kernels"], "tests.typecheck.check")


@pytest.fixture
def as_users_see_it():
    """Switches the shape hook off, so that a test of an error message meets the message that users meet."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def float64():
    """Runs a test with 64-bit floats enabled."""
    with jax.enable_x64(True):
        yield
