"""One call on one GPU: are the kernels right there, and how fast are they?

    python -m benchmarks.gpu [--operations linear_scan rnn] [--minutes 8]
    python -m benchmarks.gpu --dry        # no GPU: interpreted kernels at tiny sizes; the times mean nothing

1. Numerics. Every case of ``benchmarks.kernel_cases`` at a small odd size, forward and gradient, against the same operation
   in float64 on the CPU (for which every operation runs its plain form). In the storage type of the case and in float32.
2. The machine: bandwidth of a copy, operations per second of a bfloat16 matrix product. What follows is a share of these.
3. Times. Every case at its full size against what else there is: the plain XLA forms, ``lax.associative_scan``, cuDNN's
   LSTM (``jax.experimental.rnn``), ``torch.nn`` and the Triton kernels of flash-linear-attention where those are installed.
   Ours and theirs take turns; medians.

Results go to ``benchmarks/results/gpu-<date>.json`` and ``.md``, also when time runs out (what was left out is listed).
Exit status 1: a kernel gave wrong numbers; 2: no GPU.
"""

import argparse
import dataclasses
import datetime
import importlib
import json
import os
import pathlib
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.kernel_cases import Case, all_cases
from pallas_kernels import operation

RESULTS = pathlib.Path(__file__).parent / "results"
REPEATS = 7
# Largest error over the largest value, for sums of up to a few hundred terms in the storage type.
TOLERANCE = {"float32": 5e-5, "complex64": 5e-5, "bfloat16": 4e-2, "float16": 5e-3}


def small(size: int, unit: int | None = None) -> int:
    """A small odd size in place of ``size``: equal sizes stay equal, and 1 to 4 (gates, states) stay what they are.

    Two to four times ``unit`` stays that many times the size which ``unit`` becomes.
    """
    if size <= 4:
        return size
    if unit and size % unit == 0 and size // unit <= 4:
        return size // unit * small(unit)
    return 2 * size.bit_length() + 1


def shrunk(arguments: Any, dtype: str | None = None) -> Any:
    """``arguments`` at small odd sizes; ``dtype`` replaces the storage type of those in 16 bits."""
    widths = [
        a["A"].shape[1] for a in arguments if isinstance(a, dict)
    ]  # newton: planes side by side are 2 N or 3 N wide

    def shrink(a):
        narrow = jnp.dtype(a.dtype).itemsize == 2
        shape = tuple(small(size, *widths) for size in a.shape)
        return jax.ShapeDtypeStruct(shape, dtype if dtype and narrow else a.dtype)

    return jax.tree.map(shrink, arguments)


def at_odd_sizes(case: Case, dtype: str | None = None) -> Case:
    """``case`` with small odd sizes; ``dtype`` as in ``shrunk``."""
    if case.odd is None:
        return dataclasses.replace(case, arguments=shrunk(case.arguments, dtype))
    arguments = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, dtype if dtype and jnp.dtype(a.dtype).itemsize == 2 else a.dtype),
        case.odd.arguments,
    )
    return dataclasses.replace(case.odd, name=case.name, arguments=arguments)


