"""ParaGRU and ParaLSTM: every mode gives the numbers of the loop, Jacobians are right, options do what they say."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zoo
from tests.oracles.nonlinearities import FUNCTIONS
from zoo.layers import NONLINEARITIES, CellSolver, cell_bias, cell_weight, nonlinearity, z_loss
from zoo.mixers.paragru import ParaGRUState, paragru_derivative, paragru_solve, paragru_step
from zoo.mixers.paralstm import ParaLSTMState, paralstm_derivative, paralstm_linearised, paralstm_solve, paralstm_step
from zoo.scans import check_structure
from zoo.scans.newton import fused_newton

WIDTH = 6


def cell(name, steps=13, dtype=np.float64, rows=2, deviation=0.5):
    """(params, x, state) of a random cell with two heads and a state that is not zero."""
    draw = np.random.default_rng(0).standard_normal
    params = {"A": deviation * draw((3, WIDTH)), "B": draw((2, 2, 3, WIDTH // 2)) / 2, "b": draw((3, WIDTH)) / 2}
    parts = [draw((rows, WIDTH)) / 2 for _ in range(2)]
    if name == "paralstm":
        params["C"] = deviation * draw((2, WIDTH))
    state = ParaLSTMState(*parts) if name == "paralstm" else ParaGRUState(parts[0])
    return jax.tree.map(lambda a: jnp.asarray(a, dtype), (params, draw((rows, steps, 4)), state))


@functools.partial(jax.jit, static_argnames=("name", "solver", "linearisation"))
def value_and_gradients(params, x, state, name, solver, linearisation=None):
    options = {} if linearisation is None else {"linearisation": linearisation}

    def loss(params, x, state):
        solve = paralstm_solve if name == "paralstm" else paragru_solve
        states, last, diagnostics = solve(params, x, state, solver=solver, **options)
        y = states.hidden if name == "paralstm" else states
        total = sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(last))
        return total + jnp.sum(jnp.cos(3 * y)), (states, diagnostics)

    return jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(params, x, state)


def close(got, want, tolerance):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        scale = max(1.0, float(jnp.max(jnp.abs(b))))
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * scale)


CELLS = ("paragru", "paralstm")


@pytest.mark.parametrize("name", CELLS)
def test_values_and_gradients_are_those_of_the_loop(name, float64):
    arguments = cell(name)
    (_, (want, _)), gradients = value_and_gradients(*arguments, name, CellSolver("sequential"))
    (_, (states, _)), found = value_and_gradients(*arguments, name, CellSolver())
    close(states, want, 1e-10)
    close(found, gradients, 1e-10)


@pytest.mark.parametrize("mode", ["kernel", "fused"])
@pytest.mark.parametrize("name", CELLS)
def test_values_and_gradients_by_kernels_are_those_of_the_loop(name, mode):
    """Interpreted; more steps than a chunk of the fused kernel has."""
    steps = 67 if name == "paralstm" else 131
    arguments = cell(name, steps=steps, dtype=np.float32)
    (_, (want, _)), gradients = value_and_gradients(*arguments, name, CellSolver("sequential"))
    (_, (states, diagnostics)), found = value_and_gradients(*arguments, name, CellSolver(mode))
    assert np.all(diagnostics.converged)
    close(states, want, steps * 1e-6)
    close(found, gradients, steps * 4e-6)


def test_long_float32_sequences_are_solved_to_rounding():
    arguments = cell("paragru", steps=257, dtype=np.float32)
    (_, (want, _)), gradients = value_and_gradients(*arguments, "paragru", CellSolver("sequential"))
    (_, (states, diagnostics)), found = value_and_gradients(*arguments, "paragru", CellSolver())
    assert np.max(np.abs(states - want)) < 1e-4 and np.max(diagnostics.iterations) <= 8
    close(found, gradients, 1e-4)


def test_the_iterate_linearisation_ends_at_the_same_states_and_gradients(float64):
    arguments = cell("paralstm")
    (_, (want, plain)), gradients = value_and_gradients(*arguments, "paralstm", CellSolver())
    (_, (states, other)), found = value_and_gradients(*arguments, "paralstm", CellSolver(), "iterate")
    close(states, want, 1e-12)
    close(found, gradients, 1e-10)
    assert not np.allclose(plain.residuals[:, 2], other.residuals[:, 2], rtol=1e-3), "by another way"


@pytest.mark.parametrize(("name", "steps"), [("paragru", 1), ("paragru", 2), ("paralstm", 1)])
def test_very_short_sequences(name, steps, float64):
    arguments = cell(name, steps=steps)
    want = value_and_gradients(*arguments, name, CellSolver("sequential"))
    found = value_and_gradients(*arguments, name, CellSolver())
    close((found[0][1][0], found[1]), (want[0][1][0], want[1]), 1e-12)


@pytest.mark.parametrize("name", list(NONLINEARITIES))
def test_nonlinearities_and_their_derivatives(name, float64):
    a = jnp.array([-3.0, -0.7, -1e-3, 1e-3, 0.4, 2.5])
    np.testing.assert_allclose(nonlinearity(name).function(a), FUNCTIONS[name](np.asarray(a)), rtol=1e-12)
    want = (FUNCTIONS[name](np.asarray(a) + 1e-6) - FUNCTIONS[name](np.asarray(a) - 1e-6)) / 2e-6
    np.testing.assert_allclose(nonlinearity(name).derivative(a), want, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("activations", [None, ("sigmoid", "half_sigmoid", "gelu", "elu")])
def test_hand_written_jacobians_are_those_of_the_steps(activations, float64):
    draw = np.random.default_rng(1).standard_normal
    params = {"A": jnp.asarray(draw((3, WIDTH))), "C": jnp.asarray(draw((2, WIDTH)))}
    p, initial = jnp.asarray(draw((5, 3, WIDTH))), jnp.zeros(2 * WIDTH)
    gru, lstm = ((), ()) if activations is None else ((activations[:3],), (activations,))
    check_structure(
        paragru_step(*gru), params, p, initial[:WIDTH], jacobian="diagonal", derivative=paragru_derivative(*gru)
    )
    check_structure(
        paralstm_step(*lstm), params, p, initial, jacobian="block", blocks=2, derivative=paralstm_derivative(*lstm)
    )


def test_the_jacobian_around_an_iterate_is_that_of_what_is_linearised(float64):
    draw = np.random.default_rng(1).standard_normal
    params = {"A": jnp.asarray(draw((3, WIDTH))), "C": jnp.asarray(draw((2, WIDTH)))}
    state, p, now = (jnp.asarray(draw(shape)) for shape in ((2 * WIDTH,), (3, WIDTH), (2 * WIDTH,)))
    whole = jax.jacfwd(paralstm_linearised(), 1)(params, state, p, now).reshape(2, WIDTH, 2, WIDTH)
    close(paralstm_derivative()(params, state, p, now), jnp.einsum("imjm->ijm", whole), 1e-12)


@pytest.mark.parametrize(("name", "mode"), [("paragru", "fused"), ("paralstm", "kernel")])
def test_documents_are_told_apart_by_the_kernels_too(name, mode):
    x = jax.random.normal(jax.random.key(0), (2, 5, 4))
    reset = jnp.zeros((2, 5), bool).at[0, 3].set(True).at[1, 0].set(True)
    sequential, kernel = (zoo.create(name, dim=4, mode=m) for m in ("sequential", mode))
    params = sequential.init(jax.random.key(1), x)
    want = jax.jit(functools.partial(sequential.apply, reset=reset))(params, x)
    close(jax.jit(functools.partial(kernel.apply, reset=reset))(params, x), want, 5e-6)


def test_a_fused_solve_that_is_not_finished_is_never_silent():
    params, x, state = cell("paragru", steps=37, dtype=np.float32)
    solver = CellSolver("fused", iterations=2, tolerance=1e-6)
    states, last, diagnostics = jax.jit(paragru_solve, static_argnames="solver")(params, x, state, solver=solver)
    assert not diagnostics.converged and np.all(np.isnan(states)) and np.all(np.isnan(last.hidden))


def test_diagnostics_are_sown_and_are_no_parameters():
    x = jax.random.normal(jax.random.key(0), (2, 20, 8))
    model = zoo.create("paragru", dim=8, iterations=4)
    variables = model.init(jax.random.key(1), x)
    assert set(variables) == {"params"}
    _, sown = model.apply(variables, x, mutable=["diagnostics"])
    (found,) = sown["diagnostics"]["newton"]
    assert found.residuals.shape == (2, 5) and np.all(found.iterations == 4)
    tokens = jnp.zeros((2, 6), jnp.int32)
    stack = zoo.LanguageModel(vocab_size=4, dim=8, depth=2, pattern=("paragru",), mlp="none")
    variables = jax.jit(stack.init)(jax.random.key(1), tokens)
    _, sown = jax.jit(functools.partial(stack.apply, mutable=["diagnostics"]))(variables, tokens)
    assert all(leaf.shape[0] == 2 for leaf in jax.tree.leaves(sown)), "one for every layer"


def test_the_skip_path_is_scaled():
    x = jax.random.normal(jax.random.key(0), (1, 5, 8))
    stack = zoo.models.Stack(dim=8, pattern=("gilr",), mlp="none", final_norm=False, residual_scale=True)
    variables = stack.init(jax.random.key(1), x)
    one = stack.apply(variables, x)[0]
    variables["params"]["layers"]["run_0"]["residual_scale"] = jnp.full(1, 0.25)
    close(stack.apply(variables, x)[0], one - 0.75 * x, 1e-6)


def test_a_bound_on_the_recurrent_weights_makes_large_ones_harmless():
    x = jax.random.normal(jax.random.key(0), (1, 200, 8))
    wild = zoo.create("paragru", dim=8, recurrent_init="normal", recurrent_scale=8.0)
    params = wild.init(jax.random.key(1), x)
    counts = {}
    for bound in (None, 0.5):
        module = zoo.create("paragru", dim=8, recurrent_bound=bound)
        _, sown = module.apply(params, x, mutable=["diagnostics"])
        counts[bound] = int(sown["diagnostics"]["newton"][0].iterations[0])
    assert counts[0.5] <= 8 < counts[None]


def test_initialisers_by_name():
    key, shape = jax.random.key(0), (3, 4000)
    bounds = {
        "xavier_uniform": (6 / 30) ** 0.5,
        "kaiming_uniform": (3 / 10) ** 0.5,
        "uniform": 0.9,
        "truncated_normal": 0.9,
    }
    for kind, bound in bounds.items():
        values = np.abs(cell_weight(kind, 10, 20)(key, shape))
        assert 0.98 * bound < values.max() <= bound
    for kind, deviation in {"xlstm": 2 / 50**0.5, "normal": 1.0}.items():
        np.testing.assert_allclose(np.std(cell_weight(kind, 10, 20)(key, shape)), deviation, rtol=0.02)
    assert np.all(cell_weight("zeros", 10, 20)(key, shape) == 0)
    for kind, low in {"negative_exponential": -8.0, "negative_exponential_long": -16.0}.items():
        values = np.log(cell_weight(kind, 10, 20, 1.0)(key, shape))
        assert low <= values.min() < 0.99 * low and values.max() <= 0
    first = {"minus_linspace": (0, -1), "linspace": (3, 6), "one": (1, 1), "minus_one": (-1, -1), "two": (2, 2)}
    for kind, ends in first.items():
        bias = cell_bias(kind)(key, (3, 5))
        assert (bias[0, 0], bias[0, -1]) == ends and np.all(bias[1:] == 0)


def test_z_loss_is_the_mean_square_of_the_log_normaliser():
    logits = np.random.default_rng(0).standard_normal((2, 3, 5)).astype(np.float32)
    want = np.log(np.sum(np.exp(logits.astype(np.float64)), axis=-1)) ** 2
    np.testing.assert_allclose(z_loss(jnp.asarray(logits)), want.mean(), rtol=1e-6)
    mask = np.arange(3) < 2
    np.testing.assert_allclose(z_loss(jnp.asarray(logits[0]), jnp.asarray(mask)), want[0, :2].mean(), rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"heads": 3}, "dim=8 is not divisible by heads=3"),
        ({"heads": 4, "hidden_dim": 6}, "hidden_dim=6 is not divisible by heads=4"),
        ({"mode": "paralel"}, "did you mean 'parallel'"),
        ({"method": "newtons"}, "did you mean 'newton'"),
        ({"activations": ("sigmoid", "tanh")}, "activations must name"),
        ({"recurrent_init": "xlstn"}, "did you mean 'xlstm'"),
        ({"bias_init": "three"}, "initialiser='three'"),
    ],
)
def test_wrong_options_say_what_would_be_right(options, words, as_users_see_it):
    for name in CELLS:
        with pytest.raises(ValueError, match=words):
            zoo.create(name, dim=8, **options).init(jax.random.key(0), jnp.zeros((1, 4, 8)))
    if "activations" not in options:
        return
    changed = zoo.create("paragru", dim=8, activations=("sigmoid", "sigmoid", "relu"), mode="fused")
    with pytest.raises(ValueError, match="mode='fused' has sigmoid gates"):
        changed.init(jax.random.key(0), jnp.zeros((1, 4, 8)))


def test_the_fused_mode_refuses_what_it_does_not_know():
    x = jnp.ones((1, 5, 4))
    for option in ({"relaxation": 0.5}, {"method": "elk"}, {"fallback": "sequential", "tolerance": 1e-5}):
        with pytest.raises(ValueError, match="knows iterations and tolerance only"):
            zoo.create("paragru", dim=4, mode="fused", **option).init(jax.random.key(0), x)


def test_the_fused_mode_hands_out_no_states_above_the_tolerance():
    p = 4 * jax.random.normal(jax.random.key(0), (2, 33, 3, 4))
    params = {"A": 3 * jax.random.normal(jax.random.key(1), (3, 4))}
    few, *_ = fused_newton("paragru", p, params, jnp.zeros((2, 4)), iterations=1, tolerance=1e-6)
    enough, *_ = fused_newton("paragru", p, params, jnp.zeros((2, 4)), iterations=33, tolerance=1e-5)
    assert np.all(np.isnan(few))
    assert np.all(np.isfinite(enough))
