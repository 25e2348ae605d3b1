"""FlashRNN's benchmarks: speed against head size, batch and length; the largest head; how rounding grows over time.

    python -m benchmarks.flashrnn [--sections speed heads rounding] [--output DIR]
    python -m benchmarks.flashrnn --dry       # tiny sizes, kernels interpreted: seconds on a CPU; the times mean nothing

speed      (D, N) from (16, 48) to (768, 1), B from 2 to 256, T from 256 to 4096, in bfloat16, forward and forward+backward:
           the fused and the alternating kernels, vanilla (lax.scan and autodiff), flax.linen's OptimizedLSTMCell of the same
           width, causal attention
heads      the largest head that the fused kernel takes, by the rule of its tiles for GPU and TPU, and on an accelerator by
           running it
rounding   h and gradients in float32, bfloat16 and float16 against float64 over T steps: errors at t = 1, 2, 4, ..., the
           exponent of their growth, and whether they are within the tolerances of the paper's tests

Rows are printed as JSON lines; with ``--output`` they are also written to DIR/flashrnn-<platform>.json and .md.
"""

import argparse
import json
import math
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.rnn.cells import cell
from pallas_kernels.rnn.tiles import tiles
from zoo.scans import cell_counts, flashrnn

SECTIONS = ("speed", "heads", "rounding")
PAIRS = ((64, 12), (768, 1))
HEADS = tuple((16, 1024, n, d) for d, n in ((16, 48), (32, 24), (64, 12), (128, 6), (256, 3), (768, 1)))
BATCHES = tuple((b, 1024, n, d) for d, n in PAIRS for b in (2, 8, 16, 32, 64, 128, 256))
LENGTHS = tuple((16, t, n, d) for d, n in PAIRS for t in (256, 512, 1024, 2048, 4096))
SWEEPS = {"head size": HEADS, "batch": BATCHES, "length": LENGTHS}
DRY_SWEEPS = {"head size": ((2, 4, 2, 4),)}
RECURRENT = (
    ("lstm", "fused"), ("slstm", "fused"), ("lstm", "alternating"), ("slstm", "alternating"), ("lstm", "vanilla"),
    ("lstm", "vanilla_fwbw"), ("gru", "fused"), ("elman", "fused"),
)  # fmt: skip
DRY_RECURRENT = (("elman", "fused"),)
FUNCTIONS = ("elman", "gru", "lstm", "slstm")
# (atol, rtol) of the paper's tests, of h and of gradients
TOLERANCES = {
    "bfloat16": ((0.1, 0.2), (0.2, 0.4)),
    "float16": ((0.1, 0.2), (0.2, 0.4)),
    "float32": ((1e-3, 2e-3), (1e-3, 2e-3)),
}
SLSTM_FLOAT32 = ((0.01, 0.05), (0.01, 0.05))


def arrays(function: str, shape: tuple[int, int, int, int], dtype: Any, seed: int = 0) -> list[np.ndarray]:
    """Wx, R, b and weights of a loss of h, for ``shape`` (B, T, N, D)."""
    batch, steps, heads, dim = shape
    gates_r, gates_w, _, gates_t, _ = cell_counts(function)
    random = np.random.default_rng(seed)
    Wx = random.standard_normal((batch, steps, gates_w, heads, dim))
    R = random.standard_normal((gates_r, heads, dim, dim)) * dim**-0.5
    b = random.standard_normal((gates_t, heads, dim))
    return [np.asarray(a, dtype) for a in (Wx, R, b, random.standard_normal((batch, steps, heads, dim)))]


