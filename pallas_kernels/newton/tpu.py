"""``newton`` for TPUs through Mosaic: time blocks in VMEM, the state carried from block to block.

A vector register holds a group of 8 steps of 128 channels. In every iteration the groups are visited in order: the cell
and its Jacobian for all steps of the group at once, their affine maps composed by doubling, then the correction that
arrives from the group before. The iterate lives in the output block.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.compat import tpu_params
from pallas_kernels.linear_scan.planes import add, adjoint, identity, multiply
from pallas_kernels.newton.reference import CELLS
from pallas_kernels.newton.tiles import tpu_steps, tpu_width


def _padded(array, planes, width, wanted, steps=0):
    """[..., planes * width] with every plane widened to ``wanted`` channels, and ``steps`` more of axis 1."""
    if width != wanted:
        split = array.reshape(*array.shape[:-1], planes, width)
        split = jnp.pad(split, [(0, 0)] * (split.ndim - 1) + [(0, wanted - width)])
        array = split.reshape(*array.shape[:-1], planes * wanted)
    return jnp.pad(array, [(0, 0), (0, steps)] + [(0, 0)] * (array.ndim - 2)) if steps else array


def _cut(array, planes, width, wanted):
    """The inverse of ``_padded`` along the channels."""
    if width == wanted:
        return array
    split = array.reshape(*array.shape[:-1], planes, wanted)[..., :width]
    return split.reshape(*array.shape[:-1], planes * width)


class _Block:
    """What both kernels share: where this block is, its groups and tiles, and how it reads and writes."""

    def __init__(self, j, steps, block, group, width, planes, reverse):
        self.base, self.steps, self.block, self.group, self.reverse = j * block, steps, block, group, reverse
        self.width, self.planes, self.tile = width, planes, tpu_width(width)
        self.shape = (group, self.tile)
        self.row = lax.broadcasted_iota(jnp.int32, self.shape, 0)
        self.groups = block // group

    def columns(self, c, plane):
        return pl.ds(pl.multiple_of(plane * self.width + c * self.tile, 128), self.tile)

    def rows(self, g):
        return pl.ds(pl.multiple_of(g * self.group, self.group), self.group)

    def load(self, ref, g, c, planes):
        return tuple(ref[self.rows(g), self.columns(c, i)].astype(jnp.float32) for i in range(planes))

    def store(self, ref, g, c, values):
        for i, value in enumerate(values):
            ref[self.rows(g), self.columns(c, i)] = value.astype(ref.dtype)

    def vector(self, ref, c, planes):
        return tuple(ref[:, self.columns(c, i)].astype(jnp.float32) for i in range(planes))

    def put_vector(self, ref, c, values):
        for i, value in enumerate(values):
            ref[:, self.columns(c, i)] = value

    def time(self, g):
        return self.base + g * self.group + self.row

    def shift(self, planes, s, reverse):
        return tuple(pltpu.roll(p, self.group - s if reverse else s, 0) for p in planes)

    def behind(self, planes, edge):
        """Every row gets the row before it; the first one gets ``edge`` [1, n]."""
        return tuple(jnp.where(self.row == 0, e, m) for e, m in zip(edge, self.shift(planes, 1, False), strict=True))

    def compose(self, factors, offsets):
        """The affine maps of all rows up to each row (from each row on with ``reverse``)."""
        for s in (2**k for k in range(self.group.bit_length() - 1)):
            arrived = self.row < self.group - s if self.reverse else self.row >= s
            longer = add(offsets, multiply(factors, self.shift(offsets, s, self.reverse)))
            offsets = tuple(jnp.where(arrived, new, old) for new, old in zip(longer, offsets, strict=True))
            longer = multiply(factors, self.shift(factors, s, self.reverse))
            factors = tuple(jnp.where(arrived, new, old) for new, old in zip(longer, factors, strict=True))
        return factors, offsets

    def over_tiles(self, body):
        """``body(c)`` for every tile of channels."""
        count = self.width // self.tile
        if count == 1:
            body(0)
        else:
            lax.fori_loop(0, count, lambda c, _: (body(c), jnp.int32(0))[1], jnp.int32(0))


def _sizes(p, weights):
    """(steps to run, channels to run, steps that are added, group)."""
    group = 8 if p.dtype.itemsize == 4 else 16
    width = weights.shape[1]
    return max(p.shape[1], group), -(-width // 128) * 128, max(0, group - p.shape[1]), group


def solve(cell, p, weights, initial, *, iterations, tolerance, interpret):
    """States, iterations and residuals; arguments and results as in ``pallas_kernels.newton.gpu.solve``, with one tile."""
    known, (batch, real_steps, _), real_width = CELLS[cell], p.shape, weights.shape[1]
    steps, width, missing, group = _sizes(p, weights)
    p = _padded(p, 3, real_width, width, missing)
    weights = _padded(weights, 1, real_width, width)
    initial = _padded(initial, known.planes, real_width, width)[:, None]
    block = tpu_steps(steps, width, 3 * p.dtype.itemsize + 4 * known.planes, group)
    blocks, planes = -(-steps // block), known.planes

    def kernel(p_ref, weights_ref, initial_ref, states_ref, counts_ref, residuals_ref, carry_ref):
        j = pl.program_id(1)
        here = _Block(j, real_steps, block, group, width, planes, False)

        @pl.when(j == 0)
        def _():
            carry_ref[...] = initial_ref[...]

        counts_ref[...] = jnp.zeros(counts_ref.shape, jnp.int32)
        residuals_ref[...] = jnp.zeros(residuals_ref.shape, jnp.float32)

        def tile(c):
            w = tuple(
                jnp.broadcast_to(weights_ref[i : i + 1, here.columns(c, 0)], here.shape) for i in range(len(weights))
            )
            carry = here.vector(carry_ref, c, planes)
            nothing = (jnp.zeros(here.shape, jnp.float32),) * planes
            still = tuple(jnp.zeros_like(e) for e in carry)

            def guess(g, _):
                here.store(states_ref, g, c, known.step(w, nothing, here.load(p_ref, g, c, 3)))
                return 0

            def offsets(g, states, edge, slopes):
                """Residuals of a group, their sizes (NaN counts as infinite), and Jacobians."""
                value = (known.jacobian if slopes else known.step)(
                    w, here.behind(states, edge), here.load(p_ref, g, c, 3)
                )
                value, slope = value if slopes else (value, None)
                valid = here.time(g) < real_steps
                change = tuple(jnp.where(valid, v - s, 0.0) for v, s in zip(value, states, strict=True))
                size = jnp.zeros(here.shape, jnp.float32)
                for r in change:
                    size = jnp.maximum(size, jnp.where(jnp.abs(r) < jnp.inf, jnp.abs(r), jnp.inf))
                return change, size, slope

            def improve_group(g, loop):
                edge, arriving, worst = loop
                states = here.load(states_ref, g, c, planes)
                change, size, slope = offsets(g, states, edge, True)
                factors, change = here.compose(slope, change)
                change = add(change, multiply(factors, arriving))
                here.store(states_ref, g, c, add(states, change))
                last = tuple(s[group - 1 :] for s in states), tuple(d[group - 1 :] for d in change)
                return *last, jnp.maximum(worst, size)

            def improve(loop):
                count, _ = loop
                start = (carry, still, jnp.zeros(here.shape, jnp.float32))
                worst = lax.fori_loop(0, here.groups, improve_group, start)[2]
                return count + 1, jnp.max(worst)

            def check_group(g, loop):
                edge, worst = loop
                states = here.load(states_ref, g, c, planes)
                size = offsets(g, states, edge, False)[1]
                return tuple(s[group - 1 :] for s in states), jnp.maximum(worst, size)

            lax.fori_loop(0, here.groups, guess, 0)
            loop = (jnp.int32(0), jnp.float32(jnp.inf))
            if tolerance is None:
                count, _ = lax.fori_loop(0, iterations, lambda _, loop: improve(loop), loop)
            else:
                count, _ = lax.while_loop(lambda loop: (loop[0] < iterations) & (loop[1] > tolerance), improve, loop)
            last, worst = lax.fori_loop(0, here.groups, check_group, (carry, jnp.zeros(here.shape, jnp.float32)))
            here.put_vector(carry_ref, c, last)
            counts_ref[...] = jnp.maximum(counts_ref[...], count)
            residuals_ref[...] = jnp.maximum(residuals_ref[...], jnp.max(worst))

        here.over_tiles(tile)

    told = pl.BlockSpec((None, None, 8, 128), lambda b, j: (b, j, 0, 0))
    of_state = pl.BlockSpec((None, 1, planes * width), lambda b, j: (b, 0, 0))
    states, counts, residuals = pl.pallas_call(
        kernel,
        out_shape=[
            jax.ShapeDtypeStruct((batch, steps, planes * width), jnp.float32),
            jax.ShapeDtypeStruct((batch, blocks, 8, 128), jnp.int32),
            jax.ShapeDtypeStruct((batch, blocks, 8, 128), jnp.float32),
        ],
        grid=(batch, blocks),
        in_specs=[
            pl.BlockSpec((None, block, 3 * width), lambda b, j: (b, j, 0)),
            pl.BlockSpec(weights.shape, lambda b, j: (0, 0)),
            of_state,
        ],
        out_specs=[pl.BlockSpec((None, block, planes * width), lambda b, j: (b, j, 0)), told, told],
        scratch_shapes=[pltpu.VMEM((1, planes * width), jnp.float32)],
        compiler_params=tpu_params(dimension_semantics=("parallel", "arbitrary")),
        interpret=interpret,
        name=f"newton_{cell}",
    )(p, weights, initial)
    states = _cut(states[:, :real_steps], planes, real_width, width)
    return states, counts[:, None, :, 0, 0], residuals[:, None, :, 0, 0]


def gradient(cell, p, weights, initial, states, states_bar, last_bar, *, interpret):
    """Cotangents of p, weights and initial; arguments and results as in ``pallas_kernels.newton.gpu.gradient``."""
    known, (batch, real_steps, _), real_width = CELLS[cell], p.shape, weights.shape[1]
    planes = known.planes
    steps, width, missing, group = _sizes(p, weights)
    if missing:  # nothing is to pass through the steps that are added
        states_bar, last_bar = jnp.asarray(states_bar).at[:, -1].add(last_bar), jnp.zeros_like(last_bar)
    p = _padded(p, 3, real_width, width, missing)
    weights = _padded(weights, 1, real_width, width)
    initial, last_bar = (_padded(a, planes, real_width, width)[:, None] for a in (initial, last_bar))
    states, states_bar = (_padded(a, planes, real_width, width, missing) for a in (states, states_bar))
    block = tpu_steps(steps, width, 6 * p.dtype.itemsize + 8 * planes, group)
    blocks = -(-steps // block)
    neutral = identity(planes**2)

    def kernel(
        p_ref, weights_ref, initial_ref, states_ref, beside_ref, bar_ref, last_ref,
        p_bar_ref, weights_bar_ref, initial_bar_ref, carry_ref,
    ):  # fmt: skip
        j = pl.program_id(1)
        here = _Block(blocks - 1 - j, steps, block, group, width, planes, True)

        @pl.when(j == 0)
        def _():
            carry_ref[...] = last_ref[...]
            weights_bar_ref[...] = jnp.zeros(weights_bar_ref.shape, jnp.float32)

        def tile(c):
            w = tuple(
                jnp.broadcast_to(weights_ref[i : i + 1, here.columns(c, 0)], here.shape) for i in range(len(weights))
            )
            first = here.vector(initial_ref, c, planes)
            outside = tuple(e[group - 1 :] for e in here.load(beside_ref, 0, c, planes))

            def group_of_steps(i, loop):
                arriving, totals = loop
                g = here.groups - 1 - i
                time = here.time(g)
                near = tuple(e[group - 1 :] for e in here.load(states_ref, jnp.maximum(g - 1, 0), c, planes))
                near = tuple(jnp.where(g == 0, o, n) for o, n in zip(outside, near, strict=True))
                before = here.behind(here.load(states_ref, g, c, planes), near)
                before = tuple(jnp.where(time == 0, f, b) for f, b in zip(first, before, strict=True))
                drive = here.load(p_ref, g, c, 3)
                inside = time < steps
                bar = tuple(jnp.where(inside, b, 0.0) for b in here.load(bar_ref, g, c, planes))
                slope = adjoint(known.jacobian(w, before, drive)[1])
                slope = tuple(jnp.where(inside, s, one) for s, one in zip(slope, neutral, strict=True))
                factors, offsets = here.compose(slope, multiply(slope, bar))
                leaving = add(offsets, multiply(factors, arriving))
                # what arrives at a row is what leaves the one behind it in time
                moved = here.shift(leaving, 1, True)
                met = tuple(jnp.where(here.row == group - 1, a, m) for a, m in zip(arriving, moved, strict=True))
                _, pullback = jax.vjp(known.step, w, before, drive)
                weights_bar, _, drive_bar = pullback(add(bar, met))
                here.store(p_bar_ref, g, c, drive_bar)
                totals = add(totals, tuple(jnp.where(inside, b, 0.0) for b in weights_bar))
                return tuple(x[:1] for x in leaving), totals

            start = (here.vector(carry_ref, c, planes), (jnp.zeros(here.shape, jnp.float32),) * len(weights))
            carry, totals = lax.fori_loop(0, here.groups, group_of_steps, start)
            here.put_vector(carry_ref, c, carry)
            here.put_vector(initial_bar_ref, c, carry)
            for i, total in enumerate(totals):
                weights_bar_ref[i : i + 1, here.columns(c, 0)] += jnp.sum(total, axis=0, keepdims=True)

        here.over_tiles(tile)

    def whole(count):
        return pl.BlockSpec((None, block, count * width), lambda b, j: (b, blocks - 1 - j, 0))

    of_state = pl.BlockSpec((None, 1, planes * width), lambda b, j: (b, 0, 0))
    per_block = block // group
    beside = pl.BlockSpec(
        (None, group, planes * width), lambda b, j: (b, jnp.maximum((blocks - 1 - j) * per_block - 1, 0), 0)
    )
    p_bar, weights_bar, initial_bar = pl.pallas_call(
        kernel,
        out_shape=[
            jax.ShapeDtypeStruct(p.shape, p.dtype),
            jax.ShapeDtypeStruct((batch, *weights.shape), jnp.float32),
            jax.ShapeDtypeStruct(initial.shape, jnp.float32),
        ],
        grid=(batch, blocks),
        in_specs=[
            whole(3), pl.BlockSpec(weights.shape, lambda b, j: (0, 0)), of_state, whole(planes), beside, whole(planes),
            of_state,
        ],
        out_specs=[whole(3), pl.BlockSpec((None, *weights.shape), lambda b, j: (b, 0, 0)), of_state],
        scratch_shapes=[pltpu.VMEM((1, planes * width), jnp.float32)],
        compiler_params=tpu_params(dimension_semantics=("parallel", "arbitrary")),
        interpret=interpret,
        name=f"newton_{cell}_gradient",
    )(p, weights, initial, states, states, states_bar, last_bar)  # fmt: skip
    p_bar = _cut(p_bar[:, :real_steps], 3, real_width, width)
    return p_bar, weights_bar[..., :real_width], _cut(initial_bar[:, 0], planes, real_width, width)
