"""What the fault tests share."""

import json
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
    """The newest checkpoints of two runs are equal, byte for byte, and so are their logs but for the clock."""
    (step_a, a), (step_b, b) = arrays(first, arm), arrays(second, arm)
    assert step_a == step_b and a.keys() == b.keys()
    assert all(a[k].tobytes() == b[k].tobytes() for k in a)
    assert rows(first) == rows(second)


def rows(workdir: pathlib.Path) -> list[dict]:
    """Rows of metrics.jsonl, without what depends on the clock."""
    every = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if "second" not in k} for row in every]