def milliseconds(run: Callable[[], Any], warm: float, budget: float) -> float:
    """Median time of ``run`` over as many calls as ``budget`` milliseconds hold, after ``warm`` milliseconds of them."""
    jax.block_until_ready(run())
    times: list[float] = []
    for limit in (warm, budget):
        times, begin = [], time.perf_counter()
        while not times or 1e3 * (time.perf_counter() - begin) < limit:
            start = time.perf_counter()
            jax.block_until_ready(run())
            times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def contenders(
    shape: tuple[int, int, int, int], dtype: str, recurrent: Sequence[tuple[str, str]]
) -> Iterator[tuple[str, Callable, tuple]]:
    """(name, function of arrays, arrays) of everything that is timed at ``shape``; the first array is the weights.

    ``recurrent`` has (function, backend) of flashrnn.
    """
    batch, steps, heads, dim = shape
    for function, backend in recurrent:
        *inputs, weights = arrays(function, shape, dtype)

        def run(*inputs, function=function, backend=backend):
            return flashrnn(*inputs, function=function, backend=backend)[0][0]

        yield f"{function} {backend}", run, (weights, *inputs)
    random = np.random.default_rng(0)
    width = heads * dim
    flat = np.asarray(random.standard_normal((batch, steps, width)), dtype)
    peer = nn.RNN(nn.OptimizedLSTMCell(width, dtype=dtype))
    yield "flax.linen.OptimizedLSTMCell", peer.apply, (flat, jax.jit(peer.init)(jax.random.key(0), flat), flat)
    qkv = np.asarray(random.standard_normal((3, batch, steps, heads, dim)), dtype)
    yield "causal attention", lambda q, k, v: jax.nn.dot_product_attention(q, k, v, is_causal=True), (qkv[0], *qkv)


def speed(sweeps: dict, recurrent: Sequence[tuple[str, str]], dtype: str, warm: float, budget: float) -> Iterator[dict]:
    """A row per shape, contender and direction."""
    for sweep, shapes in sweeps.items():
        for shape in shapes:
            for name, run, (weights, *inputs) in contenders(shape, dtype, recurrent):
                inputs = jax.device_put(inputs)

                def loss(inputs, run=run, weights=weights):
                    return jnp.sum(run(*inputs) * weights, dtype=jnp.float32)

                forward, both = jax.jit(run), jax.jit(jax.grad(loss))
                for direction, call in (
                    ("forward", lambda f=forward, a=inputs: f(*a)), ("forward+backward", lambda f=both, a=inputs: f(a)),
                ):  # fmt: skip
                    row = dict(zip(("B", "T", "N", "D"), shape)) | {"contender": name, "direction": direction}
                    try:
                        row["ms"] = milliseconds(call, warm, budget)
                    except jax.errors.JaxRuntimeError as error:  # out of memory or of registers: a row of the table too
                        row["failed"] = str(error).splitlines()[0]
                    yield {"section": "speed", "sweep": sweep, "dtype": dtype, **row}


def largest_head(fits: Callable[[int], bool], limit: int = 4096) -> int:
    """The largest multiple of 16 up to ``limit`` that fits, 0 for none, where everything below a fitting size fits."""
    low, high = 0, limit // 16
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(16 * middle) else (low, middle - 1)
    return 16 * low


def heads(functions: Sequence[str]) -> Iterator[dict]:
    """The largest head of the fused kernel by function, platform and dtype, and over the 64 of the paper's Triton kernel."""
    here = jax.default_backend()
    for function in functions:
        for dtype in ("bfloat16", "float32"):
            for platform in ("gpu", "tpu"):

                def by_rule(dim, function=function, platform=platform, dtype=dtype):
                    return tiles(platform, cell(function), 16, 1024, 1, dim, dtype) is not None

                found = {"by_rule": largest_head(by_rule)}
                if platform == here:

                    def by_running(dim, function=function, dtype=dtype):
                        inputs = arrays(function, (16, 8, 1, dim), dtype)[:3]
                        try:
                            jax.block_until_ready(flashrnn(*inputs, function=function, backend="fused", fallback=False))
                        except (ValueError, jax.errors.JaxRuntimeError):
                            return False
                        return True

                    found["by_running"] = largest_head(by_running, found["by_rule"])
                over = {"over_64": found["by_rule"] / 64}
                yield {"section": "heads", "function": function, "dtype": dtype, "platform": platform, **found, **over}


