"""The gated delta rule in its forms, on this machine's CPU.

    python -m benchmarks.delta_rule            # T = 256 to 16384; some minutes
    python -m benchmarks.delta_rule --quick    # T = 256 only
    python -m benchmarks.delta_rule --chunks   # chunk sizes instead, for the table in zoo.scans._auto

The chunked form of ``zoo.scans.gated_delta_rule`` against the recurrence step by step (``lax.scan``, differentiated by
JAX), against the quadratic form, which solves one system [T, T] and stops at T = 2048, and, where flash-linear-attention and
torch are installed, against that package's chunkwise function in plain torch. float32, keys of length 1; backward means the
gradients of all inputs. Then the time of one decoding step from the state after 100, 10,000 and 100,000 tokens. Times are
medians of alternating runs, ``ratio`` is theirs / ours.
"""

import argparse
import functools
import importlib
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.linalg import solve_triangular

from benchmarks.cpu import row
from zoo.scans import gated_delta_rule
from zoo.scans._auto import DELTA_CHUNK

LENGTHS = (256, 1024, 4096, 16384)
CHUNKS = (16, 32, 64, 128)
POSITIONS = (100, 10_000, 100_000)
QUADRATIC = 2048  # longest sequence of the quadratic form: it keeps several [T, T] per head
DIRECTIONS = ("forward", "forward+backward")


def inputs(batch: int, steps: int, heads: int, width: int) -> tuple[jax.Array, ...]:
    """q, k, v [B, T, H, K], beta and log_decay [B, T, H]."""
    rng = np.random.default_rng(0)
    q, k, v = rng.normal(size=(3, batch, steps, heads, width))
    k = k / np.linalg.norm(k, axis=-1, keepdims=True)
    beta, decay = rng.uniform(size=(2, batch, steps, heads))
    return tuple(jnp.asarray(a, jnp.float32) for a in (q * width**-0.5, k, v, beta, -0.1 * decay))


def naive(q, k, v, beta, log_decay):
    """y by ``lax.scan`` over the steps of the definition."""

    def step(state, now):
        q, k, v, beta, decay = now
        state = jnp.exp(decay)[..., None, None] * state
        error = v - jnp.einsum("bhk,bhkv->bhv", k, state)
        state = state + jnp.einsum("bh,bhk,bhv->bhkv", beta, k, error)
        return state, jnp.einsum("bhk,bhkv->bhv", q, state)

    state = jnp.zeros((*v.shape[:1], v.shape[2], q.shape[3], v.shape[3]))
    moved = tuple(jnp.moveaxis(a, 1, 0) for a in (q, k, v, beta, log_decay))
    return jnp.moveaxis(lax.scan(step, state, moved)[1], 0, 1)


def quadratic(q, k, v, beta, log_decay):
    """y by one triangular system of all steps: the attention form of the delta rule."""
    sums = jnp.cumsum(jnp.moveaxis(log_decay, 1, -1), axis=-1)
    seen = jnp.tril(jnp.ones((sums.shape[-1],) * 2, bool))
    weights = jnp.where(seen, jnp.exp(jnp.where(seen, sums[..., :, None] - sums[..., None, :], 0)), 0)
    beta = jnp.moveaxis(beta, 1, -1)[..., None]
    system = beta * weights * jnp.einsum("bthk,bshk->bhts", k, k)
    written = solve_triangular(system, beta * jnp.moveaxis(v, 1, 2), lower=True, unit_diagonal=True)
    return jnp.einsum("bhts,bhsv->bthv", weights * jnp.einsum("bthk,bshk->bhts", q, k), written)


def torch_chunked() -> Callable | None:
    """flash-linear-attention's chunkwise function in plain torch; None where it cannot be imported."""
    try:
        return importlib.import_module("fla.ops.gated_delta_rule.naive").naive_chunk_gated_delta_rule
    except (ImportError, AttributeError, RuntimeError):
        return None


def _torch_call(function: Callable, arguments: Sequence[jax.Array], direction: str) -> Callable[[], Any]:
    torch = importlib.import_module("torch")
    q, k, v, beta, decay = (torch.from_numpy(np.array(a)) for a in arguments)

    def call():
        leaves = [a.detach().requires_grad_(direction != "forward") for a in (q, k, v, beta, decay)]
        with torch.set_grad_enabled(direction != "forward"):
            y = function(*leaves[:3], g=leaves[4], beta=leaves[3], scale=1.0)[0]
            if direction != "forward":
                y.square().sum().backward()
        return y.detach().numpy()

    return call


