"""``linear_scan`` for GPUs through the Triton lowering: a loop over time inside each program, the state in registers."""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from pallas_kernels.compat import gpu_params
from pallas_kernels.linear_scan.planes import add, adjoint, identity, multiply, outer
from pallas_kernels.linear_scan.tiles import GpuTile, gpu_tile


def scan(decay, inputs, initial, *, reverse, after, conjugated=False, interpret):
    """States and last carry; see ``pallas_kernels.linear_scan``. ``conjugated``: with the adjoint of ``decay``.

    Args:
      decay: planes [B or 1, T or 1, N], see ``pallas_kernels.linear_scan.planes``.
      inputs: planes [B, T, N].
      initial: planes [B, N], float32.

    Returns:
      states: planes [B, T, N] in the dtype of ``inputs``.
      last: planes [B, N], float32.
    """
    tile = _tile(decay, inputs)
    if tile.chunks == 1:
        states, last = _call(decay, inputs, initial, None, None, tile, "states", reverse, after, conjugated, interpret)
        return states, last
    carries, last = _carries(decay, inputs, initial, tile, reverse, after, conjugated, interpret)
    (states,) = _call(decay, inputs, initial, carries, None, tile, "states", reverse, after, conjugated, interpret)
    return states, last


def gradient(decay, states, initial, states_bar, last_bar, *, reverse, interpret):
    """The transposed recurrence and the derivative by the decay, in one pass.

    Args:
      decay, states, initial: of the forward call, as planes.
      states_bar, last_bar: cotangents, planes [B, T, N] and [B, N] (float32).
      reverse: of the forward call.

    Returns:
      inputs_bar: planes [B, T, N].
      decay_bar: planes [B, T, N] in the dtype of ``decay``; float32 partial sums over chunks of time [B, K, N] when
        decay is constant in time.
      initial_bar: planes [B, N], float32.
    """
    tile = _tile(decay, states_bar)
    direction = (tile, "gradient", not reverse, True, True, interpret)
    if tile.chunks == 1:
        inputs_bar, initial_bar, decay_bar = _call(decay, states_bar, last_bar, None, (states, initial), *direction)
    else:
        carries, initial_bar = _carries(decay, states_bar, last_bar, tile, not reverse, True, True, interpret)
        inputs_bar, decay_bar = _call(decay, states_bar, last_bar, carries, (states, initial), *direction)
    return inputs_bar, decay_bar, initial_bar


def _tile(decay, inputs):
    return gpu_tile(*inputs[0].shape, len(decay) + len(inputs))


def _carries(decay, inputs, initial, tile, reverse, after, conjugated, interpret):
    """The carry behind every chunk of time, planes [B, K, N], and the last one."""
    products, ends = _call(decay, inputs, initial, None, None, tile, "summary", reverse, after, conjugated, interpret)
    return scan(products, ends, initial, reverse=reverse, after=False, interpret=interpret)


