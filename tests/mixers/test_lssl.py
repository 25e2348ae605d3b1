"""What is special about LSSL: three views, their theory, products and solves in O(N), what is trained, wrong arguments."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zoo
from tests.oracles.lssl import oracle
from zoo.layers import Quasiseparable, discretize_structured, generalized_bilinear, transition, zero_order_hold
from zoo.layers.hippo import MEASURES
from zoo.layers.quasiseparable import STRUCTURED, dense, matvec, shifted_matvec, shifted_solve, structured_transition
from zoo.mixers.lssl import LSSLState, lssl, lssl_convolution, lssl_recurrence, lssl_system, precompute_kernel
from zoo.scans import impulse_response, krylov, krylov_and_power


def params_of(features=3, channels=2, size=4, measure="legs", seed=0):
    """float32 parameters of a small layer without its output map."""
    generator = np.random.default_rng(seed)
    a, b = transition(measure, size)
    shapes = {"C": (features, channels, size), "D": (features, channels), "log_dt": (features,)}
    params = {name: generator.standard_normal(shape) for name, shape in shapes.items()}
    params |= {"A": a, "B": b, "log_dt": params["log_dt"] / 2 - 2}
    return {name: jnp.asarray(value, jnp.float32) for name, value in params.items()}


def structured(measure, size):
    """The quasiseparable matrix of a measure, with a little noise where its T would be singular."""
    q, b = structured_transition(measure, size)
    d = q.d + 0.3 * (q.d == 0)
    return Quasiseparable(*(jnp.asarray(v, jnp.float32) for v in q._replace(d=d))), jnp.asarray(b, jnp.float32)


def close(got, want, tolerance=2e-5):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(1.0, float(np.max(np.abs(b)))))


@pytest.mark.parametrize("length", [1, 2, 13, 32])
def test_recurrent_and_convolutional_view_agree_from_any_state(length):
    params = params_of()
    u = jax.random.normal(jax.random.key(0), (2, length, 3))
    state = LSSLState(jax.random.normal(jax.random.key(1), (2, 3, 4)))
    system = lssl_system(params)
    kernel = precompute_kernel(params, length + 3)
    for start in (None, state):
        want = lssl_recurrence(system, u, start)
        close(lssl_convolution(system, u, start), want)
        close(lssl_convolution(system, u, start, kernel=kernel), want)
    no_input = lssl_convolution(system, jnp.zeros_like(u), state)
    assert np.max(np.abs(no_input[0])) > 0.1, "the initial state shows in the outputs"


def test_half_the_step_on_a_signal_sampled_twice_as_fast_is_the_same_system():
    """A zero-order hold is exact when the input is constant over a step; the bilinear transform is close for small steps."""
    params = params_of()
    u = jax.random.normal(jax.random.key(0), (2, 16, 3))
    for method, tolerance in (("zoh", 2e-5), ("gbt", 0.05)):
        slow, fast, wrong = (
            lssl_system(params, discretization=method, step_rescale=rescale) for rescale in (1.0, 0.5, 1.000001)
        )
        want = lssl_convolution(slow, u)[0]
        twice = jnp.repeat(u, 2, axis=1)
        close(lssl_convolution(fast, twice)[0][:, 1::2], want, tolerance)
        assert np.max(np.abs(lssl_convolution(wrong, twice)[0][:, 1::2] - want)) > 0.3


def test_a_gate_is_a_backward_euler_step():
    z = jnp.array([-2.0, 0.0, 1.5])
    params = {"A": -jnp.ones((1, 1)), "B": jnp.ones(1), "log_dt": z, "C": jnp.ones((3, 1, 1)), "D": jnp.zeros((3, 1))}
    u = jax.random.normal(jax.random.key(0), (2, 9, 3))
    y, last = lssl_convolution(lssl_system(params, alpha=1.0), u)
    gate, x = jax.nn.sigmoid(z), jnp.zeros((2, 3))
    for t in range(9):
        x = (1 - gate) * x + gate * u[:, t]
        np.testing.assert_allclose(y[:, t, :, 0], x, atol=1e-6)
    np.testing.assert_allclose(last.hidden[..., 0], x, atol=1e-6)


def test_a_rational_impulse_response_is_a_layer():
    """The kernel 0.5^l + l 0.8^(l-1), of the transfer function 1/(1 - z/2) + z/(1 - 0.8 z)^2, in companion form."""
    poles = np.array([0.5, 0.8, 0.8])
    companion = np.eye(3, k=1)
    companion[2] = -np.poly(poles)[:0:-1]
    wanted = 0.5 ** np.arange(20.0) + np.arange(20.0) * 0.8 ** np.maximum(np.arange(20.0) - 1, 0)
    into = np.array([0.0, 0.0, 1.0])
    columns = np.stack([np.linalg.matrix_power(companion, n) @ into for n in range(3)])
    readout = np.linalg.solve(columns, wanted[:3])
    got = impulse_response(*(jnp.asarray(v, jnp.float32) for v in (companion, into, readout[None])), 20)
    np.testing.assert_allclose(got[0], wanted, atol=1e-4)


def test_layers_with_nonlinearities_in_between_are_picard_iterations_of_a_recurrent_network():
    """x' = -x + 2 tanh(x + u) by backward Euler: each layer integrates with the nonlinear part of the layer before it."""
    dt, steps = 0.1, 20
    u = np.random.default_rng(0).standard_normal((1, steps, 1))
    wanted, x = np.zeros((1, steps, 1)), 0.0
    for t in range(steps):
        y = x
        for _ in range(100):  # the implicit step, a contraction
            y = (x + dt * 2 * np.tanh(y + u[0, t, 0])) / (1 + dt)
        wanted[0, t, 0] = x = y
    params = {"A": -jnp.ones((1, 1)), "B": jnp.ones(1), "log_dt": jnp.log(jnp.array([dt])), "C": jnp.ones((1, 1, 1))}
    system = lssl_system({**params, "D": jnp.zeros((1, 1))}, alpha=1.0)
    states, errors = jnp.zeros((1, steps, 1)), []
    for _ in range(16):
        states = lssl_convolution(system, 2 * jnp.tanh(states + jnp.asarray(u, jnp.float32)))[0][..., 0]
        errors.append(float(np.max(np.abs(states - wanted))))
    assert errors[-1] < 1e-5 and errors[0] > 0.2
    assert all(after < 0.9 * before for before, after in itertools.pairwise(errors[1:]) if before > 1e-4)


