"""Golden data of ParaRNN: both cells with every Newton iterate, and the fallback solvers on a dense Elman network."""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from zoo.layers.parallel_cell import CellSolver, head_projection
from zoo.mixers.paragru import ParaGRUState, paragru_derivative, paragru_solve, paragru_step
from zoo.mixers.paralstm import ParaLSTMState, paralstm_derivative, paralstm_linearised, paralstm_solve, paralstm_step
from zoo.scans import solve_recurrence

SEQUENTIAL = CellSolver("sequential")
ELMAN_METHODS = {"newton": "newton", "quasi": "quasi_deer", "jacobi": "jacobi", "elk": "elk", "quasi_elk": "quasi_elk"}


def check(case: Any) -> Iterator[tuple[str, Any]]:
    """Yields every output and gradient of ``case``."""
    return elman(case) if case.config.get("cell") is None else cell(case)


def cell(case: Any) -> Iterator[tuple[str, Any]]:
    lstm = case.config["cell"] == "paralstm"
    params = {k: jnp.asarray(v) for k, v in case.params.items()}
    x, weight = (jnp.asarray(case.inputs[k]) for k in ("x", "loss_weight"))
    zeros = jnp.zeros((x.shape[0], case.config["state_dim"]))
    start = ParaLSTMState(zeros, zeros) if lstm else ParaGRUState(zeros)
    solve = paralstm_solve if lstm else paragru_solve
    # the authors' LSTM is linearised around the cell of the iterate
    options = {"linearisation": "iterate"} if lstm else {}

    def run(params: Mapping[str, Any], x: Any, solver: CellSolver) -> tuple[Any, Any, Any]:
        """(states [B, T, S], outputs, diagnostics)."""
        states, _, diagnostics = solve(params, x, start, solver=solver, **options)
        if lstm:
            return jnp.concatenate([states.cell, states.hidden], axis=-1), states.hidden, diagnostics
        return states, states, diagnostics

    def gradients(solver: CellSolver, prefix: str) -> Iterator[tuple[str, Any]]:
        def loss(params, x):
            return jnp.sum(run(params, x, solver)[1] * weight)

        of_params, of_x = jax.jit(jax.grad(loss, (0, 1)))(params, x)
        for name, value in {**of_params, "x": of_x}.items():
            yield f"{prefix}/{name}", value

    truncated = CellSolver(iterations=case.config["newton_max_its_in_parallel"])
    sequential = run(params, x, SEQUENTIAL)
    yield "outputs/state_sequential", sequential[0]
    yield "outputs/y", sequential[1]
    yield "outputs/loss", jnp.sum(sequential[1] * weight)
    yield f"outputs/y_parallel_{truncated.iterations}its", run(params, x, truncated)[1]
    p = head_projection(x, params["B"], params["b"])
    step, linearise = (paralstm_step(), paralstm_linearised()) if lstm else (paragru_step(), None)
    zero = jnp.zeros_like(sequential[0][:, 0])

    def newton(iterations: int, guess: Any) -> tuple[Any, Any, Any]:
        return solve_recurrence(
            step, params, p, zero, jacobian="block" if lstm else "diagonal", blocks=2 if lstm else None,
            linearise=linearise, guess=guess, iterations=iterations, on_failure="flag",
        )  # fmt: skip

    count = len(case.outputs["newton_iterates"])
    yield "outputs/newton_residual_inf", jnp.max(newton(count - 1, "step")[2].residuals, axis=0)
    iterates = [newton(0, "step")[0]]
    for _ in range(1, count):
        iterates.append(newton(1, iterates[-1])[0])
    yield "outputs/newton_iterates", jnp.stack(iterates)

    before = jnp.concatenate([zero[:, None], iterates[0][:, :-1]], axis=1)
    if lstm:  # [row, column, B, T, N] -> [B, T, (row, N), column]
        jacobian = jnp.transpose(paralstm_derivative()(params, before, p, iterates[0]), (2, 3, 0, 4, 1))
        jacobian = jacobian.reshape(*before.shape, 2)
    else:
        jacobian = paragru_derivative()(params, before, p)
    yield "outputs/jacobian_at_initial_guess", jacobian
    yield from gradients(SEQUENTIAL, "grads")
    yield from gradients(truncated, f"grads_parallel_{truncated.iterations}its")


def elman(case: Any) -> Iterator[tuple[str, Any]]:
    params = {k: jnp.asarray(v) for k, v in case.params.items()}
    x, initial = (jnp.asarray(case.inputs[k]) for k in ("x", "h0"))

    def step(params, h, x):
        return jnp.tanh(params["W"] @ h + params["U"] @ x + params["b"])

    damping = float(case.config.get("lambda", 0.1))

    def run(method: str, iterations: int | None, guess: Any) -> Any:
        return solve_recurrence(
            step, params, x, initial, jacobian="dense", method=method, iterations=iterations, guess=guess,
            damping=damping, on_failure="flag",
        )[0]  # fmt: skip

    zeros = jnp.zeros((len(x), len(initial)))
    yield "outputs/h_sequential", run("sequential", None, zeros)
    for name, method in ELMAN_METHODS.items():
        iterates = [zeros]
        for _ in range(1, len(case.outputs[f"iterates_{name}"])):
            iterates.append(run(method, 1, iterates[-1]))
        yield f"outputs/iterates_{name}", jnp.stack(iterates)
