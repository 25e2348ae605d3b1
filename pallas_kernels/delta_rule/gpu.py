"""The gated delta rule on a GPU (Triton lowering), in four kernels.

    inverses    grid (batch * heads, chunks)               M of every chunk, in blocks of 16 steps
    forward     grid (batch * heads, blocks of columns)    walks over the chunks with the state [K, columns] in registers
    backward    the same, from the last chunk to the first, with the state's cotangent
    gradients   grid (batch * heads, chunks)               products over all columns, from the states at the chunk borders

Columns of the state are independent of each other, given M. Every array is read where it lies, [B, T, heads, width], heads
that share an array read the same one, and what is past the edges is masked.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from pallas_kernels.chunked.tiles import NOTHING, power_of_two
from pallas_kernels.compat import gpu_params
from pallas_kernels.delta_rule import chunk
from pallas_kernels.delta_rule.tiles import Tiles

_FORMS = {"nn": ((1,), (0,)), "nt": ((1,), (1,)), "tn": ((0,), (0,))}


def _dot(storage, interpret):
    """The product of ``chunk``, with operands in the storage type."""
    precision = None
    if storage == jnp.float32:
        precision = lax.Precision.HIGHEST if interpret else lax.DotAlgorithmPreset.TF32_TF32_F32_X3

    def dot(left, right, form):
        return lax.dot_general(
            left.astype(storage), right.astype(storage), (_FORMS[form], ((), ())),
            precision=precision, preferred_element_type=jnp.float32,
        )  # fmt: skip

    return dot


class _Place:
    """Loads and stores of one program: batch row, head, and sizes of the arrays."""

    def __init__(self, heads, steps, sizes):
        self.b, self.h = lax.div(pl.program_id(0), heads), lax.rem(pl.program_id(0), heads)
        # a start that is not known when tracing: JAX refuses slices that it sees leave the array
        self.zero = 0 * pl.program_id(1)
        self.heads, self.steps, self.sizes = heads, steps, sizes

    def _at(self, ref, t, count, width, first):
        shape = (count, width)
        inside = t + lax.broadcasted_iota(jnp.int32, shape, 0) < self.steps
        inside &= first + lax.broadcasted_iota(jnp.int32, shape, 1) < ref.shape[3]
        head = lax.div(self.h, self.heads // ref.shape[2])
        return ref.at[self.b, pl.ds(t, count), head, pl.ds(first, width)], inside

    def load(self, ref, t, count, width, first=None):
        """[count, width] from step ``t`` and column ``first`` of [B, T, heads of its own, X]; zeros past the edges."""
        at, inside = self._at(ref, t, count, width, self.zero if first is None else first)
        return triton.load(at, mask=inside, other=0)

    def store(self, ref, t, value, first=None):
        """Stores what ``load`` would load."""
        at, inside = self._at(ref, t, *value.shape, self.zero if first is None else first)
        triton.store(at, value.astype(ref.dtype), mask=inside)

    def line(self, ref, t, count):
        """[count] from step ``t`` of [B, T, H], float32; zeros past the end."""
        inside = t + lax.broadcasted_iota(jnp.int32, (count,), 0) < self.steps
        return triton.load(ref.at[self.b, pl.ds(t, count), self.h], mask=inside, other=0).astype(jnp.float32)

    def store_line(self, ref, t, value):
        """Stores [count] to step ``t`` of [B, T, H]."""
        inside = t + lax.broadcasted_iota(jnp.int32, value.shape, 0) < self.steps
        triton.store(ref.at[self.b, pl.ds(t, value.shape[0]), self.h], value, mask=inside)

    def decay(self, ref, t, count):
        """Log decays [count], finite."""
        return jnp.maximum(self.line(ref, t, count), NOTHING)

    def _square(self, ref, index, shape, first):
        keys, values = self.sizes
        inside = (lax.broadcasted_iota(jnp.int32, shape, 0) < keys) & (
            first + lax.broadcasted_iota(jnp.int32, shape, 1) < values
        )
        return ref.at[(self.b, self.h, *index, pl.ds(self.zero, shape[0]), pl.ds(first, shape[1]))], inside

    def load_state(self, ref, index, shape, first):
        """[K, columns] of [B, H, *index, K, V] from column ``first``."""
        at, inside = self._square(ref, index, shape, first)
        return triton.load(at, mask=inside, other=0)

    def store_state(self, ref, index, value, first):
        """Stores what ``load_state`` would load."""
        at, inside = self._square(ref, index, value.shape, first)
        triton.store(at, value.astype(ref.dtype), mask=inside)


def inverses(k, beta, log_decay, tiles: Tiles, *, interpret):
    """M = (I + L)^-1 of every chunk, [B, H, chunks, C, C] in float32; see ``chunk``.

    Args:
      k: [B, T, G, K].
      beta, log_decay: [B, T, H].
      tiles: as made for these sizes.
      interpret: run as plain JAX.
    """
    batch, steps, heads = beta.shape
    keys = max(16, power_of_two(k.shape[-1]))
    chunks, leaf, blocks = -(-steps // tiles.chunk), chunk.LEAF, tiles.chunk // chunk.LEAF
    dot, exact = _dot(k.dtype, interpret), _dot(jnp.dtype(jnp.float32), interpret)

    def kernel(k_ref, beta_ref, decay_ref, out_ref):
        place, n = _Place(heads, steps, None), pl.program_id(1)
        t = n * tiles.chunk
        decay = place.decay(decay_ref, t, tiles.chunk)
        coarse = jnp.floor(decay * 256 + 0.5) / 256  # sums of these are exact: see ``chunked.chunk.sums_between``
        k = [place.load(k_ref, t + leaf * i, leaf, keys) for i in range(blocks)]
        beta = [place.line(beta_ref, t + leaf * i, leaf)[:, None] for i in range(blocks)]

        def until(part, i, axis):
            """Sums of ``part`` up to each step of block i, along axis 0 ([leaf, 1]) or 1 ([1, leaf])."""
            shape = (leaf, tiles.chunk) if axis == 0 else (tiles.chunk, leaf)
            last = leaf * i + lax.broadcasted_iota(jnp.int32, shape, axis)
            part = part[None, :] if axis == 0 else part[:, None]
            seen = lax.broadcasted_iota(jnp.int32, shape, 1 - axis) <= last
            return jnp.sum(jnp.where(seen, part, 0), axis=1 - axis, keepdims=True)

        row, column = chunk.places(leaf)
        parts = (coarse, decay - coarse)
        upright = [[until(part, i, 0) for part in parts] for i in range(blocks)]
        lying = [[until(part, i, 1) for part in parts] for i in range(blocks)]

        def lower(i, j):
            """Block (i, j) of L."""
            seen = column < row if i == j else column >= 0
            between = sum(a - b for a, b in zip(upright[i], lying[j], strict=True))
            product = beta[i] * dot(k[i], k[j], "nt")
            return jnp.where(seen, product * jnp.exp(jnp.where(seen, between, 0)), 0)

        found = {(i, i): block for i, block in enumerate(chunk.eliminate(
            tuple(lower(i, i) for i in range(blocks)), leaf))}  # fmt: skip
        below = {(i, j): lower(i, j) for i in range(blocks) for j in range(i)}
        for distance in range(1, blocks):
            for j in range(blocks - distance):
                i = j + distance
                inner = sum(exact(below[i, m], found[m, j], "nn") for m in range(j, i))
                found[i, j] = -exact(found[i, i], inner, "nn")
        for i in range(blocks):
            for j in range(blocks):
                block = found.get((i, j), jnp.zeros((leaf, leaf), jnp.float32))
                triton.store(out_ref.at[place.b, place.h, n, leaf * i : leaf * (i + 1), leaf * j : leaf * (j + 1)], block)

    return pl.pallas_call(
        kernel,
        out_shape=jax.ShapeDtypeStruct((batch, heads, chunks, tiles.chunk, tiles.chunk), jnp.float32),
        grid=(batch * heads, chunks),
        compiler_params=gpu_params(num_warps=2, num_stages=1),
        interpret=interpret,
        name="delta_rule_inverses",
    )(k, beta, log_decay)


def forward(q, k, v, beta, log_decay, initial, tiles: Tiles, *, keep, interpret):
    """The recurrence.

    Args:
      q, k: [B, T, G, K].
      v: [B, T, H, V], of the same type: the storage type.
      beta, log_decay: [B, T, H].
      initial: [B, H, K, V], float32.
      tiles: as made for these sizes.
      keep: whether what the backward pass needs is wanted.
      interpret: run as plain JAX.

    Returns:
      (y like v, the state after the last step, kept), where kept is None or M [B, H, chunks, C, C] in float32, u like v and
      the states before the chunks [B, H, chunks, K, V] in the storage type.
    """
    batch, steps, heads, values = v.shape
    storage, keys, size = v.dtype, q.shape[-1], tiles.chunk
    wide = max(16, power_of_two(keys))
    chunks = -(-steps // size)
    dot = _dot(storage, interpret)
    inverse = inverses(k, beta, log_decay, tiles, interpret=interpret)

    def kernel(q_ref, k_ref, v_ref, beta_ref, decay_ref, inverse_ref, initial_ref, y_ref, last_ref, *kept):
        place = _Place(heads, steps, (keys, values))
        first = pl.program_id(1) * tiles.width

        def body(n, state):
            t = n * size
            q, k = (place.load(ref, t, size, wide) for ref in (q_ref, k_ref))
            v = place.load(v_ref, t, size, tiles.width, first)
            beta = place.line(beta_ref, t, size)[:, None]
            decays = chunk.relations(place.decay(decay_ref, t, size)[None, :])
            if keep:
                place.store_state(kept[1], (n,), state, first)
            y, u, state = chunk.forward(q, k, v, beta, inverse_ref[place.b, place.h, n], state, decays, dot)
            place.store(y_ref, t, y, first)
            if keep:
                place.store(kept[0], t, u, first)
            return state

        state = lax.fori_loop(0, chunks, body, place.load_state(initial_ref, (), (wide, tiles.width), first))
        place.store_state(last_ref, (), state, first)

    shapes = [jax.ShapeDtypeStruct(v.shape, storage), jax.ShapeDtypeStruct(initial.shape, jnp.float32)]
    if keep:
        shapes += [jax.ShapeDtypeStruct(v.shape, storage)]
        shapes += [jax.ShapeDtypeStruct((batch, heads, chunks, keys, values), storage)]
    y, last, *kept = pl.pallas_call(
        kernel,
        out_shape=shapes,
        grid=(batch * heads, -(-values // tiles.width)),
        compiler_params=gpu_params(num_warps=tiles.warps, num_stages=1),
        interpret=interpret,
        name="delta_rule_forward",
    )(q, k, v, beta, log_decay, inverse, initial)
    return y, last, (inverse, *kept) if keep else None


def backward(q, k, v, beta, log_decay, kept, y_bar, last_bar, tiles: Tiles, *, interpret):
    """The adjoint.

    Args:
      q, k, v, beta, log_decay, tiles, interpret: as in ``forward``.
      kept: of ``forward``.
      y_bar: like v.
      last_bar: [B, H, K, V], float32.

    Returns:
      Cotangents of q and k [B, T, H, K] (float32 where heads share them), v, beta and log_decay (float32), and initial.
    """
    batch, steps, heads, values = v.shape
    inverse, u, starts = kept
    storage, keys, size = v.dtype, q.shape[-1], tiles.chunk
    wide = max(16, power_of_two(keys))
    chunks = -(-steps // size)
    dot = _dot(storage, interpret)

    def walk(q_ref, k_ref, y_ref, beta_ref, decay_ref, inverse_ref, last_ref, u_ref, ends_ref, first_ref):
        place = _Place(heads, steps, (keys, values))
        first = pl.program_id(1) * tiles.width

        def body(i, state_bar):
            n = chunks - 1 - i
            t = n * size
            place.store_state(ends_ref, (n,), state_bar, first)
            q, k = (place.load(ref, t, size, wide) for ref in (q_ref, k_ref))
            y_bar = place.load(y_ref, t, size, tiles.width, first)
            beta = place.line(beta_ref, t, size)[:, None]
            decays = chunk.relations(place.decay(decay_ref, t, size)[None, :])
            u_bar, state_bar = chunk.backward(
                q, k, y_bar, beta, inverse_ref[place.b, place.h, n], state_bar, decays, dot
            )
            place.store(u_ref, t, u_bar, first)
            return state_bar

        state_bar = lax.fori_loop(0, chunks, body, place.load_state(last_ref, (), (wide, tiles.width), first))
        place.store_state(first_ref, (), state_bar, first)

    u_bar, ends, initial_bar = pl.pallas_call(
        walk,
        out_shape=[
            jax.ShapeDtypeStruct(v.shape, storage),
            jax.ShapeDtypeStruct(starts.shape, storage),
            jax.ShapeDtypeStruct(last_bar.shape, jnp.float32),
        ],
        grid=(batch * heads, -(-values // tiles.width)),
        compiler_params=gpu_params(num_warps=tiles.warps, num_stages=1),
        interpret=interpret,
        name="delta_rule_backward",
    )(q, k, y_bar, beta, log_decay, inverse, last_bar)

    def collect(
        q_ref, k_ref, v_ref, beta_ref, decay_ref, y_ref, u_ref, ubar_ref, starts_ref, ends_ref,
        qbar_ref, kbar_ref, vbar_ref, betabar_ref, decaybar_ref,
    ):  # fmt: skip
        place, n = _Place(heads, steps, (keys, values)), pl.program_id(1)
        t = n * size
        beta = place.line(beta_ref, t, size)[:, None]

        def body(i, sums):
            first = i * tiles.gathered
            v, y_bar, u, u_bar = (
                place.load(ref, t, size, tiles.gathered, first) for ref in (v_ref, y_ref, u_ref, ubar_ref)
            )
            state, state_bar = (
                place.load_state(ref, (n,), (wide, tiles.gathered), first) for ref in (starts_ref, ends_ref)
            )
            place.store(vbar_ref, t, beta * u_bar, first)
            return jax.tree.map(jnp.add, sums, chunk.gather(v, y_bar, u, u_bar, state, state_bar, dot))

        shapes = [(size, wide)] * 3 + [(size, size)] * 2 + [(size, 1), (1, 1)]
        sums = chunk.Sums(*(jnp.zeros(shape, jnp.float32) for shape in shapes))
        sums = lax.fori_loop(0, -(-values // tiles.gathered), body, sums)
        q, k = (place.load(ref, t, size, wide) for ref in (q_ref, k_ref))
        decays = chunk.relations(place.decay(decay_ref, t, size)[None, :])
        q_bar, k_bar, beta_bar, decay_bar = chunk.gradients(q, k, beta, sums, decays, dot)
        place.store(qbar_ref, t, q_bar)
        place.store(kbar_ref, t, k_bar)
        place.store_line(betabar_ref, t, jnp.sum(beta_bar, axis=1))
        place.store_line(decaybar_ref, t, jnp.sum(decay_bar, axis=0))

    # what is summed over heads afterwards is not rounded before
    keyed = jax.ShapeDtypeStruct(
        (batch, steps, heads, keys), storage if q.shape[2] == heads else jnp.float32
    )
    line = jax.ShapeDtypeStruct(beta.shape, jnp.float32)
    q_bar, k_bar, v_bar, beta_bar, decay_bar = pl.pallas_call(
        collect,
        out_shape=[keyed, keyed, jax.ShapeDtypeStruct(v.shape, storage), line, line],
        grid=(batch * heads, chunks),
        compiler_params=gpu_params(num_warps=8, num_stages=1),
        interpret=interpret,
        name="delta_rule_gradients",
    )(q, k, v, beta, log_decay, y_bar, u, u_bar, starts, ends)
    return q_bar, k_bar, v_bar, beta_bar, decay_bar, initial_bar


forward = partial(jax.jit, static_argnums=6, static_argnames=("keep", "interpret"))(forward)
backward = partial(jax.jit, static_argnums=8, static_argnames=("interpret",))(backward)
