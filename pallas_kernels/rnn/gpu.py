"""The recurrence for GPUs: one program per head and tile of batch rows runs all T steps, R in registers throughout.

A program owns its head, so programs never wait for each other. ``R[:, n]`` is loaded once. Step t multiplies the carried
h (in R's dtype, accumulating in float32), adds ``Wx[t]`` and the bias, and writes the states; ``Wx[t+1]`` is fetched
before the products of step t, so that its latency hides behind them. The backward kernel walks from T-1 to 0 in the
same way and writes the gradient of every pre-activation; what sums over batch and time (dR, db) is a kernel of its own,
parallel in time. Arrays keep the caller's layout: rows past B and lanes past D are masked, not padded.
"""

import jax
from jax import lax
from jax import numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from pallas_kernels.compat import gpu_params
from pallas_kernels.rnn import reference
from pallas_kernels.rnn.tiles import CORES

ROWS = slice(None)


def forward(cell, Wx, R, b, initial, *, tiles, save_gates, clip, interpret):
    """Runs the recurrence: see ``reference.forward`` for arguments and results; ``tiles`` is a ``tiles.Tiles``."""
    batch, steps, _, heads, dim = Wx.shape
    blocks = _Blocks(steps, tiles)

    def kernel(wx_ref, r_ref, b_ref, initial_ref, states_ref, last_ref, *gates_ref):
        load, store, clean = _access(batch, dim, tiles)
        weights = [load(r_ref, (g,), "square").T for g in range(cell.gates_r)]
        bias = tuple(load(b_ref, (g,), "line").astype(jnp.float32)[None] for g in range(cell.gates_t))

        def inputs(t):
            return tuple(load(wx_ref, (ROWS, t, g)) for g in range(cell.gates_w))

        def step(t, carry):
            wx, states = carry
            following = inputs(jnp.minimum(t + 1, steps - 1))
            hidden = clean(states[0]).astype(R.dtype)
            recurrent = tuple(jnp.dot(hidden, w, preferred_element_type=jnp.float32) for w in weights)
            wx = tuple(w.astype(jnp.float32) for w in wx)
            states, gates = reference.step(cell, recurrent, wx, bias, states, clip=clip)
            for s, state in enumerate(states):
                store(states_ref, (s, ROWS, t), state)
            for g, gate in enumerate(gates if save_gates else ()):
                store(gates_ref[0], (ROWS, t, g), gate)
            return following, states

        states = tuple(load(initial_ref, (s,)).astype(jnp.float32) for s in range(cell.states))
        _, states = lax.fori_loop(0, steps, step, (inputs(0), states))
        for s, state in enumerate(states):
            store(last_ref, (s,), state)

    shapes = [
        jax.ShapeDtypeStruct((cell.states, batch, steps, heads, dim), Wx.dtype),
        jax.ShapeDtypeStruct((cell.states, batch, heads, dim), jnp.float32),
    ]
    out_specs = [blocks.states(cell.states), blocks.state(cell.states)]
    if save_gates:
        shapes.append(jax.ShapeDtypeStruct((batch, steps, cell.gates_i, heads, dim), Wx.dtype))
        out_specs.append(blocks.gates(cell.gates_i))
    states, last, *gates = pl.pallas_call(
        kernel,
        out_shape=shapes,
        grid=(pl.cdiv(batch, tiles.rows), heads),
        in_specs=[
            blocks.gates(cell.gates_w),
            blocks.recurrent(cell.gates_r),
            blocks.bias(cell.gates_t),
            blocks.state(cell.states),
        ],
        out_specs=out_specs,
        compiler_params=gpu_params(num_warps=tiles.warps, num_stages=1),
        interpret=interpret,
        name=f"rnn_{cell.name}_forward",
    )(Wx, R, b, initial)
    return states, last, (gates[0] if gates else None)


