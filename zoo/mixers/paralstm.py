"""ParaLSTM: an LSTM whose recurrent weights are diagonal, so that all its steps can be solved at once by Newton's method.

Danieli, Rodriguez, Sarabia, Suau, Zappella (2025), ParaRNN: Unlocking Parallel Training of Nonlinear RNNs for Large
Language Models.

With x_t [D] the input cut into H heads, c_t and h_t [N] cell and output, also H heads, the input gate coupled to the forget
gate, all products but the first elementwise:

    p = blockdiag_H(B) x_t + b                         [3, N], rows f, o, g; B [H, D/H, 3, N/H], b [3, N]
    f = sigmoid(A_f h_{t-1} + C_f c_{t-1} + p_f)       forget gate, A [3, N], peepholes C [2, N]
    g = tanh(A_g h_{t-1} + p_g)                        candidate
    c_t = f c_{t-1} + (1 - f) g
    o = sigmoid(A_o h_{t-1} + C_o c_t + p_o)           output gate, sees the new cell
    h_t = o tanh(c_t)
    y_t = h_t, or W h_t with W [N, D] when ``hidden_dim`` is given

The Jacobian of (c_t, h_t) in (c_{t-1}, h_{t-1}) is 2 x 2 blocks of diagonals. Solved by Newton's method as ParaGRU is.
``linearisation="iterate"`` takes the value of c_t in o and tanh from the iterate, as the authors' code does, instead of
computing it from c_{t-1}: other iterates on the way to the same solution.

Time O(B T (D N / H + k N)) for k iterations of parallel work; state: 2 N numbers per row.
"""

import functools
from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float

from zoo.checks import check_choice, check_positive, check_sequence, check_state
from zoo.dtypes import accumulator
from zoo.layers.cell_initializers import cell_bias, cell_weight
from zoo.layers.nonlinearities import nonlinearity
from zoo.layers.parallel_cell import (
    DEFAULT_SOLVER,
    LINEARISATIONS,
    CellSolver,
    bounded,
    check_heads,
    head_projection,
    run_cell,
)
from zoo.registry import register

ACTIVATIONS = ("sigmoid", "sigmoid", "tanh", "tanh")


@struct.dataclass
class ParaLSTMState:
    """Carried state: ``cell`` and ``hidden`` [B, N]."""

    cell: Float[Array, "B N"]
    hidden: Float[Array, "B N"]


def paralstm(
    params: Mapping[str, Array],
    x: Float[Array, "B T D"],
    state: ParaLSTMState,
    *,
    solver: CellSolver = DEFAULT_SOLVER,
    activations: tuple[str, ...] = ACTIVATIONS,
    linearisation: str = "step",
    recurrent_bound: float | None = None,
    reset: Bool[Array, "B T"] | None = None,
) -> tuple[Float[Array, "B T N"], ParaLSTMState]:
    """The outputs h of the module docstring.

    Args:
      params: ``A`` [3, N], ``B`` [H, D/H, 3, N/H], ``b`` [3, N], rows f, o, candidate; ``C`` [2, N], rows f, o.
      x: inputs; the projection runs in their dtype, the cell in at least float32.
      state: state before the first token.
      solver: how the steps are solved.
      activations: nonlinearities of f, o, the candidate and the cell on its way out, names of
        ``zoo.layers.NONLINEARITIES``.
      linearisation: "step" or "iterate", see the module docstring; mode "fused" has its own.
      recurrent_bound: A and C are cut to +-bound.
      reset: True at the first token of a new document.

    Returns:
      (h [B, T, N] in at least float32, state after the last token).
    """
    states, last, _ = paralstm_solve(
        params, x, state, solver=solver, activations=activations, linearisation=linearisation,
        recurrent_bound=recurrent_bound, reset=reset,
    )  # fmt: skip
    return states.hidden, last


