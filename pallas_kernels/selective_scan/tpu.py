"""The selective scan on a TPU (Mosaic): the states [N, width] of a block of channels stay in VMEM over all of time.

Grid (batch, blocks of channels, chunks of time). b and c come as [B, N, T], so that one step of them is a column; steps
and channels are padded with zeros, which change no state. The backward pass goes from chunk to chunk, last first: it
computes the states before all steps of the chunk into VMEM, then the transposed steps.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu

from pallas_kernels.compat import tpu_params
from pallas_kernels.selective_scan import step
from pallas_kernels.selective_scan.tiles import UNROLL as _UNROLL
from pallas_kernels.selective_scan.tiles import Tiles

UNROLL = _UNROLL["tpu"]


def _column(table, t):
    """Column t [N, 1] of [N, C]."""
    lane = lax.broadcasted_iota(jnp.int32, table.shape, 1)
    return jnp.sum(jnp.where(lane == t, table, 0), axis=1, keepdims=True)


def _put(ref, t, column):
    lane = lax.broadcasted_iota(jnp.int32, ref.shape, 1)
    ref[...] = jnp.where(lane == t, column, ref[...])


class _Layout:
    """Padded sizes and the blocks of every kind of array."""

    def __init__(self, x, a, tiles, reverse):
        self.batch, self.steps, self.channels = x.shape
        self.size, self.chunk, self.width = a.shape[0], *tiles
        self.chunks, self.blocks = -(-self.steps // self.chunk), -(-self.channels // self.width)
        self.time, self.lanes = self.chunks * self.chunk, self.blocks * self.width

        def at(n):
            return self.chunks - 1 - n if reverse else n

        self.rows = pl.BlockSpec((None, self.chunk, self.width), lambda b, d, n: (b, at(n), d))
        self.columns = pl.BlockSpec((None, self.size, self.chunk), lambda b, d, n: (b, 0, at(n)))
        self.shares = pl.BlockSpec((None, None, self.size, self.chunk), lambda b, d, n: (b, d, 0, at(n)))
        self.line = pl.BlockSpec((None, 1, self.chunk), lambda b, d, n: (b, 0, at(n)))
        self.matrix = pl.BlockSpec((self.size, self.width), lambda b, d, n: (0, d))
        self.state = pl.BlockSpec((None, self.size, self.width), lambda b, d, n: (b, 0, d))
        self.borders = pl.BlockSpec((None, None, self.size, self.width), lambda b, d, n: (b, at(n), 0, d))

    def pad_rows(self, array):
        padded = jnp.pad(array, [(0, 0), (0, self.time - self.steps), (0, self.lanes - self.channels)])
        return padded, self.rows

    def pad_columns(self, array):
        return jnp.swapaxes(jnp.pad(array, [(0, 0), (0, self.time - self.steps), (0, 0)]), 1, 2), self.columns

    def pad_line(self, keep):
        return jnp.pad(keep, [(0, 0), (0, self.time - self.steps)], constant_values=1)[:, None], self.line

    def pad_lanes(self, array, spec):
        return jnp.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, self.lanes - self.channels)]), spec

    def call(self, kernel, inputs, results, scratch, interpret, name):
        """Runs ``kernel(refs by name)``; inputs: (array, block), results: (shape, dtype, block), scratch: shape."""
        names = [*inputs, *results, *scratch]
        made = pl.pallas_call(
            lambda *refs: kernel(dict(zip(names, refs, strict=True))),
            out_shape=[jax.ShapeDtypeStruct(shape, dtype) for shape, dtype, _ in results.values()],
            grid=(self.batch, self.blocks, self.chunks),
            in_specs=[spec for _, spec in inputs.values()],
            out_specs=[spec for *_, spec in results.values()],
            scratch_shapes=[tpu.VMEM(shape, jnp.float32) for shape in scratch.values()],
            compiler_params=tpu_params(dimension_semantics=("parallel", "parallel", "arbitrary")),
            interpret=interpret,
            name=name,
        )(*(array for array, _ in inputs.values()))
        return dict(zip(results, made, strict=True))


def forward(x, delta, a, b, c, keep, start, tiles: Tiles, *, borders: bool, interpret: bool):
    """As ``gpu.forward``."""
    lay = _Layout(x, a, tiles, False)

    def kernel(ref):
        @pl.when(pl.program_id(2) == 0)
        def _():
            ref["state"][...] = ref["start"][...]

        if borders:
            ref["borders"][...] = ref["state"][...]
        ref["x_rows"][...] = ref["x"][...].astype(jnp.float32)
        ref["delta_rows"][...] = ref["delta"][...].astype(jnp.float32)
        a = ref["a"][...]
        b, c = ref["b"][...].astype(jnp.float32), ref["c"][...].astype(jnp.float32)
        keep = ref["keep"][...] if "keep" in ref else None

        def several(i, state):
            rows = pl.ds(pl.multiple_of(i * UNROLL, UNROLL), UNROLL)
            x, delta = ref["x_rows"][rows], ref["delta_rows"][rows]
            outputs = []
            for j in range(UNROLL):
                t = i * UNROLL + j
                kept = None if keep is None else _column(keep, t)
                state = step.forward(state, x[j : j + 1], delta[j : j + 1], a, _column(b, t), kept)
                outputs.append(jnp.sum(state * _column(c, t), axis=0, keepdims=True))
            ref["y_rows"][rows] = jnp.concatenate(outputs, axis=0)
            return state

        state = lax.fori_loop(0, lay.chunk // UNROLL, several, ref["state"][...])
        ref["y"][...] = ref["y_rows"][...].astype(ref["y"].dtype)
        ref["state"][...] = state

        @pl.when(pl.program_id(2) == lay.chunks - 1)
        def _():
            ref["last"][...] = state

    inputs = {"x": lay.pad_rows(x), "delta": lay.pad_rows(delta), "a": lay.pad_lanes(a, lay.matrix)}
    inputs |= {"b": lay.pad_columns(b), "c": lay.pad_columns(c), "start": lay.pad_lanes(start, lay.state)}
    if keep is not None:
        inputs["keep"] = lay.pad_line(keep)
    results = {
        "y": ((lay.batch, lay.time, lay.lanes), x.dtype, lay.rows),
        "last": ((lay.batch, lay.size, lay.lanes), jnp.float32, lay.state),
    }
    if borders:
        results["borders"] = ((lay.batch, lay.chunks, lay.size, lay.lanes), jnp.float32, lay.borders)
    tile = (lay.chunk, lay.width)
    scratch = {"state": (lay.size, lay.width), "x_rows": tile, "delta_rows": tile, "y_rows": tile}
    result = lay.call(kernel, inputs, results, scratch, interpret, "selective_scan")
    y, last = result["y"][:, : lay.steps, : lay.channels], result["last"][..., : lay.channels]
    return y, last, result.get("borders")


def backward(x, delta, a, b, c, keep, borders, y_bar, last_bar, tiles: Tiles, *, interpret: bool):
    """As ``gpu.backward``; ``borders`` is padded already."""
    lay = _Layout(x, a, tiles, True)

    def kernel(ref):
        @pl.when(pl.program_id(2) == 0)
        def _():
            ref["carry"][...] = ref["last_bar"][...]
            ref["a_sum"][...] = jnp.zeros_like(ref["a_sum"])

        for name in ("x", "delta", "y_bar"):
            ref[f"{name}_rows"][...] = ref[name][...].astype(jnp.float32)
        a = ref["a"][...]
        b, c = ref["b"][...].astype(jnp.float32), ref["c"][...].astype(jnp.float32)
        keep = ref["keep"][...] if "keep" in ref else None

        def steps_at(i):
            rows = pl.ds(pl.multiple_of(i * UNROLL, UNROLL), UNROLL)
            blocks = {name: ref[f"{name}_rows"][rows] for name in ("x", "delta", "y_bar")}
            return rows, [
                {name: block[j : j + 1] for name, block in blocks.items()}
                | {"b": _column(b, i * UNROLL + j), "c": _column(c, i * UNROLL + j)}
                | {"keep": None if keep is None else _column(keep, i * UNROLL + j)}
                for j in range(UNROLL)
            ]

        def ahead(i, state):
            for j, now in enumerate(steps_at(i)[1]):
                ref["states"][i * UNROLL + j] = state
                state = step.forward(state, now["x"], now["delta"], a, now["b"], now["keep"])
            return state

        lax.fori_loop(0, lay.chunk // UNROLL, ahead, ref["borders"][...])

        def back(i, loop):
            carry, a_sum = loop
            i = lay.chunk // UNROLL - 1 - i
            rows, window = steps_at(i)
            x_bars, delta_bars = [], []
            for j in reversed(range(UNROLL)):
                t = i * UNROLL + j
                carry, x_bar, delta_bar, more, b_bar, c_bar = step.backward(carry, ref["states"][t], a=a, **window[j])
                a_sum = a_sum + more
                x_bars.insert(0, x_bar)
                delta_bars.insert(0, delta_bar)
                _put(ref["b_bar"], t, b_bar)
                _put(ref["c_bar"], t, c_bar)
            # these rows have been read: the cotangents take their place
            ref["x_rows"][rows] = jnp.concatenate(x_bars, axis=0)
            ref["delta_rows"][rows] = jnp.concatenate(delta_bars, axis=0)
            return carry, a_sum

        carry, a_sum = lax.fori_loop(0, lay.chunk // UNROLL, back, (ref["carry"][...], ref["a_sum"][...]))
        ref["x_bar"][...] = ref["x_rows"][...].astype(ref["x_bar"].dtype)
        ref["delta_bar"][...] = ref["delta_rows"][...].astype(ref["delta_bar"].dtype)
        ref["carry"][...], ref["a_sum"][...] = carry, a_sum

        @pl.when(pl.program_id(2) == lay.chunks - 1)
        def _():
            ref["start_bar"][...], ref["a_bar"][...] = carry, a_sum

    inputs = {"x": lay.pad_rows(x), "delta": lay.pad_rows(delta), "y_bar": lay.pad_rows(y_bar)}
    inputs |= {"a": lay.pad_lanes(a, lay.matrix), "b": lay.pad_columns(b), "c": lay.pad_columns(c)}
    inputs |= {"borders": (borders, lay.borders), "last_bar": lay.pad_lanes(last_bar, lay.state)}
    if keep is not None:
        inputs["keep"] = lay.pad_line(keep)
    wide, state = (lay.batch, lay.time, lay.lanes), (lay.batch, lay.size, lay.lanes)
    share = (lay.batch, lay.blocks, lay.size, lay.time)
    results = {
        "x_bar": (wide, x.dtype, lay.rows),
        "delta_bar": (wide, delta.dtype, lay.rows),
        "a_bar": (state, jnp.float32, lay.state),
        "b_bar": (share, jnp.float32, lay.shares),
        "c_bar": (share, jnp.float32, lay.shares),
        "start_bar": (state, jnp.float32, lay.state),
    }
    tile = (lay.chunk, lay.width)
    scratch = {
        "carry": (lay.size, lay.width),
        "a_sum": (lay.size, lay.width),
        "states": (lay.chunk, lay.size, lay.width),
    }
    scratch |= {"x_rows": tile, "delta_rows": tile, "y_bar_rows": tile}
    result = lay.call(kernel, inputs, results, scratch, interpret, "selective_scan_backward")
    rows = [result[name][:, : lay.steps, : lay.channels] for name in ("x_bar", "delta_bar")]
    columns = [jnp.swapaxes(jnp.sum(result[name], axis=1), 1, 2)[:, : lay.steps] for name in ("b_bar", "c_bar")]
    return *rows, result["a_bar"][..., : lay.channels], *columns, result["start_bar"][..., : lay.channels]


forward = partial(jax.jit, static_argnames=("tiles", "borders", "interpret"))(forward)
backward = partial(jax.jit, static_argnames=("tiles", "interpret"))(backward)
