"""Compiles every kernel for TPUs and an H100 that need not be there, and says what the compilers tell.

    python -m benchmarks.aot [--operations linear_scan rnn] [--targets tpu:v5e tpu:v5p tpu:v6e gpu:h100]

For every case of ``benchmarks.kernel_cases`` and every target whose compiler is installed: whether it compiles (or the
first line of the refusal), on-chip memory, registers and spills, bytes moved over the minimum, and the shortest time
the chip could take for it. A size for which the operation's own rule takes plain XLA "falls back". Results go to
``benchmarks/results/aot-<date>.json`` and ``.md``; a run adds its rows to those of the same day, so that the targets may
be compiled under different interpreters (the H100 needs Python 3.12). Exit status 1: something was refused; 2: bad usage.

Where the numbers come from:

* on-chip memory: the largest kernel's scoped VMEM (TPU) or shared memory (H100), as the compiled program says.
* registers, spills: ``ptxas -v`` over the PTX that XLA made, where a ptxas is found.
* bytes moved: ``moved_bytes``, the traffic of every Pallas call by its grid and block index maps, plus that of the XLA
  operations around it in the compiled program (``surrounding_bytes``). An operation that reads or writes a slice counts
  with the whole array: where XLA loops over time, as around the alternating form of rnn, this is far too much.
* floor: the larger of minimum bytes at the memory's bandwidth and operations at the matrix peak.
"""

import argparse
import contextlib
import datetime
import importlib.util
import json
import math
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jaxlib.mlir.ir import MLIRError

from benchmarks.kernel_cases import Case, all_cases
from experiments.targets import CHIPS, MissingPackage, Target, parse_target

TARGETS = ("tpu:v5e", "tpu:v5p", "tpu:v6e", "gpu:h100")
# What a compiler or a lowering raises for a program that it does not take.
REFUSALS = (RuntimeError, ValueError, TypeError, LookupError, AssertionError, MLIRError)
RESULTS = pathlib.Path(__file__).parent / "results"


def pallas_calls(jaxpr: Any, times: int = 1) -> Iterator[tuple[Any, int]]:
    """Every ``pallas_call`` equation under a jaxpr, with how often it runs.

    A loop of unknown length counts once; of the branches of a condition every one counts.
    """
    for equation in jaxpr.eqns:
        if equation.primitive.name == "pallas_call":
            yield equation, times
            continue
        inner = times * equation.params["length"] if equation.primitive.name == "scan" else times
        for value in equation.params.values():
            for part in value if isinstance(value, tuple | list) else (value,):
                part = getattr(part, "jaxpr", part)
                if hasattr(part, "eqns"):
                    yield from pallas_calls(part, inner)


def _block_bytes(mapping: Any, grid: tuple[int, ...]) -> int:
    """Bytes that one operand of a Pallas call moves: its block, each time that the grid comes to another block."""
    array = mapping.array_aval
    block = [_extent(b) for b in mapping.block_shape]
    jaxpr = mapping.index_map_jaxpr
    jaxpr, constants = (jaxpr.jaxpr, jaxpr.consts) if hasattr(jaxpr, "consts") else (jaxpr, ())
    steps = np.stack(np.unravel_index(np.arange(math.prod(grid)), grid)).astype(np.int32) if grid else np.zeros((0, 1))
    if len(jaxpr.invars) > len(grid):  # the block depends on data: every step counts in full
        return math.prod(block) * array.dtype.itemsize * math.prod(grid)

    def index(*step):
        return jax.core.eval_jaxpr(jaxpr, constants, *step)

    with jax.ensure_compile_time_eval():
        at = jax.vmap(index)(*steps) if grid else [np.zeros(1, np.int32)] * len(block)
    at = np.stack([np.broadcast_to(np.asarray(a), steps.shape[1]) for a in at])
    fresh = np.concatenate([[True], np.any(at[:, 1:] != at[:, :-1], axis=0)])
    # a block over the edge of the array moves only what is inside
    inside = [np.clip(size - a * b, 0, b) for size, a, b in zip(array.shape, at, block, strict=True)]
    return int(np.sum(np.prod(np.stack(inside), axis=0)[fresh], dtype=np.float64)) * array.dtype.itemsize


