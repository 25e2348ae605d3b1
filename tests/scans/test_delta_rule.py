"""gated_delta_rule: both forms equal the recurrence, forward and derivative, cut anywhere."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.oracles import scans as oracle
from zoo.scans import gated_delta_rule

METHODS = ("sequential", "chunked")


def make(batch, steps, groups, heads, keys, values, decay=True, seed=0, choices=None):
    """q, k, v, beta, log_decay, initial and cotangents of y and last; keys have length 1."""
    rng = np.random.default_rng(seed)
    q, k = rng.normal(size=(2, batch, steps, groups, keys))
    k = k / np.linalg.norm(k, axis=-1, keepdims=True)
    v, y_bar = rng.normal(size=(2, batch, steps, heads, values))
    beta = rng.uniform(0, 2, size=(batch, steps, heads))
    initial, last_bar = rng.normal(size=(2, batch, heads, keys, values))
    log_decay = -rng.exponential(size=beta.shape) if choices is None else rng.choice(choices, size=beta.shape)
    return q, k, v, beta, log_decay if decay else None, initial, y_bar, last_bar


@functools.partial(jax.jit, static_argnames=("method", "chunk_size"))
def run_with_gradient(q, k, v, beta, log_decay, initial, y_bar, last_bar, method, chunk_size):
    function = functools.partial(gated_delta_rule, method=method, chunk_size=chunk_size)
    outputs, pullback = jax.vjp(function, q, k, v, beta, log_decay, initial)
    return outputs, pullback((y_bar, last_bar))


def slope(arguments, direction, y_bar, last_bar):
    """Central difference of the oracle's weighted outputs along a direction."""
    totals = []
    for sign in (1, -1):
        moved = [None if a is None else a + sign * 1e-6 * d for a, d in zip(arguments, direction, strict=True)]
        y, last = oracle.delta_rule(*moved)
        totals.append(np.sum(y * y_bar) + np.sum(last * last_bar))
    return (totals[0] - totals[1]) / 2e-6


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("sizes", "chunk_size", "decay"),
    [((2, 37, 1, 2, 3, 5), 16, True), ((1, 9, 2, 2, 4, 2), 4, False), ((2, 1, 1, 1, 2, 3), None, True)],
    ids=["groups", "no_decay", "one_step"],
)
def test_forward_and_gradient_equal_the_oracle(float64, method, sizes, chunk_size, decay):
    *arguments, y_bar, last_bar = make(*sizes, decay)
    outputs, gradients = run_with_gradient(*arguments, y_bar, last_bar, method, chunk_size)
    for got, want in zip(outputs, oracle.delta_rule(*arguments), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-11, atol=1e-11)
    present = [a for a in arguments if a is not None]
    rng = np.random.default_rng(1)
    for moved in range(len(present)):  # every argument on its own
        steps = [rng.normal(size=a.shape) * (i == moved) for i, a in enumerate(present)]
        analytic = sum(np.sum(g * d) for g, d in zip(jax.tree.leaves(gradients), steps, strict=True))
        rest = iter(steps)
        direction = [None if a is None else next(rest) for a in arguments]
        want = slope(arguments, direction, y_bar, last_bar)
        np.testing.assert_allclose(analytic, want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_extreme_decays_stay_finite_and_right(method):
    *arguments, y_bar, last_bar = (
        np.float32(a) for a in make(1, 70, 1, 2, 4, 3, seed=1, choices=[0, -50, -1e-3, -0.5, -np.inf, -1e-30])
    )
    (y, last), gradients = run_with_gradient(*arguments, y_bar, last_bar, method, 64)
    want = oracle.delta_rule(*(a.astype(float) for a in arguments))
    for g, w in zip((y, last), want, strict=True):
        np.testing.assert_allclose(g, w, atol=70 * 2.0**-23 * np.abs(w).max())
    assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(gradients))


@pytest.mark.parametrize("method", METHODS)
def test_a_reset_cuts_exactly(method):
    q, k, v, beta, log_decay, initial, *_ = (jnp.asarray(a, jnp.float32) for a in make(1, 20, 1, 1, 3, 2))
    log_decay = log_decay.at[:, 11].set(-jnp.inf)
    scan = jax.jit(lambda v, s: gated_delta_rule(q, k, v, beta, log_decay, s, method=method, chunk_size=8))
    one, two = scan(v, initial), scan(v.at[:, :11].multiply(-7), 3 * initial)
    np.testing.assert_array_equal(one[0][:, 11:], two[0][:, 11:])
    np.testing.assert_array_equal(one[1], two[1])


def test_pieces_equal_the_whole(float64):
    *arguments, state, _, _ = map(jnp.asarray, make(2, 11, 1, 2, 3, 4))
    run = jax.jit(gated_delta_rule)
    y, last = run(*arguments, state)
    for start, stop in ((0, 6), (6, 7), (7, 11)):
        now, state = run(*(a[:, start:stop] for a in arguments), state)
        np.testing.assert_allclose(now, y[:, start:stop], rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(state, last, rtol=1e-11, atol=1e-12)


def test_forms_agree_in_second_derivatives(float64):
    *arguments, y_bar, last_bar = map(jnp.asarray, make(1, 5, 1, 1, 2, 2))
    direction = make(1, 5, 1, 1, 2, 2, seed=1)[:6]

    @functools.partial(jax.jit, static_argnums=0)
    def derivative(method):
        def gradient(*arguments):
            function = functools.partial(gated_delta_rule, method=method, chunk_size=3)
            return jax.vjp(function, *arguments)[1]((y_bar, last_bar))

        return jax.jvp(gradient, tuple(arguments), tuple(direction))[1]

    for one, other in zip(derivative("sequential"), derivative("chunked"), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-10)


def test_bfloat16_is_stored_but_not_accumulated():
    ones = jnp.full((1, 1000, 1, 2), 1 / 16, jnp.bfloat16)
    y, last = jax.jit(gated_delta_rule)(ones, ones, ones, jnp.full((1, 1000, 1), 0.25, jnp.bfloat16))
    assert y.dtype == jnp.bfloat16 and last.dtype == jnp.float32
    want = oracle.delta_rule(
        *(np.full((1, 1000, 1, 2), 1 / 16),) * 3, np.full((1, 1000, 1), 0.25), None, np.zeros((1, 1, 2, 2))
    )
    np.testing.assert_allclose(last, want[1], rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": (2, 3, 1, 5)}, r"k must have the shape of q"),
        ({"beta": (2, 3)}, r"beta must have shape \[2, 3, 2\], got \[2, 3\]"),
        ({"log_decay": (2, 3, 2, 4)}, r"log_decay must have shape \[2, 3, 2\], got \[2, 3, 2, 4\]"),
        ({"initial": (2, 2, 5, 4)}, r"initial must have shape"),
        ({"method": "chunk"}, r"did you mean 'chunked'"),
    ],
)
def test_wrong_arguments_are_refused_in_one_line(as_users_see_it, change, message):
    shapes = {"q": (2, 3, 1, 4), "k": (2, 3, 1, 4), "v": (2, 3, 2, 5), "beta": (2, 3, 2), "log_decay": (2, 3, 2)}
    arguments = {name: jnp.ones(shape) for name, shape in shapes.items()}
    arguments |= {n: jnp.ones(c) if isinstance(c, tuple) else c for n, c in change.items()}
    with pytest.raises(ValueError, match=message):
        gated_delta_rule(**arguments)
