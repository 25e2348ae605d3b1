"""The cells of ParaRNN, and the meaning of ``newton``, in plain jnp.

Numbers are tuples of planes (``pallas_kernels.linear_scan.planes``), all products elementwise:

    paragru   state (h,), gates p = (z, r, candidate), weights (A_z, A_r, A_c)
        z = sigmoid(A_z h + p_z)    r = sigmoid(A_r h + p_r)    c = tanh(A_c h r + p_c)    h' = (1 - z) h + z c
    paralstm  state (c, h), gates p = (f, o, candidate), weights (A_f, A_o, A_g, C_f, C_o)
        f = sigmoid(A_f h + C_f c + p_f)    g = tanh(A_g h + p_g)    c' = f c + (1 - f) g
        o = sigmoid(A_o h + C_o c' + p_o)   h' = o tanh(c')
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax


class Cell(NamedTuple):
    """What the kernels know of a cell.

    Attributes:
      planes: number of planes of the state.
      weights: names and rows of the weights, in the order in which the functions take them.
      step: (weights, state, p) -> next state.
      jacobian: (weights, state, p) -> (next state, its Jacobian: 1 plane, or 4 for a state of 2).
    """

    planes: int
    weights: tuple[tuple[str, int], ...]
    step: Callable
    jacobian: Callable


def _gru(weights, state, p):
    (a_z, a_r, a_c), (h,) = weights, state
    z, r = jax.nn.sigmoid(a_z * h + p[0]), jax.nn.sigmoid(a_r * h + p[1])
    c = jnp.tanh(a_c * h * r + p[2])
    return z, r, c, (1 - z) * h + z * c


def _gru_jacobian(weights, state, p):
    (a_z, a_r, a_c), (h,) = weights, state
    z, r, c, new = _gru(weights, state, p)
    slope = (1 - z) + (c - h) * z * (1 - z) * a_z + z * (1 - c * c) * a_c * (r + h * r * (1 - r) * a_r)
    return (new,), (slope,)


def _lstm(weights, state, p):
    (a_f, a_o, a_g, c_f, c_o), (c, h) = weights, state
    f, g = jax.nn.sigmoid(a_f * h + c_f * c + p[0]), jnp.tanh(a_g * h + p[2])
    new = f * c + (1 - f) * g
    return f, g, new, jax.nn.sigmoid(a_o * h + c_o * new + p[1]), jnp.tanh(new)


def _lstm_step(weights, state, p):
    _, _, new, o, squashed = _lstm(weights, state, p)
    return new, o * squashed


def _lstm_jacobian(weights, state, p):
    (a_f, a_o, a_g, c_f, c_o), (c, _) = weights, state
    f, g, new, o, squashed = _lstm(weights, state, p)
    reach = f * (1 - f) * (c - g)
    by_c, by_h = f + reach * c_f, reach * a_f + (1 - f) * (1 - g * g) * a_g
    turn = squashed * o * (1 - o)
    through = turn * c_o + o * (1 - squashed * squashed)
    return (new, o * squashed), (by_c, by_h, by_c * through, by_h * through + turn * a_o)


CELLS = {
    "paragru": Cell(1, (("A", 3),), lambda w, s, p: (_gru(w, s, p)[3],), _gru_jacobian),
    "paralstm": Cell(2, (("A", 3), ("C", 2)), _lstm_step, _lstm_jacobian),
}


def reference(cell: str, p: Array, weights: Array, initial: Array) -> tuple[Array, Array]:
    """The exact states, one step after another; ``weights``: all rows of all weights of the cell."""
    known = CELLS[cell]

    def step(state, now):
        planes = tuple(jnp.split(state, known.planes, axis=-1))
        new = jnp.concatenate(known.step(tuple(weights), planes, tuple(jnp.moveaxis(now, 1, 0))), -1)
        return new.astype(state.dtype), new.astype(state.dtype)

    wide = jnp.promote_types(jnp.result_type(p, weights, initial), jnp.float32)
    last, states = lax.scan(step, initial.astype(wide), jnp.moveaxis(p, 1, 0).astype(wide))
    return jnp.moveaxis(states, 0, 1), last
