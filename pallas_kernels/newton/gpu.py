"""``newton`` for GPUs through the Triton lowering: time lies across the threads of a program."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from pallas_kernels.compat import gpu_params
from pallas_kernels.linear_scan.planes import add, adjoint, identity, multiply
from pallas_kernels.newton.reference import CELLS
from pallas_kernels.newton.tiles import gpu_tile


def _halves(x):
    """Even and odd rows of [S, n]."""
    pairs = jnp.transpose(x.reshape(x.shape[0] // 2, 2, x.shape[1]), (0, 2, 1))
    return tuple(half.reshape(half.shape[:2]) for half in lax.split(pairs, (1, 1), axis=2))


def _interleave(even, odd):
    """The rows of both in turn: the inverse of ``_halves``."""
    pairs = jnp.concatenate([even[..., None], odd[..., None]], axis=-1)
    return jnp.transpose(pairs, (0, 2, 1)).reshape(2 * even.shape[0], even.shape[1])


def incoming(factors, offsets, carry, reverse):
    """What arrives at every row when the rows' maps ``x -> factor x + offset`` act one after the other on ``carry``.

    By halving: pairs of neighbours become one map, recursively, and the answer for pairs gives that for their members.

    Args:
      factors, offsets: planes [S, n], S a power of two.
      carry: planes [1, n].
      reverse: from the last row to the first.
    """
    if offsets[0].shape[0] == 1:
        return carry
    (even_f, odd_f), (even_o, odd_o) = (tuple(zip(*map(_halves, planes), strict=True)) for planes in (factors, offsets))
    early = (odd_f, odd_o) if reverse else (even_f, even_o)
    late = (even_f, even_o) if reverse else (odd_f, odd_o)
    pair = multiply(late[0], early[0]), add(multiply(late[0], early[1]), late[1])
    first = incoming(*pair, carry, reverse)
    second = add(multiply(early[0], first), early[1])
    even, odd = (second, first) if reverse else (first, second)
    return tuple(_interleave(e, o) for e, o in zip(even, odd, strict=True))


class _Program:
    """What both kernels share: where this program is, and how it reads and writes."""

    def __init__(self, tile, steps, width, planes):
        self.tile, self.steps, self.width, self.planes = tile, steps, width, planes
        self.row, self.column = pl.program_id(0), pl.program_id(1)
        shape = (tile.segments, tile.channels)
        self.segment = lax.broadcasted_iota(jnp.int32, shape, 0)
        self.lane = self.column * tile.channels + lax.broadcasted_iota(jnp.int32, shape, 1)
        self.zero = jnp.zeros(shape, jnp.float32)
        self.one_lane = self.column * tile.channels + jnp.arange(tile.channels)

    def vector(self, ref, plane, *index):
        """One plane of one row of ``ref``: [n]."""
        at = (*(jnp.int32(i) for i in index), self.one_lane + plane * self.width)
        return plgpu.load(ref.at[at], mask=self.one_lane < self.width, other=0.0).astype(jnp.float32)

    def put_vector(self, ref, value, plane, *index):
        at = (*(jnp.int32(i) for i in index), self.one_lane + plane * self.width)
        plgpu.store(ref.at[at], value.astype(ref.dtype), mask=self.one_lane < self.width)

    def time(self, chunk, j):
        return chunk * self.tile.chunk + self.segment * self.tile.rows + j

    def valid(self, time):
        return (time >= 0) & (time < self.steps) & (self.lane < self.width)

    def load(self, ref, time, planes):
        """Planes [S, n] of ``ref`` [T, planes * N] at the times [S, n]; zero outside."""
        at = jnp.clip(time, 0, self.steps - 1)
        return tuple(
            plgpu.load(ref.at[at, self.lane + i * self.width], mask=self.valid(time), other=0.0).astype(jnp.float32)
            for i in range(planes)
        )

    def store(self, ref, time, values):
        # no clipping: masked entries must not share an address with those that are written
        for i, value in enumerate(values):
            plgpu.store(ref.at[time, self.lane + i * self.width], value.astype(ref.dtype), mask=self.valid(time))

    def edge(self, planes, segment):
        """Row ``segment`` of planes [S, n]: [n]."""
        return tuple(jnp.sum(jnp.where(self.segment == segment, p, 0.0), axis=0) for p in planes)


def solve(cell, p, weights, initial, *, iterations, tolerance, interpret):
    """States [B, T, k N] (float32), iterations and residual of every chunk [B, tiles, chunks].

    Args:
      cell: key of ``CELLS``.
      p: [B, T, 3 N].
      weights: all rows [W, N].
      initial: [B, k N], float32.
      iterations, tolerance, interpret: see ``pallas_kernels.newton.newton``.
    """
    known, (batch, steps, _), width = CELLS[cell], p.shape, weights.shape[1]
    tile = gpu_tile(steps, width, known.planes)
    tiles, chunks = -(-width // tile.channels), -(-steps // tile.chunk)

    def kernel(p_ref, weights_ref, initial_ref, states_ref, counts_ref, residuals_ref):
        here = _Program(tile, steps, width, known.planes)
        w = tuple(here.vector(weights_ref, 0, i)[None] + here.zero for i in range(len(weights)))
        nothing = (here.zero,) * known.planes

        def chunk_of_time(chunk, carry):
            times = [here.time(chunk, j) for j in range(tile.rows)]
            drives = [here.load(p_ref, t, 3) for t in times]

            def size(offset, time):  # NaN and infinity count as infinite
                size = jnp.abs(offset)
                return jnp.where(here.valid(time), jnp.where(size < jnp.inf, size, jnp.inf), 0.0)

            def improve(loop):
                """One Newton iteration on the chunk; also the residual that it started from."""
                count, _, before, states = loop
                factor, offset, worst = None, None, here.zero
                factors, offsets, previous = [], [], before
                for time, drive, state in zip(times, drives, states, strict=True):
                    value, slope = known.jacobian(w, previous, drive)
                    change = tuple(v - s for v, s in zip(value, state, strict=True))
                    for c in change:
                        worst = jnp.maximum(worst, size(c, time))
                    if factor is None:
                        factor, offset = slope, change
                    else:
                        factor, offset = multiply(slope, factor), add(multiply(slope, offset), change)
                    factors.append(factor)
                    offsets.append(offset)
                    previous = state
                start = tuple(jnp.zeros((1, tile.channels), jnp.float32) for _ in range(known.planes))
                arriving = incoming(factor, offset, start, False)
                states = tuple(
                    add(state, add(multiply(f, arriving), o))
                    for state, f, o in zip(states, factors, offsets, strict=True)
                )
                return count + 1, jnp.max(worst), add(before, arriving), states

            # the guess: one step out of zero states, but the state before the chunk is known
            guess = tuple(known.step(w, nothing, drive) for drive in drives)
            behind = known.step(w, nothing, here.load(p_ref, times[0] - 1, 3))
            before = tuple(jnp.where(here.segment == 0, c[None], b) for c, b in zip(carry, behind, strict=True))
            loop = (jnp.int32(0), jnp.float32(jnp.inf), before, guess)
            if tolerance is None:
                loop = lax.fori_loop(0, iterations, lambda _, loop: improve(loop), loop)
            else:
                loop = lax.while_loop(lambda loop: (loop[0] < iterations) & (loop[1] > tolerance), improve, loop)
            count, _, previous, states = loop
            worst = here.zero
            for time, drive, state in zip(times, drives, states, strict=True):
                for v, s in zip(known.step(w, previous, drive), state, strict=True):
                    worst = jnp.maximum(worst, size(v - s, time))
                here.store(states_ref, time, state)
                previous = state
            plgpu.store(counts_ref.at[here.column, chunk], count)
            plgpu.store(residuals_ref.at[here.column, chunk], jnp.max(worst))
            return here.edge(states[-1], tile.segments - 1)

        lax.fori_loop(
            jnp.int32(0), jnp.int32(chunks), chunk_of_time,
            tuple(here.vector(initial_ref, i) for i in range(known.planes)),
        )  # fmt: skip

    row = lambda *shape: pl.BlockSpec((None, *shape), lambda b, n: (b,) + (0,) * len(shape))  # noqa: E731
    return pl.pallas_call(
        kernel,
        out_shape=[
            jax.ShapeDtypeStruct((batch, steps, known.planes * width), jnp.float32),
            jax.ShapeDtypeStruct((batch, tiles, chunks), jnp.int32),
            jax.ShapeDtypeStruct((batch, tiles, chunks), jnp.float32),
        ],
        grid=(batch, tiles),
        in_specs=[row(steps, 3 * width), pl.BlockSpec(weights.shape, lambda b, n: (0, 0)), row(known.planes * width)],
        out_specs=[row(steps, known.planes * width), row(tiles, chunks), row(tiles, chunks)],
        compiler_params=gpu_params(num_warps=tile.warps, num_stages=1),
        interpret=interpret,
        name=f"newton_{cell}",
    )(p, weights, initial)


def gradient(cell, p, weights, initial, states, states_bar, last_bar, *, interpret):
    """Cotangents of p [B, T, 3 N], of the weights per row of the batch [B, W, N], and of initial [B, k N].

    One pass backwards: the Jacobians are computed again from the states, the transposed linear recurrence is solved as
    in ``solve``, and what it gives goes through one step of the cell.
    """
    known, (batch, steps, _), width = CELLS[cell], p.shape, weights.shape[1]
    tile = gpu_tile(steps, width, known.planes)
    tiles, chunks = -(-width // tile.channels), -(-steps // tile.chunk)

    def kernel(
        p_ref, weights_ref, initial_ref, states_ref, bar_ref, last_ref, p_bar_ref, weights_bar_ref, initial_bar_ref
    ):
        here = _Program(tile, steps, width, known.planes)
        w = tuple(here.vector(weights_ref, 0, i)[None] + here.zero for i in range(len(weights)))
        first = tuple(here.vector(initial_ref, i)[None] for i in range(known.planes))
        neutral = identity(known.planes**2)

        def chunk_of_time(i, loop):
            carry, totals = loop
            chunk = chunks - 1 - i
            times = [here.time(chunk, j) for j in range(tile.rows)]
            drives, bars, befores = [], [], []
            for time in times:
                drives.append(here.load(p_ref, time, 3))
                bars.append(here.load(bar_ref, time, known.planes))
                there = here.load(states_ref, time - 1, known.planes)
                befores.append(tuple(jnp.where(time == 0, f, s) for f, s in zip(first, there, strict=True)))
            factor, offset = tuple(here.zero + one for one in neutral), (here.zero,) * known.planes
            for time, drive, bar, before in list(zip(times, drives, bars, befores, strict=True))[::-1]:
                slope = adjoint(known.jacobian(w, before, drive)[1])
                inside = time < steps
                slope = tuple(jnp.where(inside, s, one) for s, one in zip(slope, neutral, strict=True))
                factor, offset = multiply(slope, factor), multiply(slope, add(offset, bar))
            arriving = incoming(factor, offset, tuple(c[None] for c in carry), True)
            for time, drive, bar, before in list(zip(times, drives, bars, befores, strict=True))[::-1]:
                _, pullback = jax.vjp(known.step, w, before, drive)
                weights_bar, before_bar, drive_bar = pullback(add(bar, arriving))
                inside = time < steps
                arriving = tuple(jnp.where(inside, new, old) for new, old in zip(before_bar, arriving, strict=True))
                totals = add(totals, tuple(jnp.where(inside, b, 0.0) for b in weights_bar))
                here.store(p_bar_ref, time, drive_bar)
            return here.edge(arriving, 0), totals

        carry, totals = lax.fori_loop(
            jnp.int32(0), jnp.int32(chunks), chunk_of_time,
            (tuple(here.vector(last_ref, i) for i in range(known.planes)), (here.zero,) * len(weights)),
        )  # fmt: skip
        for i, total in enumerate(totals):
            here.put_vector(weights_bar_ref, jnp.sum(total, axis=0), 0, i)
        for i, value in enumerate(carry):
            here.put_vector(initial_bar_ref, value, i)

    row = lambda *shape: pl.BlockSpec((None, *shape), lambda b, n: (b,) + (0,) * len(shape))  # noqa: E731
    of_state, of_states = row(known.planes * width), row(steps, known.planes * width)
    return pl.pallas_call(
        kernel,
        out_shape=[
            jax.ShapeDtypeStruct(p.shape, p.dtype),
            jax.ShapeDtypeStruct((batch, *weights.shape), jnp.float32),
            jax.ShapeDtypeStruct(initial.shape, jnp.float32),
        ],
        grid=(batch, tiles),
        in_specs=[
            row(steps, 3 * width), pl.BlockSpec(weights.shape, lambda b, n: (0, 0)), of_state, of_states, of_states,
            of_state,
        ],
        out_specs=[row(steps, 3 * width), row(*weights.shape), of_state],
        compiler_params=gpu_params(num_warps=tile.warps, num_stages=1),
        interpret=interpret,
        name=f"newton_{cell}_gradient",
    )(p, weights, initial, states, states_bar, last_bar)  # fmt: skip
