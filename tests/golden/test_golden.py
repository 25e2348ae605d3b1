"""The golden command: it accepts what agrees and refuses everything else; and all files at hand agree.

Files are looked for in the folder that the environment variable ZOO_GOLDEN names, or in shared/golden beside the
checkout.
"""

import json
import os
import pathlib
import subprocess
import sys
import types

import numpy as np
import pytest

from tests.golden.__main__ import main

ROOT = pathlib.Path(__file__).parents[2]
GOLDEN = pathlib.Path(os.environ.get("ZOO_GOLDEN", ROOT.parent / "shared" / "golden"))
SLUGS = sorted(p.stem for p in pathlib.Path(__file__).parent.glob("[a-z]*.py") if not p.stem.startswith("test_"))


def write(folder: pathlib.Path, **arrays) -> pathlib.Path:
    folder = folder / "toy"
    folder.mkdir(exist_ok=True)
    meta = json.dumps({"config": {"factor": 2}, "rtol": 1e-9, "atol": 1e-12})
    x = np.arange(6.0)
    np.savez(folder / "case.npz", **{"inputs/x": x, "outputs/y": 2 * x, "grads/x": 2 * x, "meta": meta, **arrays})
    return folder / "case.npz"


@pytest.fixture
def adapter(monkeypatch):
    """An adapter for the slug ``toy``; ``results`` may be changed by a test."""
    module = types.ModuleType("tests.golden.toy")
    module.change = lambda results: results

    def check(case):
        x = case.config["factor"] * case.inputs["x"]
        yield from module.change({"outputs/y": x, "grads/x": x}).items()

    module.check = check
    monkeypatch.setitem(sys.modules, "tests.golden.toy", module)
    return module


def test_what_agrees_is_ok(tmp_path, adapter, capsys):
    assert main([str(write(tmp_path))]) == 0
    assert capsys.readouterr().out == "ok toy/case max_err=0.00e+00\n"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda r: {**r, "outputs/y": r["outputs/y"] * (1 + 1e-8)}, "outputs/y is off by"),
        (lambda r: {**r, "grads/x": r["grads/x"] * np.nan}, "grads/x is off by nan"),
        (lambda r: {**r, "outputs/y": r["outputs/y"][:5]}, "has shape (5,)"),
        (lambda r: {"outputs/y": r["outputs/y"]}, "not computed: grads/x"),
        (lambda r: {**r, "outputs/z": r["grads/x"]}, "does not have"),
    ],
)
def test_what_differs_fails(tmp_path, adapter, capsys, change, words):
    adapter.change = change
    assert main([str(write(tmp_path))]) == 1
    printed = capsys.readouterr().out
    assert printed.startswith("FAIL toy/case")
    assert words in printed


def test_text_agrees_or_does_not(tmp_path, adapter, capsys):
    path = write(tmp_path, **{"outputs/text": np.array(["one", "two"])})
    adapter.change = lambda r: {**r, "outputs/text": np.array(["one", "two"])}
    assert main([str(path)]) == 0
    adapter.change = lambda r: {**r, "outputs/text": np.array(["one", "too"])}
    assert main([str(path)]) == 1
    assert "outputs/text differs at [1]" in capsys.readouterr().out


def test_a_missing_adapter_and_a_broken_file_fail_in_one_line(tmp_path, adapter, capsys):
    other = tmp_path / "unheard_of"
    other.mkdir()
    good = write(tmp_path)
    (other / "case.npz").write_bytes(good.read_bytes())
    broken = good.with_name("broken.npz")
    broken.write_bytes(good.read_bytes()[:100])
    assert main([str(other / "case.npz"), str(broken), str(tmp_path / "nothing.npz"), str(good)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["FAIL", "FAIL", "FAIL", "ok"]


@pytest.mark.parametrize("part", [0, 1])
def test_the_golden_files_at_hand_agree(part):
    """In processes of their own, as a user runs it (64-bit floats are a setting of the whole process): two for all slugs."""
    files = [path for slug in SLUGS[part::2] for path in sorted((GOLDEN / slug).glob("*.npz"))]
    if not files:
        pytest.skip("no golden files at hand; name their folder in ZOO_GOLDEN")
    out = subprocess.run(
        [sys.executable, "-m", "tests.golden", *map(str, files)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert out.returncode == 0, "\n".join(x for x in out.stdout.splitlines() if not x.startswith("ok ")) + out.stderr
    assert out.stdout.count("ok ") == len(files)
