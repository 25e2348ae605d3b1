"""Saved models come back as they were, or not at all."""

import json

import flax.core
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zoo
from zoo.interchange.saved_model import DESCRIPTION, PARAMETERS

MODULE = zoo.create("lru", dim=4, state_dim=3)
TREE = {
    "params": {
        "w": jnp.arange(6.0).reshape(2, 3),
        "deep": {"b": jnp.ones((2, 0)), "z": jnp.array([1 + 2j, -3.5j], jnp.complex64)},
        "half": jnp.array([1.0, 1 / 3, -jnp.inf], jnp.bfloat16),
        "scalar": jnp.float32(2.5),
        "count": jnp.array([1, 2**31 - 1], jnp.int32),
        "mask": jnp.array([True, False]),
    },
    "nothing": None,
    "empty": {},
}


@pytest.fixture
def saved(tmp_path):
    return zoo.save(tmp_path / "model", MODULE, TREE)


def test_every_kind_of_leaf_comes_back_to_the_bit(saved):
    module, tree = zoo.load(saved)
    assert module == MODULE
    assert jax.tree.structure(tree) == jax.tree.structure(TREE)
    for (path, got), want in zip(jax.tree_util.tree_leaves_with_path(tree), jax.tree.leaves(TREE), strict=True):
        assert isinstance(got, jax.Array), path
        assert got.dtype == want.dtype and got.shape == want.shape, path
        assert np.asarray(got).tobytes() == np.asarray(want).tobytes(), path


def test_initialised_parameters_give_the_same_outputs(tmp_path):
    x = jax.random.normal(jax.random.key(1), (2, 5, 4))
    params = MODULE.init(jax.random.key(0), x)
    zoo.save(tmp_path / "m", MODULE, flax.core.freeze(params))
    module, loaded = zoo.load(tmp_path / "m")
    assert np.array_equal(module.apply(loaded, x)[0], MODULE.apply(params, x)[0])


def test_the_parameter_file_is_read_without_pickle_and_is_the_same_for_the_same_parameters(saved, tmp_path):
    with np.load(saved / PARAMETERS, allow_pickle=False) as arrays:
        assert np.array_equal(arrays["params/w"], TREE["params"]["w"])
    again = zoo.save(tmp_path / "again", MODULE, TREE)
    assert (again / PARAMETERS).read_bytes() == (saved / PARAMETERS).read_bytes()


def test_float64_needs_x64_to_come_back(tmp_path, float64):
    want = {"w": jnp.array([1 / 3], jnp.float64)}
    zoo.save(tmp_path / "m", MODULE, want)
    assert zoo.load(tmp_path / "m")[1]["w"].dtype == jnp.float64
    with jax.enable_x64(False), pytest.raises(ValueError, match=r"float64.*x64"):
        zoo.load(tmp_path / "m")


def test_an_existing_folder_is_never_overwritten_silently(saved, tmp_path):
    with pytest.raises(FileExistsError, match="overwrite=True"):
        zoo.save(saved, MODULE, {"w": jnp.zeros(1)})
    assert "params" in zoo.load(saved)[1]
    zoo.save(saved, MODULE, {"w": jnp.zeros(1)}, overwrite=True)
    assert set(zoo.load(saved)[1]) == {"w"}
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match="not a saved model"):
        zoo.save(foreign, MODULE, {"w": jnp.zeros(1)}, overwrite=True)
    assert (foreign / "thesis.txt").read_text() == "years of work"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["foreign", "model"]


def test_a_failed_save_leaves_the_old_model_and_no_litter(saved, tmp_path, monkeypatch):
    def full_disk(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np.lib.format, "write_array", full_disk)
    with pytest.raises(OSError, match="No space left"):
        zoo.save(saved, MODULE, {"w": jnp.zeros(1)}, overwrite=True)
    monkeypatch.undo()
    assert "params" in zoo.load(saved)[1]
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_every_flipped_byte_and_every_truncation_is_noticed(saved):
    whole = (saved / PARAMETERS).read_bytes()
    for position in range(0, len(whole), 97):
        damaged = bytearray(whole)
        damaged[position] ^= 1
        (saved / PARAMETERS).write_bytes(damaged)
        with pytest.raises(ValueError, match="damaged"):
            zoo.load(saved)
    for length in (0, 1, len(whole) - 1):
        (saved / PARAMETERS).write_bytes(whole[:length])
        with pytest.raises(ValueError, match="damaged"):
            zoo.load(saved)


def edited(saved, change):
    about = json.loads((saved / DESCRIPTION).read_text())
    change(about)
    (saved / DESCRIPTION).write_text(json.dumps(about))
    return saved


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda a: a.update(format="other"), ValueError, "does not describe"),
        (lambda a: a.update(format_version=99), ValueError, "format version 99"),
        (lambda a: a.pop("module"), ValueError, "missing"),
        (lambda a: a["module"].update(name="lruu"), ValueError, "did you mean 'lru'"),
        (lambda a: a["parameters"][0].update(shape=[3, 2]), ValueError, r"params/w is float32 \[2, 3\].*\[3, 2\]"),
        (
            lambda a: a["parameters"].append({"path": "x", "dtype": "float32", "shape": []}),
            ValueError,
            "no parameter x",
        ),
        (lambda a: a["file"].update(name="../other/parameters.npz"), ValueError, "damaged"),
    ],
    ids=["foreign", "newer", "incomplete", "unknown architecture", "mis-shaped", "missing parameter", "file elsewhere"],
)
def test_a_wrong_description_gets_a_clear_error(saved, change, error, words):
    with pytest.raises(error, match=words):
        zoo.load(edited(saved, change))


def test_missing_pieces_are_named(saved, tmp_path):
    with pytest.raises(FileNotFoundError, match="no saved model"):
        zoo.load(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        zoo.save(tmp_path / "no" / "where", MODULE, TREE)
    (saved / PARAMETERS).unlink()
    with pytest.raises(FileNotFoundError, match=PARAMETERS):
        zoo.load(saved)
    (saved / DESCRIPTION).write_text("{")
    with pytest.raises(ValueError, match="damaged"):
        zoo.load(saved)
    (saved / DESCRIPTION).unlink()
    with pytest.raises(FileNotFoundError, match=DESCRIPTION):
        zoo.load(saved)


@pytest.mark.parametrize(
    ("params", "error", "words"),
    [
        ({"a": [jnp.zeros(1)]}, TypeError, "a.*list"),
        ({"a": "text"}, TypeError, "a.*str"),
        ({"a": jax.random.key(0)}, TypeError, "key"),
        ({"a/b": jnp.zeros(1)}, ValueError, "a/b"),
        ({1: jnp.zeros(1)}, ValueError, "1"),
    ],
)
def test_what_cannot_be_saved_is_refused(tmp_path, as_users_see_it, params, error, words):
    with pytest.raises(error, match=words):
        zoo.save(tmp_path / "m", MODULE, params)
    assert not list(tmp_path.iterdir())