def backward(cell, R, gates, states, initial, d_states, d_last, *, tiles, clip, cut, recurrent_clip, interpret):
    """Runs the recurrence of the gradients: see ``reference.backward``; ``tiles`` is a ``tiles.Tiles``."""
    _, batch, steps, heads, dim = states.shape
    blocks = _Blocks(steps, tiles)

    def kernel(r_ref, gates_ref, states_ref, initial_ref, d_states_ref, d_last_ref, d_gates_ref, d_initial_ref):
        load, store, clean = _access(batch, dim, tiles)
        weights = [] if cut else [load(r_ref, (g,), "square") for g in range(cell.gates_r)]
        initial = tuple(load(initial_ref, (s,)).astype(jnp.float32) for s in range(cell.states))

        def read(t):
            """What step t needs: its gates, the gradient of its states, and the states before it (of step 0 at t = 0)."""
            before = jnp.maximum(t - 1, 0)
            return (
                tuple(load(gates_ref, (ROWS, t, g)) for g in range(cell.gates_i)),
                tuple(load(d_states_ref, (s, ROWS, t)) for s in range(cell.states)),
                tuple(load(states_ref, (s, ROWS, before)) for s in range(cell.states)),
            )

        def step(i, carry):
            t = steps - 1 - i
            (gates, upstream, before), current, d_carried = carry
            following = read(jnp.maximum(t - 1, 0))
            first = t == 0
            previous = tuple(jnp.where(first, x, y.astype(jnp.float32)) for x, y in zip(initial, before, strict=True))
            total = tuple(d + u.astype(jnp.float32) for d, u in zip(d_carried, upstream, strict=True))
            gates = tuple(g.astype(jnp.float32) for g in gates)
            d_gates, d_previous = reference.step_back(cell, total, gates, previous, current, clip=clip)
            for g, d_gate in enumerate(d_gates):
                store(d_gates_ref, (ROWS, t, g), d_gate)
            if not cut:
                products = [
                    jnp.dot(clean(d_gates[g]).astype(R.dtype), w, preferred_element_type=jnp.float32)
                    for g, w in zip(cell.recurrent_gates, weights, strict=True)
                ]
                through = sum(products[1:], start=products[0])
                if recurrent_clip is not None:
                    through = jnp.clip(through, -recurrent_clip, recurrent_clip)
                d_previous = (d_previous[0] + through, *d_previous[1:])
            return following, previous, d_previous

        current = tuple(load(states_ref, (s, ROWS, steps - 1)).astype(jnp.float32) for s in range(cell.states))
        d_carried = tuple(load(d_last_ref, (s,)) for s in range(cell.states))
        *_, d_carried = lax.fori_loop(0, steps, step, (read(steps - 1), current, d_carried))
        for s, d_state in enumerate(d_carried):
            store(d_initial_ref, (s,), d_state)

    return pl.pallas_call(
        kernel,
        out_shape=[
            jax.ShapeDtypeStruct((batch, steps, cell.gates_t, heads, dim), states.dtype),
            jax.ShapeDtypeStruct(initial.shape, jnp.float32),
        ],
        grid=(pl.cdiv(batch, tiles.rows), heads),
        in_specs=[
            blocks.recurrent(cell.gates_r),
            blocks.gates(cell.gates_i),
            blocks.states(cell.states),
            blocks.state(cell.states),
            blocks.states(cell.states),
            blocks.state(cell.states),
        ],
        out_specs=[blocks.gates(cell.gates_t), blocks.state(cell.states)],
        compiler_params=gpu_params(num_warps=tiles.warps, num_stages=1),
        interpret=interpret,
        name=f"rnn_{cell.name}_backward",
    )(R, gates, states, initial, d_states, d_last)