def fill(name: str, arguments: Sequence[Any], seed: int = 0) -> list[Any]:
    """Random values of a sensible range for every argument, in NumPy (complex and float32), cast to its dtype."""
    random = np.random.default_rng(seed)

    def normal(a, scale=1.0):
        x = scale * random.standard_normal(a.shape)
        return x + 1j * scale * random.standard_normal(a.shape) if jnp.issubdtype(a.dtype, jnp.complexfloating) else x

    def unit(a, low, high):
        x = random.uniform(low, high, a.shape)
        turn = np.exp(1j * random.uniform(0, 0.3, a.shape))
        return x * turn if jnp.issubdtype(a.dtype, jnp.complexfloating) else x

    special: dict[tuple[str, int], Callable] = {
        ("linear_scan", 0): lambda a: unit(a, 0.8, 1.0),
        ("block_scan", 0): lambda a: normal(a, 0.4),
        ("rnn", 1): lambda a: normal(a, a.shape[-1] ** -0.5),
        ("chunked", 0): lambda a: normal(a, a.shape[-1] ** -0.5),
        ("chunked", 1): lambda a: normal(a, a.shape[-1] ** -0.5),
        ("chunked", 3): lambda a: -random.exponential(0.1, a.shape),
        ("delta_rule", 0): lambda a: normal(a, a.shape[-1] ** -0.5),
        ("delta_rule", 1): lambda a: normal(a, a.shape[-1] ** -0.5),
        ("delta_rule", 3): lambda a: random.uniform(0.0, 1.0, a.shape),
        ("delta_rule", 4): lambda a: -random.exponential(0.1, a.shape),
        ("selective_scan", 1): lambda a: random.uniform(0.001, 0.1, a.shape),
        ("selective_scan", 2): lambda a: -random.uniform(1.0, a.shape[-1], a.shape),
        ("newton", 1): lambda a: normal(a, 0.1),  # small enough for the cases' three iterations to reach rounding
    }

    def make(index, argument):
        maker = special.get((name, index), normal)
        return jax.tree.map(lambda a: jnp.asarray(maker(a), a.dtype), argument)

    return [make(i, a) for i, a in enumerate(arguments)]


def numerics(name: str, whole: Case) -> Iterator[dict]:
    """A row per storage type: the largest error of any result over that result's largest value."""
    narrow = any(jnp.dtype(a.dtype).itemsize == 2 for a in jax.tree.leaves(whole.arguments))
    for dtype in [None, "float32"] if narrow else [None]:
        case = at_odd_sizes(whole, dtype)
        arguments = fill(name, case.arguments)
        storage = min((jnp.dtype(a.dtype) for a in jax.tree.leaves(arguments)), key=lambda d: d.itemsize).name
        function = PUBLIC[name]("backward" in case.name) if name in PUBLIC else case.function(None)
        with jax.default_matmul_precision("highest"):
            got = jax.tree.map(np.asarray, jax.jit(function)(*arguments))
        wide = jax.tree.map(lambda a: np.asarray(a, complex if jnp.iscomplexobj(a) else float), arguments)
        with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
            want = jax.tree.map(np.asarray, jax.jit(function)(*map(_device, wide)))
        errors = [
            float(np.max(np.abs(np.asarray(g, w.dtype) - w)) / max(float(np.max(np.abs(w))), 1e-3))
            for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True)
            if w.size and np.issubdtype(w.dtype, np.inexact)
        ]
        worst = max(errors)  # NaN compares false below, and fails
        yield {"operation": name, "case": case.name, "dtype": storage, "error": worst,
               "tolerance": TOLERANCE[storage], "passed": all(e <= TOLERANCE[storage] for e in errors)}  # fmt: skip


def _device(tree):
    return jax.tree.map(jnp.asarray, tree)


# A contender runs its work n times and waits for the last.
Contender = Callable[[int], None]


class jitted:
    """A JAX function as a contender; ``result`` is what its last run gave."""

    def __init__(self, function: Callable, arguments: Sequence[Any]):
        self._compiled, self._arguments = jax.jit(function), arguments
        self.result: Any = None

    def __call__(self, n: int) -> None:
        for _ in range(n):
            self.result = self._compiled(*self._arguments)
        jax.block_until_ready(self.result)


def difference(ours: Any, theirs: Any) -> float:
    """Largest difference of the first results, over the largest value."""
    a, b = (jax.tree.leaves(r)[0] for r in (ours, theirs))
    wide = jnp.promote_types(a.dtype, jnp.float32)
    a, b = a.astype(wide), b.astype(wide).reshape(a.shape)
    return float(jnp.max(jnp.abs(a - b)) / jnp.max(jnp.abs(b)))


def race(contenders: dict[str, Contender], repeats: int = REPEATS, target: float = 0.02) -> dict[str, float]:
    """Median seconds of each contender; they take turns, and run as often per turn as fits into ``target`` seconds."""
    counts = {}
    for name, run in contenders.items():
        run(1)
        start = time.perf_counter()
        run(1)
        counts[name] = max(1, min(100, int(target / max(time.perf_counter() - start, 1e-6))))
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, run in contenders.items():
            run(1)
            start = time.perf_counter()
            run(counts[name])
            times[name].append((time.perf_counter() - start) / counts[name])
    return {name: statistics.median(values) for name, values in times.items()}