def test_the_reset_form_is_exactly_causal():
    module = zoo.create("lssl", dim=4, state_dim=3)
    x, reset = jax.random.normal(jax.random.key(0), (1, 8, 4)), jnp.zeros((1, 8), bool)
    params = module.init(jax.random.key(1), x)
    run = jax.jit(lambda x: module.apply(params, x, reset=reset)[0])
    assert np.array_equal(run(x)[:, :5], run(x.at[:, 5:].add(1.0))[:, :5])


def test_dense_and_zero_order_hold_follow_the_equations():
    """The combinations of options that the laws leave out, against the oracle; and half a step structured or dense."""
    x = np.asarray(jax.random.normal(jax.random.key(0), (2, 6, 4)))
    for options in (
        {"learn": "dense", "measure": "lagt", "alpha": 0.0},
        {"learn": "dense", "discretization": "zoh"},
        {"learn": "per_feature", "measure": "chebyshev2", "discretization": "zoh", "channels": 2},
        {"learn": "shared", "measure": "legt", "halve_legt": False},
    ):
        module = zoo.create("lssl", dim=4, state_dim=4, dt_max=0.01, **options)
        params = module.init(jax.random.key(1), jnp.asarray(x))
        want = oracle(module, jax.tree.map(np.float64, params["params"]), np.float64(x))
        close(module.apply(params, jnp.asarray(x))[0], want, 1e-4)


def test_fixed_layers_have_no_parameters_but_the_readout():
    names = {}
    for learn, learn_dt in (
        ("fixed", False),
        ("fixed", True),
        ("shared", True),
        ("per_feature", True),
        ("dense", True),
    ):
        module = zoo.create("lssl", dim=4, state_dim=3, learn=learn, learn_dt=learn_dt)
        params = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 2, 4)))["params"]
        names[learn, learn_dt] = {name: value.shape for name, value in params.items()}
    readout = {"C": (4, 1, 3), "D": (4, 1), "W": (4, 4), "bias": (4,)}
    assert names["fixed", False] == readout
    assert names["fixed", True] == {**readout, "log_dt": (4,)}
    vectors = {"dl": (2,), "d": (3,), "du": (2,), "pl": (3,), "pr": (3,), "c": (3,), "b": (3,)}
    assert names["shared", True] == {**readout, "log_dt": (4,), **vectors}
    assert names["per_feature", True] == {**readout, "log_dt": (4,), **{n: (4, *s) for n, s in vectors.items()}}
    assert names["dense", True] == {**readout, "log_dt": (4,), "A": (3, 3), "B": (3,)}


