"""State space layers in their forms, on this machine's CPU.

    python -m benchmarks.state_space            # T = 512, 2048 and 8192; some minutes
    python -m benchmarks.state_space --quick    # T = 512 only

S5 against its recurrence by ``jax.lax.associative_scan``, row by row, as in plain JAX; S4D and S4 by kernels and
FFT against their own recurrences. Every layer reads and writes [B, T, D] in float32; backward means the gradients of all
parameters and of the input. Times are medians of alternating runs, ``ratio`` is theirs / ours.
"""

import argparse
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax

import zoo
from benchmarks.cpu import alternate, row
from zoo.mixers import s5

LENGTHS = (512, 2048, 8192)
DIRECTIONS = ("forward", "forward+backward")


def plain_s5(params: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    """S5 (zero-order hold, conjugate symmetry, no activation) by ``lax.associative_scan``, differentiated by JAX."""
    eigenvalues = params["Lambda_re"] + 1j * params["Lambda_im"]
    into, out_of = (params[f"{name}_re"] + 1j * params[f"{name}_im"] for name in "BC")
    decay = jnp.exp(eigenvalues * jnp.exp(params["log_step"]))
    into = ((decay - 1) / eigenvalues)[:, None] * into

    def combine(first, second):
        return first[0] * second[0], second[0] * first[1] + second[1]

    def one(u):
        decays = jnp.broadcast_to(decay, (len(u), len(decay)))
        _, hidden = lax.associative_scan(combine, (decays, u @ into.T))
        return 2 * (hidden @ out_of.T).real + params["D"] * u

    return jax.vmap(one)(x)


def _calls(apply: Callable, params: dict, x: jax.Array, direction: str) -> Callable:
    """A compiled call without arguments."""
    if direction == "forward":
        run = jax.jit(apply)
    else:
        run = jax.jit(jax.grad(lambda p, x: jnp.sum(jnp.square(apply(p, x))), (0, 1)))
    return lambda: run(params, x)


def _pairs(dim: int, state_dim: int, x: jax.Array) -> list[tuple[str, str, dict, Callable, Callable]]:
    """(name, alternative, parameters, ours, theirs) of every comparison."""
    key = jax.random.key(1)
    layer = zoo.create("s5", dim=dim, state_dim=state_dim, activation="none")
    params = jax.jit(layer.init)(key, x[:, :2])["params"]

    def ours(params, x):
        return s5(params, x, layer.initial_state(x.shape[0]))[0]

    pairs = [("s5", "lax.associative_scan", params, ours, plain_s5)]
    for name in ("s4d", "s4"):
        kernel, scan = (
            zoo.create(name, dim=dim, state_dim=state_dim, activation="none", form=form) for form in ("kernel", "scan")
        )
        params = jax.jit(kernel.init)(key, x[:, :2])
        forms = [lambda p, x, m=m: m.apply(p, x)[0] for m in (kernel, scan)]
        pairs.append((f"{name} kernel form", "scan form", params, *forms))
    return pairs


def measure(
    lengths: Sequence[int] = LENGTHS, *, batch: int = 4, dim: int = 64, state_dim: int = 64, repeats: int = 7
) -> list[dict]:
    """Compares the layers at every length.

    Args:
      lengths: T.
      batch: B.
      dim: width D.
      state_dim: state size, of the whole layer for S5, of every channel for S4D and S4.
      repeats: timed turns per function; the median is reported.

    Returns:
      Rows with name, shape, alternative, seconds_ours, seconds_theirs and ratio = theirs / ours.
    """
    rows = []
    for length in lengths:
        x = jax.random.normal(jax.random.key(0), (batch, length, dim))
        for name, alternative, params, ours, theirs in _pairs(dim, state_dim, x):
            for direction in DIRECTIONS:
                seconds = alternate(*(_calls(f, params, x, direction) for f in (ours, theirs)), repeats)
                shape = f"B={batch} T={length} D={dim} N={state_dim}"
                rows.append(row(f"{name} {direction}", shape, alternative, *seconds))
    return rows


def main() -> None:
    """Prints one line per comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="T = 512 only")
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    for length in LENGTHS[:1] if options.quick else LENGTHS:
        for r in measure([length], repeats=options.repeats):
            print(
                f"{r['name']:<34} {r['shape']:<26} {1e3 * r['seconds_ours']:9.2f} ms   {r['alternative']:<21} "
                f"{1e3 * r['seconds_theirs']:9.2f} ms   ratio {r['ratio']:.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
