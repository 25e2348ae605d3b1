"""The kernel package keeps its contract, and a kernel can be checked on this machine in the ways the contract asks for.

``double`` below stands in for an operation: the smallest kernel that goes through interpret mode and both lowerings.
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl

import pallas_kernels
from pallas_kernels.compat import gpu_params, lower_for, tpu_params

FOLDER = pathlib.Path(pallas_kernels.__file__).parent
FILES = {"__init__.py", "reference.py", "tiles.py"}


def double(x, *, platform=None, interpret=False):
    def kernel(x_ref, out_ref):
        out_ref[...] = 2 * x_ref[...]

    params = {
        "cuda": gpu_params(num_warps=4, num_stages=2),
        "tpu": tpu_params(dimension_semantics=("parallel",)),
        None: None,
    }[platform]
    block = pl.BlockSpec((8, 128), lambda i: (i, 0))
    return pl.pallas_call(
        kernel, out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype), grid=(x.shape[0] // 8,), in_specs=[block],
        out_specs=block, compiler_params=params, interpret=interpret,
    )(x)  # fmt: skip


def test_a_kernel_runs_in_interpret_mode():
    x = np.random.default_rng(0).standard_normal((16, 128)).astype(np.float32)
    assert np.array_equal(double(x, interpret=True), 2 * x)


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_a_kernel_lowers_for_hardware_that_is_not_here(platform):
    text = lower_for(platform, lambda x: double(x, platform=platform), jax.ShapeDtypeStruct((16, 128), jnp.float32))
    assert "custom_call" in text
    assert {"cuda": "triton", "tpu": "tpu_custom_call"}[platform] in text


def test_an_unknown_platform_is_refused():
    with pytest.raises(ValueError, match="cuda, tpu"):
        lower_for("rocm", lambda x: x, jnp.ones(3))


@pytest.mark.parametrize("name", [*pallas_kernels.OPERATIONS, None])
def test_every_operation_has_its_files(name):
    """None: folders that nobody entered in the table."""
    if name is None:
        folders = {p.name for p in FOLDER.iterdir() if p.is_dir() and p.name != "__pycache__"}
        assert folders == set(pallas_kernels.OPERATIONS)
        return
    platforms = pallas_kernels.OPERATIONS[name]
    wanted = FILES | {f"{platform}.py" for platform in platforms}
    assert wanted <= {p.name for p in (FOLDER / name).iterdir()}
    assert callable(pallas_kernels.operation(name))


def test_what_is_not_there_is_said_in_one_line(as_users_see_it):
    assert not pallas_kernels.available("no_such_operation", "gpu")
    with pytest.raises(ValueError, match="no kernel for 'no_such_operation'"):
        pallas_kernels.operation("no_such_operation")
