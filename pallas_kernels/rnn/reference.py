"""The recurrence in plain jnp, one matrix product and one pointwise step per time step: the meaning of the kernels.

With S states, of which the first is h, and gates g of every head n (``cells`` says which of them R and Wx feed):

    forward     raw = Wx[t] + R[g, n] h_{t-1} + b;  states = cell.pointwise(raw, states_{t-1})
    backward    d_raw, d_states = cell.backward(d_states_t + carried, ...);  dh_{t-1} += sum_g R[g, n]^T d_raw[g]

``step`` and ``step_back`` are also what the kernels run on their tiles. The alternating form is this file with a kernel in
their place.
"""

from jax import lax
from jax import numpy as jnp


def step(cell, recurrent, inputs, bias, states, *, clip):
    """One pointwise step on tuples of tiles: (states, gates), |h| bounded by ``clip``."""
    states, gates = cell.pointwise(recurrent, inputs, bias, states)
    if clip is not None:
        states = (jnp.clip(states[0], -clip, clip), *states[1:])
    return states, gates


def step_back(cell, d_states, gates, previous, states, *, clip):
    """Gradient of ``step`` on tuples of tiles: (of every pre-activation, of the states before but for what R carries)."""
    if clip is not None:
        d_states = (jnp.where(jnp.abs(states[0]) < clip, d_states[0], 0.0), *d_states[1:])
    return cell.backward(d_states, gates, previous, states)


def forward(cell, Wx, R, b, initial, *, save_gates, clip, pointwise=None):
    """Runs the recurrence.

    Args:
      cell: a ``cells.Cell``.
      Wx: [B, T, Gw, N, D].
      R: [Gr, N, Dout, Din]; products run in its dtype and accumulate in that of ``initial``.
      b: [Gt, N, D].
      initial: [S, B, N, D], float32 (float64 where Wx is).
      save_gates: whether to return what the backward pass needs.
      clip: bound of |h|, or None.
      pointwise: ``step`` on stacked arrays (see ``stacked``), or None for that.

    Returns:
      states [S, B, T, N, D] in the dtype of Wx, last [S, B, N, D] like ``initial``, gates [B, T, Gi, N, D] or None.
    """
    batch, steps, _, heads, dim = Wx.shape
    if pointwise is None:
        pointwise = stacked(cell, clip)
    wx = jnp.transpose(Wx, (1, 2, 0, 3, 4)).reshape(steps, cell.gates_w, batch, heads * dim)
    bias = b.reshape(cell.gates_t, 1, heads * dim).astype(initial.dtype)

    def advance(states, wx):
        hidden = states[0].reshape(batch, heads, dim).astype(R.dtype)
        recurrent = jnp.einsum("bnj,gnij->gbni", hidden, R, preferred_element_type=initial.dtype)
        states, gates = pointwise(recurrent.reshape(cell.gates_r, batch, heads * dim), wx, bias, states)
        return states, (states.astype(Wx.dtype), gates.astype(Wx.dtype) if save_gates else None)

    last, (states, gates) = lax.scan(advance, initial.reshape(cell.states, batch, heads * dim), wx)
    states = jnp.transpose(states.reshape(steps, cell.states, batch, heads, dim), (1, 2, 0, 3, 4))
    if save_gates:
        gates = jnp.transpose(gates.reshape(steps, cell.gates_i, batch, heads, dim), (2, 0, 1, 3, 4))
    return states, last.reshape(initial.shape), gates


