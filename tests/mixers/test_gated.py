"""Gated recurrence: the scan behind it, and what each architecture promises beyond the laws."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zoo
from zoo.mixers import (
    ElmanState,
    JordanState,
    LSTMState,
    bidirectional,
    elman,
    jordan,
    lstm,
    lstm_states,
)
from zoo.scans import matmul, recurrent_scan

BATCH, TIME, DIM, HIDDEN = 2, 5, 3, 4


def project(params, x):
    return matmul(x, params["w"]) + params["b"]


def step(params, state, drive, keep):
    """Two products, one behind the other, and a state of two arrays: everything a cell of the zoo needs."""
    h, c = state
    r, z = jnp.split(jax.nn.sigmoid(keep(drive + matmul(h, params["u"]))), 2, axis=-1)
    n = jnp.tanh(keep(matmul(r * h, params["v"])) + params["p"] * c)
    return z * h + (1 - z) * n, 0.5 * c + n


def by_hand(params, x, initial, reset=None, reverse=False):
    """The definition of ``recurrent_scan``, differentiated by JAX step by step."""
    state, states = initial, [None] * x.shape[1]
    for t in reversed(range(x.shape[1])) if reverse else range(x.shape[1]):
        if reset is not None:
            state = jax.tree.map(lambda s, r=reset[:, t, None]: jnp.where(r, 0, s), state)
        states[t] = state = step(params, state, project(params, x[:, t]), lambda value: value)
    return jax.tree.map(lambda *s: jnp.stack(s, axis=1), *states), state


def arguments(dtype=jnp.float64):
    shapes = {
        "w": (DIM, 2 * HIDDEN),
        "b": (2 * HIDDEN,),
        "u": (HIDDEN, 2 * HIDDEN),
        "v": (HIDDEN, HIDDEN),
        "p": (HIDDEN,),
    }
    generator = np.random.default_rng(0)

    def draw(*shape):
        return jnp.asarray(generator.standard_normal(shape), dtype)

    initial = draw(BATCH, HIDDEN), draw(BATCH, HIDDEN)
    return {k: draw(*s) for k, s in shapes.items()}, draw(BATCH, TIME, DIM), initial


def total(outputs):
    """A scalar that weighs every state of every step and the last state once more."""
    return sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(outputs))


def close(got, want, tolerance=1e-11):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("reverse", "cut"), [(False, True), (True, False)])
def test_recurrent_scan_and_its_gradients_equal_the_plain_loop(float64, reverse, cut):
    reset = jnp.zeros((BATCH, TIME), bool).at[0, 2].set(True).at[1, 0].set(True) if cut else None
    args = arguments()

    def scan(params, x, initial):
        return recurrent_scan(step, x, initial, params, project=project, reset=reset, reverse=reverse)

    loop = functools.partial(by_hand, reset=reset, reverse=reverse)
    close(jax.jit(scan)(*args), jax.jit(loop)(*args))
    value_and_grad = [jax.jit(jax.value_and_grad(lambda *a, f=f: total(f(*a)), (0, 1, 2))) for f in (scan, loop)]
    close(value_and_grad[0](*args), value_and_grad[1](*args))


def test_forward_mode_and_second_derivatives_equal_the_plain_loop(float64):
    args = arguments()
    tangents = jax.tree.map(jnp.cos, args)

    def derivatives(function):
        """A directional derivative of the outputs, and a Hessian times a vector, computed in two ways."""

        def gradient(*a):
            return jax.grad(lambda *a: total(function(*a)), (0, 1, 2))(*a)

        def along(*a):
            return sum(jnp.vdot(g, t) for g, t in zip(jax.tree.leaves(gradient(*a)), jax.tree.leaves(tangents)))

        return (
            jax.jvp(function, args, tangents)[1],
            jax.jvp(gradient, args, tangents)[1],
            jax.grad(along, (0, 1, 2))(*args),
        )

    got = jax.jit(lambda: derivatives(lambda p, x, i: recurrent_scan(step, x, i, p, project=project)))()
    close(got, jax.jit(lambda: derivatives(by_hand))())
    close(got[1], got[2])


def test_records_are_not_stored_without_a_backward_pass():
    x, steps = jnp.ones((4, 64, 16)), 64
    module = zoo.create("lstm", dim=16)
    params = jax.eval_shape(module.init, jax.random.key(0), x)
    compiled = jax.jit(lambda p, x: module.apply(p, x)[0]).lower(params, x).compile()
    states = 2 * 4 * steps * 16 * 4  # hidden and cell in bytes; the gates would be four times as much as one of them
    assert compiled.memory_analysis().temp_size_in_bytes < 1.5 * states


def test_recurrent_scan_names_what_is_wrong(as_users_see_it):
    x, h = jnp.ones((2, 3, 4)), jnp.ones((2, 4))
    plain = lambda params, state, drive, keep: state + drive  # noqa: E731
    with pytest.raises(ValueError, match="T = 0"):
        recurrent_scan(plain, x[:, :0], h)
    with pytest.raises(ValueError, match="initial must be arrays"):
        recurrent_scan(plain, x, h[:1])
    with pytest.raises(TypeError, match="inputs"):
        recurrent_scan(plain, x.astype(jnp.int32), h)
    with pytest.raises(ValueError, match="reset must have shape"):
        recurrent_scan(plain, x, h, reset=jnp.zeros((2, 4), bool))


@pytest.mark.parametrize(("activation", "scale", "low", "high"), [
    ("tanh", 0.5, 0.0, 1e-8), ("tanh", 1.0, 1e-3, 10.0), ("identity", 2.0, 1e8, 2e12), ("sigmoid", 1.0, 0.0, 1e-20),
])  # fmt: skip
def test_gradients_of_an_elman_network_vanish_or_explode_with_its_singular_values(activation, scale, low, high):
    """||dh_T/dh_0|| <= (gamma sigma_max)^T: 0.5^40 = 9e-13; orthogonal weights alone neither vanish nor explode."""
    module = zoo.create("elman", dim=32, activation=activation, recurrent_init="orthogonal", recurrent_scale=scale)
    x = 1e-3 * jax.random.normal(jax.random.key(0), (1, 40, 32))
    params = module.init(jax.random.key(1), x)["params"]
    singular = jnp.linalg.svd(params["recurrent_kernel"], compute_uv=False)
    np.testing.assert_allclose(singular, scale, rtol=1e-5)

    def last(h):
        return elman(params, x, ElmanState(h[None]), activation=activation)[1].hidden[0]

    norm = float(jnp.linalg.norm(jax.jit(jax.jacrev(last))(jnp.zeros(32)), 2))
    assert low <= norm <= high


def test_the_constant_error_carousel_is_exactly_one():
    module = zoo.create("lstm", dim=4, forget_gate=False)
    x = jax.random.normal(jax.random.key(0), (1, 40, 4))
    params = module.init(jax.random.key(1), x)["params"]
    params["recurrent_kernel"] = jnp.zeros_like(params["recurrent_kernel"])

    def last(cell):
        return lstm(params, x, LSTMState(jnp.zeros((1, 4)), cell[None]), forget_gate=False)[1].cell[0]

    assert np.array_equal(jax.jit(jax.jacrev(last))(jnp.zeros(4)), np.eye(4))


def test_initial_biases_and_orthogonal_gates():
    x = jnp.ones((1, 2, 4))
    params = zoo.create("lstm", dim=4, forget_bias=4.0, recurrent_init="orthogonal").init(jax.random.key(0), x)[
        "params"
    ]
    assert np.array_equal(params["bias"], np.repeat([0.0, 4.0, 0.0, 0.0], 4))
    for gate in np.split(params["recurrent_kernel"], 4, axis=1):
        np.testing.assert_allclose(gate @ gate.T, np.eye(4), atol=1e-6)
    assert np.array_equal(
        zoo.create("gru", dim=4, update_bias=4.0).init(jax.random.key(0), x)["params"]["bias"],
        np.repeat([0.0, 4.0, 0.0], 4),
    )


def test_lstm_states_carry_the_last_state():
    module = zoo.create("lstm", dim=4)
    x = jax.random.normal(jax.random.key(0), (2, 6, 4))
    params = module.init(jax.random.key(1), x)["params"]
    states, last = lstm_states(params, x, module.initial_state(2))
    close(jax.tree.map(lambda s: s[:, -1], states), last, 0)


def jordan_parameters():
    module = zoo.create("jordan", dim=4, feedback_dim=3, decay=0.5)
    x = jax.random.normal(jax.random.key(0), (2, 9, 4))
    params = module.init(jax.random.key(1), x)["params"]
    return {k: v for k, v in params.items() if k != "output"}, x


def test_jordan_taught_its_own_outputs_runs_as_if_free():
    params, x = jordan_parameters()
    reset = jnp.zeros(x.shape[:2], bool).at[0, 3].set(True)
    state = JordanState(jax.random.uniform(jax.random.key(2), (2, 3)))
    free, last = jordan(params, x, state, reset=reset)
    taught, last_taught = jordan(params, x, state, teacher=jax.nn.softmax(free.logits), reset=reset)
    close((free, last), (taught, last_taught), 1e-5)
    other, _ = jordan(params, x, state, teacher=jnp.zeros_like(free.logits), reset=reset)
    assert not np.allclose(other.logits, free.logits, atol=1e-3)


def test_jordan_taught_in_pieces_equals_the_whole():
    params, x = jordan_parameters()
    teacher = jax.nn.one_hot(jax.random.randint(jax.random.key(3), x.shape[:2], 0, 3), 3)
    start = JordanState(jnp.zeros((2, 3)))
    whole, last = jordan(params, x, start, teacher=teacher)
    first, state = jordan(params, x[:, :4], start, teacher=teacher[:, :4])
    second, state = jordan(params, x[:, 4:], state, teacher=teacher[:, 4:])
    close((jnp.concatenate([first.logits, second.logits], axis=1), state), (whole.logits, last), 1e-6)


def test_a_decay_outside_its_range_is_refused(as_users_see_it):
    x = jnp.ones((1, 2, 4))
    for decay in (1.0, -0.1):
        with pytest.raises(ValueError, match=r"decay must be in \[0, 1\)"):
            zoo.create("jordan", dim=4, decay=decay).init(jax.random.key(0), x)


def test_ragged_rows_read_backwards_from_their_last_token():
    module = zoo.create("bidirectional", dim=4, mixer="gru")
    x = jax.random.normal(jax.random.key(0), (3, 7, 4))
    lengths = [7, 4, 1]
    params = module.init(jax.random.key(1), x)
    reset = jnp.arange(7) == jnp.array(lengths)[:, None]
    y = module.apply(params, x, reset=reset)[0]
    for row, length in enumerate(lengths):
        alone = module.apply(params, x[row : row + 1, :length])[0]
        np.testing.assert_allclose(y[row, :length], alone[0], atol=1e-6)


def test_bidirectional_hands_the_backward_function_reversed_documents():
    x = jnp.arange(5.0)[None, :, None]
    reset = jnp.array([[False, False, True, False, False]])
    seen = []

    def record(values, starts):
        seen.append((values[0, :, 0].tolist(), starts[0].tolist()))
        return values

    f, g = bidirectional(record, record, x, reset)
    assert seen[0] == ([0, 1, 2, 3, 4], [False, False, True, False, False])
    assert seen[1] == ([4, 3, 2, 1, 0], [False, False, False, True, False])
    assert np.array_equal(f, x) and np.array_equal(g, x)


def test_bidirectional_refuses_mixers_that_see_the_future(as_users_see_it):
    x = jnp.ones((1, 2, 4))
    with pytest.raises(ValueError, match="not causal"):
        zoo.create("bidirectional", dim=4, mixer="bidirectional").init(jax.random.key(0), x)
    with pytest.raises(ValueError, match="did you mean 'lstm'"):
        zoo.create("bidirectional", dim=4, mixer="lstmm").init(jax.random.key(0), x)


@pytest.mark.parametrize(("name", "options", "message"), [
    ("elman", {"activation": "tanhh"}, "did you mean 'tanh'"),
    ("elman", {"recurrent_init": "normal"}, "recurrent_init"),
    ("lstm", {"output_activation": "relu"}, "output_activation"),
    ("gru", {"reset_gate": "during"}, "reset_gate"),
    ("lstm", {"hidden_dim": 0}, "hidden_dim must be a positive integer"),
])  # fmt: skip
def test_unknown_options_are_refused_with_the_choices(as_users_see_it, name, options, message):
    with pytest.raises(ValueError, match=message):
        zoo.create(name, dim=4, **options).init(jax.random.key(0), jnp.ones((1, 2, 4)))