def machine(dry: bool) -> dict[str, float]:
    """Measured bytes per second of a copy and operations per second of a bfloat16 matrix product."""
    length, width = (1 << 12, 64) if dry else (1 << 28, 8192)
    x = jnp.ones(length, jnp.float32)
    m = jnp.ones((width, width), jnp.bfloat16)
    seconds = race({"copy": jitted(lambda x: x + 1, [x]), "product": jitted(jnp.matmul, [m, m])})
    return {"copy_bandwidth": 8 * length / seconds["copy"], "matrix_peak": 2 * width**3 / seconds["product"]}


def with_gradient(forward: Callable, count: int) -> Callable:
    """``forward`` of the first ``count`` arguments, and its gradients for the cotangent that follows."""

    def run(*arguments):
        result, pullback = jax.vjp(forward, *arguments[:count])
        return result, pullback(arguments[count])

    return run


def scan_rivals(case: Case, arguments: Sequence[jax.Array]) -> dict[str, Contender]:
    """linear_scan: ``lax.associative_scan``, a plain ``lax.scan`` where T is short, and FLA's HGRN kernel."""
    from benchmarks.scans import plain_associative_scan, plain_scan

    def full(scan):
        return lambda a, x: scan(jnp.broadcast_to(a, x.shape), x)

    forms = {"lax.associative_scan": full(plain_associative_scan)}
    if arguments[1].shape[1] <= 4096:
        forms["lax.scan"] = full(plain_scan)
    backward = len(arguments) == 3
    rivals = {k: jitted(with_gradient(f, 2) if backward else f, arguments) for k, f in forms.items()}
    hgrn = _fla("fla.ops.hgrn", "fused_recurrent_hgrn")
    if hgrn is not None and arguments[0].shape == arguments[1].shape and not jnp.iscomplexobj(arguments[1]):
        gate, x = _torch(jnp.log(arguments[0])), _torch(arguments[1])
        rivals["fla fused_recurrent_hgrn"] = torch_contender(
            lambda g, x: hgrn(x, g)[0], (gate, x), _torch(arguments[2]) if backward else None
        )
    return rivals


def rnn_rivals(case: Case, arguments: Sequence[jax.Array]) -> dict[str, Contender]:
    """rnn: the plain scan, the alternating form, cuDNN through JAX and through torch.

    cuDNN's layers have one dense head as wide as ours together, and project their input inside the call.
    """
    from zoo.scans import flashrnn

    function, Wx = case.name.split()[0], arguments[0]
    backward = len(arguments) == 4
    batch, steps, _, heads, dim = Wx.shape
    rivals = {}
    for backend in ("vanilla_fwbw", "alternating"):
        plain = lambda *a, backend=backend: flashrnn(*a, function=function, backend=backend)[0]  # noqa: E731
        rivals[f"flashrnn {backend}"] = jitted(with_gradient(plain, 3) if backward else plain, arguments)
    width = heads * dim
    x = jnp.asarray(np.random.default_rng(0).standard_normal((batch, steps, width)), jnp.float32)
    if function == "lstm" and jax.default_backend() == "gpu":
        from jax.experimental import rnn as cudnn

        weights = cudnn.init_lstm_weight(jax.random.key(0), width, width, 1, False)
        zeros = jnp.zeros((1, batch, width))

        def layer(x, weights):
            lengths = jnp.full((batch,), steps, jnp.int32)
            return cudnn.lstm(x, zeros, zeros, weights, lengths, width, width, 1, 0.0, False)[0]

        inputs = (x, weights, x) if backward else (x, weights)
        rivals[f"jax.experimental.rnn LSTM {width} f32"] = jitted(
            with_gradient(layer, 2) if backward else layer, inputs
        )
    torch = _module("torch")
    if torch is not None and function in ("lstm", "gru"):
        device = _torch_device()
        storage = torch.bfloat16 if device == "cuda" else torch.float32
        module = getattr(torch.nn, function.upper())(width, width, batch_first=True).to(device, storage)
        value = torch.randn(batch, steps, width, device=device, dtype=storage)
        rivals[f"torch.nn.{function.upper()} {width}"] = torch_contender(
            lambda x: module(x)[0], (value,), value if backward else None, module
        )
    return rivals