def backward(cell, R, gates, states, initial, d_states, d_last, *, clip, cut, recurrent_clip, pointwise=None):
    """Runs the recurrence of the gradients, from the last step to the first.

    Args:
      cell, R, initial, clip: as in ``forward``.
      gates, states: what ``forward`` returned.
      d_states: [S, B, T, N, D], gradient of ``states``.
      d_last: [S, B, N, D], gradient of the last states.
      cut: no gradient through R h.
      recurrent_clip: bound of every element of the gradient through R h, or None.
      pointwise: ``step_back`` on stacked arrays (see ``stacked_back``), or None for that.

    Returns:
      d_gates [B, T, Gt, N, D], gradient of every pre-activation in the dtype of ``states``, and d_initial [S, B, N, D].
    """
    count, batch, steps, heads, dim = states.shape
    width = heads * dim
    if pointwise is None:
        pointwise = stacked_back(cell, clip)
    previous = jnp.concatenate([initial[:, :, None].astype(states.dtype), states[:, :, :-1]], axis=2)

    def by_time(array):
        return jnp.transpose(array, (2, 0, 1, 3, 4)).reshape(steps, count, batch, width)

    xs = (
        jnp.transpose(gates, (1, 2, 0, 3, 4)).reshape(steps, cell.gates_i, batch, width),
        by_time(previous), by_time(states), by_time(d_states),
    )  # fmt: skip

    def retreat(d_carried, xs):
        gates, before, after, upstream = xs
        d_gates, d_before = pointwise(d_carried + upstream, gates, before, after)
        if not cut:
            through = d_gates[jnp.array(cell.recurrent_gates)].reshape(cell.gates_r, batch, heads, dim).astype(R.dtype)
            through = jnp.einsum("gbni,gnij->bnj", through, R, preferred_element_type=initial.dtype)
            if recurrent_clip is not None:
                through = jnp.clip(through, -recurrent_clip, recurrent_clip)
            d_before = d_before.at[0].add(through.reshape(batch, width))
        return d_before, d_gates.astype(states.dtype)

    d_initial, d_gates = lax.scan(retreat, d_last.reshape(count, batch, width), xs, reverse=True)
    d_gates = jnp.transpose(d_gates.reshape(steps, cell.gates_t, batch, heads, dim), (2, 0, 1, 3, 4))
    return d_gates, d_initial.reshape(initial.shape)


def weight_gradient(d_gates, states, initial):
    """What sums over batch and time: (dR [Gt, N, D, D] of every gate, db [Gt, N, D])."""
    first = initial[:1, :, None].astype(states.dtype)
    before = jnp.concatenate([first, states[:1, :, :-1]], axis=2)[0]
    d_R = jnp.einsum("btgni,btnj->gnij", d_gates, before, preferred_element_type=initial.dtype)
    return d_R, jnp.sum(d_gates, (0, 1), dtype=initial.dtype)


def gates(cell, Wx, R, b, initial, states):
    """The gates [B, T, Gi, N, D] of all steps at once, from the states that ``forward`` returned."""
    previous = jnp.concatenate([initial[:, :, None], states[:, :, :-1].astype(initial.dtype)], axis=2)
    recurrent = jnp.einsum("btnj,gnij->gbtni", previous[0].astype(R.dtype), R, preferred_element_type=initial.dtype)
    wx = jnp.moveaxis(Wx, 2, 0).astype(initial.dtype)
    _, saved = cell.pointwise(tuple(recurrent), tuple(wx), tuple(b), tuple(previous))
    return jnp.stack(saved, axis=2).astype(Wx.dtype)


def stacked(cell, clip):
    """``step`` on arrays: (recurrent [Gr, B, E], Wx [Gw, B, E], b [Gt, 1, E], states [S, B, E]) to states and gates."""

    def run(recurrent, wx, bias, states):
        states, gates = step(
            cell, tuple(recurrent), tuple(wx.astype(states.dtype)), tuple(bias), tuple(states), clip=clip
        )
        return jnp.stack(states), jnp.stack(gates)

    return run


def stacked_back(cell, clip):
    """``step_back`` on arrays: (d_states [S, B, E], gates [Gi, B, E], states before and after) to d_gates and d_before."""

    def run(d_states, gates, before, after):
        gates, before, after = (tuple(x.astype(d_states.dtype)) for x in (gates, before, after))
        d_gates, d_before = step_back(cell, tuple(d_states), gates, before, after, clip=clip)
        return jnp.stack(d_gates), jnp.stack(d_before)

    return run
