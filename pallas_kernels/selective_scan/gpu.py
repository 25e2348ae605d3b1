"""The selective scan on a GPU (Triton lowering): a warp per 32 channels walks over time with their states in registers.

Grid (batch, blocks of channels). Arrays are read where they lie, [B, T, width]; what is past the edges is masked, and a step
with delta = 0 changes no state. The backward pass goes from chunk to chunk, last first: from the state before the chunk it
computes those before every 4th step into a scratch array that stays in the cache, and from these the 4 states in registers.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from pallas_kernels.compat import gpu_params
from pallas_kernels.selective_scan import step
from pallas_kernels.selective_scan.tiles import UNROLL as _UNROLL
from pallas_kernels.selective_scan.tiles import Tiles, power_of_two

UNROLL = _UNROLL["gpu"]


class _Reader:
    """Loads and stores of one program: rows of channels and columns of state numbers at a step, with masks."""

    def __init__(self, ref, shape, tiles):
        self.ref, self.tiles = ref, tiles
        self.batch, self.block = pl.program_id(0), pl.program_id(1)
        _, self.steps, self.channels, self.size = shape
        self.padded = power_of_two(self.size)
        # from a start that is not known when tracing: JAX refuses slices that it sees leave the array
        self.all = pl.ds(0 * self.block, self.padded)
        self.lanes = pl.ds(self.block * tiles.width, tiles.width)
        self.inside = self.block * tiles.width + lax.iota(jnp.int32, tiles.width) < self.channels
        self.numbers = lax.iota(jnp.int32, self.padded) < self.size

    def row(self, name, t):
        mask = self.inside & (t < self.steps)
        values = triton.load(self.ref[name].at[self.batch, t, self.lanes], mask=mask, other=0)
        return values.astype(jnp.float32)[None, :]

    def column(self, name, t):
        mask = self.numbers & (t < self.steps)
        values = triton.load(self.ref[name].at[self.batch, t, self.all], mask=mask, other=0)
        return values.astype(jnp.float32)[:, None]

    def keep(self, t):
        if "keep" not in self.ref:
            return None
        return triton.load(self.ref["keep"].at[self.batch, t], mask=t < self.steps, other=1)

    def set_row(self, name, t, value):
        ref = self.ref[name]
        mask = self.inside & (t < self.steps)
        triton.store(ref.at[self.batch, t, self.lanes], value[0].astype(ref.dtype), mask=mask)

    def set_column(self, name, t, value):
        mask = self.numbers & (t < self.steps)
        triton.store(self.ref[name].at[self.batch, self.block, t, self.all], value[:, 0], mask=mask)

    def _square(self, name, index):
        return self.ref[name].at[(*index, self.all, self.lanes)]

    def matrix(self, name, *index):
        return triton.load(self._square(name, index), mask=self.numbers[:, None] & self.inside[None, :], other=0)

    def set_matrix(self, name, value, *index):
        triton.store(self._square(name, index), value, mask=self.numbers[:, None] & self.inside[None, :])

    def rows(self, t, *names):
        """The rows of ``UNROLL`` steps from t, loaded before anything is stored."""
        return [{name: self.row(name, t + i) for name in names} for i in range(UNROLL)]


def _call(kernel, inputs, shapes, shape, tiles, interpret, name):
    """Runs ``kernel(reader)`` over the grid; inputs and shapes are dicts, None is left out. Returns a dict."""
    inputs = {key: array for key, array in inputs.items() if array is not None}
    results = pl.pallas_call(
        lambda *refs: kernel(_Reader(dict(zip([*inputs, *shapes], refs, strict=True)), shape, tiles)),
        out_shape=list(shapes.values()),
        grid=(shape[0], -(-shape[2] // tiles.width)),
        compiler_params=gpu_params(num_warps=1, num_stages=1),
        interpret=interpret,
        name=name,
    )(*inputs.values())
    return dict(zip(shapes, results, strict=True))


def forward(x, delta, a, b, c, keep, start, tiles: Tiles, *, borders: bool, interpret: bool):
    """Returns (y, last, the states before every chunk [B, chunks, N, D] if ``borders``).

    Args:
      x, delta: [B, T, D].
      a: [N, D], float32.
      b, c: [B, T, N].
      keep: None or [B, T], float32: 0 where the incoming state is dropped, 1 elsewhere.
      start: [B, N, D], float32.
      tiles: as made for these sizes.
      borders: whether the backward pass will follow.
      interpret: run as plain JAX.
    """
    batch, steps, channels = x.shape
    size = a.shape[0]
    chunks = -(-steps // tiles.chunk)

    def kernel(at):
        a = at.matrix("a")

        def several(i, state):
            t = i * UNROLL
            outputs = []
            for j, now in enumerate(at.rows(t, "x", "delta")):
                state = step.forward(state, **now, a=a, b=at.column("b", t + j), keep=at.keep(t + j))
                outputs.append(jnp.sum(state * at.column("c", t + j), axis=0, keepdims=True))
            for j, y in enumerate(outputs):
                at.set_row("y", t + j, y)
            return state

        def chunk(n, state):
            if borders:
                at.set_matrix("borders", state, at.batch, n)
            each = tiles.chunk // UNROLL
            return lax.fori_loop(n * each, (n + 1) * each, several, state)

        at.set_matrix("last", lax.fori_loop(0, chunks, chunk, at.matrix("start", at.batch)), at.batch)

    shapes = {"y": jax.ShapeDtypeStruct(x.shape, x.dtype), "last": jax.ShapeDtypeStruct(start.shape, jnp.float32)}
    if borders:
        shapes["borders"] = jax.ShapeDtypeStruct((batch, chunks, size, channels), jnp.float32)
    inputs = {"x": x, "delta": delta, "a": a, "b": b, "c": c, "keep": keep, "start": start}
    result = _call(kernel, inputs, shapes, (batch, steps, channels, size), tiles, interpret, "selective_scan")
    return result["y"], result["last"], result.get("borders")


def backward(x, delta, a, b, c, keep, borders, y_bar, last_bar, tiles: Tiles, *, interpret: bool):
    """Returns the cotangents (x, delta, a [B, N, D], b [B, T, N], c [B, T, N], start), float32 but for x and delta."""
    batch, steps, channels = x.shape
    size = a.shape[0]
    each = tiles.chunk // UNROLL
    chunks = -(-steps // tiles.chunk)
    blocks = -(-channels // tiles.width)

    def kernel(at):
        a = at.matrix("a")

        def chunk(i, loop):
            n = chunks - 1 - i

            def ahead(s, state):
                at.set_matrix("scratch", state, at.batch, s)
                t = (n * each + s) * UNROLL
                for j, now in enumerate(at.rows(t, "x", "delta")):
                    state = step.forward(state, **now, a=a, b=at.column("b", t + j), keep=at.keep(t + j))
                return state

            lax.fori_loop(0, each, ahead, at.matrix("borders", at.batch, n))
            if not interpret:
                triton.debug_barrier()

            def back(i, loop):
                carry, a_bar = loop
                s = each - 1 - i
                t = (n * each + s) * UNROLL
                window = at.rows(t, "x", "delta", "y_bar")
                states = [at.matrix("scratch", at.batch, s)]
                for j, now in enumerate(window[:-1]):
                    b, keep = at.column("b", t + j), at.keep(t + j)
                    states.append(step.forward(states[-1], now["x"], now["delta"], a, b, keep))
                for j in reversed(range(UNROLL)):
                    # b and c are loaded where they are used: a column takes N registers of every thread
                    carry, x_bar, delta_bar, more, b_bar, c_bar = step.backward(
                        carry, states[j], **window[j], a=a, b=at.column("b", t + j), c=at.column("c", t + j),
                        keep=at.keep(t + j),
                    )  # fmt: skip
                    a_bar = a_bar + more
                    at.set_row("x_bar", t + j, x_bar)
                    at.set_row("delta_bar", t + j, delta_bar)
                    at.set_column("b_bar", t + j, b_bar)
                    at.set_column("c_bar", t + j, c_bar)
                return carry, a_bar

            loop = lax.fori_loop(0, each, back, loop)
            if not interpret:
                triton.debug_barrier()
            return loop

        carry = at.matrix("last_bar", at.batch)
        carry, a_bar = lax.fori_loop(0, chunks, chunk, (carry, jnp.zeros_like(carry)))
        at.set_matrix("start_bar", carry, at.batch)
        at.set_matrix("a_bar", a_bar, at.batch)

    inputs = {"x": x, "delta": delta, "a": a, "b": b, "c": c, "keep": keep}
    inputs |= {"borders": borders, "y_bar": y_bar, "last_bar": last_bar}
    shapes = {
        "x_bar": jax.ShapeDtypeStruct(x.shape, x.dtype),
        "delta_bar": jax.ShapeDtypeStruct(x.shape, delta.dtype),
        "a_bar": jax.ShapeDtypeStruct((batch, size, channels), jnp.float32),
        "b_bar": jax.ShapeDtypeStruct((batch, blocks, steps, size), jnp.float32),
        "c_bar": jax.ShapeDtypeStruct((batch, blocks, steps, size), jnp.float32),
        "start_bar": jax.ShapeDtypeStruct((batch, size, channels), jnp.float32),
        "scratch": jax.ShapeDtypeStruct((batch, each, size, channels), jnp.float32),
    }
    shape = (batch, steps, channels, size)
    result = _call(kernel, inputs, shapes, shape, tiles, interpret, "selective_scan_backward")
    b_bar, c_bar = (jnp.sum(result[name], axis=1) for name in ("b_bar", "c_bar"))
    return result["x_bar"], result["delta_bar"], result["a_bar"], b_bar, c_bar, result["start_bar"]


forward = partial(jax.jit, static_argnames=("tiles", "borders", "interpret"))(forward)
backward = partial(jax.jit, static_argnames=("tiles", "interpret"))(backward)
