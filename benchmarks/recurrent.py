"""LSTM and GRU layers against flax.linen.RNN and torch.nn, on this machine's CPU.

    python -m benchmarks.recurrent            # every shape, one line per comparison; some minutes
    python -m benchmarks.recurrent --quick    # the smallest shape only

Every layer reads [B, T, H] and writes [B, T, H] in float32. Backward means the gradients of all weights and of the input.
Rows carry two ratios, theirs / ours: of the elapsed time, and of the processor time of all threads (``cpu_ratio``), which
other programs on the machine disturb less. torch runs on two threads, as XLA does here.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

import zoo

SHAPES = ((32, 128, 64), (16, 512, 64), (16, 256, 128), (32, 256, 256), (16, 128, 512))
DIRECTIONS = ("forward", "forward+backward")
FLAX_CELLS = {"lstm": (nn.OptimizedLSTMCell, nn.LSTMCell), "gru": (nn.GRUCell,)}


def _jitted(apply: Callable, params: object, x: jax.Array, weights: jax.Array, direction: str) -> Callable:
    """A compiled call without arguments."""
    if direction == "forward":
        compiled = jax.jit(apply)
    else:
        compiled = jax.jit(jax.grad(lambda p, x: jnp.sum(apply(p, x) * weights), (0, 1)))
    return lambda: jax.block_until_ready(compiled(params, x))


def _torch_layer(name: str, shape: tuple[int, int, int], direction: str) -> Callable | None:
    """The same for torch.nn, or None where torch is not installed."""
    try:
        import torch
    except ImportError:
        return None
    torch.set_num_threads(2)
    batch, steps, width = shape
    layer = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU}[name](width, width, batch_first=True)
    x, weights = (torch.randn(batch, steps, width) for _ in range(2))

    def forward():
        with torch.no_grad():
            return layer(x)[0]

    def both():
        layer.zero_grad()
        inputs = x.clone().requires_grad_()
        (layer(inputs)[0] * weights).sum().backward()
        return inputs.grad

    return forward if direction == "forward" else both


def _race(functions: dict[str, Callable], repeats: int) -> dict[str, tuple[float, float]]:
    """Median (elapsed, processor) seconds of each function; they take turns, and each turn starts with another one."""
    names = list(functions)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for function in functions.values():
        function()
    for repeat in range(repeats):
        for k in range(len(names)):
            name = names[(repeat + k) % len(names)]
            time.sleep(0.01)
            start = time.perf_counter(), time.process_time()
            functions[name]()
            times[name].append((time.perf_counter() - start[0], time.process_time() - start[1]))
    return {name: tuple(statistics.median(t) for t in zip(*values, strict=True)) for name, values in times.items()}


def _compare(name: str, shape: tuple[int, int, int], direction: str, repeats: int, torch: bool) -> Iterator[dict]:
    """The rows of one layer, shape and direction."""
    keys = jax.random.split(jax.random.key(0), 3)
    x, weights = (jax.random.normal(key, shape) for key in keys[:2])
    layer = zoo.create(name, dim=shape[-1])
    ours = _jitted(lambda p, x: layer.apply(p, x)[0], layer.init(keys[2], x), x, weights, direction)
    flax = {}
    for cell in FLAX_CELLS[name]:
        peer = nn.RNN(cell(shape[-1]))
        flax[f"flax.linen.{cell.__name__}"] = _jitted(peer.apply, peer.init(keys[2], x), x, weights, direction)
    peer = _torch_layer(name, shape, direction) if torch else None
    # torch runs in a race of its own: its OpenMP threads spin after they are done, at the cost of whoever comes next.
    for rivals in (flax, {f"torch.nn.{name.upper()}": peer} if peer else {}):
        seconds = _race({"ours": ours, **rivals}, repeats)
        mine, mine_cpu = seconds.pop("ours")
        for alternative, (theirs, theirs_cpu) in seconds.items():
            yield {
                "name": f"{name} {direction}",
                "shape": "B={} T={} H={}".format(*shape),
                "alternative": alternative,
                "seconds_ours": mine,
                "seconds_theirs": theirs,
                "ratio": theirs / mine,
                "cpu_ratio": theirs_cpu / mine_cpu,
            }


def measure(shapes: Sequence[tuple[int, int, int]] = SHAPES, *, repeats: int = 9, torch: bool = True) -> list[dict]:
    """Compares LSTM and GRU layers with every alternative.

    Args:
      shapes: (B, T, H) to run.
      repeats: timed turns per function; the median is reported.
      torch: compare with torch.nn as well, where torch is installed.

    Returns:
      Rows with name, shape, alternative, seconds_ours, seconds_theirs, ratio = theirs / ours, and cpu_ratio.
    """
    return [
        row
        for shape in shapes
        for name in FLAX_CELLS
        for direction in DIRECTIONS
        for row in _compare(name, shape, direction, repeats, torch)
    ]


def main() -> None:
    """Prints one line per comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the smallest shape only")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--no-torch", action="store_true", help="leave torch out")
    options = parser.parse_args()
    for shape in SHAPES[:1] if options.quick else SHAPES:
        for row in measure([shape], repeats=options.repeats, torch=not options.no_torch):
            print(
                f"{row['name']:<22} {row['shape']:<20} {1e3 * row['seconds_ours']:9.2f} ms   {row['alternative']:<29} "
                f"{1e3 * row['seconds_theirs']:9.2f} ms   ratio {row['ratio']:.2f}   processor {row['cpu_ratio']:.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
