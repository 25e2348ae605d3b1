"""Recurrence with a matrix as its state, for GPU and TPU: linear attention with a decay, RetNet, Mamba-2, GLA.

    S_t = diag(exp(g_t)) S_{t-1} + k_t v_t^T        S_t [K, V], float32, on chip
    y_t = q_t S_t

Shapes, with G heads of q and k shared by H = G * R heads of v:

    q, k       [B, T, G, K]                float32 or bfloat16
    v          [B, T, H, V]
    log_decay  None, [B, T, H] or [B, T, H, K], <= 0
    initial    [B, H, K, V]                zero when None
    y          [B, T, H, V]                in the result type of q, k and v
    last       [B, H, K, V]                float32

Products have operands in the storage type and float32 sums; decays, states and their products are float32. The gradients
of v, q and k are the same recurrence on other arguments (``chunk``), each one pass; no state but the last is written to
memory. That of log_decay follows from those of q and k: with r_t = q_t * dq_t - k_t * dk_t it is r_t + r_{t+1} + ... + r_T
plus <S_T, dS_T>.

Where batch times heads is too small for a GPU, time is cut into segments: their states from zero, the carries between them,
then all segments side by side; writes and content are read once more. What there is no kernel for (``tiles.fits``) runs
``reference``.
"""

import functools

import jax
import jax.numpy as jnp
from jax import Array, lax

from pallas_kernels.chunked import gpu, tpu
from pallas_kernels.chunked.reference import reference
from pallas_kernels.chunked.tiles import NOTHING, fits, tiles
from pallas_kernels.compat import resolve

_KERNELS = {"gpu": gpu, "tpu": tpu}


def chunked(
    q: Array,
    k: Array,
    v: Array,
    log_decay: Array | None = None,
    initial: Array | None = None,
    *,
    platform: str | None = None,
    interpret: bool | None = None,
) -> tuple[Array, Array]:
    """Runs ``S_t = diag(exp(log_decay_t)) S_{t-1} + k_t v_t^T`` and reads ``y_t = q_t S_t``, along axis 1.

    Args:
      q, k: [B, T, G, K], T >= 1.
      v: [B, T, H, V], H a multiple of G.
      log_decay: one number per head, one per key channel, or None; -inf lets nothing through.
      initial: the state before the first step; zeros when None.
      platform: "gpu" or "tpu"; None is this machine's, "gpu" on a CPU.
      interpret: interpret the kernel; None does so where the machine is not of that platform.

    Returns:
      y: [B, T, H, V] in the result type of q, k and v.
      last: [B, H, K, V], float32 (float64 if an argument is).

    Raises:
      TypeError: an argument is not floating-point, or complex.
      ValueError: shapes do not fit, T = 0, or an unknown platform.
    """
    platform, interpret = resolve(platform, interpret)
    _check(q, k, v, log_decay, initial)
    dtype = jnp.result_type(q, k, v)
    carried = jnp.promote_types(
        dtype, jnp.float32 if initial is None else jnp.promote_types(initial.dtype, jnp.float32)
    )
    if log_decay is not None:
        carried = jnp.promote_types(carried, log_decay.dtype)
    batch, _, _, keys = q.shape
    heads, values = v.shape[2:]
    if initial is None:
        initial = jnp.zeros((batch, heads, keys, values), carried)
    q, k, v, initial = q.astype(dtype), k.astype(dtype), v.astype(dtype), initial.astype(carried)
    if not fits(platform, keys, values, dtype) or carried != jnp.float32:
        return reference(q, k, v, log_decay, initial)
    y, last = _run((platform, interpret), q, k, v, log_decay, jnp.swapaxes(initial, -1, -2))
    return y, jnp.swapaxes(last, -1, -2)


def _check(q, k, v, log_decay, initial):
    """Checks every array."""
    given = {"q": q, "k": k, "v": v, "log_decay": log_decay, "initial": initial}
    for name, array in given.items():
        if array is None and name in ("log_decay", "initial"):
            continue
        if not jnp.issubdtype(getattr(array, "dtype", object), jnp.floating):
            raise TypeError(f"{name} must be a real floating-point array, got {getattr(array, 'dtype', type(array))}")
    if q.ndim != 4 or v.ndim != 4 or q.shape[1] == 0:
        raise ValueError(
            f"q and v must have shape [batch, time >= 1, heads, width], got {list(q.shape)} and {list(v.shape)}"
        )
    batch, steps, groups, keys = q.shape
    heads, values = v.shape[2:]
    if k.shape != q.shape or v.shape[:2] != (batch, steps) or heads % groups:
        raise ValueError(
            f"k must have the shape of q {list(q.shape)}, and v {[batch, steps, f'multiple of {groups}', 'width']}; "
            f"got {list(k.shape)} and {list(v.shape)}"
        )
    if log_decay is not None and log_decay.shape not in ((batch, steps, heads), (batch, steps, heads, keys)):
        raise ValueError(
            f"log_decay must have shape {[batch, steps, heads]} or {[batch, steps, heads, keys]}, "
            f"got {list(log_decay.shape)}"
        )
    if initial is not None and initial.shape != (batch, heads, keys, values):
        raise ValueError(f"initial must have shape {[batch, heads, keys, values]}, got {list(initial.shape)}")


