"""A checkpoint comes back to the bit, or is refused with a reason, and an older one takes its place."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.checkpoints import Checkpoints
from experiments.errors import RunError, UsageError


def state(seed: int = 0) -> dict:
    """All kinds of leaves: odd dtypes, scalars, empty arrays, optax's tuples."""
    rng = np.random.default_rng(seed)
    params = {"dense": {"kernel": rng.normal(size=(3, 4)).astype(np.float32), "bias": np.zeros(4, np.float32)}}
    return {
        "params": params,
        "opt_state": jax.tree.map(np.asarray, optax.adamw(1e-3).init(params)),
        "half": np.asarray(jnp.asarray(rng.normal(size=5), jnp.bfloat16)),
        "complex": (rng.normal(size=2) + 1j * rng.normal(size=2)).astype(np.complex64),
        "flags": np.array([True, False]),
        "empty": np.zeros((2, 0), np.float32),
        "step": np.asarray(7, np.int32),
        "nothing": None,
    }


def shapes(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def same(got, wanted):
    assert jax.tree.structure(got) == jax.tree.structure(wanted)
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(wanted)):
        assert g.dtype == w.dtype and g.shape == w.shape and g.tobytes() == w.tobytes()


@pytest.fixture
def saved(tmp_path):
    """Four saves, of which three are kept, and the messages that reading them gave."""
    messages = []
    checkpoints = Checkpoints(tmp_path / "arm", "run-1", say=messages.append)
    for step in (10, 20, 30, 40):
        checkpoints.save(step, state(step), {"seconds": step / 2})
    return checkpoints, messages


def largest_file(folder: pathlib.Path) -> pathlib.Path:
    return max((p for p in (folder / "state").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def test_the_newest_comes_back_to_the_bit_and_three_are_kept(saved):
    checkpoints, messages = saved
    step, got, extra = checkpoints.restore(shapes(state()))
    assert (step, extra, messages, checkpoints.steps()) == (40, {"seconds": 20.0}, [], [20, 30, 40])
    same(got, state(40))


def test_nothing_saved_is_none(tmp_path):
    assert Checkpoints(tmp_path / "x", "run").restore(shapes(state())) is None


def flip(path):
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("damage", [flip, truncate, pathlib.Path.unlink], ids=["flipped", "truncated", "missing"])
@pytest.mark.parametrize("which", ["state", "manifest.json", "COMMIT"])
def test_a_damaged_file_in_the_newest_is_noticed_and_the_one_before_is_used(saved, damage, which):
    checkpoints, messages = saved
    folder = checkpoints.directory / "40"
    damage(largest_file(folder) if which == "state" else folder / which)
    step, got, _ = checkpoints.restore(shapes(state()))
    assert step == 30 and len(messages) == 1
    assert "step 40 is damaged" in messages[0] and "using the one of step 30" in messages[0]
    same(got, state(30))


def test_when_every_checkpoint_is_damaged_the_error_says_so(saved):
    checkpoints, messages = saved
    for step in checkpoints.steps():
        flip(largest_file(checkpoints.directory / str(step)))
    with pytest.raises(UsageError, match=r"no checkpoint in .* is intact"):
        checkpoints.restore(shapes(state()))
    assert len(messages) == 3 and "there is no earlier one" in messages[-1]


def test_a_checkpoint_of_another_run_is_refused(saved):
    other = Checkpoints(saved[0].directory, "run-2")
    with pytest.raises(UsageError, match="belongs to another run"):
        other.restore(shapes(state()))


def rewrite_manifest(folder, **changes):
    import hashlib

    manifest = {**json.loads((folder / "manifest.json").read_text()), **changes}
    raw = json.dumps(manifest).encode()
    (folder / "manifest.json").write_bytes(raw)
    (folder / "COMMIT").write_text(hashlib.sha256(raw).hexdigest())


def test_a_checkpoint_of_another_format_is_refused(saved):
    rewrite_manifest(saved[0].directory / "40", format=0)
    with pytest.raises(UsageError, match="checkpoint format 0, this version reads format 1"):
        saved[0].restore(shapes(state()))


def test_a_folder_that_something_else_wrote_is_refused(saved):
    (saved[0].directory / "50").mkdir()
    (saved[0].directory / "50" / "weights.bin").write_bytes(b"abc")
    with pytest.raises(UsageError, match="not a checkpoint of this program"):
        saved[0].restore(shapes(state()))


def test_a_model_of_another_shape_is_refused_by_the_name_of_the_leaf(saved):
    wanted = {**state(), "flags": np.zeros(3, bool)}
    with pytest.raises(UsageError, match=r"flags is bool\[2\] there and bool\[3\] here"):
        saved[0].restore(shapes(wanted))
    with pytest.raises(UsageError, match=r"flags is bool\[2\] there and missing here"):
        saved[0].restore(shapes({k: v for k, v in state().items() if k != "flags"}))


def test_what_is_not_finite_is_not_saved(saved):
    bad = state()
    bad["params"]["dense"]["bias"][1] = np.inf
    with pytest.raises(RunError, match="params/dense/bias is no longer finite"):
        saved[0].save(50, bad)
    assert saved[0].steps() == [20, 30, 40]


def test_a_save_that_was_cut_off_is_not_seen_and_is_swept_away(saved):
    checkpoints, _ = saved
    leftover = checkpoints.directory / "50.tmp"
    (leftover / "state").mkdir(parents=True)
    assert checkpoints.restore(shapes(state()))[0] == 40
    checkpoints.save(60, state(60))
    assert not leftover.exists() and checkpoints.steps() == [30, 40, 60]