@pytest.mark.parametrize("measure", STRUCTURED)
@pytest.mark.parametrize("size", [1, 2, 6])
def test_products_and_solves_are_those_of_the_dense_matrix(measure, size):
    q, b = structured(measure, size)
    matrix = np.asarray(dense(q), np.float64)
    t = np.diag(q.d) + np.diag(q.dl, -1) + np.diag(q.du, 1)
    close(matrix, -np.diag(q.pl) @ (np.linalg.inv(t) + np.diag(q.c)) @ np.diag(q.pr))
    x = np.random.default_rng(0).standard_normal((2, size, 3)).astype(np.float32)
    step = jnp.array([0.05, 0.2])
    shift = np.asarray(step)[:, None, None] * matrix
    close(matvec(q, jnp.asarray(x)), matrix @ x)
    close(shifted_matvec(q, step, jnp.asarray(x)), x + shift @ x)
    close(shifted_solve(q, step, jnp.asarray(x)), np.linalg.solve(np.eye(size) - shift, x), 1e-4)
    for alpha in (0.0, 0.5, 1.0):
        want = generalized_bilinear(dense(q), q.pl * b, step, alpha)
        close(discretize_structured(q, q.pl * b, step, alpha), want, 1e-4)


def test_structured_initial_values_are_the_hippo_matrices():
    for size in (1, 2, 7):
        for measure in ("legs", "legt", "lagt"):
            q, b = structured_transition(measure, size)
            a, into = transition(measure, size)
            np.testing.assert_allclose(dense(Quasiseparable(*map(jnp.asarray, q))), a, atol=3e-5)
            np.testing.assert_allclose(q.pl * b, into, rtol=1e-12)
        whole = structured_transition("legt", size, halved=False)[0]
        np.testing.assert_allclose(
            dense(Quasiseparable(*map(jnp.asarray, whole))), 2 * transition("legt", size)[0], atol=3e-5
        )


def test_hippo_matrices_are_what_they_say():
    legs, b = transition("legs", 3)
    np.testing.assert_allclose(legs, [[-1, 0, 0], [-(3**0.5), -2, 0], [-(5**0.5), -(15**0.5), -3]])
    np.testing.assert_allclose(b, [1, 3**0.5, 5**0.5])
    legt, b = transition("legt", 3, halved=False)
    np.testing.assert_allclose(legt, [[-1, 3**0.5, -(5**0.5)], [-(3**0.5), -3, 15**0.5], [-(5**0.5), -(15**0.5), -5]])
    # the LMU is LegT after x_i -> x_i (-1)^i sqrt(2i+1)
    scale = (-1.0) ** np.arange(3) * b
    lmu, into = transition("lmu", 3)
    np.testing.assert_allclose(lmu, scale[:, None] * legt / scale, atol=1e-12)
    np.testing.assert_allclose(into, scale * b)
    # generalised Laguerre of order 0 is the tilted one, but for the scale of B
    general, into = transition("generalized_lagt", 4, alpha=0.0, beta=0.25)
    tilted, plain = transition("tilted_lagt", 4, beta=0.25)
    np.testing.assert_allclose(general, tilted)
    np.testing.assert_allclose(into / plain, 2.0)
    np.testing.assert_allclose(np.diag(transition("lagt", 3)[0]), -0.5)
    for measure in set(MEASURES) - {"random", "identity"}:
        assert np.linalg.eigvals(transition(measure, 5)[0]).real.max() < 0, f"{measure} is not stable"


def test_fourier_reads_the_modes_of_the_last_window():
    """Driven by a signal of period 2, the window's length, its coefficients are those of the Fourier series."""
    a, b = transition("fourier", 9)
    step = 1e-3
    time = np.arange(0, 12, step)
    signal = 0.5 + np.sin(2 * np.pi * time / 2 * 2 + 0.3)
    system = (jnp.asarray(v, jnp.float32) for v in (a, b, step))
    a_bar, b_bar = (np.asarray(v, np.float64) for v in generalized_bilinear(*system))
    x = np.zeros(9)
    for u in signal:
        x = a_bar @ x + b_bar * u
    assert abs(x[0] - 0.5) < 0.01
    assert abs(np.hypot(x[3], x[4]) - math.sqrt(0.5)) < 0.01
    assert np.max(np.abs(x[[1, 2, 5, 6, 7, 8]])) < 0.01


def test_discretisations_have_their_order_and_their_limits():
    """Forward and backward Euler are off by O(dt^2) in one step, bilinear by O(dt^3); the hold is exact."""
    a, b = (jnp.asarray(v, jnp.float32) for v in transition("legt", 4))
    steps = jnp.array([0.1, 0.05])
    exact = zero_order_hold(a, b, steps)[0]
    for alpha, order in ((0.0, 2), (0.5, 3), (1.0, 2)):
        large, small = np.max(np.abs(generalized_bilinear(a, b, steps, alpha)[0] - exact), axis=(1, 2))
        assert 0.6 * 2**order < large / small < 1.6 * 2**order
    one, into = zero_order_hold(-jnp.eye(1), jnp.ones(1), jnp.float32(0.5))
    np.testing.assert_allclose([one[0, 0], into[0]], [math.exp(-0.5), 1 - math.exp(-0.5)], rtol=1e-6)


