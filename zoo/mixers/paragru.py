"""ParaGRU: a GRU whose recurrent weights are diagonal, so that all its steps can be solved at once by Newton's method.

Danieli, Rodriguez, Sarabia, Suau, Zappella (2025), ParaRNN: Unlocking Parallel Training of Nonlinear RNNs for Large
Language Models.

With x_t [D] the input cut into H heads, h_t [N] the state, also H heads, all products but the first elementwise:

    p = blockdiag_H(B) x_t + b                    [3, N], rows z, r, c; B [H, D/H, 3, N/H], b [3, N]
    z = sigmoid(A_z h_{t-1} + p_z)                update gate, A [3, N]
    r = sigmoid(A_r h_{t-1} + p_r)                reset gate
    c = tanh(A_c h_{t-1} r + p_c)                 candidate
    h_t = (1 - z) h_{t-1} + z c
    y_t = h_t, or W h_t with W [N, D] when ``hidden_dim`` is given

The Jacobian d h_t / d h_{t-1} is diagonal. Newton's method on the whole sequence (zoo.scans.solve_recurrence) starts from
one step out of zero states and takes about three iterations for a network at initialisation, more after training on a
task that makes it switch often. Large A makes it slow: ``recurrent_bound`` keeps |A| below a bound.

Time O(B T (D N / H + k N)) for k iterations of parallel work; state: N numbers per row.
"""

import functools
from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float

from zoo.checks import check_positive, check_sequence, check_state
from zoo.dtypes import accumulator
from zoo.layers.cell_initializers import cell_bias, cell_weight
from zoo.layers.nonlinearities import nonlinearity
from zoo.layers.parallel_cell import DEFAULT_SOLVER, CellSolver, bounded, check_heads, head_projection, run_cell
from zoo.registry import register

ACTIVATIONS = ("sigmoid", "sigmoid", "tanh")


@struct.dataclass
class ParaGRUState:
    """Carried state: ``hidden`` [B, N]."""

    hidden: Float[Array, "B N"]


def paragru(
    params: Mapping[str, Array],
    x: Float[Array, "B T D"],
    state: ParaGRUState,
    *,
    solver: CellSolver = DEFAULT_SOLVER,
    activations: tuple[str, ...] = ACTIVATIONS,
    recurrent_bound: float | None = None,
    reset: Bool[Array, "B T"] | None = None,
) -> tuple[Float[Array, "B T N"], ParaGRUState]:
    """The states of the module docstring.

    Args:
      params: ``A`` [3, N], ``B`` [H, D/H, 3, N/H], ``b`` [3, N]; rows z, r, candidate.
      x: inputs; the projection runs in their dtype, the cell in at least float32.
      state: state before the first token.
      solver: how the steps are solved.
      activations: nonlinearities of z, r and the candidate, names of ``zoo.layers.NONLINEARITIES``.
      recurrent_bound: A is cut to +-bound.
      reset: True at the first token of a new document.

    Returns:
      (h [B, T, N] in at least float32, state after the last token).
    """
    hidden, last, _ = paragru_solve(
        params, x, state, solver=solver, activations=activations, recurrent_bound=recurrent_bound, reset=reset
    )
    return hidden, last


def paragru_solve(
    params: Mapping[str, Array],
    x: Float[Array, "B T D"],
    state: ParaGRUState,
    *,
    solver: CellSolver = DEFAULT_SOLVER,
    activations: tuple[str, ...] = ACTIVATIONS,
    recurrent_bound: float | None = None,
    reset: Bool[Array, "B T"] | None = None,
) -> tuple[Float[Array, "B T N"], ParaGRUState, Any]:
    """As ``paragru``, with the diagnostics of the solver (None for a sequential run) as a third result."""
    p = head_projection(x, params["B"], params["b"])
    weights = {"A": bounded(params["A"], recurrent_bound).astype(p.dtype)}
    hidden, last, diagnostics = run_cell(
        paragru_step(activations), paragru_derivative(activations), weights, p, state.hidden.astype(p.dtype),
        reset=reset, solver=solver, fused="paragru" if activations == ACTIVATIONS else None,
    )  # fmt: skip
    return hidden, ParaGRUState(last), diagnostics


def _gates(activations, params, h, p):
    """Arguments and values of z, r and the candidate."""
    update, reset, candidate = (nonlinearity(name).function for name in activations)
    a_z, a_r, a_c = params["A"]
    arguments = [a_z * h + p[..., 0, :], a_r * h + p[..., 1, :]]
    z, r = update(arguments[0]), reset(arguments[1])
    arguments.append(a_c * h * r + p[..., 2, :])
    return arguments, (z, r, candidate(arguments[2]))