def _attend(
    options, reads, writes, content, log_decay, states, *, side, reverse, dtype, match=None, outputs=True, total=False
):
    """One pass of a kernel from the states [B, H, segments, V, K] at which the segments start."""
    platform, interpret = options
    channels = log_decay is not None and log_decay.ndim == 4
    plan = tiles(
        platform, states.shape[0] * states.shape[1], content.shape[1], writes.shape[-1], content.shape[-1], channels,
        content.dtype,
    )  # fmt: skip
    return _KERNELS[platform].attend(
        reads, writes, content, log_decay, match, states, plan, side=side, reverse=reverse, outputs=outputs,
        total=total, dtype=jnp.dtype(dtype), interpret=interpret,
    )  # fmt: skip


def _starts(options, writes, content, log_decay, state, reverse):
    """The states [B, H, segments, V, K] at which the segments start, for the state [B, H, V, K] before the first one."""
    steps = content.shape[1]
    channels = log_decay is not None and log_decay.ndim == 4
    plan = tiles(
        options[0], state.shape[0] * state.shape[1], steps, writes.shape[-1], content.shape[-1], channels, content.dtype
    )
    if plan.segments == 1:
        return state[:, :, None]
    zero = jnp.zeros((*state.shape[:2], plan.segments, *state.shape[2:]), jnp.float32)
    ends = _attend(
        options, None, writes, content, log_decay, zero, side="reads", reverse=reverse, dtype=jnp.float32, outputs=False
    )[2]
    size = -(-steps // (plan.chunk * plan.segments)) * plan.chunk
    if log_decay is None:
        factor = jnp.ones((plan.segments, 1, 1, 1, 1))
    else:
        decay = jnp.maximum(log_decay.astype(jnp.float32), NOTHING)
        decay = jnp.pad(decay, [(0, 0), (0, size * plan.segments - steps)] + [(0, 0)] * (log_decay.ndim - 2))
        decay = jnp.sum(decay.reshape(decay.shape[0], plan.segments, size, decay.shape[2], -1), axis=2)
        factor = jnp.exp(jnp.swapaxes(decay, 0, 1))[..., None, :]

    def step(state, now):
        factor, end = now
        return factor * state + end, state

    starts = lax.scan(step, state, (factor, jnp.moveaxis(ends, 2, 0)), reverse=reverse)[1]
    return jnp.moveaxis(starts, 0, 2)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _run(options, q, k, v, log_decay, state):
    return _forward(options, q, k, v, log_decay, state)[0]


def _forward(options, q, k, v, log_decay, state):
    starts = _starts(options, k, v, log_decay, state, False)
    y, _, ends = _attend(options, q, k, v, log_decay, starts, side="reads", reverse=False, dtype=v.dtype)
    last = ends[:, :, -1]
    return (y, last), (q, k, v, log_decay, starts, last)


def _backward(options, kept, cotangents):
    q, k, v, log_decay, starts, last = kept
    y_bar, last_bar = cotangents
    y_bar = y_bar.astype(v.dtype)
    groups = q.shape[2]
    channels = log_decay is not None and log_decay.ndim == 4
    fine = jnp.float32 if channels else q.dtype  # not rounded where sums over time follow
    run = functools.partial(_attend, options, log_decay=log_decay)
    ends = _starts(options, q, y_bar, log_decay, last_bar, True)
    v_bar, _, firsts = run(k, q, y_bar, states=ends, side="reads", reverse=True, dtype=v.dtype)
    per_head = log_decay is not None and not channels
    q_bar, q_sums, _ = run(
        y_bar, v, k, states=starts, side="content", reverse=False, dtype=fine, match=q if per_head else None,
        total=not channels,
    )  # fmt: skip
    k_bar, k_sums, _ = run(
        v, y_bar, q, states=ends, side="content", reverse=True, dtype=fine, match=k if per_head else None,
        total=not channels,
    )  # fmt: skip

    def per_group(array):
        return array.reshape(*array.shape[:2], groups, -1, array.shape[-1])

    decay_bar = None
    if log_decay is not None:
        final = jnp.sum(last * last_bar, axis=-2)
        if channels:
            change = q[:, :, :, None] * per_group(q_bar) - k[:, :, :, None] * per_group(k_bar)
            change = change.reshape(q_bar.shape)
        else:
            change, final = q_sums - k_sums, jnp.sum(final, axis=-1)
        decay_bar = jnp.where(log_decay > NOTHING, _sums_from(change) + final[:, None], 0).astype(log_decay.dtype)
    if channels:
        q_bar, k_bar = (jnp.sum(per_group(a), axis=3).astype(q.dtype) for a in (q_bar, k_bar))
    return q_bar, k_bar, v_bar, decay_bar, firsts[:, :, 0]


def _sums_from(array, size=64):
    """array_t + array_{t+1} + ... along axis 1, in blocks: sums of blocks first, then inside of each."""
    batch, steps = array.shape[:2]
    blocks = jnp.pad(array, [(0, 0), (0, -steps % size)] + [(0, 0)] * (array.ndim - 2))
    blocks = blocks.reshape(batch, -1, size, *array.shape[2:])
    totals = jnp.sum(blocks, axis=2)
    after = lax.cumsum(totals, axis=1, reverse=True) - totals
    inside = jnp.einsum("ts,bns...->bnt...", jnp.triu(jnp.ones((size, size), array.dtype)), blocks, precision="highest")
    return (inside + after[:, :, None]).reshape(batch, -1, *array.shape[2:])[:, :steps]


_run.defvjp(_forward, _backward)
