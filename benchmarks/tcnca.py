"""TCNCA's operator against MEGA's: dilated convolutions against moving averages by FFT and by associative scan.

    python -m benchmarks.tcnca [--lengths 1024 ... 131072] [--batch 1] [--dim 32] [--output DIR]
    python -m benchmarks.tcnca --dry           # one short length: seconds on a CPU; the times mean nothing

For every length, forward and forward+backward (gradients of parameters and input) of

    tcn                     zoo.layers.temporal_convolution, depthwise, linear, the fewest layers that read the whole length
    ema fft                 zoo.layers.damped_ema, method "fft"
    ema associative scan    ... method "scan", by lax.associative_scan
    ema scan                ... method "scan", the form that the zoo chooses for this platform

The operators take turns within a process. A row that does not fit in memory says so. Rows are printed as JSON lines; with
``--output`` they are also written to DIR/tcnca-<platform>.json and .md.
"""

import argparse
import json
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

import zoo
from zoo.layers.damped_ema import damped_ema
from zoo.layers.temporal_convolution import temporal_convolution
from zoo.scans import receptive_field

LENGTHS = tuple(2**n for n in range(10, 18))
REPEATS = 7


def depth_for(length: int, taps: int, factor: int) -> int:
    """The fewest layers whose receptive field is at least ``length``."""
    return next(depth for depth in range(1, 64) if receptive_field(taps, factor, depth) >= length)


def operators(dim: int, state_dim: int, taps: int, factor: int, depth: int) -> Iterator[tuple[str, Any, Callable]]:
    """(name, parameters, function of parameters and x) of everything that is timed."""
    x = jnp.zeros((1, 2, dim))
    tcn = zoo.create("tcn", dim=dim, taps=taps, factor=factor, depth=depth).init(jax.random.key(0), x)["params"]
    ema = zoo.create("ema", dim=dim, state_dim=state_dim).init(jax.random.key(0), x)["params"]
    yield "tcn", tcn, lambda p, x: temporal_convolution(p, x, factor=factor)[0]
    for name, method, scan in (
        ("ema fft", "fft", "auto"), ("ema associative scan", "scan", "associative"), ("ema scan", "scan", "auto"),
    ):  # fmt: skip
        yield name, ema, partial(lambda p, x, method, scan: damped_ema(p, x, method=method, scan_method=scan)[0],
                                 method=method, scan=scan)  # fmt: skip


def milliseconds(calls: dict[str, Callable[[], Any]], repeats: int) -> tuple[dict[str, float], dict[str, str]]:
    """Medians of calls that take turns, and why a call failed."""
    times: dict[str, list[float]] = {}
    failed: dict[str, str] = {}
    for name, call in calls.items():
        try:
            jax.block_until_ready(call())
            times[name] = []
        except jax.errors.JaxRuntimeError as error:  # out of memory: a row of the table too
            failed[name] = str(error).splitlines()[0]
    for _ in range(repeats):
        for name in times:
            start = time.perf_counter()
            jax.block_until_ready(calls[name]())
            times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in times.items()}, failed


def measure(
    lengths: Sequence[int], *, batch: int, dim: int, state_dim: int, taps: int, factor: int, repeats: int
) -> Iterator[dict]:
    """A row per length, direction and operator, with its time over the convolution's."""
    for length in lengths:
        depth = depth_for(length, taps, factor)
        x = jax.random.normal(jax.random.key(1), (batch, length, dim))
        weights = jax.random.normal(jax.random.key(2), x.shape)
        every = list(operators(dim, state_dim, taps, factor, depth))
        shape = {"T": length, "B": batch, "D": dim, "N": state_dim, "K": taps, "f": factor, "depth": depth}
        for direction in ("forward", "forward+backward"):
            calls = {}
            for name, params, run in every:

                def loss(params, x, run=run, weights=weights):
                    return jnp.sum(run(params, x) * weights)

                function = jax.jit(run if direction == "forward" else jax.grad(loss, (0, 1)))
                calls[name] = partial(function, params, x)
            found, failed = milliseconds(calls, repeats)
            for name in calls:
                row = {**shape, "direction": direction, "operator": name}
                if name in failed:
                    yield row | {"failed": failed[name]}
                else:
                    ratio = {"over_tcn": found[name] / found["tcn"]} if "tcn" in found else {}
                    yield row | {"ms": found[name]} | ratio


def table(rows: Sequence[dict]) -> str:
    """Markdown."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for row in rows:
        cells = (row.get(c, "") for c in columns)
        lines.append("| " + " | ".join(f"{v:.3g}" if isinstance(v, float) else str(v) for v in cells) + " |")
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str]) -> int:
    """Measures, prints, and writes."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tcnca", description=__doc__.split("\n")[0])
    parser.add_argument("--lengths", nargs="+", type=int, default=LENGTHS, help="steps of a sequence")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--dim", type=int, default=32, help="channels")
    parser.add_argument("--state-dim", type=int, default=16, help="hidden entries of the moving average")
    parser.add_argument("--taps", type=int, default=8)
    parser.add_argument("--factor", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--dry", action="store_true", help="one short length, once")
    parser.add_argument("--output", type=pathlib.Path, help="folder for the results")
    a = parser.parse_args(argv)
    lengths, repeats = ((64,), 1) if a.dry else (a.lengths, a.repeats)
    rows = []
    for row in measure(
        lengths, batch=a.batch, dim=a.dim, state_dim=a.state_dim, taps=a.taps, factor=a.factor, repeats=repeats
    ):
        rows.append(row)
        print(json.dumps(row), flush=True)
    if a.output:
        a.output.mkdir(parents=True, exist_ok=True)
        stem = a.output / f"tcnca-{jax.default_backend()}"
        stem.with_suffix(".json").write_text(json.dumps(rows, indent=1) + "\n")
        stem.with_suffix(".md").write_text(
            f"# Dilated convolutions and moving averages on {jax.devices()[0].device_kind}\n\n{table(rows)}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