def chunked_rivals(case: Case, arguments: Sequence[Any]) -> dict[str, Contender]:
    """chunked: the XLA form in chunks, and FLA's chunkwise kernels."""
    from zoo.scans import linear_attention

    backward = len(arguments) == 6

    def heads(q, k, v, g, state, *y_bar):
        """The arguments with an axis of heads."""
        keys, values = state.shape[2:]
        q, k = (a.reshape(*a.shape[:2], -1, keys) for a in (q, k))
        v, *y_bar = (a.reshape(*a.shape[:2], -1, values) for a in (v, *y_bar))
        if g is not None and g.shape[2] > state.shape[1]:
            g = g.reshape(*g.shape[:2], -1, keys)
        return q, k, v, g, state, *y_bar

    def plain(*flat):
        q, k, v, g, state = heads(*flat)
        y, last = linear_attention(q, k, v, g, state, method="chunked")
        return y.reshape(*y.shape[:2], -1), last

    def both(q, k, v, g, state, y_bar):
        (y, last), pullback = jax.vjp(plain, q, k, v, g, state)
        return y, last, pullback((y_bar, jnp.zeros_like(last)))

    rivals = {"linear_attention chunked": jitted(both if backward else plain, arguments)}
    q, k, v, g, _, *y_bar = heads(*arguments)
    simple = g is None or g.ndim == 3
    name, kernel = ("chunk_simple_gla", _fla("fla.ops.simple_gla", "chunk_simple_gla")) if simple else (
        "chunk_gla", _fla("fla.ops.gla", "chunk_gla"))  # fmt: skip
    if kernel is not None:
        spread = v.shape[2] // q.shape[2]
        values = [_torch(jnp.repeat(q, spread, 2)), _torch(jnp.repeat(k, spread, 2)), _torch(v)]
        if g is not None:
            values.append(_torch(g))
        rivals[f"fla {name}"] = torch_contender(
            lambda *a: kernel(*a, scale=1.0)[0], values, _torch(y_bar[0]) if backward else None
        )
    return rivals


def delta_rivals(case: Case, arguments: Sequence[Any]) -> dict[str, Contender]:
    """delta_rule: the XLA form in chunks, and FLA's chunkwise kernels."""
    from zoo.scans import gated_delta_rule

    def heads(q, k, v, beta, g, state, *y_bar):
        """The arguments with an axis of heads."""
        keys, values = state.shape[2:]
        q, k = (a.reshape(*a.shape[:2], -1, keys) for a in (q, k))
        v, *y_bar = (a.reshape(*a.shape[:2], -1, values) for a in (v, *y_bar))
        return q, k, v, beta, g, state, *y_bar

    def plain(*flat):
        y, last = gated_delta_rule(*heads(*flat), method="chunked")
        return y.reshape(*y.shape[:2], -1), last

    def both(*flat):
        (y, last), pullback = jax.vjp(plain, *flat[:6])
        return y, last, pullback((flat[6], jnp.zeros_like(last)))

    backward = len(arguments) == 7
    rivals = {"gated_delta_rule chunked": jitted(both if backward else plain, arguments)}
    q, k, v, beta, g, _, *y_bar = heads(*arguments)
    name = "chunk_delta_rule" if g is None else "chunk_gated_delta_rule"
    kernel = _fla("fla.ops.delta_rule" if g is None else "fla.ops.gated_delta_rule", name)
    if kernel is not None:
        values = {"q": q, "k": k, "v": v, "g": g, "beta": beta}
        values = {key: _torch(a) for key, a in values.items() if a is not None}
        rivals[f"fla {name}"] = torch_contender(
            lambda *a: kernel(**dict(zip(values, a, strict=True)), scale=1.0)[0],
            list(values.values()),
            _torch(y_bar[0]) if backward else None,
        )
    return rivals


