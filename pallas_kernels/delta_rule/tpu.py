"""The gated delta rule on a TPU (Mosaic), in three kernels, all with the grid (batch * heads, chunks).

    prepare     M and A of every chunk
    forward     walks over the chunks with the state [K, V] in VMEM
    backward    from the last chunk to the first with the state's cotangent, and all gradients on the way

Arrays are read as [B, T, heads * width], which is how a projection makes them, where the width is a multiple of 128 or there
is one head; else they are transposed to [B * heads, T, width] first.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu

from pallas_kernels.chunked.tiles import NOTHING
from pallas_kernels.compat import tpu_params
from pallas_kernels.delta_rule import chunk
from pallas_kernels.delta_rule.tiles import Tiles

_FORMS = {"nn": ((1,), (0,)), "nt": ((1,), (1,)), "tn": ((0,), (0,))}
_LANES = 128


def _dot(storage):
    """The product of ``chunk``, with operands in the storage type."""
    precision = lax.Precision.HIGHEST if storage == jnp.float32 else None

    def dot(left, right, form):
        return lax.dot_general(
            left.astype(storage), right.astype(storage), (_FORMS[form], ((), ())),
            precision=precision, preferred_element_type=jnp.float32,
        )  # fmt: skip

    return dot


class _Layout:
    """How arrays are handed to the kernels: each method gives (array or its shape as Mosaic wants it, its block)."""

    def __init__(self, batch, steps, heads, size, *, reverse=False):
        self.batch, self.steps, self.heads, self.size = batch, steps, heads, size
        self.chunks = -(-steps // size)
        self.grid = (batch * heads, self.chunks)
        self._order = (lambda n: self.chunks - 1 - n) if reverse else (lambda n: n)

    def _spec(self, own, width):
        def head(r):
            return lax.div(lax.rem(r, jnp.int32(self.heads)), jnp.int32(self.heads // own))

        def row(r):
            return lax.div(r, jnp.int32(self.heads))

        if self._flat(own, width):
            return pl.BlockSpec((None, self.size, width), lambda r, n: (row(r), self._order(n), head(r)))
        return pl.BlockSpec((None, self.size, width), lambda r, n: (row(r) * own + head(r), self._order(n), 0))

    @staticmethod
    def _flat(own, width):
        return width % _LANES == 0 or own == 1

    def rows(self, array):
        """[B, T, heads of its own, width], one chunk at a time."""
        own, width = array.shape[2:]
        array = jnp.pad(array, [(0, 0), (0, self.chunks * self.size - self.steps), (0, 0), (0, 0)])
        if self._flat(own, width):
            return array.reshape(self.batch, -1, own * width), self._spec(own, width)
        return jnp.swapaxes(array, 1, 2).reshape(self.batch * own, -1, width), self._spec(own, width)

    def rows_out(self, width, dtype):
        """A result of ``rows`` with all heads."""
        time = self.chunks * self.size
        flat = self._flat(self.heads, width)
        shape = (self.batch, time, self.heads * width) if flat else (self.batch * self.heads, time, width)
        return jax.ShapeDtypeStruct(shape, dtype), self._spec(self.heads, width)

    def back(self, array, width):
        """[B, T, H, width] from a result of ``rows_out``."""
        if self._flat(self.heads, width):
            array = array.reshape(self.batch, -1, self.heads, width)
        else:
            array = jnp.swapaxes(array.reshape(self.batch, self.heads, -1, width), 1, 2)
        return array[:, : self.steps]

    def lines(self, *arrays):
        """Arrays [B, T, H] as the rows of a matrix per chunk."""
        arrays = jnp.stack([a.astype(jnp.float32) for a in arrays], axis=1)
        arrays = jnp.pad(arrays, [(0, 0), (0, 0), (0, self.chunks * self.size - self.steps), (0, 0)])
        arrays = arrays.reshape(self.batch, -1, self.chunks, self.size, self.heads)
        arrays = jnp.transpose(arrays, (0, 4, 2, 1, 3))
        return arrays.reshape(-1, *arrays.shape[2:]), self._line(arrays.shape[3])

    def _line(self, count):
        return pl.BlockSpec((None, None, count, self.size), lambda r, n: (r, self._order(n), 0, 0))

    def lines_out(self, count):
        """A result of ``count`` arrays [B, T, H]."""
        return jax.ShapeDtypeStruct((*self.grid, count, self.size), jnp.float32), self._line(count)

    def lines_back(self, array):
        """The arrays [B, T, H] from a result of ``lines_out``."""
        array = jnp.transpose(array.reshape(self.batch, self.heads, *array.shape[1:]), (3, 0, 2, 4, 1))
        return array.reshape(array.shape[0], self.batch, -1, self.heads)[:, :, : self.steps]

    def borders(self, shape):
        """The block of [B H, chunks, *shape], of which every chunk has one."""
        return pl.BlockSpec((None, None, *shape), lambda r, n: (r, self._order(n), 0, 0))

    def whole(self, shape):
        """The block of [B H, *shape], which a program of all chunks keeps."""
        return pl.BlockSpec((None, *shape), lambda r, n: (r, 0, 0))

    def call(self, kernel, inputs, results, name, interpret, scratch=(), parallel=False):
        """Runs a kernel."""
        return pl.pallas_call(
            kernel,
            out_shape=[shape for shape, _ in results],
            grid=self.grid,
            in_specs=[spec for _, spec in inputs],
            out_specs=[spec for _, spec in results],
            scratch_shapes=list(scratch),
            compiler_params=tpu_params(dimension_semantics=("parallel", "parallel" if parallel else "arbitrary")),
            interpret=interpret,
            name=f"delta_rule_{name}",
        )(*(array for array, _ in inputs))


def _gates(ref):
    """beta [C, 1] and the log decays [1, C], finite, of a chunk."""
    row, column = chunk.places(ref.shape[1])
    beta = jnp.sum(jnp.where(row == column, ref[0:1], 0), axis=1, keepdims=True)
    return beta, jnp.maximum(ref[1:2], NOTHING)


def prepare(q, k, beta, log_decay, tiles: Tiles, *, interpret):
    """M = (I + L)^-1 and A of every chunk, both [B H, chunks, C, C] in the storage type.

    Arguments as in ``gpu.inverses`` and ``gpu.scores``.
    """
    batch, steps, heads = beta.shape
    size = tiles.chunk
    layout = _Layout(batch, steps, heads, size)
    dot, exact = _dot(k.dtype), _dot(jnp.dtype(jnp.float32))

    def kernel(q_ref, k_ref, gates_ref, inverse_ref, attention_ref):
        row, column = chunk.places(size)
        beta, decay = _gates(gates_ref)
        weights = chunk.through(decay)
        attention_ref[...] = (weights * dot(q_ref[...], k_ref[...], "nt")).astype(attention_ref.dtype)
        product = beta * weights * dot(k_ref[...], k_ref[...], "nt")
        (found,) = chunk.eliminate((product,), chunk.LEAF)
        width = chunk.LEAF
        while width < size:  # the inverse of [[A, 0], [B, D]] has -D^-1 B A^-1 below the diagonal
            below = (row & width != 0) & (row & -width == (column & -width) + width)
            found = found - exact(exact(found, jnp.where(below, product, 0), "nn"), found, "nn")
            width *= 2
        inverse_ref[...] = found.astype(inverse_ref.dtype)

    result = jax.ShapeDtypeStruct((*layout.grid, size, size), k.dtype), layout.borders((size, size))
    inputs = [layout.rows(q), layout.rows(k), layout.lines(beta, log_decay)]
    return layout.call(kernel, inputs, [result] * 2, "prepare", interpret, parallel=True)


def forward(q, k, v, beta, log_decay, initial, tiles: Tiles, *, keep, interpret):
    """The recurrence; arguments and results as in ``gpu.forward``."""
    batch, steps, heads, values = v.shape
    storage, keys, size = v.dtype, q.shape[-1], tiles.chunk
    layout = _Layout(batch, steps, heads, size)
    dot = _dot(storage)
    inverse, attention = prepare(q, k, beta, log_decay, tiles, interpret=interpret)

    def kernel(q_ref, k_ref, v_ref, gates_ref, inverse_ref, attention_ref, initial_ref, y_ref, last_ref, *rest):
        *kept, state_ref = rest

        @pl.when(pl.program_id(1) == 0)
        def _():
            state_ref[...] = initial_ref[...]

        beta, decay = _gates(gates_ref)
        if keep:
            kept[1][...] = state_ref[...].astype(storage)
        y, u, state = chunk.forward(
            q_ref[...], k_ref[...], v_ref[...], beta, inverse_ref[...], attention_ref[...], state_ref[...],
            chunk.factors(decay), dot,
        )  # fmt: skip
        y_ref[...] = y.astype(storage)
        if keep:
            kept[0][...] = u.astype(storage)
        state_ref[...] = state

        @pl.when(pl.program_id(1) == layout.chunks - 1)
        def _():
            last_ref[...] = state

    square = (keys, values)
    inputs = [
        *(layout.rows(a) for a in (q, k, v)),
        layout.lines(beta, log_decay),
        *((a, layout.borders((size, size))) for a in (inverse, attention)),
        (initial.reshape(-1, *square), layout.whole(square)),
    ]
    results = [
        layout.rows_out(values, storage),
        (jax.ShapeDtypeStruct((batch * heads, *square), jnp.float32), layout.whole(square)),
    ]
    if keep:
        results += [layout.rows_out(values, storage)]
        results += [(jax.ShapeDtypeStruct((*layout.grid, *square), storage), layout.borders(square))]
    y, last, *kept = layout.call(
        kernel, inputs, results, "forward", interpret, [tpu.VMEM(square, jnp.float32)]
    )  # fmt: skip
    return layout.back(y, values), last.reshape(initial.shape), (inverse, attention, *kept) if keep else None


def backward(q, k, v, beta, log_decay, kept, y_bar, last_bar, tiles: Tiles, *, interpret):
    """The adjoint; arguments and results as in ``gpu.backward``."""
    batch, steps, heads, values = v.shape
    storage, keys, size = v.dtype, q.shape[-1], tiles.chunk
    layout = _Layout(batch, steps, heads, size, reverse=True)
    dot = _dot(storage)
    inverse, attention, u, starts = kept

    def kernel(
        q_ref, k_ref, v_ref, gates_ref, ybar_ref, inverse_ref, attention_ref, u_ref, start_ref, last_ref,
        qbar_ref, kbar_ref, vbar_ref, lines_ref, first_ref, state_ref,
    ):  # fmt: skip
        @pl.when(pl.program_id(1) == 0)
        def _():
            state_ref[...] = last_ref[...]

        q, k, y_bar, state_bar = q_ref[...], k_ref[...], ybar_ref[...], state_ref[...]
        beta, decay = _gates(gates_ref)
        u_bar, before = chunk.backward(
            q, k, y_bar, beta, inverse_ref[...], attention_ref[...], state_bar, chunk.factors(decay), dot
        )
        sums = chunk.gather(v_ref[...], y_bar, u_ref[...], u_bar, start_ref[...], state_bar, dot)
        q_bar, k_bar, beta_bar, decay_bar = chunk.gradients(q, k, beta, sums, decay, dot)
        qbar_ref[...] = q_bar.astype(qbar_ref.dtype)
        kbar_ref[...] = k_bar.astype(kbar_ref.dtype)
        vbar_ref[...] = (beta * u_bar).astype(storage)
        row, column = chunk.places(size)
        lines_ref[0:1] = jnp.sum(jnp.where(row == column, beta_bar, 0), axis=0, keepdims=True)
        lines_ref[1:2] = decay_bar
        state_ref[...] = before

        @pl.when(pl.program_id(1) == layout.chunks - 1)
        def _():
            first_ref[...] = before

    square = (keys, values)
    # what is summed over heads afterwards is not rounded before
    keyed = layout.rows_out(keys, storage if q.shape[2] == heads else jnp.float32)
    u_shape, u_spec = layout.rows_out(values, storage)
    inputs = [
        *(layout.rows(a) for a in (q, k, v)),
        layout.lines(beta, log_decay),
        layout.rows(y_bar),
        *((a, layout.borders((size, size))) for a in (inverse, attention)),
        (u, u_spec),
        (starts, layout.borders(square)),
        (last_bar.reshape(-1, *square), layout.whole(square)),
    ]
    results = [
        keyed,
        keyed,
        (u_shape, u_spec),
        layout.lines_out(2),
        (jax.ShapeDtypeStruct((batch * heads, *square), jnp.float32), layout.whole(square)),
    ]
    q_bar, k_bar, v_bar, lines, first = layout.call(
        kernel, inputs, results, "backward", interpret, [tpu.VMEM(square, jnp.float32)]
    )
    beta_bar, decay_bar = layout.lines_back(lines)
    q_bar, k_bar = (layout.back(a, keys) for a in (q_bar, k_bar))
    return q_bar, k_bar, layout.back(v_bar, values), beta_bar, decay_bar, first.reshape(last_bar.shape)


forward = partial(jax.jit, static_argnums=6, static_argnames=("keep", "interpret"))(forward)
backward = partial(jax.jit, static_argnums=8, static_argnames=("interpret",))(backward)
