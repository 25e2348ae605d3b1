"""The matrix-state recurrence on a TPU (Mosaic): the state stays in VMEM while the grid walks over chunks.

Grid (batch * heads / pack, chunks), ``pack`` heads per program. Arrays are read as [B, T, heads * width], which is how a
projection makes them, where ``pack`` heads together have a multiple of 128 columns; else they are transposed to
[B * heads, T, width] first. Where y is wanted summed over the heads that share a head of the content, and they fit, a
program has just these heads and writes their sum.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu

from pallas_kernels.chunked.chunk import advance
from pallas_kernels.chunked.tiles import NOTHING, Tiles
from pallas_kernels.compat import tpu_params

_FORMS = {"nn": ((1,), (0,)), "nt": ((1,), (1,)), "tn": ((0,), (0,))}
_LANES = 128
_MOST_HEADS = 32  # a program has its heads one after another in its text
_MOST_STATE = (
    2**19
)  # floats of the states of a program: 2 MiB, three times (start, end, scratch), the first two doubled


def attend(
    reads, writes, content, log_decay, match, states, tiles: Tiles, *, side, reverse, outputs, total, dtype, interpret
):
    """Runs all chunks; arguments and results as in ``gpu.attend``, with one segment and ``outputs`` always."""
    batch, steps = content.shape[:2]
    heads = states.shape[1]
    size = tiles.chunk
    chunks = -(-steps // size)
    storage = content.dtype
    precision = lax.Precision.HIGHEST if storage == jnp.float32 else None
    given = {"reads": reads, "writes": writes, "content": content, "match": match}
    if log_decay is not None and log_decay.ndim == 4:
        given["decay"] = log_decay
    given = {name: array for name, array in given.items() if array is not None}
    arrays = [array.shape[2:] for array in given.values()]
    groups = content.shape[2] if total else heads
    alone = groups < heads and _sums_heads(heads // groups, heads, arrays, states.shape[3] * states.shape[4])
    pack = heads // groups if alone else _pack(heads, arrays)
    programs = heads // pack

    def div(row, count):
        return lax.div(row, jnp.int32(count))

    def order(n):
        return chunks - 1 - n if reverse else n

    def head(row, own):
        """Index of the block of heads of an array with ``own`` of them."""
        block = lax.rem(row, jnp.int32(programs))
        return block if own == heads else div(block * pack, heads // own)

    def lay(array):
        """(array as Mosaic wants it, its block)."""
        own, width = array.shape[2:]
        array = jnp.pad(array, [(0, 0), (0, chunks * size - steps), (0, 0), (0, 0)])
        each = pack if own == heads else 1
        if each * width % _LANES == 0 or own == each:
            spec = pl.BlockSpec((None, size, each * width), lambda r, n: (div(r, programs), order(n), head(r, own)))
            return array.reshape(batch, chunks * size, own * width), spec
        spec = pl.BlockSpec((None, size, width), lambda r, n: (div(r, programs) * own + head(r, own), order(n), 0))
        return jnp.swapaxes(array, 1, 2).reshape(batch * own, chunks * size, width), spec

    def dot(left, right, form):
        return lax.dot_general(
            left.astype(storage), right.astype(storage), (_FORMS[form], ((), ())),
            precision=precision, preferred_element_type=jnp.float32,
        )  # fmt: skip

    def partner(array, width):
        odd = lax.broadcasted_iota(jnp.int32, array.shape, 0) & width != 0
        return jnp.where(odd, tpu.roll(array, width, 0), tpu.roll(array, array.shape[0] - width, 0))

    def kernel(*refs):
        ref = dict(zip([*inputs, *results, "state"], refs, strict=True))

        @pl.when(pl.program_id(1) == 0)
        def _():
            ref["state"][...] = ref["start"][...]

        added = 0
        for i in range(pack):

            def own(name, i=i):
                """Columns of head i; what all heads of the program share is narrower."""
                width = given[name].shape[-1]
                return ref[name][:, i * width : (i + 1) * width] if ref[name].shape[1] > width else ref[name][...]

            decay = None
            if log_decay is not None:
                decay = own("decay") if "decay" in given else ref["decay"][i : i + 1]
                decay = jnp.maximum(decay.astype(jnp.float32), NOTHING)
            y, state = advance(
                own("reads"), own("writes"), own("content"), decay, ref["state"][i],
                side=side, reverse=reverse, dot=dot, partner=partner,
            )  # fmt: skip
            if alone:
                added = added + y
            else:
                ref["y"][:, i * width : (i + 1) * width] = y.astype(ref["y"].dtype)
            ref["state"][i] = state
            if match is not None:
                sums = jnp.sum(y * own("match"), axis=1, keepdims=True)
                row, column = (lax.broadcasted_iota(jnp.int32, (size, size), n) for n in (0, 1))
                ref["sums"][i : i + 1] = jnp.sum(jnp.where(row == column, sums, 0), axis=0, keepdims=True)
        if alone:
            ref["y"][...] = added.astype(dtype)

        @pl.when(pl.program_id(1) == chunks - 1)
        def _():
            ref["end"][...] = ref["state"][...]

    inputs = {name: lay(array) for name, array in given.items()}
    width = content.shape[-1]
    flat = pack * width % _LANES == 0 or pack == heads
    line = pl.BlockSpec((None, None, pack, size), lambda r, n: (r, order(n), 0, 0))
    square = pl.BlockSpec((None, pack, *states.shape[3:]), lambda r, n: (r, 0, 0, 0))
    if log_decay is not None and log_decay.ndim == 3:
        decay = jnp.pad(log_decay, [(0, 0), (0, chunks * size - steps), (0, 0)])
        decay = decay.reshape(batch, chunks, size, programs, pack)
        inputs["decay"] = jnp.transpose(decay, (0, 3, 1, 4, 2)).reshape(-1, chunks, pack, size), line
    inputs["start"] = states.reshape(-1, pack, *states.shape[3:]), square
    if alone:
        y_shape = (batch, chunks * size, groups * width)
        y_block = pl.BlockSpec((None, size, width), lambda r, n: (div(r, programs), order(n), head(r, groups)))
    elif flat:
        y_shape = (batch, chunks * size, heads * width)
        y_block = pl.BlockSpec((None, size, pack * width), lambda r, n: (div(r, programs), order(n), head(r, heads)))
    else:
        y_shape, y_block = (
            (batch * heads, chunks * size, width),
            pl.BlockSpec((None, size, width), lambda r, n: (r, order(n), 0)),
        )
    results = {
        # what is summed over heads afterwards is not rounded before
        "y": (jax.ShapeDtypeStruct(y_shape, dtype if alone or groups == heads else jnp.float32), y_block),
        "end": (jax.ShapeDtypeStruct(inputs["start"][0].shape, jnp.float32), square),
    }
    if match is not None:
        results["sums"] = jax.ShapeDtypeStruct((batch * programs, chunks, pack, size), jnp.float32), line
    y, ends, *sums = pl.pallas_call(
        kernel,
        out_shape=[shape for shape, _ in results.values()],
        grid=(batch * programs, chunks),
        in_specs=[spec for _, spec in inputs.values()],
        out_specs=[spec for _, spec in results.values()],
        scratch_shapes=[tpu.VMEM((pack, *states.shape[3:]), jnp.float32)],
        compiler_params=tpu_params(dimension_semantics=("parallel", "arbitrary")),
        interpret=interpret,
        name=f"chunked_{side}{'_reverse' * reverse}",
    )(*(array for array, _ in inputs.values()))
    if alone:
        y = y.reshape(batch, chunks * size, groups, width)
    elif flat:
        y = y.reshape(batch, chunks * size, heads, width)
    else:
        y = jnp.swapaxes(y.reshape(batch, heads, chunks * size, width), 1, 2)
    if not alone and groups < heads:
        y = jnp.sum(y.reshape(*y.shape[:2], groups, -1, width), axis=3).astype(dtype)
    if match is not None:
        sums = jnp.transpose(sums[0].reshape(batch, programs, chunks, pack, size), (0, 2, 4, 1, 3))
        sums = sums.reshape(batch, chunks * size, heads)[:, :steps]
    return y[:, :steps], sums, ends.reshape(states.shape)


def _pack(heads, arrays):
    """Heads per program: the fewest with which no array (heads of its own, width) has to be transposed, else 1."""
    return next((pack for pack in (1, 2, 4, 8) if heads % pack == 0 and _lies_right(pack, heads, arrays)), 1)


def _lies_right(pack, heads, arrays):
    """Whether no array has to be transposed for ``pack`` heads per program."""
    return all(
        pack * width % _LANES == 0 or pack == own if own == heads
        else heads // own % pack == 0 and (width % _LANES == 0 or own == 1)
        for own, width in arrays
    )  # fmt: skip


def _sums_heads(pack, heads, arrays, state):
    """Whether a program may take all heads that share content: nothing is transposed, and their states fit in VMEM."""
    return _lies_right(pack, heads, arrays) and pack <= _MOST_HEADS and pack * state <= _MOST_STATE


attend = partial(
    jax.jit, static_argnums=6, static_argnames=("side", "reverse", "outputs", "total", "dtype", "interpret")
)(attend)
