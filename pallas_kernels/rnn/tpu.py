"""The recurrence for TPUs: grid (heads, batch tiles, blocks of time), time innermost; R of the head stays in VMEM.

The block of R depends on the head alone, so it is fetched once per head. The states live in a VMEM scratch that outlasts
a block of time and is set from the initial states at the first. All gates come from one product [rows, D] x [D, Gr D].
The backward kernel takes the blocks of time, and the steps in them, from the last to the first. Arrays are laid out
[N, T, gates, B, D] for it, so that a step of one head is whole (sublane, lane) tiles: B is padded to the tile's rows, while
a last block of time may be ragged. Small heads go as one of 128 lanes where they fill it, R block-diagonal, which costs the
128 x 128 matrix unit nothing; else D is padded to 128 lanes.
"""

import jax
from jax import lax
from jax import numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.compat import tpu_params
from pallas_kernels.rnn import reference

_PARAMS = tpu_params(dimension_semantics=("parallel", "parallel", "arbitrary"))


def forward(cell, Wx, R, b, initial, *, tiles, save_gates, clip, interpret):
    """Runs the recurrence: see ``reference.forward`` for arguments and results; ``tiles`` is a ``tiles.Tiles``."""
    shape = initial.shape
    Wx, b, initial = (_pack(array) for array in (Wx, b, initial))
    R = _pack_recurrent(R)
    batch, steps, _, heads, dim = Wx.shape
    lanes, span = tiles.lanes, tiles.steps

    def kernel(wx_ref, r_ref, b_ref, initial_ref, states_ref, last_ref, *rest):
        *gates_ref, carried = rest
        first_step = pl.program_id(2) * span
        clean = _inside(dim, tiles)
        bias = tuple(b_ref[g : g + 1, :] for g in range(cell.gates_t))

        @pl.when(first_step == 0)
        def _():
            carried[...] = initial_ref[...]

        def advance(i, _):
            hidden = clean(carried[0]).astype(R.dtype)
            products = jnp.dot(hidden, r_ref[...], preferred_element_type=jnp.float32)
            recurrent = tuple(products[:, g * lanes : (g + 1) * lanes] for g in range(cell.gates_r))
            inputs = tuple(wx_ref[i, g].astype(jnp.float32) for g in range(cell.gates_w))
            before = tuple(carried[s] for s in range(cell.states))
            states, gates = reference.step(cell, recurrent, inputs, bias, before, clip=clip)
            for s, state in enumerate(states):
                carried[s] = state
                states_ref[i, s] = state.astype(states_ref.dtype)
            for g, gate in enumerate(gates if save_gates else ()):
                gates_ref[0][i, g] = gate.astype(gates_ref[0].dtype)
            return 0

        lax.fori_loop(0, jnp.minimum(span, steps - first_step), advance, 0)
        last_ref[...] = carried[...]

    wx = _to_kernel(Wx, (3, 1, 2, 0, 4), tiles)
    rows = wx.shape[3]
    weights = jnp.transpose(_pad(R, (2, 3), lanes), (1, 3, 0, 2)).reshape(heads, lanes, -1)
    blocks = _Blocks(tiles, 0)
    shapes = [
        jax.ShapeDtypeStruct((heads, steps, cell.states, rows, lanes), Wx.dtype),
        jax.ShapeDtypeStruct((heads, cell.states, rows, lanes), jnp.float32),
    ]
    out_specs = [blocks.series(cell.states), blocks.state(cell.states)]
    if save_gates:
        shapes.append(jax.ShapeDtypeStruct((heads, steps, cell.gates_i, rows, lanes), Wx.dtype))
        out_specs.append(blocks.series(cell.gates_i))
    states, last, *gates = pl.pallas_call(
        kernel,
        out_shape=shapes,
        grid=(heads, rows // tiles.rows, pl.cdiv(steps, span)),
        in_specs=[
            blocks.series(cell.gates_w),
            blocks.head(*weights.shape[1:]),
            blocks.head(cell.gates_t, lanes),
            blocks.state(cell.states),
        ],
        out_specs=out_specs,
        scratch_shapes=[pltpu.VMEM((cell.states, tiles.rows, lanes), jnp.float32)],
        compiler_params=_PARAMS,
        interpret=interpret,
        name=f"rnn_{cell.name}_forward",
    )(
        wx,
        weights,
        jnp.transpose(_pad(b.astype(jnp.float32), (2,), lanes), (1, 0, 2)),
        _to_kernel(initial, (2, 0, 1, 3), tiles),
    )

    def back(array, order):
        array = jnp.transpose(array[..., :batch, :dim], order)
        return array.reshape(*array.shape[:-2], *shape[-2:])

    return (
        back(states, (2, 3, 1, 0, 4)),
        back(last, (1, 2, 0, 3)),
        back(gates[0], (3, 1, 2, 0, 4)) if gates else None,
    )


def backward(cell, R, gates, states, initial, d_states, d_last, *, tiles, clip, cut, recurrent_clip, interpret):
    """Runs the recurrence of the gradients: see ``reference.backward``; ``tiles`` is a ``tiles.Tiles``."""
    shape = initial.shape
    gates, states, initial, d_states, d_last = (_pack(a) for a in (gates, states, initial, d_states, d_last))
    R = _pack_recurrent(R)
    _, batch, steps, heads, dim = states.shape
    lanes, span = tiles.lanes, tiles.steps
    count = pl.cdiv(steps, span)

    def kernel(
        r_ref,
        gates_ref,
        states_ref,
        edge_ref,
        initial_ref,
        d_states_ref,
        d_last_ref,
        d_gates_ref,
        d_initial_ref,
        carried,
    ):
        first_step = (count - 1 - pl.program_id(2)) * span
        clean = _inside(dim, tiles)

        @pl.when(pl.program_id(2) == 0)
        def _():
            carried[...] = d_last_ref[...]

        def read(ref, *index):
            return ref[index].astype(jnp.float32)

        def retreat(i, at_edge):
            after = tuple(read(states_ref, i, s) for s in range(cell.states))
            if at_edge:
                before = tuple(
                    jnp.where(first_step == 0, initial_ref[s], read(edge_ref, 0, s)) for s in range(cell.states)
                )
            else:
                before = tuple(read(states_ref, i - 1, s) for s in range(cell.states))
            total = tuple(carried[s] + read(d_states_ref, i, s) for s in range(cell.states))
            saved = tuple(read(gates_ref, i, g) for g in range(cell.gates_i))
            d_gates, d_before = reference.step_back(cell, total, saved, before, after, clip=clip)
            for g, d_gate in enumerate(d_gates):
                d_gates_ref[i, g] = d_gate.astype(d_gates_ref.dtype)
            for s, d_state in enumerate(d_before):
                carried[s] = d_state
            if not cut:
                through = sum(
                    jnp.dot(
                        clean(d_gates[gate]).astype(R.dtype),
                        r_ref[g * lanes : (g + 1) * lanes, :],
                        preferred_element_type=jnp.float32,
                    )
                    for g, gate in enumerate(cell.recurrent_gates)
                )
                if recurrent_clip is not None:
                    through = jnp.clip(through, -recurrent_clip, recurrent_clip)
                carried[0] += through

        size = jnp.minimum(span, steps - first_step)

        def body(i, _):
            retreat(size - 1 - i, False)
            return 0

        lax.fori_loop(0, size - 1, body, 0)
        retreat(0, True)
        d_initial_ref[...] = carried[...]

    def series(array, order):
        return _to_kernel(array, order, tiles)

    gates = series(gates, (3, 1, 2, 0, 4))
    rows = gates.shape[3]
    states_ = series(states, (3, 2, 0, 1, 4))
    blocks = _Blocks(tiles, count)
    edge = pl.BlockSpec(
        (None, 1, cell.states, tiles.rows, lanes),
        lambda n, i, t: (n, jnp.maximum((count - 1 - t) * span - 1, 0), 0, i, 0),
    )
    d_gates, d_initial = pl.pallas_call(
        kernel,
        out_shape=[
            jax.ShapeDtypeStruct((heads, steps, cell.gates_t, rows, lanes), states.dtype),
            jax.ShapeDtypeStruct((heads, cell.states, rows, lanes), jnp.float32),
        ],
        grid=(heads, rows // tiles.rows, count),
        in_specs=[
            blocks.head(cell.gates_r * lanes, lanes),
            blocks.series(cell.gates_i),
            blocks.series(cell.states),
            edge,
            blocks.state(cell.states),
            blocks.series(cell.states),
            blocks.state(cell.states),
        ],
        out_specs=[blocks.series(cell.gates_t), blocks.state(cell.states)],
        scratch_shapes=[pltpu.VMEM((cell.states, tiles.rows, lanes), jnp.float32)],
        compiler_params=_PARAMS,
        interpret=interpret,
        name=f"rnn_{cell.name}_backward",
    )(
        jnp.transpose(_pad(R, (2, 3), lanes), (1, 0, 2, 3)).reshape(heads, -1, lanes),
        gates,
        states_,
        states_,
        series(initial, (2, 0, 1, 3)),
        series(d_states, (3, 2, 0, 1, 4)),
        series(d_last, (2, 0, 1, 3)),
    )
    d_gates = jnp.transpose(d_gates[..., :batch, :dim], (3, 1, 2, 0, 4))
    d_initial = jnp.transpose(d_initial[..., :batch, :dim], (1, 2, 0, 3))
    return d_gates.reshape(*d_gates.shape[:-2], *shape[-2:]), d_initial.reshape(shape)


class _Blocks:
    """Block of every kind of array for grid point (head n, batch tile i, block of time t, which may run backwards)."""

    def __init__(self, tiles, reversed_blocks):
        self.tiles, self.reversed_blocks = tiles, reversed_blocks

    def series(self, count):
        def index(n, i, t):
            return n, self.reversed_blocks - 1 - t if self.reversed_blocks else t, 0, i, 0

        return pl.BlockSpec((None, self.tiles.steps, count, self.tiles.rows, self.tiles.lanes), index)

    def state(self, count):
        return pl.BlockSpec((None, count, self.tiles.rows, self.tiles.lanes), lambda n, i, t: (n, 0, i, 0))

    def head(self, *shape):
        return pl.BlockSpec((None, *shape), lambda n, i, t: (n, 0, 0))


def _inside(dim, tiles):
    """Zero in the lanes past ``dim``: a cell may make anything of padding, which R's zeros would not stop if not finite."""
    if dim == tiles.lanes:
        return lambda tile: tile
    inside = lax.broadcasted_iota(jnp.int32, (tiles.rows, tiles.lanes), 1) < dim
    return lambda tile: jnp.where(inside, tile, 0.0)


def _packed(heads, dim):
    """How many heads go as one."""
    return 128 // dim if dim < 128 and 128 % dim == 0 and heads % (128 // dim) == 0 else 1


def _pack(array):
    """[..., N, D] as [..., N / k, k D]."""
    *outer, heads, dim = array.shape
    together = _packed(heads, dim)
    return array.reshape(*outer, heads // together, together * dim)


def _pack_recurrent(R):
    """R of the heads that go as one, block-diagonal."""
    gates, heads, dim, _ = R.shape
    together = _packed(heads, dim)
    if together == 1:
        return R
    blocks = R.reshape(gates, heads // together, together, dim, 1, dim)
    eye = jnp.eye(together, dtype=R.dtype).reshape(together, 1, together, 1)
    return (blocks * eye).reshape(gates, heads // together, together * dim, together * dim)


def _pad(array, axes, size):
    widths = [(0, -array.shape[a] % size if a in axes else 0) for a in range(array.ndim)]
    return jnp.pad(array, widths) if any(after for _, after in widths) else array


def _to_kernel(array, order, tiles):
    """Transposed by ``order`` to [..., B, D], padded to whole tiles."""
    array = jnp.transpose(array, order)
    return _pad(_pad(array, (array.ndim - 1,), tiles.lanes), (array.ndim - 2,), tiles.rows)