def paralstm_solve(
    params: Mapping[str, Array],
    x: Float[Array, "B T D"],
    state: ParaLSTMState,
    *,
    solver: CellSolver = DEFAULT_SOLVER,
    activations: tuple[str, ...] = ACTIVATIONS,
    linearisation: str = "step",
    recurrent_bound: float | None = None,
    reset: Bool[Array, "B T"] | None = None,
) -> tuple[ParaLSTMState, ParaLSTMState, Any]:
    """As ``paralstm``: (states of all steps, cell and hidden [B, T, N]; the last state; diagnostics or None)."""
    check_choice("linearisation", linearisation, LINEARISATIONS)
    p = head_projection(x, params["B"], params["b"])
    weights = {name: bounded(params[name], recurrent_bound).astype(p.dtype) for name in ("A", "C")}
    initial = jnp.concatenate([state.cell, state.hidden], axis=-1).astype(p.dtype)
    known = activations == ACTIVATIONS
    states, last, diagnostics = run_cell(
        paralstm_step(activations), paralstm_derivative(activations), weights, p, initial,
        blocks=2, linearise=paralstm_linearised(activations) if linearisation == "iterate" else None, reset=reset,
        solver=solver, fused="paralstm" if known else None,
    )  # fmt: skip
    return *(ParaLSTMState(*jnp.split(s, 2, axis=-1)) for s in (states, last)), diagnostics


@jax.custom_jvp
def _valued(expression, value):
    """``value``, with the derivative of ``expression``."""
    return value


@_valued.defjvp
def _valued_jvp(primals, tangents):
    return _valued(*primals), tangents[0]


def _gates(activations, params, state, p, now=None):
    """Arguments and values of f, o, the candidate and the squashed new cell; the new cell is the last argument.

    With ``now``, the iterate at this step, the new cell has its value.
    """
    forget, output, candidate, squash = (nonlinearity(name).function for name in activations)
    c, h = jnp.split(state, 2, axis=-1)
    (a_f, a_o, a_g), (c_f, c_o) = params["A"], params["C"]
    forget_argument, candidate_argument = a_f * h + c_f * c + p[..., 0, :], a_g * h + p[..., 2, :]
    f, g = forget(forget_argument), candidate(candidate_argument)
    cell = f * c + (1 - f) * g
    if now is not None:
        cell = _valued(cell, jnp.split(now, 2, axis=-1)[0])
    output_argument = a_o * h + c_o * cell + p[..., 1, :]
    arguments = forget_argument, output_argument, candidate_argument, cell
    return arguments, (f, output(output_argument), g, squash(cell))


@functools.cache
def paralstm_linearised(activations: tuple[str, ...] = ACTIVATIONS):
    """One step (params with A and C, [c, h] [..., 2N], p [..., 3, N], now) -> [c, h]; the new cell is that of ``now``."""

    def step(params, state, p, now=None):
        (*_, cell), (_, o, _, squashed) = _gates(activations, params, state, p, now)
        return jnp.concatenate([cell, o * squashed], axis=-1)

    return step


@functools.cache
def paralstm_step(activations: tuple[str, ...] = ACTIVATIONS):
    """One step (params with A and C, [c, h] [..., 2N], p [..., 3, N]) -> [c, h]."""
    step = paralstm_linearised(activations)
    return lambda params, state, p: step(params, state, p)


@functools.cache
def paralstm_derivative(activations: tuple[str, ...] = ACTIVATIONS):
    """Its Jacobian [2, 2, ..., N]: rows c, h of the new state, columns c, h of the old; ``now`` as in what is linearised."""
    slopes = [nonlinearity(name).derivative for name in activations]

    def derivative(params, state, p, now=None):
        (a_f, a_o, a_g), (c_f, c_o) = params["A"], params["C"]
        arguments, (f, o, g, squashed) = _gates(activations, params, state, p, now)
        df, do, dg, dsquash = (slope(a) for slope, a in zip(slopes, arguments))
        reach = df * (jnp.split(state, 2, axis=-1)[0] - g)
        cc = f + reach * c_f
        ch = reach * a_f + (1 - f) * dg * a_g
        through = squashed * do * c_o + o * dsquash
        return jnp.stack([jnp.stack([cc, ch]), jnp.stack([cc * through, ch * through + squashed * do * a_o])])

    return derivative


