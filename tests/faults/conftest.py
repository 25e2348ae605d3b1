"""What the fault tests share."""

import pathlib

import jax
import numpy as np
import pytest

from tests.faults.zygote import Zygote


@pytest.fixture(scope="session")
def zygote():
    process = Zygote()
    yield process
    process.close()


def arrays(workdir: pathlib.Path, arm: str = "wide") -> tuple[int, dict[str, np.ndarray]]:
    """Step and arrays, by path, of the newest checkpoint of an arm."""
    import orbax.checkpoint as ocp

    folder = workdir / "checkpoints" / arm
    step = max(int(p.name) for p in folder.iterdir() if p.name.isdigit())
    tree = ocp.PyTreeCheckpointer().restore(folder / str(step) / "state")
    return step, {jax.tree_util.keystr(p): np.asarray(x) for p, x in jax.tree_util.tree_leaves_with_path(tree)}


def assert_same_to_the_bit(first: pathlib.Path, second: pathlib.Path, arm: str = "wide") -> None:
    """The newest checkpoints of two runs are equal, byte for byte."""
    (step_a, a), (step_b, b) = arrays(first, arm), arrays(second, arm)
    assert step_a == step_b and a.keys() == b.keys()
    assert all(a[k].tobytes() == b[k].tobytes() for k in a)
