"""linear_scan against the two ways to write it in plain JAX, on this machine.

    python -m benchmarks.scans            # every shape, one line per comparison; some minutes
    python -m benchmarks.scans --quick    # the short sequences only

These are the numbers behind the table in ``zoo.scans._auto``.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax

from zoo.scans import linear_scan

SHAPES = tuple(
    (batch, steps, dim)
    for steps in (256, 4096, 65_536)
    for batch, dim in ((1, 16), (1, 256), (8, 64))
)  # fmt: skip
METHODS = ("auto", "sequential", "chunked", "associative")


def plain_scan(decay: jax.Array, inputs: jax.Array) -> jax.Array:
    """The recurrence as one would write it with ``lax.scan``, differentiated by JAX."""

    def step(state, now):
        state = now[0] * state + now[1]
        return state, state

    xs = (jnp.moveaxis(decay, 1, 0), jnp.moveaxis(inputs, 1, 0))
    return jnp.moveaxis(lax.scan(step, jnp.zeros_like(inputs[:, 0]), xs)[1], 0, 1)


def plain_associative_scan(decay: jax.Array, inputs: jax.Array) -> jax.Array:
    """The recurrence with ``lax.associative_scan``, differentiated by JAX."""

    def combine(first, second):
        return first[0] * second[0], second[0] * first[1] + second[1]

    return lax.associative_scan(combine, (decay, inputs), axis=1)[1]


ALTERNATIVES = {"lax.scan": plain_scan, "lax.associative_scan": plain_associative_scan}


def _seconds(functions: dict[str, Callable], arguments: tuple, repeats: int) -> dict[str, float]:
    """Median seconds per call of each function.

    The functions take turns, each with one call that is not timed first: what runs after a function that used much
    memory pays for the pages which that one gave back (seen: 1.4x for large T).
    """
    for function in functions.values():
        jax.block_until_ready(function(*arguments))
    calls = max(1, min(50, 1_000_000 // arguments[1].size))
    times = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            jax.block_until_ready(function(*arguments))
            start = time.perf_counter()
            for _ in range(calls):
                result = function(*arguments)
            jax.block_until_ready(result)
            times[name].append((time.perf_counter() - start) / calls)
    return {name: statistics.median(values) for name, values in times.items()}


def measure(
    shapes: Sequence[tuple[int, int, int]] = SHAPES,
    *,
    methods: Sequence[str] = ("auto",),
    dtypes: Sequence[str] = ("float32", "complex64"),
    repeats: int = 9,
) -> list[dict]:
    """Compares every method of ``linear_scan`` with every alternative.

    Args:
      shapes: (B, T, D) to run.
      methods: methods of ``linear_scan``.
      dtypes: of decay and inputs.
      repeats: timed turns per function; the median is reported.

    Returns:
      Rows with name, shape, dtype, alternative, seconds_ours, seconds_theirs and ratio = theirs / ours.
    """
    rows = []
    for shape in shapes:
        for dtype in dtypes:
            keys = jax.random.split(jax.random.key(0), 3)
            decay = jax.random.uniform(keys[0], shape, minval=0.8, maxval=1.0).astype(dtype)
            inputs, weights = (jax.random.normal(key, shape).astype(dtype) for key in keys[1:])
            ours = {m: (lambda a, x, m=m: linear_scan(a, x, method=m)[0]) for m in methods}
            functions = ours | ALTERNATIVES
            for direction in ("forward", "forward+backward"):
                if direction == "forward":
                    timed = {name: jax.jit(f) for name, f in functions.items()}
                    seconds = _seconds(timed, (decay, inputs), repeats)
                else:
                    timed = {
                        name: jax.jit(jax.value_and_grad(lambda a, x, w, f=f: jnp.sum((f(a, x) * w).real), (0, 1)))
                        for name, f in functions.items()
                    }
                    seconds = _seconds(timed, (decay, inputs, weights), repeats)
                rows += [
                    {
                        "name": f"linear_scan {method} {direction}",
                        "shape": list(shape),
                        "dtype": dtype,
                        "alternative": alternative,
                        "seconds_ours": seconds[method],
                        "seconds_theirs": seconds[alternative],
                        "ratio": seconds[alternative] / seconds[method],
                    }
                    for method in methods
                    for alternative in ALTERNATIVES
                ]
    return rows


def main() -> None:
    """Prints one line per comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="T = 256 and 4096 only")
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    for shape in SHAPES:
        if options.quick and shape[1] > 4096:
            continue
        for row in measure([shape], methods=options.methods, repeats=options.repeats):
            print(
                f"{row['name']:<42} {row['shape']!s:<16} {row['dtype']:<10} {1e3 * row['seconds_ours']:10.3f} ms   "
                f"{row['alternative']:<21} {1e3 * row['seconds_theirs']:10.3f} ms   ratio {row['ratio']:.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