def _extent(block: Any) -> int:
    """Elements along one axis of a block: squeezed axes are 1."""
    if block is None or type(block).__name__ == "Squeezed":
        return 1
    return int(getattr(block, "block_size", block))


def moved_bytes(function: Callable, *arguments: Any) -> tuple[int, int]:
    """Bytes that the Pallas calls of ``function(*arguments)`` move between device memory and chip, and their number.

    Counted from the traced program: every block of every operand, each time that its index changes from one grid step
    to the next, clipped to the array. What a kernel fetches by itself from an operand left in device memory counts as
    one whole pass. XLA's operations around the calls are not in it. No call: (0, 0).
    """
    calls = list(pallas_calls(jax.make_jaxpr(function)(*arguments).jaxpr))
    total = 0
    for equation, times in calls:
        grid_mapping = equation.params["grid_mapping"]
        grid = tuple(int(g) for g in grid_mapping.grid)
        total += times * sum(_block_bytes(mapping, grid) for mapping in grid_mapping.block_mappings)
    return total, len(calls)


@contextlib.contextmanager
def _described(device: Any) -> Iterator[None]:
    """Newer JAX lowers a Triton kernel only for a GPU that it knows: this says which one it is."""
    if device.platform == "tpu":
        yield
        return
    mesh = jax.sharding.Mesh(np.array([device]), ("x",))
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        yield


def compile_for(function: Callable, arguments: tuple, device: Any) -> Any:
    """Compiles ``function`` for one device that need not be there."""
    sharding = jax.sharding.SingleDeviceSharding(device)
    arguments = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), arguments)
    with _described(device):
        return jax.jit(function).trace(*arguments).lower(lowering_platforms=(_lowering(device),)).compile()


def _lowering(device: Any) -> str:
    return "tpu" if device.platform == "tpu" else "cuda"


_SIZES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "f16": 2, "bf16": 2, "s32": 4, "u32": 4, "f32": 4, "c64": 8,
          "s64": 8, "u64": 8, "f64": 8, "c128": 16}  # fmt: skip
_MOVE_NOTHING = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "iota",
                 "after-all", "copy-done", "async-done"}  # fmt: skip
_COUNTED_ELSEWHERE = ("tpu_custom_call", "__gpu$xla.gpu.triton", "AllocateBuffer")  # Pallas calls, and no traffic
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%(\S+) = (.*?) ([a-z][\w-]*)\((.*?)\)(.*)$")


def surrounding_bytes(text: str) -> int:
    """Bytes that a compiled program moves in device memory outside Pallas calls.

    Every operation of the entry and of its loops' bodies (times their known trip counts) reads its operands and writes
    its result once; an operation that touches part of an operand is counted with all of it. What a TPU keeps in VMEM
    (memory space 1) moves nothing, and bringing it there is part of the kernel's own count.
    """
    computations: dict[str, list[str]] = {}
    for line in text.splitlines():
        head = re.match(r"^(ENTRY )?%?([\w.-]+) \(.*\{$", line)
        if head:
            name = "ENTRY" if head[1] else head[2]
            computations[name] = []
        elif computations and line.startswith("  "):
            computations[name].append(line)

    def size(shape: str) -> int:
        parts = re.findall(r"(\w+)\[([\d,]*)\](\{[^}]*\})?", shape)
        return sum(
            _SIZES.get(kind, 0) * math.prod(int(d) for d in dims.split(",") if d)
            for kind, dims, layout in parts
            if "S(1)" not in layout
        )

    def total(name: str) -> int:
        sizes, moved = {}, 0
        for line in computations.get(name, ()):
            match = _INSTRUCTION.match(line)
            if match is None:
                continue
            result, shape, opcode, operands, rest = match.groups()
            sizes[result] = size(shape)
            if opcode == "while":
                trips = re.search(r"known_trip_count\D+(\d+)", rest)
                body = re.search(r"body=%?([\w.-]+)", rest)
                moved += (int(trips[1]) if trips else 1) * (total(body[1]) if body else 0)
            elif opcode == "custom-call" and any(f'"{target}"' in rest for target in _COUNTED_ELSEWHERE):
                continue
            elif opcode not in _MOVE_NOTHING and not (opcode == "copy-start" and "S(1)" in shape):
                moved += sizes[result] + sum(sizes.get(o, 0) for o in re.findall(r"%([\w.-]+)", operands))
        return moved

    return total("ENTRY")


