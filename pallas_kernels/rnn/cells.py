"""Cells of recurrent networks: what happens in one step after the matrix products, elementwise, and its gradient.

Every gate g of a cell has a pre-activation ``raw[g] = b[g] + (R[g] h if the gate is recurrent) + (Wx[g] if it is an input
gate)``; a cell maps (raw, states) to new states. Everything is a tuple of arrays of one shape, so the same functions run on
whole arrays and on the tiles of a kernel. State 0 is h, the only one that R sees.

    elman   h' = tanh(raw)
    lstm    gates i, f, z, o; states h, c      c' = sigmoid(f) c + sigmoid(i) tanh(z);  h' = sigmoid(o) tanh(c')
    gru     gates g, r, z, n; state h          h' = sigmoid(z) h + (1 - sigmoid(z)) tanh(n + sigmoid(r) g)
            R feeds g, r, z, and Wx feeds r, z, n
    slstm   gates i, f, z, o; states h, c, n, m, all zero at the start
            m' = max(i, log sigmoid(f) + m), where n = 0 just i;  I = exp(i - m');  F = exp(log sigmoid(f) + m - m')
            c' = F c + I tanh(z);  n' = max(F n + I, 1);  h' = sigmoid(o) c' / n'

c, n of the sLSTM are known up to a common factor exp(m), which h does not depend on: m gets no gradient, and the maximum
with 1, which only guards against rounding since I or F is 1, has derivative 1.

``register`` adds a cell; without a gradient of its own, JAX derives one from its step.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax


@dataclasses.dataclass(frozen=True)
class Cell:
    """A pointwise cell.

    Attributes:
      name: its name.
      gates_r, gates_w, gates_t: gates that R feeds, that Wx feeds, and all of them (each with a bias).
      gates_i: arrays per step that the gradient needs besides the states.
      states: number of states.
      recurrent_gates: which gates R feeds, in R's order.
      input_gates: which gates Wx feeds, in Wx's order.
      step: ``step(raw, states) -> (new states, saved)``, tuples of arrays; ``saved`` has ``gates_i`` of them.
      step_back: ``step_back(d_states, saved, before, after) -> (d_raw, d_before)``: the gradient of ``step``; ``before`` and
        ``after`` are the states around the step.
    """

    name: str
    gates_r: int
    gates_w: int
    gates_i: int
    gates_t: int
    states: int
    recurrent_gates: tuple[int, ...]
    input_gates: tuple[int, ...]
    step: Callable
    step_back: Callable

    @property
    def simple_agg(self) -> bool:
        """Whether every gate is ``Wx + R h + b``, all in the same order."""
        return self.recurrent_gates == self.input_gates == tuple(range(self.gates_t))

    def pointwise(self, recurrent, inputs, bias, states):
        """One step: (R h of the recurrent gates, Wx of the input gates, b of all, states) to (new states, saved)."""
        raw = list(bias)
        for gates, terms in ((self.recurrent_gates, recurrent), (self.input_gates, inputs)):
            for gate, term in zip(gates, terms, strict=True):
                raw[gate] = raw[gate] + term
        return self.step(tuple(raw), tuple(states))

    def backward(self, d_states, saved, before, after):
        """Gradient of ``pointwise``: (of ``raw`` for all gates, of ``states`` but for what went through R)."""
        return self.step_back(tuple(d_states), tuple(saved), tuple(before), tuple(after))


_CELLS: dict[str, Cell] = {}


def cell(name: str) -> Cell:
    """The cell called ``name``; ValueError that lists those there are."""
    if name not in _CELLS:
        raise ValueError(f"unknown function {name!r} (known: {', '.join(_CELLS)})")
    return _CELLS[name]


def names() -> tuple[str, ...]:
    """Names of all cells."""
    return tuple(_CELLS)


def register(
    name: str,
    pointwise: Callable,
    *,
    counts: tuple[int, int, int, int, int],
    simple_agg: bool = True,
    recurrent_gates: tuple[int, ...] | None = None,
    input_gates: tuple[int, ...] | None = None,
    backward: Callable | None = None,
) -> Cell:
    """Adds a cell, or replaces the one of this name.

    Args:
      name: what ``function=`` calls it.
      pointwise: ``pointwise(raw, states) -> new states`` on tuples of arrays, of jnp functions that act elementwise. With
        ``backward`` it returns ``(new states, saved)``.
      counts: (gates_r, gates_w, gates_i, gates_t, states). Without ``backward`` gates_i is gates_t.
      simple_agg: every gate is Wx + R h + b; then gates_r = gates_w = gates_t.
      recurrent_gates: which gates R feeds; None: the first gates_r.
      input_gates: which gates Wx feeds; None: the last gates_w.
      backward: ``backward(d_states, saved, before, after) -> (d_raw, d_before)``; None derives it by ``jax.vjp``.

    Raises:
      ValueError: the counts contradict ``simple_agg``, ``backward`` or the gates, or a gate gets neither R h nor Wx.
    """
    gates_r, gates_w, gates_i, gates_t, states = counts
    if min(counts) < 1:
        raise ValueError(f"counts must be at least 1 each, got {counts}")
    if simple_agg and not gates_r == gates_w == gates_t:
        raise ValueError(f"with simple_agg gates_r = gates_w = gates_t, got {gates_r}, {gates_w}, {gates_t}")
    recurrent_gates = tuple(range(gates_r)) if recurrent_gates is None else tuple(recurrent_gates)
    input_gates = tuple(range(gates_t - gates_w, gates_t)) if input_gates is None else tuple(input_gates)
    for what, gates, count in (("recurrent_gates", recurrent_gates, gates_r), ("input_gates", input_gates, gates_w)):
        if len(set(gates)) != count or len(gates) != count or not set(gates) <= set(range(gates_t)):
            raise ValueError(f"{what} must be {count} different gates of {gates_t}, got {gates}")
    idle = set(range(gates_t)) - set(recurrent_gates) - set(input_gates)
    if idle:
        raise ValueError(f"gates {sorted(idle)} are in neither recurrent_gates nor input_gates")
    step, step_back = pointwise, backward
    if backward is None:
        if gates_i != gates_t:
            raise ValueError(
                f"without backward the gates are what is kept: gates_i = gates_t, got {gates_i}, {gates_t}"
            )
        step, step_back = _derived(pointwise)
    new = Cell(name, gates_r, gates_w, gates_i, gates_t, states, recurrent_gates, input_gates, step, step_back)
    if simple_agg != new.simple_agg:
        raise ValueError(
            f"simple_agg={simple_agg} contradicts the gates {recurrent_gates} and {input_gates} of {gates_t}"
        )
    _CELLS[name] = new
    return new


def _derived(pointwise):
    """(step, step_back) of a cell that has no gradient of its own: what it keeps is ``raw``."""

    def step(raw, states):
        return tuple(pointwise(raw, states)), raw

    def step_back(d_states, raw, before, after):
        del after
        _, pullback = jax.vjp(lambda raw, states: tuple(pointwise(raw, states)), raw, before)
        return pullback(tuple(d_states))

    return step, step_back


def _elman(raw, states):
    del states
    h = jnp.tanh(raw[0])
    return (h,), (h,)


def _elman_back(d_states, saved, before, after):
    del before, after
    (d_h,), (h,) = d_states, saved
    return (d_h * (1 - h * h),), (jnp.zeros_like(d_h),)


def _lstm(raw, states):
    i, f, o = (lax.logistic(raw[gate]) for gate in (0, 1, 3))
    z = jnp.tanh(raw[2])
    c = f * states[1] + i * z
    return (o * jnp.tanh(c), c), (i, f, z, o)


def _lstm_back(d_states, saved, before, after):
    (d_h, d_c), (i, f, z, o) = d_states, saved
    squashed = jnp.tanh(after[1])
    d_c = d_c + d_h * o * (1 - squashed * squashed)
    d_i = d_c * z * i * (1 - i)
    d_f = d_c * before[1] * f * (1 - f)
    d_z = d_c * i * (1 - z * z)
    d_o = d_h * squashed * o * (1 - o)
    return (d_i, d_f, d_z, d_o), (jnp.zeros_like(d_h), d_c * f)


def _gru(raw, states):
    g, r, z, n = raw
    r, z = lax.logistic(r), lax.logistic(z)
    q = jnp.tanh(n + r * g)
    return (z * states[0] + (1 - z) * q,), (g, r, z, q)


def _gru_back(d_states, saved, before, after):
    del after
    (d_h,), (g, r, z, q) = d_states, saved
    d_q = d_h * (1 - z) * (1 - q * q)
    d_z = d_h * (before[0] - q) * z * (1 - z)
    return (d_q * r, d_q * g * r * (1 - r), d_z, d_q), (d_h * z,)


def _slstm_gates(i, f, m, new_m):
    """Stabilised input and forget gate, at most 1: rounding, and f where n = 0, would go beyond."""
    log_i = i - new_m
    log_f = _log_sigmoid(f) + m - new_m
    return jnp.exp(_at_most(log_i, 0.0)), jnp.exp(_at_most(log_f, 0.0))


def _at_most(x, bound):
    """min(x, bound) with derivative 1."""
    return x + lax.stop_gradient(jnp.minimum(x, bound) - x)


def _log_sigmoid(x):
    return jnp.minimum(x, 0.0) - jnp.log1p(jnp.exp(-jnp.abs(x)))


def _slstm(raw, states):
    _, c, n, m = states
    i, f, z, o = raw
    m = lax.stop_gradient(m)
    new_m = lax.stop_gradient(jnp.where(n == 0, i, jnp.maximum(i, _log_sigmoid(f) + m)))
    gate_i, gate_f = _slstm_gates(i, f, m, new_m)
    z, o = jnp.tanh(z), lax.logistic(o)
    c = gate_f * c + gate_i * z
    n = gate_f * n + gate_i
    n = n + lax.stop_gradient(jnp.maximum(n, 1.0) - n)
    return (o * c / n, c, n, new_m), (i, f, z, o)


def _slstm_back(d_states, saved, before, after):
    d_h, d_c, d_n, _ = d_states
    i, f, z, o = saved
    _, c_before, n_before, m_before = before
    _, c, n, m = after
    gate_i, gate_f = _slstm_gates(i, f, m_before, m)
    ratio = c / n
    d_c = d_c + d_h * o / n
    d_n = d_n - d_h * o * ratio / n
    d_i = (d_c * z + d_n) * gate_i
    d_f = (d_c * c_before + d_n * n_before) * gate_f * lax.logistic(-f)
    d_z = d_c * gate_i * (1 - z * z)
    d_o = d_h * ratio * o * (1 - o)
    zero = jnp.zeros_like(d_h)
    return (d_i, d_f, d_z, d_o), (zero, d_c * gate_f, d_n * gate_f, zero)


register("elman", _elman, counts=(1, 1, 1, 1, 1), backward=_elman_back)
register("lstm", _lstm, counts=(4, 4, 4, 4, 2), backward=_lstm_back)
register("gru", _gru, counts=(3, 3, 4, 4, 1), simple_agg=False, backward=_gru_back)
register("slstm", _slstm, counts=(4, 4, 4, 4, 4), backward=_slstm_back)