def _call(function: Callable, arguments: Sequence[jax.Array], direction: str) -> Callable[[], Any]:
    """A compiled call without arguments."""
    if direction == "forward":
        run = jax.jit(function)
    else:
        run = jax.jit(jax.grad(lambda *a: jnp.sum(jnp.square(function(*a))), tuple(range(len(arguments)))))
    return lambda: run(*arguments)


def medians(calls: dict[Any, Callable[[], Any]], repeats: int) -> dict[Any, float]:
    """Median seconds of functions that take turns; the first call of each is not counted."""
    times: dict[Any, list[float]] = {name: [] for name in calls}
    for turn in range(repeats + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            jax.block_until_ready(call())
            if turn:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def chunked(*arguments, chunk_size: int | None = None):
    """y by the chunked form."""
    return gated_delta_rule(*arguments, method="chunked", chunk_size=chunk_size)[0]


def measure(
    lengths: Sequence[int] = LENGTHS, *, batch: int = 1, heads: int = 2, width: int = 64, repeats: int = 5
) -> list[dict]:
    """The chunked form against each alternative at every length.

    Returns:
      Rows with name, shape, alternative, seconds_ours, seconds_theirs and ratio = theirs / ours.
    """
    rows, theirs = [], torch_chunked()
    for length in lengths:
        arguments = inputs(batch, length, heads, width)
        shape = f"B={batch} T={length} H={heads} K=V={width}"
        for direction in DIRECTIONS:
            ours = _call(chunked, arguments, direction)
            rivals = {"step by step": _call(naive, arguments, direction)}
            if length <= QUADRATIC:
                rivals["quadratic"] = _call(quadratic, arguments, direction)
            if theirs is not None:
                rivals["fla naive chunk, torch"] = _torch_call(theirs, arguments, direction)
            seconds = medians({"": ours, **rivals}, repeats)
            rows += [row(f"gated_delta_rule {direction}", shape, name, seconds[""], seconds[name]) for name in rivals]
    return rows


def chunks(lengths: Sequence[int] = LENGTHS, *, batch: int = 1, heads: int = 2, repeats: int = 3) -> list[dict]:
    """Every chunk size against that of the table, for widths of 64 and 128."""
    rows = []
    for width in (64, 128):
        for length in lengths:
            arguments = inputs(batch, length, heads, width)
            for direction in DIRECTIONS:
                shape = f"B={batch} T={length} H={heads} K=V={width}"
                calls = {n: _call(functools.partial(chunked, chunk_size=n), arguments, direction) for n in CHUNKS}
                seconds = medians(calls, repeats)
                ours = seconds[DELTA_CHUNK]
                rows += [
                    row(f"gated_delta_rule {direction}", shape, f"chunks of {n}", ours, seconds[n]) for n in CHUNKS
                ]
    return rows


def decoding(*, batch: int = 1, heads: int = 2, width: int = 64, repeats: int = 7, steps: int = 100) -> list[dict]:
    """One step from the state after 100 tokens (ours) against later positions (theirs): the ratio should be 1."""
    step = jax.jit(lambda state, *now: gated_delta_rule(*now, state))
    prefill = jax.jit(lambda *a: gated_delta_rule(*a)[1])
    now = inputs(batch, 1, heads, width)

    def run(position):
        state = prefill(*inputs(batch, position, heads, width))

        def call():
            carried = state
            for _ in range(steps):
                y, carried = step(carried, *now)
            return y

        return call

    seconds = {p: s / steps for p, s in medians({p: run(p) for p in POSITIONS}, repeats).items()}
    shape = f"B={batch} H={heads} K=V={width}"
    return [row("decoding step", shape, f"at position {p}", seconds[POSITIONS[0]], seconds[p]) for p in POSITIONS]


def main() -> None:
    """Prints one line per comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="T = 256 only")
    parser.add_argument("--chunks", action="store_true", help="compare chunk sizes")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()

    def show(rows):
        for r in rows:
            print(
                f"{r['name']:<34} {r['shape']:<26} {1e3 * r['seconds_ours']:9.3f} ms   {r['alternative']:<24} "
                f"{1e3 * r['seconds_theirs']:9.3f} ms   ratio {r['ratio']:.2f}",
                flush=True,
            )

    for length in LENGTHS[:1] if options.quick else LENGTHS:
        show((chunks if options.chunks else measure)([length], repeats=options.repeats))
    if not options.chunks:
        show(decoding(repeats=options.repeats))


if __name__ == "__main__":
    main()