def _blocks(matrices: Sequence[jax.Array], inputs: Sequence[jax.Array], initial: Sequence[jax.Array]) -> tuple:
    """Planes of 2 x 2 blocks as whole arrays."""
    whole = jnp.stack(matrices, -1)
    return whole.reshape(*whole.shape[:-1], 2, 2), jnp.stack(inputs, -1), jnp.stack(initial, -1)


def public_block_scan(backward: bool) -> Callable:
    """The cases of block_scan through its public function, which is what has a float64 form."""
    scan = operation("block_scan")

    def forward(*planes):
        return scan(*_blocks(*planes))[0]

    def both(matrices, inputs, initial, states_bar):
        states, pullback = jax.vjp(lambda *a: forward(*a, initial), matrices, inputs)
        return states, pullback(jnp.stack(states_bar, -1))

    return both if backward else forward


def block_rivals(case: Case, arguments: Sequence[Any]) -> dict[str, Contender]:
    """block_scan: the associative and the sequential form of ``affine_scan``."""
    from zoo.scans import affine_scan

    rivals = {}
    for method in ("associative", "sequential"):
        if method == "sequential" and arguments[1][0].shape[1] > 4096:
            continue

        def plain(*planes, method=method):
            states = affine_scan(*_blocks(*planes), method=method)[0]
            return states[..., 0], states[..., 1]

        rivals[f"affine_scan {method}"] = jitted(with_gradient(plain, 3) if len(arguments) == 4 else plain, arguments)
    return rivals