def rounding(functions: Sequence[str], shape: tuple[int, int, int, int], dtypes: Sequence[str]) -> Iterator[dict]:
    """Errors against float64 at t = 1, 2, 4, ..., the exponent of growth, gradients, and whether both are tolerable."""
    for function in functions:
        wide = arrays(function, shape, "float64")

        def evaluate(inputs, backend, function=function, weights=wide[3]):
            def loss(inputs):
                h = flashrnn(*inputs, function=function, backend=backend)[0][0]
                return jnp.sum(h.astype(jnp.promote_types(h.dtype, jnp.float32)) * weights), h

            (_, h), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(inputs)
            return [np.asarray(a, np.float64) for a in (h, *grads)]

        for dtype in dtypes:
            rounded = [np.asarray(jnp.asarray(a, dtype)) for a in wide[:3]]
            with jax.enable_x64(True):
                # the same numbers in both: what is measured is the arithmetic, not the rounding of the inputs
                want = evaluate([np.asarray(a, np.float64) for a in rounded], "vanilla")
            got = evaluate(rounded, "auto")
            by_step = np.max(np.abs(got[0] - want[0]), axis=(0, 2, 3))
            at = {2**k: float(by_step[2**k - 1]) for k in range(int(math.log2(shape[1])) + 1)}
            logs = [(math.log(t), math.log(e)) for t, e in at.items() if e > 0]
            slope = float(np.polyfit(*zip(*logs), 1)[0]) if len(logs) > 1 else 0.0
            bounds = SLSTM_FLOAT32 if (function, dtype) == ("slstm", "float32") else TOLERANCES[dtype]
            within = [
                bool(np.allclose(g, w, atol=bound[0], rtol=bound[1]))
                for g, w, bound in zip(got, want, (bounds[0], *[bounds[1]] * 3))
            ]
            worst = [float(np.max(np.abs(g - w)) / np.max(np.abs(w))) for g, w in zip(got, want)]
            yield {
                "section": "rounding", "function": function, "dtype": dtype, "T": shape[1], "error_at": at,
                "growth_exponent": slope, "h_relative": worst[0], "gradient_relative": max(worst[1:]),
                "within_tolerance": all(within),
            }  # fmt: skip


def table(rows: Sequence[dict]) -> str:
    """Markdown, one table per section."""
    parts = []
    for section in SECTIONS:
        chosen = [{k: v for k, v in row.items() if k != "section"} for row in rows if row["section"] == section]
        if chosen:
            columns = list(dict.fromkeys(key for row in chosen for key in row))
            lines = [f"## {section}", "", "| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
            lines += ["| " + " | ".join(_cell(row.get(c, "")) for c in columns) + " |" for row in chosen]
            parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k}: {_cell(v)}" for k, v in value.items())
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def measure(sections: Sequence[str] = SECTIONS, *, dry: bool = False) -> Iterator[dict]:
    """Rows of the chosen sections; ``dry`` takes tiny sizes."""
    if "speed" in sections:
        if dry:
            yield from speed(DRY_SWEEPS, DRY_RECURRENT, "bfloat16", 0, 1)
        else:
            yield from speed(SWEEPS, RECURRENT, "bfloat16", 25, 1000)
    if "heads" in sections:
        yield from heads(("lstm",) if dry else FUNCTIONS)
    if "rounding" in sections:
        yield from rounding(
            ("slstm",) if dry else FUNCTIONS,
            (1, 16, 1, 8) if dry else (16, 1024, 12, 64),
            ("bfloat16",) if dry else ("float32", "bfloat16", "float16"),
        )


def main(argv: Sequence[str]) -> int:
    """Measures, prints, and writes."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.flashrnn", description=__doc__.split("\n")[0])
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=SECTIONS)
    parser.add_argument("--dry", action="store_true", help="tiny sizes, for a CPU")
    parser.add_argument("--output", type=pathlib.Path, help="folder for the results")
    arguments = parser.parse_args(argv)
    if jax.default_backend() == "cpu" and not arguments.dry and "speed" in arguments.sections:
        print("speed needs an accelerator; on a CPU use --dry, or --sections heads rounding", file=sys.stderr)
        return 2
    rows = []
    for row in measure(arguments.sections, dry=arguments.dry):
        rows.append(row)
        print(json.dumps(row), flush=True)
    if arguments.output:
        arguments.output.mkdir(parents=True, exist_ok=True)
        stem = arguments.output / f"flashrnn-{jax.default_backend()}"
        stem.with_suffix(".json").write_text(json.dumps(rows, indent=1) + "\n")
        stem.with_suffix(".md").write_text(f"# FlashRNN on {jax.devices()[0].device_kind}\n\n{table(rows)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