def _vmem(text: str) -> int | None:
    """Scoped VMEM of the program's largest kernel, as the compiled text tells; None where it does not."""
    sizes = re.findall(r'"used_scoped_memory_configs":\[\{"memory_space":"1","offset":"\d+","size":"(\d+)"', text)
    return max(map(int, sizes), default=None)


def _ptxas() -> str | None:
    """A ptxas: on the path, or in an installed CUDA wheel."""
    found = shutil.which("ptxas")
    spec = None if found else importlib.util.find_spec("nvidia")
    roots = [pathlib.Path(p) for p in (spec.submodule_search_locations if spec else [])]
    return found or next((str(p) for root in roots for p in root.glob("*/bin/ptxas")), None)


def _gpu_kernels(dumped: list[pathlib.Path]) -> dict[str, int]:
    """Shared memory, registers and spilled bytes, each the most over the kernels of one program that XLA dumped."""
    launches = [f.read_text() for f in dumped if f.name.endswith("thunk_sequence.txt")]
    told = {"shared": [int(n) for text in launches for n in re.findall(r"shared_memory: (\d+)", text)]}
    ptxas = _ptxas()
    for file in (f for f in dumped if f.suffix == ".ptx" and ptxas):
        chip = re.search(r"\.target\s+(\w+)", file.read_text())[1]
        output = subprocess.run(
            [ptxas, "-v", f"--gpu-name={chip}", str(file), "-o", os.devnull], capture_output=True, text=True, check=True
        ).stderr
        spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", output)
        told.setdefault("registers", []).extend(int(n) for n in re.findall(r"Used (\d+) registers", output))
        told.setdefault("spilled", []).extend(int(a) + int(b) for a, b in spills)
    return {key: max(values) for key, values in told.items() if values}