@register(
    "paralstm",
    variants={
        "default": {"heads": 2},
        "sequential": {"mode": "sequential", "hidden_dim": 6},
        "elk": {"method": "elk", "damping": 1e-2, "recurrent_bound": 0.5},
        "iterate": {"linearisation": "iterate"},
        "silu": {
            "activations": ["sigmoid", "half_sigmoid", "silu", "softplus"],
            "recurrent_bound": 0.3,
            "iterations": 12,
        },
    },
)
class ParaLSTM(nn.Module):
    """LSTM with diagonal recurrence and coupled gates, solved in parallel over time by Newton's method.

    Attributes:
      dim: width D of input and output.
      hidden_dim: width N of cell and output; None takes ``dim`` and no output projection.
      heads: heads of the input projection; divides ``dim`` and ``hidden_dim``.
      mode: "sequential", "parallel", "kernel" or "fused", see ``zoo.layers.parallel_cell``.
      method: solver, see ``zoo.scans.solve_recurrence``.
      iterations: most iterations; without a tolerance exactly so many (the paper's 3). None: until converged.
      tolerance: largest residual that ends the iterations.
      relative_tolerance: the same, in units of the first residual.
      relaxation: factor on every Newton update.
      damping: of method "elk" and "quasi_elk".
      fallback: "sequential" computes the steps one by one where the tolerance is not reached.
      activations: nonlinearities of forget gate, output gate, candidate and cell.
      linearisation: "step", or "iterate" as in the authors' code, see the module docstring.
      recurrent_init, input_init, bias_init: see ``zoo.layers.cell_initializers``.
      recurrent_scale: factor on the initial A and C.
      recurrent_bound: A and C are cut to +-bound.
      dtype: compute dtype of the projection; the cell runs in at least float32.

    Diagnostics of the solver are sown as ``newton`` into the collection "diagnostics".
    """

    dim: int
    hidden_dim: int | None = None
    heads: int = 1
    mode: str = "parallel"
    method: str = "newton"
    iterations: int | None = None
    tolerance: float | None = None
    relative_tolerance: float | None = None
    relaxation: float = 1.0
    damping: float = 0.1
    fallback: str | None = None
    activations: tuple[str, ...] = ACTIVATIONS
    linearisation: str = "step"
    recurrent_init: str = "xlstm"
    input_init: str = "xavier_uniform"
    bias_init: str = "minus_linspace"
    recurrent_scale: float = 1.0
    recurrent_bound: float | None = None
    dtype: str = "float32"

    causal: ClassVar[bool] = True
    paper: ClassVar[str] = "Danieli et al. 2025, ParaRNN: Unlocking Parallel Training of Nonlinear RNNs"

    @property
    def solver(self) -> CellSolver:
        """The fields that say how the steps are solved."""
        return CellSolver(**{f: getattr(self, f) for f in CellSolver._fields})

    @property
    def exactly_causal(self) -> bool:
        """That of the solver."""
        return self.solver.exactly_causal

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], state: ParaLSTMState | None = None, *, reset: Bool[Array, "B T"] | None = None
    ) -> tuple[Float[Array, "B T D"], ParaLSTMState]:
        check_sequence(x, self.dim, reset)
        initial = self.initial_state(x.shape[0])
        if state is not None:
            check_state(state, initial)
        if len(self.activations) != 4:
            raise ValueError(f"activations must name 4 nonlinearities (f, o, candidate, cell), got {self.activations}")
        x = x.astype(self.dtype)
        states, state, diagnostics = paralstm_solve(
            self._params(initial.hidden.shape[-1]), x, initial if state is None else state, solver=self.solver,
            activations=tuple(self.activations), linearisation=self.linearisation,
            recurrent_bound=self.recurrent_bound, reset=reset,
        )  # fmt: skip
        if diagnostics is not None and not self.is_initializing():
            self.sow("diagnostics", "newton", diagnostics)
        y = states.hidden.astype(x.dtype)
        if self.hidden_dim is not None:
            y = nn.Dense(self.dim, use_bias=False, dtype=self.dtype, name="output")(y)
        return y, state

    def initial_state(self, batch_size: int, dtype: str | None = None) -> ParaLSTMState:
        """Zeros, at least float32 whatever ``dtype``."""
        width = self.dim if self.hidden_dim is None else self.hidden_dim
        check_positive("hidden_dim", width)
        zeros = jnp.zeros((batch_size, width), accumulator(self.dtype))
        return ParaLSTMState(zeros, zeros)

    def _params(self, width: int) -> dict[str, Array]:
        check_positive("heads", self.heads)
        check_heads(self.heads, self.dim, width)
        inputs, head = self.dim // self.heads, width // self.heads
        recurrent = cell_weight(self.recurrent_init, width, width, self.recurrent_scale)
        return {
            "A": self.param("A", recurrent, (3, width)),
            "B": self.param("B", cell_weight(self.input_init, inputs, head), (self.heads, inputs, 3, head)),
            "C": self.param("C", recurrent, (2, width)),
            "b": self.param("b", cell_bias(self.bias_init), (3, width)),
        }
