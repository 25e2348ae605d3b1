"""Reading a prompt: prefix linear attention and Based against softmax attention, 2k to 32k tokens.

    python -m benchmarks.jrt [--lengths 2048 ... 32768] [--batch 1] [--dim 1024] [--heads 16] [--output DIR]
    python -m benchmarks.jrt --dry            # one short length: seconds on a CPU; the times mean nothing

For every length, one forward call of one layer (projections included, no gradients) that ends with the state to decode from:

    softmax                 zoo mixer "attention" with a window of all tokens: [T, T] scores, the last keys and values
    softmax fused           ... by jax.nn.dot_product_attention, on a GPU by cuDNN's flash attention (bfloat16)
    sliding window          ... with a window of ``--window``
    based                   causal linear attention with the Taylor features
    prefix                  prefix linear attention, the first half as the prefix
    prefix, all             ... the whole prompt as the prefix

The layers take turns within a process; ``over softmax`` is a layer's time over the fused form's. A row that does not fit in
memory says so. Rows are printed as JSON lines; with ``--output`` they are also written to DIR/jrt-<platform>.json and .md.
"""

import argparse
import json
import pathlib
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

import zoo
from benchmarks.tcnca import milliseconds, table
from zoo.layers import document_positions, merge_heads, project_heads

LENGTHS = tuple(2**n for n in range(11, 16))
REPEATS = 5


def fused_attention(params: Any, x: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """Causal softmax attention by JAX's own function, and its keys and values."""
    q, k, v = project_heads(params, x, document_positions(None, shape=x.shape[:2]), 10_000.0)
    cudnn = jax.default_backend() == "gpu" and x.dtype == jnp.bfloat16
    y = jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation="cudnn" if cudnn else "xla")
    return merge_heads(params, y), (k, v)


def layers(
    length: int, dim: int, heads: int, features: int, window: int, dtype: str
) -> Iterator[tuple[str, Any, Callable]]:
    """(name, parameters, function of parameters and x) of everything that is timed."""
    linear = {"heads": heads, "feature_dim": features, "storage": "symmetric"}
    softmax = {"name": "attention", "heads": heads}
    specs = {
        "softmax": softmax | {"window": length},
        "sliding window": softmax | {"window": min(window, length)},
        "based": {"name": "based"} | linear,
        "prefix": {"name": "prefix_linear_attention", "prefix_length": length // 2} | linear,
        "prefix, all": {"name": "prefix_linear_attention", "prefix_length": length} | linear,
    }
    for name, spec in specs.items():
        mixer = zoo.create(spec, dim=dim, dtype=dtype)
        params = jax.jit(mixer.init)(jax.random.key(0), jnp.zeros((1, 2, dim)))
        yield name, params, mixer.apply
        if name == "softmax":
            yield "softmax fused", params["params"], fused_attention


def measure(
    lengths: Sequence[int], *, batch: int, dim: int, heads: int, features: int, window: int, dtype: str, repeats: int
) -> Iterator[dict]:
    """A row per length and layer."""
    for length in lengths:
        x = jax.random.normal(jax.random.key(1), (batch, length, dim), dtype)
        shape = {"T": length, "B": batch, "D": dim, "H": heads, "F": features, "dtype": dtype}
        calls = {
            name: partial(jax.jit(run), params, x)
            for name, params, run in layers(length, dim, heads, features, window, dtype)
        }
        found, failed = milliseconds(calls, repeats)
        for name in calls:
            if name in failed:
                yield shape | {"layer": name, "failed": failed[name]}
                continue
            row = {"ms": found[name], "tokens_per_second": 1e3 * batch * length / found[name]}
            ratio = {"over softmax": found[name] / found["softmax fused"]} if "softmax fused" in found else {}
            yield shape | {"layer": name} | row | ratio


def main(argv: Sequence[str]) -> int:
    """Measures, prints, and writes."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.jrt", description=__doc__.split("\n")[0])
    parser.add_argument("--lengths", nargs="+", type=int, default=LENGTHS, help="tokens of a prompt")
    parser.add_argument("--batch", type=int, default=1, help="the paper has 16")
    parser.add_argument("--dim", type=int, default=1024)
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--features", type=int, default=16, help="numbers of a query before the feature map")
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--dry", action="store_true", help="one short length, once")
    parser.add_argument("--output", type=pathlib.Path, help="folder for the results")
    a = parser.parse_args(argv)
    if a.dry:
        a.lengths, a.dim, a.heads, a.features, a.repeats = (64,), 16, 2, 2, 1
    rows = []
    options = {n: getattr(a, n) for n in ("batch", "dim", "heads", "features", "window", "dtype", "repeats")}
    for row in measure(a.lengths, **options):
        rows.append(row)
        print(json.dumps(row), flush=True)
    if a.output:
        a.output.mkdir(parents=True, exist_ok=True)
        stem = a.output / f"jrt-{jax.default_backend()}"
        stem.with_suffix(".json").write_text(json.dumps(rows, indent=1) + "\n")
        stem.with_suffix(".md").write_text(f"# Reading a prompt on {jax.devices()[0].device_kind}\n\n{table(rows)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