@pytest.mark.parametrize("length", [1, 2, 3, 8, 11])
def test_krylov_by_doubling_is_the_sequence_of_products(length):
    generator = np.random.default_rng(0)
    matrix = jnp.asarray(generator.standard_normal((2, 4, 4)) / 3, jnp.float32)
    vector = jnp.asarray(generator.standard_normal((2, 4)), jnp.float32)
    readout = jnp.asarray(generator.standard_normal((2, 3, 4)), jnp.float32)
    powers = [np.linalg.matrix_power(np.float64(matrix), n) for n in range(length + 1)]
    want = np.stack([np.einsum("hij,hj->hi", p, vector) for p in powers[:-1]], axis=-1)
    for method in ("doubling", "sequential"):
        got, power = krylov_and_power(matrix, vector, length, method=method)
        close((got, power), (want, powers[-1]))
    close(krylov(matrix, vector, length, transpose=True), krylov(jnp.swapaxes(matrix, 1, 2), vector, length))
    close(impulse_response(matrix, vector, readout, length), np.einsum("hmn,hnl->hml", readout, want))
    assert krylov(matrix.astype(jnp.bfloat16), vector.astype(jnp.bfloat16), length).dtype == jnp.float32


def test_krylov_needs_one_squaring_less_than_products():
    """Eight columns: products with A, A^2 and A^4, two squarings; the fourth power is not squared again."""
    text = str(jax.make_jaxpr(lambda a, b: krylov(a, b, 8))(jnp.eye(3), jnp.ones(3)))
    assert text.count("dot_general") == 5


def test_kernel_memory_does_not_hold_all_states():
    """The kernel of 4,096 steps of 64 states: far less memory than the Krylov matrix of 64 x 4,096 numbers per feature."""
    system = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((4, 64, 64), (4, 64), (4, 1, 64))]
    compiled = jax.jit(functools.partial(impulse_response, length=4096)).lower(*system).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * 64 * 4096 * 4 / 2


@pytest.mark.usefixtures("as_users_see_it")
@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda p, u: lssl_system(p, alpha=1.5), "alpha must lie in"),
        (lambda p, u: lssl_system(p, step_rescale=0.0), "step_rescale must be positive"),
        (lambda p, u: lssl_system({**p, "D": p["D"][:, :1]}), "D must have shape"),
        (lambda p, u: lssl_system({**p, "A": p["A"][:3]}), "A must have shape"),
        (lambda p, u: lssl_system({**p, "C": p["C"][0]}), "C must have shape"),
        (lambda p, u: lssl_convolution(lssl_system(p), u[:, :0]), "time >= 1"),
        (lambda p, u: lssl_convolution(lssl_system(p), u, kernel=jnp.zeros((3, 2, 4))), "at least 5"),
        (lambda p, u: lssl_recurrence(lssl_system(p), u[..., :2]), "u must have shape"),
        (lambda p, u: generalized_bilinear(p["A"], p["B"], -0.1), "step must be positive"),
        (lambda p, u: generalized_bilinear(p["A"], p["B"][:2], 0.1), "into must have shape"),
        (lambda p, u: generalized_bilinear(p["A"], p["B"], 0.1, -0.1), "alpha must lie in"),
        (lambda p, u: transition("leggs", 4), "did you mean 'legs'"),
        (lambda p, u: transition("legs", 0), "size must be a positive integer"),
        (lambda p, u: krylov(p["A"], p["B"], 0), "length must be a positive integer"),
        (lambda p, u: krylov(p["A"][:2], p["B"], 3), "matrix must have shape"),
        (lambda p, u: lssl(p, u, view="convolution", reset=jnp.zeros((2, 5), bool)), "cannot reset"),
        (lambda p, u: zoo.create("lssl", dim=3, measure="lmu").init(jax.random.key(0), u), "measure='lmu' is not"),
        (lambda p, u: zoo.create("lssl", dim=3, dt_min=0.2).init(jax.random.key(0), u), "dt_min <= dt_max"),
    ],
)
def test_wrong_arguments_are_refused_by_name(call, words):
    with pytest.raises(ValueError, match=words):
        call(params_of(), jnp.ones((2, 5, 3)))