def newton_rivals(case: Case, arguments: Sequence[Any]) -> dict[str, Contender]:
    """newton: the cell step by step in ``lax.scan``, and Newton's method in XLA with as many iterations."""
    from pallas_kernels.newton.reference import CELLS
    from zoo.scans import solve_recurrence

    name = case.name.split()[0]
    known = CELLS[name]

    def start(p):
        return jnp.zeros((p.shape[0], known.planes * p.shape[2] // 3))

    def rows(params):
        return jnp.concatenate([params[key] for key, _ in known.weights])

    def step(params, state, p):
        planes = known.step(tuple(params), tuple(jnp.split(state, known.planes)), tuple(jnp.split(p, 3)))
        return jnp.concatenate(planes)

    def solve(p, params, **how):
        structure = {"jacobian": "diagonal"} if known.planes == 1 else {"jacobian": "block", "blocks": known.planes}
        return solve_recurrence(step, rows(params), p, start(p), **structure, **how, on_failure="flag", verify=False)[0]

    forms = {
        "solve_recurrence newton": lambda p, params: solve(
            p, params, guess="step", iterations=3, reduction="associative"
        ),
        "lax.scan": lambda p, params: solve(p, params, method="sequential"),
    }
    if arguments[0].shape[1] > 4096:
        del forms["lax.scan"]
    backward = len(arguments) == 3
    return {k: jitted(with_gradient(f, 2) if backward else f, arguments) for k, f in forms.items()}


def selective_rivals(case: Case, arguments: Sequence[Any]) -> dict[str, Contender]:
    """selective_scan: the XLA form in chunks."""
    from zoo.scans import selective_scan

    def plain(x, delta, a, b, c, state):
        return selective_scan(x, delta, a, b, c, None, state, method="chunked")

    def both(*inputs):
        (y, last), pullback = jax.vjp(plain, *inputs[:6])
        return y, last, pullback((inputs[6], jnp.zeros_like(last)))

    return {"selective_scan chunked": jitted(both if len(arguments) == 7 else plain, arguments)}


# Cases whose function is not the public one of their operation: operation -> (with gradient?) -> function.
PUBLIC: dict[str, Callable[[bool], Callable]] = {"block_scan": public_block_scan}
# Rivals that are handed the same arguments, so that their results can be compared with ours.
SAME = (
    "lax.associative_scan",
    "affine_scan associative",
    "flashrnn vanilla_fwbw",
    "gated_delta_rule chunked",
    "linear_attention chunked",
    "selective_scan chunked",
    "solve_recurrence newton",
)
RIVALS: dict[str, Callable[[Case, Sequence[Any]], dict[str, Contender]]] = {
    "linear_scan": scan_rivals,
    "rnn": rnn_rivals,
    "chunked": chunked_rivals,
    "delta_rule": delta_rivals,
    "block_scan": block_rivals,
    "newton": newton_rivals,
    "selective_scan": selective_rivals,
}


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def _fla(module: str, name: str) -> Callable | None:
    """A kernel of flash-linear-attention; None where the package or a GPU is missing."""
    if jax.default_backend() != "gpu" or _module("fla") is None:
        return None
    return getattr(importlib.import_module(module), name, None)


def _torch_device() -> str:
    return "cuda" if _module("torch").cuda.is_available() else "cpu"


def _torch(array: jax.Array) -> Any:
    """The same values as a torch tensor on torch's device."""
    torch = importlib.import_module("torch")
    value = torch.from_numpy(np.array(array.astype(jnp.float32)))
    return value.to(_torch_device(), torch.bfloat16 if array.dtype == jnp.bfloat16 else torch.float32)


def torch_contender(function: Callable, values: Sequence[Any], cotangent: Any, module: Any = None) -> Contender:
    """A torch function as a contender; with a cotangent also its gradients."""
    torch = importlib.import_module("torch")

    def once():
        if cotangent is None:
            with torch.no_grad():
                return function(*values)
        leaves = [v.detach().requires_grad_() for v in values]
        if module is not None:
            module.zero_grad()
        result = function(*leaves)
        result.backward(cotangent.reshape(result.shape).to(result.dtype))
        return result

    def run(n):
        for _ in range(n):
            once()
        if _torch_device() == "cuda":
            torch.cuda.synchronize()

    return run


def timing(name: str, case: Case, dry: bool, limits: dict[str, float]) -> dict:
    """Ours and all rivals on one case."""
    case = at_odd_sizes(case) if dry else case
    arguments = fill(name, case.arguments)
    contenders = {"ours": jitted(case.function(None), arguments)}
    contenders |= RIVALS[name](case, arguments)
    refused = {}
    for rival, run in list(contenders.items()):
        try:
            run(1)
        except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
            if rival == "ours":
                raise
            refused[rival] = str(error).splitlines()[0][:200]
            del contenders[rival]
    # at full size tiles and chunks of time are other ones than at the small size of the numerics
    differences = {
        rival: difference(contenders["ours"].result, contenders[rival].result) for rival in SAME if rival in contenders
    }
    seconds = race(contenders, repeats=1 if dry else REPEATS, target=0.0 if dry else 0.02)
    ours = seconds.pop("ours")
    return {
        "operation": name,
        "case": case.name,
        "seconds": ours,
        "bandwidth_share": case.minimum_bytes / ours / limits["copy_bandwidth"],
        "matrix_share": case.flops / ours / limits["matrix_peak"],
        "rivals": {rival: {"seconds": s, "ratio": s / ours} for rival, s in seconds.items()},
        "differences": differences,
        "refused": refused,
    }


def markdown(results: dict) -> str:
    """The results as tables."""
    m = results["machine"]
    lines = [
        f"# GPU measurements, {results['date']}", "",
        f"{results['device']}; {results['versions']}." + (" DRY RUN: times mean nothing." if results["dry"] else ""), "",
        f"Copy {m['copy_bandwidth'] / 1e9:.0f} GB/s, bfloat16 matrix product {m['matrix_peak'] / 1e12:.1f} TFLOP/s here.",
        "", "## Numerics", "", "Error: largest difference from float64 over the largest value, results and gradients.", "",
        "| operation | case (at a small odd size) | storage | error | at most | |", "|---|---|---|---|---|---|",
    ]  # fmt: skip
    lines += [
        f"| {r['operation']} | {r['case']} | {r['dtype']} | {r['error']:.1e} | {r['tolerance']:.0e} | "
        f"{'ok' if r['passed'] else '**WRONG**'} |"
        for r in results["numerics"]
    ]
    lines += ["", "## Times", "", "Medians; ratio = theirs / ours, above 1 ours is faster. Shares are of the measured copy "
              "bandwidth (for the bytes that must be moved) and matrix peak.", "",
              "| operation | case | ours, ms | copy share | matrix share | against | theirs, ms | ratio |",
              "|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for r in results["times"]:
        own = (f"| {r['operation']} | {r['case']} | {1e3 * r['seconds']:.3f} | {r['bandwidth_share']:.2f} | "
               f"{r['matrix_share']:.2f} |")  # fmt: skip
        for name, rival in r["rivals"].items():
            apart = f" (differs by {r['differences'][name]:.1e})" if name in r["differences"] else ""
            name += apart
            lines.append(f"{own} {name} | {1e3 * rival['seconds']:.3f} | {rival['ratio']:.2f} |")
            own = "| | | | | |"
        lines += [f"| | | | | | {name} | refused: {why} | |" for name, why in r["refused"].items()]
    if results["left_out"]:
        lines += ["", f"Left out for lack of time: {', '.join(results['left_out'])}."]
    return "\n".join([*lines, ""])


def main(argv: list[str]) -> int:
    """Runs everything that fits into the time and writes both files."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--operations", nargs="*", help="names of operations; all when left out")
    parser.add_argument("--minutes", type=float, default=8.0, help="stop starting new cases after this time")
    parser.add_argument("--dry", action="store_true", help="tiny sizes, interpreted where there is no GPU")
    parser.add_argument("--output", type=pathlib.Path, default=RESULTS)
    options = parser.parse_args(argv)
    if not options.dry and jax.default_backend() != "gpu":
        print("benchmarks.gpu: JAX sees no GPU here; --dry tries the script without one", file=sys.stderr)
        return 2
    cases = all_cases()
    unknown = set(options.operations or ()) - set(cases)
    if unknown:
        print(f"benchmarks.gpu: no operation {sorted(unknown)[0]!r} (known: {', '.join(cases)})", file=sys.stderr)
        return 2
    chosen = [(name, case) for name in (options.operations or cases) for case in cases[name]]
    end = time.monotonic() + 60 * options.minutes
    results: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "dry": options.dry,
        "device": jax.devices()[0].device_kind,
        "versions": f"Python {platform.python_version()}, jax {jax.__version__}"
        + "".join(f", {n} {m.__version__}" for n in ("torch", "triton", "fla") if (m := _module(n)) is not None),
        "machine": machine(options.dry),
        "numerics": [], "times": [], "left_out": [],
    }  # fmt: skip
    stem = options.output / f"gpu-{results['date']}{'-dry' if options.dry else ''}"

    def write():
        options.output.mkdir(parents=True, exist_ok=True)
        stem.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
        stem.with_suffix(".md").write_text(markdown(results))

    for name, case in chosen:
        if time.monotonic() > end:
            results["left_out"].append(f"numerics of {name} {case.name}")
            continue
        for row in numerics(name, case):
            results["numerics"].append(row)
            verdict = "ok   " if row["passed"] else "WRONG"
            print(f"{verdict} {name} {case.name} {row['dtype']} {row['error']:.1e}", flush=True)
    write()
    for name, case in chosen:
        if time.monotonic() > end:
            results["left_out"].append(f"times of {name} {case.name}")
            continue
        row = timing(name, case, options.dry, results["machine"])
        results["times"].append(row)
        rivals = ", ".join(f"{rival} {r['ratio']:.2f}x" for rival, r in row["rivals"].items())
        print(f"{1e3 * row['seconds']:9.3f} ms {name} {case.name}: {rivals}", flush=True)
        write()
    write()
    print(f"written: {stem.name}.json, {stem.name}.md")
    return 0 if all(row["passed"] for row in results["numerics"]) else 1


if __name__ == "__main__":
    # torch needs room beside JAX on the same GPU; XLA reads this when the backend starts.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    sys.exit(main(sys.argv[1:]))
