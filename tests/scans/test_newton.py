"""Nonlinear recurrences solved in parallel: states, derivatives, diagnostics, and what happens when it fails."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from zoo.mixers.elman import Elman
from zoo.mixers.gru import GRU
from zoo.mixers.lstm import LSTM
from zoo.scans import NonConvergenceError, check_structure, lyapunov_exponent, solve_recurrence

ROWS, STEPS, WIDTH = 2, 13, 4
ABSOLUTE, RELATIVE, NON_FINITE = 1, 2, 3


def diagonal_step(params, h, x):
    z = jax.nn.sigmoid(params["a"] * h + x)
    return (1 - z) * h + z * jnp.tanh(params["b"] * h - 2 * x)


def block_step(params, state, x):
    c, h = jnp.split(state, 2)
    c = jax.nn.sigmoid(params["a"][:2] * h + x[:2]) * c + jnp.tanh(params["b"][:2] * h + x[2:])
    return jnp.concatenate([c, jnp.tanh(c + params["a"][2:] * h)])


def dense_step(params, h, x):
    return jnp.tanh(params["w"] @ h + x)


STRUCTURES = {
    "diagonal": (diagonal_step, {"jacobian": "diagonal"}),
    "block": (block_step, {"jacobian": "block", "blocks": 2}),
    "dense": (dense_step, {"jacobian": "dense"}),
}


def problem(dtype=np.float64, rows=(ROWS,), steps=STEPS, seed=0):
    """(params, xs, initial), numbers of about one."""
    draw = np.random.default_rng(seed).standard_normal
    params = {"a": draw(WIDTH), "b": draw(WIDTH), "w": draw((WIDTH, WIDTH)) / 2}
    arrays = params, draw((*rows, steps, WIDTH)), draw((*rows, WIDTH))
    return jax.tree.map(lambda a: jnp.asarray(a, dtype), arrays)


def loop(step, params, xs, initial):
    """The states by a loop over rows and steps."""
    states, xs, initial = np.zeros(xs.shape), np.asarray(xs), np.asarray(initial)
    for row in np.ndindex(xs.shape[:-2]):
        state = initial[row]
        for t in range(xs.shape[-2]):
            state = np.asarray(step(params, state, xs[row][t]))
            states[row][t] = state
    return states


@functools.partial(jax.jit, static_argnames=("structure", "options"))
def value_and_gradients(params, xs, initial, structure, options=()):
    step, shape = STRUCTURES[structure]

    def loss(params, xs, initial):
        states, last, diagnostics = solve_recurrence(step, params, xs, initial, **shape, **dict(options))
        weights = jnp.cos(jnp.arange(states.size, dtype=states.dtype)).reshape(states.shape)
        return jnp.sum(states**2 * weights) + jnp.sum(last), (states, diagnostics)

    return jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(params, xs, initial)


def close(got, want, tolerance):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


QUICK_FORMS = ("diagonal-associative", "diagonal-chunked", "block-sequential", "block-associative", "dense-sequential")


@pytest.mark.parametrize(
    ("structure", "reduction"),
    [
        pytest.param(s, r, marks=() if f"{s}-{r}" in QUICK_FORMS else pytest.mark.slow)
        for s in STRUCTURES
        for r in ("sequential", "associative", "chunked")
    ],
)
def test_newton_gives_the_states_and_gradients_of_the_loop(structure, reduction, float64):
    arguments = problem()
    (_, (want, _)), gradients = value_and_gradients(*arguments, structure, (("method", "sequential"),))
    close(want, loop(STRUCTURES[structure][0], *arguments), 1e-14)
    (_, (states, diagnostics)), found = value_and_gradients(*arguments, structure, (("reduction", reduction),))
    close(states, want, 1e-10)
    close(found, gradients, 1e-10)
    assert np.all(diagnostics.flag == ABSOLUTE) and np.all(diagnostics.converged) and not np.any(diagnostics.failed)
    # faster than one more exact step per iteration
    assert np.all(diagnostics.iterations > 1) and np.all(diagnostics.iterations < STEPS)


@pytest.mark.parametrize("method", ["deer", "quasi_deer", "elk", "quasi_elk", "jacobi"])
def test_every_method_converges_to_the_same_states_and_gradients(method, float64):
    arguments = problem()
    (_, (want, _)), gradients = value_and_gradients(*arguments, "dense", (("method", "sequential"),))
    options = (("method", method), ("absolute_tolerance", 1e-12), ("iterations", 500))
    (_, (states, diagnostics)), found = value_and_gradients(*arguments, "dense", options)
    assert np.all(diagnostics.converged)
    close(states, want, 1e-10)
    close(found, gradients, 1e-9)


def test_deer_stops_by_the_change_of_its_iterates(float64):
    params, xs, initial = problem(rows=())
    run = functools.partial(solve_recurrence, dense_step, params, xs, initial, jacobian="dense")
    states, _, diagnostics = run(method="deer")
    before = run(method="deer", iterations=int(diagnostics.iterations) - 1)[0]
    earlier = run(method="deer", iterations=int(diagnostics.iterations) - 2)[0]
    assert np.max(np.abs(states - before)) <= 1e-7 < np.max(np.abs(before - earlier)), "the first small change"
    bounded = run(method="deer", iterations=3, guess=jnp.full(xs.shape, 1e9), on_failure="flag")[0]
    assert np.max(np.abs(bounded)) <= 1e8


def filter_means(jacobians, offsets, observed, damping):
    """The Kalman filter by its textbook steps: predict, then observe; process noise I."""
    mean, covariance, means = None, None, []
    for t, (a, b, y) in enumerate(zip(jacobians, offsets, observed)):
        mean = b if t == 0 else a @ mean + b
        covariance = np.eye(len(b)) if t == 0 else a @ covariance @ a.T + np.eye(len(b))
        gain = covariance @ np.linalg.inv(covariance + np.eye(len(b)) / damping)
        mean = mean + gain @ (y - mean)
        covariance = (np.eye(len(b)) - gain) @ covariance
        means.append(mean)
    return np.array(means)


@pytest.mark.parametrize("method", ["elk", "quasi_elk"])
def test_an_iteration_of_elk_is_a_kalman_filter(method, float64):
    params, xs, initial = problem(rows=(), steps=6)
    w, guess = np.asarray(params["w"]), np.random.default_rng(1).standard_normal(xs.shape)
    before = np.concatenate([initial[None], guess[:-1]])
    values = np.tanh(before @ w.T + xs)
    jacobians = (1 - values**2)[:, :, None] * w
    if method == "quasi_elk":
        jacobians = jacobians * np.eye(WIDTH)
    offsets = values - np.einsum("tij,tj->ti", jacobians, before)
    offsets[0] = values[0]
    want = filter_means(jacobians, offsets, guess, 0.3)
    for reduction in ("sequential", "associative"):
        states, _, _ = solve_recurrence(
            dense_step, params, xs, initial, jacobian="dense", method=method, guess=jnp.asarray(guess), iterations=1,
            damping=0.3,
            reduction=reduction, on_failure="flag",
        )  # fmt: skip
        close(states, want, 1e-12)


def test_elk_without_damping_is_newton(float64):
    params, xs, initial = problem(rows=(), steps=5)
    run = functools.partial(
        solve_recurrence, block_step, params, xs, initial, jacobian="block", blocks=2, iterations=2, on_failure="flag"
    )
    newton = run(method="newton")[0]
    for reduction in ("sequential", "associative"):
        close(run(method="elk", damping=0.0, reduction=reduction)[0], newton, 1e-12)


@pytest.mark.parametrize("rows", [(), (1,), (2, 3)])
def test_any_number_of_batch_axes(rows, float64):
    params, xs, initial = problem(rows=rows, steps=5)
    states, last, _ = solve_recurrence(diagonal_step, params, xs, initial)
    close(states, loop(diagonal_step, params, xs, initial), 1e-10)
    assert states.shape == xs.shape and np.array_equal(last, states[..., -1, :])


def test_the_first_k_steps_are_exact_after_k_iterations_whatever_the_guess(float64):
    params, xs, initial = problem()
    want = loop(diagonal_step, params, xs, initial)
    guess = jnp.asarray(10 * np.random.default_rng(1).standard_normal(xs.shape))
    for k in (1, 3):
        states = solve_recurrence(diagonal_step, params, xs, initial, guess=guess, iterations=k, on_failure="flag")[0]
        close(states[:, :k], want[:, :k], 1e-13)
        assert np.max(np.abs(states[:, k:] - want[:, k:])) > 1e-3


def test_rows_of_a_batch_do_not_see_each_other(float64):
    params, xs, initial = problem()
    states, _, found = solve_recurrence(diagonal_step, params, xs, initial)
    other, _, less = solve_recurrence(diagonal_step, params, xs.at[1].set(0), initial.at[1].set(0))
    assert less.iterations[1] == 0 < less.iterations[0] == found.iterations[0], "every row ends by itself"
    assert np.array_equal(other[0], states[0])


def test_convergence_is_quadratic(float64):
    params, xs, initial = problem(rows=(), steps=200)
    _, _, found = solve_recurrence(diagonal_step, params, xs, initial)
    residuals = np.asarray(found.residuals)[: int(found.iterations) + 1]
    small = [(a, b) for a, b in itertools.pairwise(residuals) if 1e-7 < a < 1e-1]
    assert len(small) >= 2
    assert all(b < 10 * a**2 for a, b in small), f"residuals {residuals}"


def test_a_solution_as_the_guess_needs_no_iteration(float64):
    params, xs, initial = problem()
    states, _, first = solve_recurrence(diagonal_step, params, xs, initial)
    _, _, again = solve_recurrence(diagonal_step, params, xs, initial, guess=states)
    assert np.all(again.iterations == 0) and np.all(first.iterations > 0) and np.all(again.converged)


def test_tolerances_norms_and_the_history_of_residuals(float64):
    params, xs, initial = problem(rows=())
    run = functools.partial(solve_recurrence, diagonal_step, params, xs, initial, guess="step")
    _, _, ended = run(absolute_tolerance=1e-3, iterations=9)
    history, count = np.asarray(ended.residuals), int(ended.iterations)
    assert ended.flag == ABSOLUTE and history.shape == (10,)
    assert history[count] <= 1e-3 < history[count - 1], "it stops at the first iterate below the tolerance"
    assert np.all(np.isnan(history[count + 1 :])) and np.all(np.isfinite(history[: count + 1]))
    _, _, relative = run(relative_tolerance=1e-3)
    assert relative.flag == RELATIVE and relative.residual <= 1e-3 * relative.residuals[0]
    states, _, fixed = run(iterations=1, norm=3.0)
    before = jnp.concatenate([initial[None], states[:-1]])
    residual = np.asarray(jax.vmap(diagonal_step, (None, 0, 0))(params, before, xs)) - states
    np.testing.assert_allclose(fixed.residual, np.sum(np.abs(residual) ** 3) ** (1 / 3), rtol=1e-12)
    assert fixed.iterations == 1 and not fixed.converged and not fixed.failed


def test_many_fixed_iterations_are_a_loop_and_relaxation_slows_them(float64):
    params, xs, initial = problem(rows=())
    want = loop(diagonal_step, params, xs, initial)
    states, _, found = solve_recurrence(diagonal_step, params, xs, initial, iterations=30, relaxation=0.5)
    assert found.iterations == 30
    # half of the error is left after every iteration, once Newton's own error is small
    ratios = np.asarray(found.residuals)[11:20] / np.asarray(found.residuals)[10:19]
    np.testing.assert_allclose(ratios, 0.5, atol=0.02)
    close(states, want, 1e-6)


def test_a_tolerance_out_of_reach_is_never_silent(float64):
    params, xs, initial = problem(rows=())
    options = {"absolute_tolerance": 1e-12, "iterations": 2}
    run = functools.partial(solve_recurrence, diagonal_step, params, xs, initial, **options)
    with pytest.raises(NonConvergenceError, match="after 2 iterations"):
        run()
    states, _, diagnostics = run(on_failure="flag")
    assert diagnostics.failed and not diagnostics.converged and diagnostics.flag == 0
    assert np.all(np.isfinite(states)) and np.all(np.isnan(run(on_failure="nan")[0]))
    inside = jax.jit(lambda p: solve_recurrence(diagonal_step, p, xs, initial, **options)[0])(params)
    assert np.all(np.isnan(inside)), "where nothing can be raised, no number comes out"


def test_the_fallback_computes_the_steps_one_by_one(float64):
    arguments = problem()
    (_, (want, _)), gradients = value_and_gradients(*arguments, "diagonal", (("method", "sequential"),))
    options = (("absolute_tolerance", 1e-12), ("iterations", 2), ("fallback", "sequential"))
    (_, (states, diagnostics)), found = value_and_gradients(*arguments, "diagonal", options)
    close(states, want, 1e-13)
    close(found, gradients, 1e-10)
    assert np.all(diagnostics.fallback) and not np.any(diagnostics.converged) and not np.any(diagnostics.failed)
    enough = (("absolute_tolerance", 1e-12), ("fallback", "sequential"))
    assert not np.any(value_and_gradients(*arguments, "diagonal", enough)[0][1][1].fallback)


def steep_step(params, h, x):
    """At h = 0 its slope is 40, at its states nearly 0."""
    return jnp.tanh(40 * h + x)


def test_iterates_that_overflow_are_reset_and_reported():
    xs = jnp.zeros((64, 1)).at[0].set(1.0)
    states, _, found = solve_recurrence(steep_step, None, xs, jnp.zeros(1))
    close(states, np.tanh(np.array([1.0] + [40.0] * 63))[:, None], 1e-6)
    assert found.converged and not found.finite
    with pytest.raises(NonConvergenceError, match="non-finite"):
        solve_recurrence(steep_step, None, xs, jnp.zeros(1), reset_nonfinite=False)
    _, _, fixed = solve_recurrence(steep_step, None, xs, jnp.zeros(1), iterations=2, on_failure="flag")
    assert fixed.failed and not fixed.finite
    stopped = solve_recurrence(steep_step, None, xs, jnp.zeros(1), reset_nonfinite=False, on_failure="flag")[2]
    assert stopped.flag == NON_FINITE and stopped.iterations < 64


def test_a_recurrence_that_explodes_is_not_solved():
    xs = jnp.ones((50, 1))
    with pytest.raises(NonConvergenceError):
        solve_recurrence(lambda _, h, x: h**2 + x, None, xs, jnp.ones(1))
    states = solve_recurrence(lambda _, h, x: h**2 + x, None, xs, jnp.ones(1), method="sequential", on_failure="nan")[0]
    assert np.all(np.isnan(states))


def test_a_wrong_structure_is_found_without_looking_at_it(float64):
    params, xs, initial = problem()
    with pytest.raises(ValueError, match="declared Jacobian structure"):
        solve_recurrence(dense_step, params, xs, initial)
    inside = jax.jit(lambda p: solve_recurrence(dense_step, p, xs, initial)[0])(params)
    assert np.all(np.isnan(inside))
    with pytest.raises(ValueError, match="declared Jacobian structure"):
        solve_recurrence(diagonal_step, params, xs, initial, derivative=lambda p, h, x: 0.9 * jnp.ones_like(h))


def test_the_structure_checker_names_the_entry(float64):
    params, xs, initial = problem()
    for structure, (step, shape) in STRUCTURES.items():
        check_structure(step, params, xs, initial, **shape)
        if structure != "dense":
            check_structure(step, params, xs, initial, jacobian="dense")
    with pytest.raises(ValueError, match=r"d state\[\d\] / d state\[\d\] is .*declared 0"):
        check_structure(dense_step, params, xs, initial, jacobian="block", blocks=2)
    with pytest.raises(ValueError, match="structure"):
        check_structure(block_step, params, xs, initial, jacobian="diagonal")
    with pytest.raises(ValueError, match="structure"):
        check_structure(
            diagonal_step, params, xs, initial, jacobian="diagonal", derivative=lambda p, h, x: jnp.ones_like(h)
        )


def test_hand_written_jacobians_of_every_structure(float64):
    params, xs, initial = problem(rows=(), steps=5)

    def of_blocks(params, state, x):
        table = jax.jacfwd(block_step, 1)(params, state, x).reshape(2, 2, 2, 2)
        return jnp.einsum("imjm->ijm", table)

    def of_diagonal(params, h, x):
        return jnp.diagonal(jax.jacfwd(diagonal_step, 1)(params, h, x))

    written = {"diagonal": of_diagonal, "block": of_blocks, "dense": jax.jacfwd(dense_step, 1)}
    for structure, (step, shape) in STRUCTURES.items():
        run = functools.partial(
            solve_recurrence,
            step,
            params,
            xs,
            initial,
            **shape,
            iterations=2,
            on_failure="flag",
            reduction="associative",
        )
        close(run(derivative=written[structure])[0], run()[0], 1e-13)
        check_structure(step, params, xs, initial, **shape, derivative=written[structure])


def test_second_derivatives_and_forward_mode(float64):
    params, xs, initial = problem(rows=(), steps=4)

    def loss(initial, method):
        return jnp.sum(solve_recurrence(diagonal_step, params, xs, initial, method=method)[0] ** 3)

    want = jax.jit(jax.hessian(loss), static_argnums=1)(initial, "sequential")
    close(jax.jit(jax.hessian(loss), static_argnums=1)(initial, "newton"), want, 1e-9)


def test_vmap_and_data_parallel_sharding_give_the_same_states(float64):
    params, xs, initial = problem(rows=(4,))
    want = loop(diagonal_step, params, xs, initial)

    def run(xs, initial):
        return solve_recurrence(diagonal_step, params, xs, initial)[0]

    close(jax.jit(jax.vmap(run))(xs, initial), want, 1e-10)
    mesh = Mesh(np.array(jax.devices()[:2]), ("data",))
    split = PartitionSpec("data")
    sharded = jax.shard_map(run, mesh=mesh, in_specs=(split, split), out_specs=split)
    close(jax.jit(sharded)(xs, initial), want, 1e-10)


def test_bfloat16_inputs_are_solved_in_float32():
    params, xs, initial = problem(np.float32)
    xs = jnp.asarray(xs, jnp.bfloat16)
    states, last, found = solve_recurrence(diagonal_step, params, xs, jnp.asarray(initial, jnp.bfloat16))
    assert states.dtype == last.dtype == jnp.float32 and np.all(found.residual < 1e-5)
    rounded = jnp.asarray(initial, jnp.bfloat16).astype(jnp.float32)
    want = loop(diagonal_step, params, xs.astype(jnp.float32), rounded)
    close(states, want, 1e-5)


def test_inputs_may_be_any_pytree_and_outputs_any_part_of_the_state(float64):
    params, xs, initial = problem()
    keep = jnp.ones((ROWS, STEPS), bool).at[0, 5].set(False)

    def step(params, h, x):
        return jnp.where(x["keep"], 1, 0) * diagonal_step(params, h, x["drive"])

    states, _, _ = solve_recurrence(step, params, {"drive": xs, "keep": keep}, initial, output=lambda h: h[:2])
    assert states.shape == (ROWS, STEPS, 2)
    assert np.all(states[0, 5] == 0)
    close(states[1], loop(diagonal_step, params, xs, initial)[1, :, :2], 1e-10)


@pytest.mark.parametrize("growth", [0.8, 1.25])
def test_the_lyapunov_exponent_of_a_linear_recurrence_is_the_log_of_its_growth(growth):
    xs, initial = jnp.zeros((3, 40, 2)), jnp.ones((3, 2))
    found = lyapunov_exponent(lambda p, h, x: p * h + x, jnp.float32(growth), xs, initial)
    assert found.shape == (3,)
    np.testing.assert_allclose(found, np.log(growth), rtol=1e-5)


DENSE_LAYERS = {
    "elman": (Elman, {}),
    "gru": (GRU, {}),
    "gru_before": (GRU, {"reset_gate": "before"}),
    "lstm": (LSTM, {}),
}


def one_step(module, state):
    """(params, state of N numbers, x [D]) -> new state: the layer itself, on one token."""

    def step(params, flat, x):
        parts = jax.tree.unflatten(
            jax.tree.structure(state), jnp.split(flat[None], len(jax.tree.leaves(state)), axis=1)
        )
        new = module.apply(params, x[None, None], parts)[1]
        return jnp.concatenate(jax.tree.leaves(new), axis=1)[0]

    return step


@pytest.mark.parametrize("name", DENSE_LAYERS)
def test_dense_layers_of_the_zoo_run_through_the_solver(name, float64):
    cls, options = DENSE_LAYERS[name]
    module = cls(dim=3, dtype="float64", **options)
    x = jax.random.normal(jax.random.key(0), (2, 7, 3), jnp.float64)
    params = jax.tree.map(np.float64, module.init(jax.random.key(1), x))
    state = module.initial_state(1)
    flat = jnp.zeros((2, 3 * len(jax.tree.leaves(state))))
    step = one_step(module, state)
    hidden = slice(0, 3)  # of an LSTMState, too, it is the first part

    def solved(params, x):
        states = solve_recurrence(step, params, x, flat, jacobian="dense")[0][..., hidden]
        return jnp.sum(jnp.sin(states)), states

    def layer(params, x):
        y = module.apply(params, x)[0]
        return jnp.sum(jnp.sin(y)), y

    (_, got), found = jax.jit(jax.value_and_grad(solved, (0, 1), has_aux=True))(params, x)
    (_, want), gradients = jax.jit(jax.value_and_grad(layer, (0, 1), has_aux=True))(params, x)
    close(got, want, 1e-11)
    close(found, gradients, 1e-10)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"xs": np.zeros((2, 0, 4))}, "T = 0"),
        ({"method": "newtn"}, "did you mean 'newton'"),
        ({"jacobian": "diagnal"}, "did you mean 'diagonal'"),
        ({"jacobian": "block", "blocks": 3}, "not divisible by blocks=3"),
        ({"jacobian": "block"}, "blocks goes with"),
        ({"reduction": "pallas", "jacobian": "dense"}, "no kernel for dense"),
        ({"reduction": "chunked", "method": "elk"}, "'sequential', 'associative'"),
        ({"xs": np.zeros((3, 5, 4))}, "batch axes"),
        ({"initial": np.zeros((2, 4), int)}, "floating-point"),
        ({"initial": np.zeros((2, 4), complex)}, "must be real"),
        ({"step": lambda p, h, x: h[:2]}, "must return a state of shape"),
        ({"guess": np.zeros((2, 5, 3))}, "guess must be"),
        ({"guess": "ones"}, "is not one of zeros, step"),
        ({"iterations": -1}, "iterations must be"),
        ({"norm": 0.5}, "norm must be"),
        ({"absolute_tolerance": -1e-3}, "at least 0"),
        ({"iterations": 3, "fallback": "sequential"}, "needs a tolerance"),
        ({"on_failure": "ignore"}, "is not one of raise, nan, flag"),
        ({"damping": -1.0, "method": "elk"}, "damping must be"),
    ],
)
def test_wrong_arguments_say_what_would_be_right(change, words, as_users_see_it):
    arguments = {"step": diagonal_step, "params": {}, "xs": np.zeros((2, 5, 4), np.float32),
                 "initial": np.zeros((2, 4), np.float32)}  # fmt: skip
    arguments["params"] = {"a": jnp.ones(4), "b": jnp.ones(4)}
    with pytest.raises((ValueError, TypeError), match=words):
        solve_recurrence(**{**arguments, **change})