def weight_gradient(cell, d_gates, states, initial, *, tiles, interpret):
    """Sums over batch and time: dR [Gt, N, D, D] for every gate, and db [Gt, N, D], both float32.

    ``dR[g, n] = sum d_gates[b, t, g, n] h[b, t-1, n]^T``, straight from the layouts of its operands, each read about once:
    XLA would copy both, one to transpose it and the other to shift it. A program sums over 16 rows and a stretch of time.
    """
    _, batch, steps, heads, dim = states.shape
    gates, lanes, rows = cell.gates_t, tiles.lanes, 16
    together = max(g for g in range(1, gates + 1) if gates % g == 0 and (g == 1 or g * lanes * lanes * 4 <= 2**17))
    size = min(64, max(16, 1 << (steps - 1).bit_length()))
    span = size
    across = heads * (gates // together) * pl.cdiv(batch, rows)
    while span < steps and across * pl.cdiv(steps, 2 * span) >= CORES // 2:
        span *= 2
    stretches = pl.cdiv(steps, span)

    def split(i, n):
        """(i // n, i % n) of integers that are not negative, which are divided without asking for their sign."""
        return lax.div(i, lax.full((), n, i.dtype)), lax.rem(i, lax.full((), n, i.dtype))

    def kernel(d_ref, h_ref, edge_ref, initial_ref, d_r_ref, d_b_ref):
        tile, stretch = split(pl.program_id(0), stretches)
        in_lanes = lax.broadcasted_iota(jnp.int32, (1, lanes), 1) < dim
        left = jnp.minimum(span, steps - stretch * span)
        rows_left = jnp.minimum(rows, batch - tile * rows)
        of_rows = (lax.broadcasted_iota(jnp.int32, (rows, lanes), 0) < rows_left) & in_lanes

        def read(ref, index, mask):
            return plgpu.load(at(ref, index), mask=mask, other=0.0)

        def add(sums, d, h):
            products, totals = sums
            products = tuple(
                p + lax.dot_general(x, h, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32)
                for p, x in zip(products, d, strict=True)
            )
            return products, tuple(b + jnp.sum(x.astype(jnp.float32), 0) for b, x in zip(totals, d, strict=True))

        def body(i, sums):
            row, block = split(i, span // size)
            start = block * size
            inside = (lax.broadcasted_iota(jnp.int32, (size, lanes), 0) + start + 1 < left) & in_lanes
            d = tuple(read(d_ref, (row, pl.ds(start + 1, size), g), inside) for g in range(together))
            return add(sums, d, read(h_ref, (row, pl.ds(start, size)), inside))

        sums = (
            tuple(jnp.zeros((lanes, lanes), jnp.float32) for _ in range(together)),
            tuple(jnp.zeros(lanes, jnp.float32) for _ in range(together)),
        )
        first = read(initial_ref, (ROWS,), of_rows).astype(d_ref.dtype)
        edge = jnp.where(stretch == 0, first, read(edge_ref, (ROWS, 0), of_rows))
        sums = add(sums, tuple(read(d_ref, (ROWS, 0, g), of_rows) for g in range(together)), edge)
        products, totals = lax.fori_loop(0, rows_left * (span // size), body, sums)
        square = (lax.broadcasted_iota(jnp.int32, (lanes, 1), 0) < dim) & in_lanes
        for g in range(together):
            plgpu.store(at(d_r_ref, (g,)), products[g], mask=square)
            plgpu.store(at(d_b_ref, (g,)), totals[g], mask=lax.broadcasted_iota(jnp.int32, (lanes,), 0) < dim)

    def before(p, g, n):
        tile, stretch = split(p, stretches)
        return 0, tile, jnp.maximum(stretch * span - 1, 0), n, 0

    parts = pl.cdiv(batch, rows) * stretches
    d_R, d_b = pl.pallas_call(
        kernel,
        out_shape=[
            jax.ShapeDtypeStruct((parts, gates, heads, dim, dim), jnp.float32),
            jax.ShapeDtypeStruct((parts, gates, heads, dim), jnp.float32),
        ],
        grid=(parts, gates // together, heads),
        in_specs=[
            pl.BlockSpec((rows, span, together, None, lanes), lambda p, g, n: (*split(p, stretches), g, n, 0)),
            pl.BlockSpec((None, rows, span, None, lanes), lambda p, g, n: (0, *split(p, stretches), n, 0)),
            pl.BlockSpec((None, rows, 1, None, lanes), before),
            pl.BlockSpec((None, rows, None, lanes), lambda p, g, n: (0, split(p, stretches)[0], n, 0)),
        ],
        out_specs=[
            pl.BlockSpec((None, together, None, lanes, lanes), lambda p, g, n: (p, g, n, 0, 0)),
            pl.BlockSpec((None, together, None, lanes), lambda p, g, n: (p, g, n, 0)),
        ],
        compiler_params=gpu_params(num_warps=8, num_stages=2),
        interpret=interpret,
        name=f"rnn_{cell.name}_weight_gradient",
    )(d_gates, states, states, initial)
    return jnp.sum(d_R, 0), jnp.sum(d_b, 0)


def at(ref, index):
    """``ref.at[index]`` for a masked load or store, for which interpret mode takes no Python integers."""
    return ref.at[tuple(lax.full((), i, int) if isinstance(i, int) else i for i in index)]


class _Blocks:
    """Block of every kind of array for program (batch tile i, head n)."""

    def __init__(self, steps, tiles):
        self.steps, self.rows, self.lanes = steps, tiles.rows, tiles.lanes

    def gates(self, count):
        return pl.BlockSpec((self.rows, self.steps, count, None, self.lanes), lambda i, n: (i, 0, 0, n, 0))

    def states(self, count):
        return pl.BlockSpec((count, self.rows, self.steps, None, self.lanes), lambda i, n: (0, i, 0, n, 0))

    def state(self, count):
        return pl.BlockSpec((count, self.rows, None, self.lanes), lambda i, n: (0, i, n, 0))

    def recurrent(self, count):
        return pl.BlockSpec((count, None, self.lanes, self.lanes), lambda i, n: (0, n, 0, 0))

    def bias(self, count):
        return pl.BlockSpec((count, None, self.lanes), lambda i, n: (0, n, 0))


def _access(batch, dim, tiles):
    """Returns (load, store, clean) for one program: outside of the arrays loads give zero and stores do nothing.

    ``clean`` zeroes the lanes past ``dim`` of a tile: a cell may make anything of padding, and what is not finite would
    spread through a product with the zeros of R.
    """
    rows, lanes = tiles.rows, tiles.lanes

    def inside(shape, axis, size):
        return lax.broadcasted_iota(jnp.int32, shape, axis) < size

    masks = {"tile": None, "square": None, "line": None}
    if dim < lanes:
        masks["tile"] = inside((rows, lanes), 1, dim)
        masks["square"] = inside((lanes, lanes), 0, dim) & inside((lanes, lanes), 1, dim)
        masks["line"] = inside((lanes,), 0, dim)
    of_dim = masks["tile"]
    if batch % rows:
        of_batch = inside((rows, lanes), 0, batch - pl.program_id(0) * rows)
        masks["tile"] = of_batch if of_dim is None else of_batch & of_dim

    def load(ref, index, kind="tile"):
        mask = masks[kind]
        return ref[index] if mask is None else plgpu.load(at(ref, index), mask=mask, other=0.0)

    def store(ref, index, value):
        plgpu.store(at(ref, index), value.astype(ref.dtype), mask=masks["tile"])

    def clean(tile):
        return tile if of_dim is None else jnp.where(of_dim, tile, 0.0)

    return load, store, clean
