"""``linear_scan`` for TPUs through Mosaic: time is the innermost grid axis, the carry stays in VMEM.

A vector register holds a group of 8 steps (16 in 2-byte storage) of 128 channels. Inside a group the affine maps are
composed by doubling (shifts by 1, 2, 4 steps along sublanes); then the group is one multiply-add from the carry, so the
chain from group to group is short. Batch rows and lane tiles of one block are independent chains.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.compat import tpu_params
from pallas_kernels.linear_scan.planes import add, adjoint, identity, multiply, outer
from pallas_kernels.linear_scan.tiles import TpuTile, tpu_tile


def scan(decay, inputs, initial, *, reverse, after, conjugated=False, interpret):
    """States and last carry; arguments and results as in ``pallas_kernels.linear_scan.gpu.scan``."""
    states, last = _call(decay, inputs, initial, None, reverse, after, conjugated, interpret)
    return states, last


def gradient(decay, states, initial, states_bar, last_bar, *, reverse, interpret):
    """The transposed recurrence and the derivative by the decay; as ``pallas_kernels.linear_scan.gpu.gradient``."""
    return _call(decay, states_bar, last_bar, (states, initial), not reverse, True, True, interpret)


def _call(decay, inputs, initial, forward, reverse, after, conjugated, interpret):
    """(outputs, last), or with ``forward`` = (states, initial) of the forward call (outputs, decay_bar, last)."""
    batch, steps, channels = inputs[0].shape
    constant = decay[0].shape[1] == 1
    itemsize = min(p.dtype.itemsize for p in (*decay, *inputs))
    group = 8 if itemsize == 4 else 16
    if steps < group:  # neutral steps behind the last one run, so that a group is full
        return _padded(decay, inputs, initial, forward, reverse, after, conjugated, interpret, group - steps)

    arrays = 2 * len(inputs) + (0 if constant else len(decay))
    if forward is not None:
        arrays += len(inputs) + (0 if constant else len(decay))
    tile = tpu_tile(batch, steps, channels, arrays, itemsize)
    blocks = -(-steps // tile.steps)

    def at(j):
        return blocks - 1 - j if reverse else j

    whole = pl.BlockSpec((tile.batch, tile.steps, tile.channels), lambda b, n, j: (b, at(j), n))
    state = pl.BlockSpec((tile.batch, 1, tile.channels), lambda b, n, j: (b, 0, n))
    shared = decay[0].shape[0] == 1 and batch > 1
    rows = 1 if shared else tile.batch
    if constant:
        of_decay = pl.BlockSpec((rows, 1, tile.channels), lambda b, n, j: (0 if shared else b, 0, n))
    else:
        of_decay = pl.BlockSpec((rows, tile.steps, tile.channels), lambda b, n, j: (0 if shared else b, at(j), n))

    operands, specs = [decay, inputs, [p[:, None] for p in initial]], [of_decay, whole, state]
    if forward is not None:
        per_block, groups = tile.steps // tile.group, -(-steps // tile.group)

        def beside(b, n, j):  # the group of steps next to this block, on the side where the carry goes
            there = at(j) * per_block - 1 if reverse else (at(j) + 1) * per_block
            return b, jnp.clip(there, 0, groups - 1), n

        edge = pl.BlockSpec((tile.batch, tile.group, tile.channels), beside)
        operands += [forward[0], forward[0], [p[:, None] for p in forward[1]]]
        specs += [whole, edge, state]

    def like(planes, length, dtype):
        return [jax.ShapeDtypeStruct((batch, length, channels), dtype)] * len(planes)

    outputs, out_specs = [like(inputs, steps, inputs[0].dtype)], [whole]
    if forward is not None:
        outputs.append(like(decay, 1, jnp.float32) if constant else like(decay, steps, decay[0].dtype))
        out_specs.append(state if constant else whole)
    outputs.append(like(inputs, 1, jnp.float32))
    out_specs.append(state)

    body = functools.partial(
        _kernel, steps=steps, tile=tile, reverse=reverse, after=after, constant=constant, shared=shared,
        conjugated=conjugated, gradient=forward is not None,
    )  # fmt: skip
    counts = [len(o) for o in operands] + [len(o) for o in outputs] + [len(inputs)]

    def kernel(*refs):
        groups, start = [], 0
        for count in counts:
            groups.append(refs[start : start + count])
            start += count
        body(groups)

    flat = pl.pallas_call(
        kernel,
        out_shape=[o for group in outputs for o in group],
        grid=(batch // tile.batch, -(-channels // tile.channels), blocks),
        in_specs=[s for s, o in zip(specs, operands, strict=True) for _ in o],
        out_specs=[s for s, o in zip(out_specs, outputs, strict=True) for _ in o],
        scratch_shapes=[pltpu.VMEM((tile.batch, 1, tile.channels), jnp.float32)] * len(inputs),
        compiler_params=tpu_params(dimension_semantics=("parallel", "parallel", "arbitrary")),
        interpret=interpret,
        name="linear_scan_states" if forward is None else "linear_scan_gradient",
    )(*[plane for operand in operands for plane in operand])
    results = []
    for group in outputs:
        results.append(tuple(flat[: len(group)]))
        flat = flat[len(group) :]
    results[-1] = tuple(p[:, 0] for p in results[-1])
    return results


def _padded(decay, inputs, initial, forward, reverse, after, conjugated, interpret, missing):
    """The same with ``missing`` neutral steps run first: decay 1, input 0."""
    steps = inputs[0].shape[1]
    where = ((0, 0), (0, missing) if reverse else (missing, 0), (0, 0))
    kept = slice(0, steps) if reverse else slice(missing, None)
    decay = [jnp.broadcast_to(p, (p.shape[0], steps, p.shape[2])) for p in decay]
    neutral = identity(len(decay))
    decay = tuple(jnp.pad(p, where, constant_values=one) for p, one in zip(decay, neutral, strict=True))
    inputs = tuple(jnp.pad(p, where) for p in inputs)
    if forward is not None:
        forward = (tuple(jnp.pad(p, where) for p in forward[0]), forward[1])
    *outputs, last = _call(decay, inputs, initial, forward, reverse, after, conjugated, interpret)
    return [*(tuple(p[:, kept] for p in group) for group in outputs), last]


def _kernel(groups, *, steps, tile: TpuTile, reverse, after, conjugated, constant, shared, gradient):
    """Some batch rows, one tile of channels, one block of time."""
    groups = list(groups)
    decay, inputs, initial = groups[:3]
    (states, beside, before), outs = (groups[3:6], groups[6]) if gradient else ((None,) * 3, groups[3])
    last, carries = groups[-2:]
    decay_bar = groups[-3] if gradient else None

    j, blocks = pl.program_id(2), pl.num_programs(2)
    size, count = tile.group, tile.steps // tile.group
    base = (blocks - 1 - j if reverse else j) * tile.steps
    partial = steps % tile.steps != 0
    neutral = identity(len(decay))
    shape = (size, tile.channels)
    row = lax.broadcasted_iota(jnp.int32, shape, 0)
    final = 0 if reverse else size - 1  # the row of a group that is run last

    @pl.when(j == 0)
    def _():
        for refs, values in ((carries, initial), *([(decay_bar, None)] if gradient and constant else [])):
            for i, ref in enumerate(refs):
                ref[...] = jnp.zeros(ref.shape, ref.dtype) if values is None else values[i][...].astype(ref.dtype)

    def shift(planes, s, backwards):
        """Row i gets row i - s, or i + s; what falls in at the edge has no meaning."""
        return tuple(pltpu.roll(p, size - s if backwards else s, 0) for p in planes)

    def arrived(s):
        return row < size - s if reverse else row >= s

    def load(refs, b, g):
        at = pl.ds(pl.multiple_of(g * size, size), size)
        return tuple(r[b, at, :].astype(jnp.float32) for r in refs)

    def compose(a):
        """Products of 1, 2, 4 ... decays up to each row, and of all of them from the group's first row on."""
        product, levels = a, []
        if after:
            edge = row == size - 1 if reverse else row == 0
            product = tuple(jnp.where(edge, one, p) for one, p in zip(neutral, shift(a, 1, reverse), strict=True))
        for s in (2**k for k in range(size.bit_length() - 1)):
            levels.append((s, product))
            longer = multiply(product, shift(product, s, reverse))
            product = tuple(jnp.where(arrived(s), q, p) for p, q in zip(product, longer, strict=True))
        return levels, product

    def rates(b, g, valid):
        b = 0 if shared else b
        if constant:
            a = tuple(jnp.broadcast_to(r[b].astype(jnp.float32), shape) for r in decay)
        else:
            a = load(decay, b, g)
        a = adjoint(a) if conjugated else a
        return a if valid is None else tuple(jnp.where(valid, p, one) for one, p in zip(neutral, a, strict=True))

    fixed = [(a := rates(b, 0, None), *compose(a)) for b in range(tile.batch)] if constant and not partial else None

    def neighbours(b, g, time):
        """The states that the decays of this group were applied to."""
        there = g - 1 if reverse else g + 1
        inside = (there >= 0) & (there < count)
        found = load(states, b, jnp.clip(there, 0, count - 1))
        result = []
        for s, near, edge, first in zip(load(states, b, g), found, beside, before, strict=True):
            near = jnp.where(inside, near, edge[b].astype(jnp.float32))
            near = near[size - 1 :] if reverse else near[:1]
            (moved,) = shift((s,), 1, not reverse)
            moved = jnp.where(row == (0 if reverse else size - 1), near, moved)
            result.append(jnp.where(time == (0 if reverse else steps - 1), first[b], moved))
        return tuple(result)

    def body(i, loop):
        g = count - 1 - i if reverse else i
        time = base + g * size + row
        valid = time < steps if partial else None
        result = []
        for b, (carry, total) in enumerate(loop):
            a, levels, product = fixed[b] if fixed else (a := rates(b, g, valid), *compose(a))
            x = load(inputs, b, g)
            if partial:
                x = tuple(jnp.where(valid, p, 0.0) for p in x)
            for s, multiplier in levels:
                moved = multiply(multiplier, shift(x, s, reverse))
                x = tuple(p + jnp.where(arrived(s), m, 0.0) for p, m in zip(x, moved, strict=True))
            out = add(x, multiply(product, carry))
            at = pl.ds(pl.multiple_of(g * size, size), size)
            for ref, p in zip(outs, out, strict=True):
                ref[b, at, :] = p.astype(ref.dtype)
            carry = tuple(p[final : final + 1] for p in out)
            if after:
                carry = multiply(tuple(p[final : final + 1] for p in a), carry)
            if gradient:
                bar = outer(out, neighbours(b, g, time), len(decay))
                if constant:
                    bar = bar if valid is None else tuple(jnp.where(valid, p, 0.0) for p in bar)
                    total = add(total, bar)
                else:
                    for ref, p in zip(decay_bar, bar, strict=True):
                        ref[b, at, :] = p.astype(ref.dtype)
            result.append((carry, total))
        return tuple(result)

    nothing = tuple(jnp.zeros(shape, jnp.float32) for _ in decay) if gradient and constant else ()
    start = tuple((tuple(c[b] for c in carries), nothing) for b in range(tile.batch))
    for b, (carry, total) in enumerate(lax.fori_loop(0, count, body, start)):
        for ref, end, p in zip(carries, last, carry, strict=True):
            ref[b] = p
            end[b] = p
        for ref, p in zip(decay_bar if total else (), total, strict=True):
            ref[b] += jnp.sum(p, axis=0, keepdims=True)