@functools.cache
def paragru_step(activations: tuple[str, ...] = ACTIVATIONS):
    """One step (params with A, h [..., N], p [..., 3, N]) -> h."""

    def step(params, h, p):
        _, (z, _, c) = _gates(activations, params, h, p)
        return (1 - z) * h + z * c

    return step


@functools.cache
def paragru_derivative(activations: tuple[str, ...] = ACTIVATIONS):
    """Its diagonal Jacobian [..., N]."""
    slopes = [nonlinearity(name).derivative for name in activations]

    def derivative(params, h, p):
        a_z, a_r, a_c = params["A"]
        arguments, (z, r, c) = _gates(activations, params, h, p)
        dz, dr, dc = (slope(a) for slope, a in zip(slopes, arguments))
        return (1 - z) + (c - h) * dz * a_z + z * dc * a_c * (r + h * dr * a_r)

    return derivative


@register(
    "paragru",
    variants={
        "default": {"heads": 2},
        "sequential": {"mode": "sequential", "hidden_dim": 6},
        "quasi": {"method": "quasi_deer", "tolerance": 1e-6, "iterations": 64, "recurrent_bound": 0.5},
        "relu": {"activations": ["sigmoid", "half_sigmoid", "softplus"], "recurrent_bound": 0.3},
    },
)
class ParaGRU(nn.Module):
    """GRU with diagonal recurrence, solved in parallel over time by Newton's method.

    Attributes:
      dim: width D of input and output.
      hidden_dim: width N of the state; None takes ``dim`` and no output projection.
      heads: heads of the input projection; divides ``dim`` and ``hidden_dim``.
      mode: "sequential", "parallel", "kernel" or "fused", see ``zoo.layers.parallel_cell``.
      method: solver, see ``zoo.scans.solve_recurrence``.
      iterations: most iterations; without a tolerance exactly so many (the paper's 3). None: until converged.
      tolerance: largest residual that ends the iterations.
      relative_tolerance: the same, in units of the first residual.
      relaxation: factor on every Newton update.
      damping: of method "elk" and "quasi_elk".
      fallback: "sequential" computes the steps one by one where the tolerance is not reached.
      activations: nonlinearities of update gate, reset gate and candidate.
      recurrent_init, input_init, bias_init: see ``zoo.layers.cell_initializers``.
      recurrent_scale: factor on the initial A.
      recurrent_bound: A is cut to +-bound.
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
        self, x: Float[Array, "B T D"], state: ParaGRUState | None = None, *, reset: Bool[Array, "B T"] | None = None
    ) -> tuple[Float[Array, "B T D"], ParaGRUState]:
        check_sequence(x, self.dim, reset)
        initial = self.initial_state(x.shape[0])
        if state is not None:
            check_state(state, initial)
        if len(self.activations) != 3:
            raise ValueError(f"activations must name 3 nonlinearities (z, r, candidate), got {self.activations}")
        x = x.astype(self.dtype)
        y, state, diagnostics = paragru_solve(
            self._params(initial.hidden.shape[-1]), x, initial if state is None else state, solver=self.solver,
            activations=tuple(self.activations), recurrent_bound=self.recurrent_bound, reset=reset,
        )  # fmt: skip
        if diagnostics is not None and not self.is_initializing():
            self.sow("diagnostics", "newton", diagnostics)
        y = y.astype(x.dtype)
        if self.hidden_dim is not None:
            y = nn.Dense(self.dim, use_bias=False, dtype=self.dtype, name="output")(y)
        return y, state

    def initial_state(self, batch_size: int, dtype: str | None = None) -> ParaGRUState:
        """Zeros, at least float32 whatever ``dtype``."""
        width = self.dim if self.hidden_dim is None else self.hidden_dim
        check_positive("hidden_dim", width)
        return ParaGRUState(jnp.zeros((batch_size, width), accumulator(self.dtype)))

    def _params(self, width: int) -> dict[str, Array]:
        check_positive("heads", self.heads)
        check_heads(self.heads, self.dim, width)
        inputs = self.dim // self.heads
        recurrent = cell_weight(self.recurrent_init, width, width, self.recurrent_scale)
        return {
            "A": self.param("A", recurrent, (3, width)),
            "B": self.param(
                "B", cell_weight(self.input_init, inputs, width), (self.heads, inputs, 3, width // self.heads)
            ),
            "b": self.param("b", cell_bias(self.bias_init), (3, width)),
        }