def _call(decay, inputs, initial, carries, forward, tile, mode, reverse, after, conjugated, interpret):
    """One launch; ``mode`` is "states", "summary" (each chunk's affine map only) or "gradient"."""
    batch, steps, channels = inputs[0].shape
    whole_row = [pl.BlockSpec((None, steps, tile.channels), lambda b, n, k: (b, 0, n))]
    state = [pl.BlockSpec((None, tile.channels), lambda b, n, k: (b, n))]
    per_chunk = [pl.BlockSpec((None, tile.chunks, tile.channels), lambda b, n, k: (b, 0, n))]
    rows, constant = decay[0].shape[0], decay[0].shape[1] == 1
    of_decay = [
        pl.BlockSpec((None, decay[0].shape[1], tile.channels), lambda b, n, k: (b if rows > 1 else 0, 0, n))
    ]  # fmt: skip

    operands, specs = [decay, inputs], [of_decay * len(decay), whole_row * len(inputs)]
    if mode != "summary":
        operands, specs = [*operands, initial], [*specs, state * len(initial)]
    if carries is not None:
        operands, specs = [*operands, carries], [*specs, per_chunk * len(carries)]
    if mode == "gradient":
        operands += forward
        specs += [whole_row * len(forward[0]), state * len(forward[1])]

    def like(planes, middle, dtype):
        return [jax.ShapeDtypeStruct((batch, *middle, channels), dtype)] * len(planes)

    if mode == "summary":
        outputs = [like(decay, (tile.chunks,), jnp.float32), like(inputs, (tile.chunks,), jnp.float32)]
        out_specs = [per_chunk * len(decay), per_chunk * len(inputs)]
    else:
        outputs, out_specs = [like(inputs, (steps,), inputs[0].dtype)], [whole_row * len(inputs)]
        if carries is None:
            outputs, out_specs = [*outputs, like(inputs, (), jnp.float32)], [*out_specs, state * len(inputs)]
        if mode == "gradient" and constant:
            outputs, out_specs = (
                [*outputs, like(decay, (tile.chunks,), jnp.float32)],
                [*out_specs, per_chunk * len(decay)],
            )
        elif mode == "gradient":
            outputs, out_specs = [*outputs, like(decay, (steps,), decay[0].dtype)], [*out_specs, whole_row * len(decay)]

    body = functools.partial(
        _kernel, steps=steps, width=channels, tile=tile, mode=mode, reverse=reverse, after=after, constant=constant,
        conjugated=conjugated, given=carries is not None,
    )  # fmt: skip
    counts = [len(o) for o in operands] + [len(o) for o in outputs]

    def kernel(*refs):
        groups, at = [], 0
        for count in counts:
            groups.append(refs[at : at + count])
            at += count
        body(groups)

    flat = pl.pallas_call(
        kernel,
        out_shape=[o for group in outputs for o in group],
        grid=(batch, -(-channels // tile.channels), tile.chunks),
        in_specs=[s for group in specs for s in group],
        out_specs=[s for group in out_specs for s in group],
        compiler_params=gpu_params(num_warps=tile.warps, num_stages=1),
        interpret=interpret,
        name=f"linear_scan_{mode}",
    )(*[plane for operand in operands for plane in operand])
    results = []
    for group in outputs:
        results.append(tuple(flat[: len(group)]))
        flat = flat[len(group) :]
    return results


def _kernel(groups, *, steps, width, tile: GpuTile, mode, reverse, after, conjugated, constant, given):
    """One batch row, one tile of channels, one chunk of time."""
    groups = list(groups)
    decay, inputs = groups.pop(0), groups.pop(0)
    initial = groups.pop(0) if mode != "summary" else None
    carries = groups.pop(0) if given else None
    states, before = (groups.pop(0), groups.pop(0)) if mode == "gradient" else (None, None)

    chunk = pl.program_id(2)
    lane = pl.program_id(1) * tile.channels + jnp.arange(tile.channels)
    mask = lane < width if width % tile.channels else None

    def at_row(ref, index):
        return ref.at[(*(jnp.asarray(i, jnp.int32) for i in index), slice(None))]

    def load(refs, *index):
        return tuple(
            plgpu.load(at_row(r, index), mask=mask, other=None if mask is None else 0.0).astype(jnp.float32)
            for r in refs
        )

    def store(refs, values, *index):
        for r, v in zip(refs, values, strict=True):
            plgpu.store(at_row(r, index), v.astype(r.dtype), mask=mask)

    # the steps of this chunk are visited as i = 0, 1, ...
    if tile.chunks == 1:
        start, count = 0, steps
    else:
        start = chunk * tile.chunk
        count = jnp.minimum(tile.chunk, steps - start)

    def at(i):
        return start + (count - 1 - i if reverse else i)

    zero = tuple(jnp.zeros((tile.channels,), jnp.float32) for _ in inputs)
    if mode == "summary":
        carry = zero
    else:
        carry = load(initial)
        if given:
            earlier = chunk + 1 if reverse else chunk - 1
            first = earlier >= tile.chunks if reverse else earlier < 0
            from_chunk = load(carries, jnp.clip(earlier, 0, tile.chunks - 1))
            carry = tuple(jnp.where(first, c, d) for c, d in zip(carry, from_chunk, strict=True))

    def rate_at(t):
        a = load(decay, t)
        return adjoint(a) if conjugated else a

    rate = rate_at(0) if constant else None
    product = tuple(jnp.full_like(zero[0], p) for p in identity(len(decay))) if mode == "summary" else ()
    total = tuple(jnp.zeros_like(zero[0]) for _ in decay) if mode == "gradient" and constant else ()
    edge = load(before) if mode == "gradient" else None

    def advance(i, rows, loop):
        """``rows`` steps from the i-th on: all loads, then the chain of operations, then all stores."""
        carry, product, total = loop
        times = [at(i + j) for j in range(rows)]
        rates = [rate if constant else rate_at(t) for t in times]
        values = [load(inputs, t) for t in times]
        if mode == "gradient":  # the state that this step's decay was applied to
            neighbours = []
            for t in times:
                other = t - 1 if reverse else t + 1
                outside = other < 0 if reverse else other >= steps
                there = load(states, jnp.clip(other, 0, steps - 1))
                neighbours.append(tuple(jnp.where(outside, e, s) for e, s in zip(edge, there, strict=True)))
        outs = []
        for a, x in zip(rates, values, strict=True):
            if after:
                outs.append(add(x, carry))
                carry = multiply(a, outs[-1])
            else:
                carry = add(multiply(a, carry), x)
                outs.append(carry)
            if mode == "summary":
                product = multiply(a, product)
        if mode == "summary":
            return carry, product, total
        for t, out in zip(times, outs, strict=True):
            store(groups[0], out, t)
        if mode == "gradient":
            for t, out, state in zip(times, outs, neighbours, strict=True):
                bar = outer(out, state, len(decay))
                if constant:
                    total = add(total, bar)
                else:
                    store(groups[-1], bar, t)
        return carry, product, total

    whole = count // tile.rows
    loop = lax.fori_loop(0, whole, lambda g, loop: advance(g * tile.rows, tile.rows, loop), (carry, product, total))
    carry, product, total = lax.fori_loop(whole * tile.rows, count, lambda i, loop: advance(i, 1, loop), loop)

    if mode == "summary":
        store(groups[0], product, chunk)
        store(groups[1], carry, chunk)
        return
    if not given:
        store(groups[1], carry)
    if total:
        store(groups[-1], total, chunk)