def examine(operation: str, case: Case, target: Target, device: Any, dump: pathlib.Path) -> dict[str, Any]:
    """One row of the table: what compiling ``case`` for ``target`` tells. ``dump`` is where XLA dumps to."""
    row = {"operation": operation, "case": case.name, "target": target.text, "jax": jax.__version__}
    row |= {"minimum_bytes": case.minimum_bytes, "flops": case.flops}
    row["floor_us"] = 1e6 * max(
        case.minimum_bytes / CHIPS[target.chip].bandwidth, case.flops / CHIPS[target.chip].flops
    )
    earlier, start = set(dump.iterdir()), time.perf_counter()
    try:
        function = case.function(target.platform)
        moved, calls = moved_bytes(function, *case.arguments)
        if not calls:
            return row | {"verdict": "falls back"}
        compiled = compile_for(function, case.arguments, device)
    except REFUSALS as error:
        return row | {"verdict": f"refused: {(str(error) or type(error).__name__).splitlines()[0][:200]}"}
    row |= {"verdict": "compiles", "seconds": round(time.perf_counter() - start, 2), "kernels": calls}
    text = compiled.as_text()
    around = surrounding_bytes(text)
    row |= {"kernel_bytes": moved, "surrounding_bytes": around}
    row["bytes_over_minimum"] = (moved + around) / case.minimum_bytes
    if target.platform == "tpu":
        return row | {"on_chip": _vmem(text)}
    told = _gpu_kernels([f for f in dump.iterdir() if f not in earlier])
    return row | {"on_chip": told.get("shared"), "registers": told.get("registers"), "spilled": told.get("spilled")}


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown."""

    def told(value: Any, form: str = "") -> str:
        return "not told" if value is None else format(value, form)

    lines = [
        "# Kernels, compiled ahead of time",
        "",
        "By `python -m benchmarks.aot`, without the hardware; its docstring says where each number comes from.",
        "",
        "| kernel | case | target | verdict | on-chip bytes | registers | spilled bytes | bytes / minimum | floor µs |",
        "|---|---|---|---|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        cells = [row["operation"], row["case"], row["target"], row["verdict"]]
        if row["verdict"] == "compiles":
            cells.append(told(row["on_chip"], ","))
            gpu = row["target"].startswith("gpu")
            cells += [told(row.get("registers")), told(row.get("spilled"))] if gpu else ["", ""]
            cells.append(told(row["bytes_over_minimum"], ".3f"))
        else:
            cells += [""] * 4
        lines.append(f"| {' | '.join([*cells, told(row['floor_us'], ',.1f')])} |")
    return "\n".join(lines) + "\n"


def write(rows: list[dict[str, Any]], folder: pathlib.Path = RESULTS) -> pathlib.Path:
    """Adds rows to today's results, over older rows of the same kernel, case and target; returns the JSON's path."""
    folder.mkdir(exist_ok=True)
    path = folder / f"aot-{datetime.date.today()}.json"
    found = json.loads(path.read_text()) if path.exists() else []
    merged = {(r["operation"], r["case"], r["target"]): r for r in [*found, *rows]}
    ordered = [merged[key] for key in sorted(merged)]
    path.write_text(json.dumps(ordered, indent=1) + "\n")
    path.with_suffix(".md").write_text(table(ordered))
    return path


def main(arguments: list[str]) -> int:
    """Parses the command line and runs; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.aot", description=__doc__.splitlines()[0])
    parser.add_argument("--operations", nargs="+", default=None, help="kernels by name; all when not given")
    parser.add_argument("--targets", nargs="+", default=list(TARGETS), help=" ".join(TARGETS))
    parser.add_argument("--cases", default="", help="only cases whose name contains this")
    parser.add_argument("--no-write", action="store_true", help="print only")
    options = parser.parse_args(arguments)
    cases = all_cases()
    unknown = set(options.operations or ()) - set(cases)
    if unknown:
        parser.error(f"no kernel {', '.join(sorted(unknown))}; there are {', '.join(cases)}")

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        # XLA reads its flags once, so before any compiler is loaded. Autotuning would need the GPU.
        # the compiler keeps stack traces of passes that it tries; naming their symbols took most of the time
        os.environ.setdefault("LLVM_DISABLE_SYMBOLIZATION", "1")
        os.environ["XLA_FLAGS"] = (
            f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_autotune_level=0 --xla_dump_to={folder} "
            "--xla_gpu_dump_llvmir --xla_dump_emitter_re=.*"
        )
        for text in options.targets:
            try:
                target = parse_target(text)
                device = target.devices()[0]
            except MissingPackage as error:
                print(f"{text}: left out: {error}", flush=True)
                continue
            for operation in options.operations or cases:
                for case in cases[operation]:
                    if options.cases in case.name:
                        rows.append(examine(operation, case, target, device, pathlib.Path(folder)))
                        print(table(rows[-1:]).splitlines()[-1], flush=True)
    if rows and not options.no_write:
        print(f"written to {write(rows)}")
    return int(any(row["verdict"].startswith("refused") for row in rows))


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    sys.exit(main(sys.argv[1:]))
