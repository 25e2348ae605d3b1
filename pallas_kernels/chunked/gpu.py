"""The matrix-state recurrence on a GPU (Triton lowering): the state stays in registers while a program walks over chunks.

Grid (batch * heads, blocks of content columns, segments of time); columns are independent of each other. Every array is read
where it lies, [B, T, heads, width], heads that share an array read the same one, and what is past the edges is masked.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from pallas_kernels.chunked.chunk import advance
from pallas_kernels.chunked.tiles import NOTHING, Tiles, power_of_two
from pallas_kernels.compat import gpu_params

_FORMS = {"nn": ((1,), (0,)), "nt": ((1,), (1,)), "tn": ((0,), (0,))}


def attend(
    reads, writes, content, log_decay, match, states, tiles: Tiles, *, side, reverse, outputs, total, dtype, interpret
):
    """Runs the chunks of every segment; see ``chunk.advance`` for the arguments' roles.

    Args:
      reads, writes: [B, T, heads of their own, A]; ``reads`` is not used without ``outputs``.
      content: [B, T, heads of its own, X].
      log_decay: None, [B, T, H] or [B, T, H, K].
      match: [B, T, heads of its own, X]: the sums of match * y over X are wanted as well; or None.
      states: [B, H, segments, V, K], float32: the state each segment starts from.
      tiles: as made for these sizes.
      side, reverse: as in ``chunk.advance``.
      outputs: False: only the states are wanted.
      total: y is wanted summed over the heads that share a head of the content, as [B, T, heads of its own, X].
      dtype: of y.
      interpret: run as plain JAX.

    Returns:
      (y [B, T, H, X] or None, sums [B, T, H] float32 or None, the states at the ends of the segments, like ``states``).
    """
    batch, steps = content.shape[:2]
    heads, segments = states.shape[1:3]
    size = {"a": writes.shape[-1], "x": content.shape[-1]}
    padded = {"a": max(16, power_of_two(size["a"])), "x": tiles.width}
    chunks = -(-steps // (tiles.chunk * segments))
    storage = content.dtype
    precision = None
    if storage == jnp.float32:
        precision = lax.Precision.HIGHEST if interpret else lax.DotAlgorithmPreset.TF32_TF32_F32_X3

    def dot(left, right, form):
        return lax.dot_general(
            left.astype(storage), right.astype(storage), (_FORMS[form], ((), ())),
            precision=precision, preferred_element_type=jnp.float32,
        )  # fmt: skip

    def partner(array, width):
        blocks = array.reshape(-1, 2, width, array.shape[-1])
        half = lax.broadcasted_iota(jnp.int32, blocks.shape, 1)
        first, second = (jnp.sum(jnp.where(half == n, blocks, 0), axis=1, keepdims=True) for n in (0, 1))
        return jnp.where(half == 0, second, first).reshape(array.shape)

    def kernel(*refs):
        ref = dict(zip([*inputs, *shapes], refs, strict=True))
        b, h = lax.div(pl.program_id(0), heads), lax.rem(pl.program_id(0), heads)
        block, segment = pl.program_id(1), pl.program_id(2)
        x0 = block * tiles.width
        zero = 0 * block  # a start that is not known when tracing: JAX refuses slices that it sees leave the array

        def columns(axis):
            return pl.ds(x0, padded["x"]) if axis == "x" else pl.ds(zero, padded["a"])

        def inside(axis, shape, dim):
            return (x0 if axis == "x" else 0) + lax.broadcasted_iota(jnp.int32, shape, dim) < size[axis]

        def fetch(name, axis, t):
            shape = (tiles.chunk, padded[axis])
            head = lax.div(h, heads // ref[name].shape[2])
            mask = (t + lax.broadcasted_iota(jnp.int32, shape, 0) < steps) & inside(axis, shape, 1)
            return triton.load(ref[name].at[b, pl.ds(t, tiles.chunk), head, columns(axis)], mask=mask, other=0)

        rows, lanes = ("x", "a") if side == "reads" else ("a", "x")
        shape = (padded[rows], padded[lanes])
        here = (b, h, segment, columns(rows), columns(lanes))
        square = inside(rows, shape, 0) & inside(lanes, shape, 1)

        def body(i, state):
            t = (segment * chunks + (chunks - 1 - i if reverse else i)) * tiles.chunk
            decay = None
            if log_decay is not None and log_decay.ndim == 3:
                mask = t + lax.broadcasted_iota(jnp.int32, (tiles.chunk,), 0) < steps
                decay = triton.load(ref["decay"].at[b, pl.ds(t, tiles.chunk), h], mask=mask, other=0)[None, :]
            elif log_decay is not None:
                decay = fetch("decay", lanes, t)
            if decay is not None:
                decay = jnp.maximum(decay.astype(jnp.float32), NOTHING)
            writes, content = fetch("writes", "a", t), fetch("content", "x", t)
            reads = fetch("reads", "a", t) if outputs else jnp.zeros_like(writes)
            y, state = advance(
                reads, writes, content, decay, state, side=side, reverse=reverse, dot=dot, partner=partner
            )
            if outputs:
                mask = (t + lax.broadcasted_iota(jnp.int32, y.shape, 0) < steps) & inside("x", y.shape, 1)
                triton.store(
                    ref["y"].at[b, pl.ds(t, tiles.chunk), h, columns("x")], y.astype(ref["y"].dtype), mask=mask
                )
            if match is not None:
                sums = jnp.sum(y * fetch("match", "x", t), axis=1)
                mask = t + lax.broadcasted_iota(jnp.int32, sums.shape, 0) < steps
                triton.store(ref["sums"].at[b, h, block, pl.ds(t, tiles.chunk)], sums, mask=mask)
            return state

        state = triton.load(ref["start"].at[here], mask=square, other=0)
        state = lax.fori_loop(0, chunks, body, state)
        triton.store(ref["end"].at[here], state, mask=square)

    inputs = {"reads": reads if outputs else None, "writes": writes, "content": content, "decay": log_decay}
    inputs = {name: array for name, array in (inputs | {"match": match, "start": states}).items() if array is not None}
    shapes = {"end": jax.ShapeDtypeStruct(states.shape, jnp.float32)}
    blocks = -(-size["x"] // tiles.width)
    if outputs:
        own = content.shape[2] if total else heads
        # what is summed over heads afterwards is not rounded before
        shapes["y"] = jax.ShapeDtypeStruct((batch, steps, heads, size["x"]), dtype if own == heads else jnp.float32)
    if match is not None:
        shapes["sums"] = jax.ShapeDtypeStruct((batch, heads, blocks, steps), jnp.float32)
    results = pl.pallas_call(
        kernel,
        out_shape=list(shapes.values()),
        grid=(batch * heads, blocks, segments),
        compiler_params=gpu_params(num_warps=tiles.warps, num_stages=1),
        interpret=interpret,
        name=f"chunked_{side}{'_reverse' * reverse}{'_states' * (not outputs)}",
    )(*inputs.values())
    result = dict(zip(shapes, results, strict=True))
    sums = None if match is None else jnp.swapaxes(jnp.sum(result["sums"], axis=2), 1, 2)
    y = result.get("y")
    if outputs and own < heads:
        y = jnp.sum(y.reshape(batch, steps, own, -1, size["x"]), axis=3).astype(dtype)
    return y, sums, result["end"]


attend = partial(
    jax.jit, static_argnums=6, static_argnames=("side", "reverse", "outputs", "total", "dtype", "interpret")
)(attend)
