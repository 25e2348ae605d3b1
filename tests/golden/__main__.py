"""``python -m tests.golden FILE.npz ...`` checks golden files against the zoo and exits 0 only if all agree.

A file holds params/*, inputs/*, outputs/*, grads/* and ``meta`` (JSON: config, rtol, atol). The folder's name is the
paper's slug, and tests/golden/<slug>.py is its adapter: ``check(case)`` yields (key, value) for every key of the file that
is not under params/ or inputs/. Everything runs in 64-bit floats.
"""

import argparse
import dataclasses
import importlib
import json
import pathlib
import sys
import traceback
import zipfile
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

PREFIXES = ("params/", "inputs/", "outputs/", "grads/")


@dataclasses.dataclass(frozen=True)
class Case:
    """One golden file: flat dicts of arrays, keyed without their prefix; ``slug`` is the folder, ``name`` the file.

    ``others`` has what is under any other prefix, keyed with it; it is compared as outputs and gradients are.
    """

    slug: str
    name: str
    meta: Mapping[str, Any]
    params: Mapping[str, np.ndarray]
    inputs: Mapping[str, np.ndarray]
    outputs: Mapping[str, np.ndarray]
    grads: Mapping[str, np.ndarray]
    others: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    @property
    def config(self) -> Mapping[str, Any]:
        """``meta["config"]``."""
        return self.meta["config"]


def read(path: pathlib.Path) -> Case:
    """Reads one golden file."""
    with np.load(path, allow_pickle=False) as archive:
        arrays = {key: archive[key] for key in archive.files}
    meta = json.loads(str(arrays.pop("meta")))

    def part(prefix):
        return {key[len(prefix) :]: value for key, value in arrays.items() if key.startswith(prefix)}

    others = {key: value for key, value in arrays.items() if not key.startswith(PREFIXES)}
    return Case(path.parent.name, path.stem, meta, *(part(p) for p in PREFIXES), others)


def compare(case: Case) -> float:
    """Runs the adapter of ``case`` and returns the largest absolute error; raises ValueError for what disagrees."""
    adapter = importlib.import_module(f"tests.golden.{case.slug}")
    wanted = {f"outputs/{k}": v for k, v in case.outputs.items()} | {f"grads/{k}": v for k, v in case.grads.items()}
    wanted |= case.others
    rtol, atol = case.meta["rtol"], case.meta["atol"]
    worst, wrong = 0.0, []
    for key, value in adapter.check(case):
        if key not in wanted:
            raise ValueError(f"the adapter yields {key}, which the file does not have (or it came twice)")
        want, got = wanted.pop(key), np.asarray(value)
        if got.shape != want.shape:
            wrong.append(f"{key} has shape {got.shape}, wanted {want.shape}")
            continue
        if want.size == 0:
            continue
        if want.dtype.kind in "US":  # text agrees or does not
            if not np.array_equal(got, want):
                wrong.append(f"{key} differs at {np.argwhere(got != want)[0].tolist()}")
            continue
        error = np.abs(got - want)
        worst = max(worst, float(np.max(error)))
        if not np.all(error <= atol + rtol * np.abs(want)):  # a NaN fails as well
            wrong.append(f"{key} is off by {np.max(error):.3e} at most")
    if wanted:
        wrong.append(f"not computed: {', '.join(sorted(wanted))}")
    if wrong:
        raise ValueError("; ".join(wrong))
    return worst


def main(argv: list[str]) -> int:
    """Checks every file named in ``argv``; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.golden", description=__doc__.split("\n")[0])
    parser.add_argument("files", nargs="+", type=pathlib.Path, metavar="FILE.npz")
    parser.add_argument("--traceback", action="store_true", help="print the traceback of an adapter that fails")
    arguments = parser.parse_args(argv)
    failed = 0
    for path in arguments.files:
        label = f"{path.resolve().parent.name}/{path.stem}"
        try:
            worst = compare(read(path.resolve()))
        except ModuleNotFoundError as error:
            if error.name != f"tests.golden.{path.resolve().parent.name}":
                raise
            failed += 1
            print(f"FAIL {label} no adapter tests/golden/{path.resolve().parent.name}.py")
        except (ValueError, TypeError, KeyError, OSError, zipfile.BadZipFile) as error:
            failed += 1
            print(f"FAIL {label} {type(error).__name__}: {error}")
            if arguments.traceback:
                traceback.print_exc()
        else:
            print(f"ok {label} max_err={worst:.2e}")
    return 1 if failed else 0


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    sys.exit(main(sys.argv[1:]))
