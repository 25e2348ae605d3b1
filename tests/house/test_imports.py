"""Who may know whom: the arrows of the design, read from the source."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
BASE = {"zoo.checks", "zoo.dtypes", "zoo.registry"}
BRICKS = {"zoo.scans", "zoo.layers"}
MIDDLE = {"zoo.models", "zoo.tasks", "zoo.training", "zoo.decoding", "zoo.analysis", "zoo.interchange"}
ALLOWED = {
    "pallas_kernels": set(),
    "zoo.dtypes": set(),
    "zoo.checks": set(),
    "zoo.registry": {"zoo.checks", "zoo.mixers", "zoo.models"},
    "zoo.scans": BASE | {"pallas_kernels"},
    "zoo.layers": BASE | {"zoo.scans", "pallas_kernels"},
    "zoo.mixers": BASE | BRICKS | {"pallas_kernels"},
    "zoo.tasks": BASE,
    "zoo.models": BASE | BRICKS | {"zoo.mixers"},
    "zoo.training": BASE | BRICKS | {"zoo.mixers", "zoo.models"},
    "zoo.decoding": BASE | BRICKS | {"zoo.mixers", "zoo.models"},
    "zoo.analysis": BASE | BRICKS | {"zoo.mixers", "zoo.models"},
    "zoo.interchange": BASE | BRICKS | {"zoo.mixers", "zoo.models"},
    "zoo": BASE | BRICKS | MIDDLE | {"zoo.mixers"},
    "experiments": BASE | BRICKS | MIDDLE | {"zoo", "zoo.mixers", "pallas_kernels"},
}


def room(module: str) -> str:
    """The room a module belongs to: zoo.mixers.lru -> zoo.mixers, experiments.papers.x -> experiments."""
    parts = module.split(".")
    if parts[0] != "zoo":
        return parts[0]
    known = ".".join(parts[:2])
    return known if known in ALLOWED else "zoo"


def imported(path: pathlib.Path) -> set[str]:
    """Modules of this project that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.split(".")[0] in ("zoo", "pallas_kernels", "experiments", "tests")}


def modules() -> dict[str, pathlib.Path]:
    files = [p for top in ("zoo", "pallas_kernels", "experiments") for p in (ROOT / top).rglob("*.py")]
    return {str(p.relative_to(ROOT).with_suffix("")).replace("/", ".").removesuffix(".__init__"): p for p in files}


@pytest.mark.parametrize("module", modules())
def test_a_module_imports_only_what_its_room_may_know(module):
    here = room(module)
    wrong = {
        name
        for name in imported(modules()[module])
        if room(name) not in ALLOWED[here] | {here} and not (room(name) == "zoo" and f"{name}." in "zoo.")
    }
    assert not wrong, f"{module} (room {here}) may not import {sorted(wrong)}"


def test_pallas_kernels_imports_jax_only():
    for path in (ROOT / "pallas_kernels").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                top = name.split(".")[0]
                assert top in {"jax", "pallas_kernels", *sys.stdlib_module_names}, f"{path.name} imports {name}"


def test_import_zoo_is_cheap():
    """Heavy packages come in when they are used, not with `import zoo` or with a mixer."""
    heavy = ["optax", "orbax", "matplotlib", "sklearn", "tensorboardX", "tqdm", "torch", "experiments"]
    code = f"import sys, zoo; zoo.create('lru', dim=4); print([m for m in {heavy} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = [m for m in eval(out.stdout) if m not in ("orbax", "optax")]  # flax.linen itself may pull these in
    assert not loaded, f"import zoo loads {loaded}"
