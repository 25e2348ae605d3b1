"""linear_attention: every form equals the recurrence, forward and derivative, with every kind of decay."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.oracles import scans as oracle
from zoo.scans import linear_attention, linear_attention_step

METHODS = ("sequential", "chunked")
DECAYS = ("none", "head", "channel")


def make(batch, steps, groups, heads, keys, values, decay, seed=0, choices=None):
    """q, k, v, log_decay, initial, and cotangents of y and last; decays drawn from ``choices`` when given."""
    rng = np.random.default_rng(seed)
    q, k = rng.normal(size=(2, batch, steps, groups, keys))
    v, y_bar = rng.normal(size=(2, batch, steps, heads, values))
    initial, last_bar = rng.normal(size=(2, batch, heads, keys, values))
    shape = {"none": None, "head": (batch, steps, heads), "channel": (batch, steps, heads, keys)}[decay]
    log_decay = None
    if shape is not None:
        log_decay = -rng.exponential(size=shape) if choices is None else rng.choice(choices, size=shape)
    return q, k, v, log_decay, initial, y_bar, last_bar


@functools.partial(jax.jit, static_argnames=("method", "chunk_size"))
def run_with_gradient(q, k, v, log_decay, initial, y_bar, last_bar, method, chunk_size):
    function = functools.partial(linear_attention, method=method, chunk_size=chunk_size)
    outputs, pullback = jax.vjp(function, q, k, v, log_decay, initial)
    return outputs, pullback((y_bar, last_bar))


def wanted(arguments):
    return oracle.matrix_state(*arguments[:5]), oracle.matrix_state_gradient(*arguments)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize(
    ("sizes", "chunk_size"),
    [((2, 77, 2, 2, 3, 5), 64), ((1, 13, 1, 4, 4, 2), 4), ((2, 1, 1, 1, 2, 3), None)],
    ids=["long", "groups", "one_step"],
)
def test_forward_and_every_gradient_equal_the_oracle(float64, method, decay, sizes, chunk_size):
    arguments = make(*sizes, decay)
    got = run_with_gradient(*arguments, method, chunk_size)
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(wanted(arguments)), strict=True):
        np.testing.assert_allclose(g, w, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("decay", ["head", "channel"])
def test_extreme_decays_stay_finite_and_right(method, decay):
    """No digit of a weak decay is lost behind a strong one, and -inf is a decay of exactly zero."""
    arguments = [
        a.astype(np.float32) for a in make(1, 70, 1, 2, 4, 3, decay, 1, [0, -50, -1e-3, -0.5, -np.inf, -1e-30])
    ]
    got = run_with_gradient(*arguments, method, 64)
    want = wanted([a.astype(float) for a in arguments])
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert np.all(np.isfinite(g))
        np.testing.assert_allclose(g, w, atol=70 * 2.0**-23 * np.abs(w).max())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("decay", ["head", "channel"])
def test_a_reset_cuts_exactly(method, decay):
    """log_decay = -inf lets nothing through, not even rounding."""
    q, k, v, log_decay, initial, *_ = (jnp.asarray(a, jnp.float32) for a in make(1, 20, 1, 1, 3, 2, decay))
    log_decay = log_decay.at[:, 11].set(-jnp.inf)
    other = v.at[:, :11].multiply(-7)
    scan = jax.jit(lambda v, s: linear_attention(q, k, v, log_decay, s, method=method, chunk_size=8))
    one, two = scan(v, initial), scan(other, 3 * initial)
    np.testing.assert_array_equal(one[0][:, 11:], two[0][:, 11:])
    np.testing.assert_array_equal(one[1], two[1])


def test_steps_one_by_one_equal_the_whole(float64):
    q, k, v, log_decay, state, *_ = map(jnp.asarray, make(2, 6, 1, 2, 3, 4, "head"))
    y, last = linear_attention(q, k, v, log_decay, state, method="chunked")
    step = jax.jit(linear_attention_step)
    for t in range(6):
        now, state = step(q[:, t], k[:, t], v[:, t], log_decay[:, t], state)
        np.testing.assert_allclose(now, y[:, t], rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(state, last, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(("method", "decay"), [("sequential", "head"), ("chunked", "head"), ("chunked", "channel")])
def test_forward_mode_and_second_derivatives(float64, method, decay):
    """Along one direction, against differences of the oracle, which are off by step^2 times its third derivatives."""
    *arguments, y_bar, last_bar = make(1, 5, 1, 1, 2, 2, decay)
    direction = make(1, 5, 1, 1, 2, 2, decay, seed=1)[:5]
    function = functools.partial(linear_attention, method=method, chunk_size=4)

    @jax.jit
    def derivatives(*arguments):
        def gradient(*arguments):
            return jax.vjp(function, *arguments)[1]((y_bar, last_bar))

        return jax.jvp(function, arguments, direction)[1], jax.jvp(gradient, arguments, direction)[1]

    near = [[a + sign * 1e-5 * d for a, d in zip(arguments, direction, strict=True)] for sign in (1, -1)]
    values = [oracle.matrix_state(*a) for a in near]
    gradients = [oracle.matrix_state_gradient(*a, y_bar, last_bar) for a in near]
    for got, (high, low) in zip(derivatives(*map(jnp.asarray, arguments)), (values, gradients), strict=True):
        for g, a, b in zip(got, high, low, strict=True):
            np.testing.assert_allclose(g, (a - b) / 2e-5, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("method", METHODS)
def test_reverse_mode_keeps_states_at_chunk_borders_only(method):
    q = k = jnp.ones((1, 256, 1, 16))
    v, decay = jnp.ones((1, 256, 1, 16)), jnp.zeros((1, 256, 1))
    _, pullback = jax.vjp(jax.jit(functools.partial(linear_attention, method=method, chunk_size=32)), q, k, v, decay)
    kept = sum({id(leaf): leaf.size for leaf in jax.tree.leaves(pullback) if hasattr(leaf, "size")}.values())
    assert kept <= 1.1 * (3 * q.size + 256 + 8 * 16 * 16)


@pytest.mark.parametrize("decay", ["head", "channel"])
def test_the_kernel_gives_the_same_numbers(decay):
    """method="pallas", interpreted here."""
    q, k, v, log_decay, state, *_ = (jnp.asarray(a, jnp.float32) for a in make(1, 20, 1, 2, 3, 2, decay))
    got = linear_attention(q, k, v, log_decay, state, method="pallas")
    want = linear_attention(q, k, v, log_decay, state, method="chunked")
    for g, w in zip(got, want, strict=True):
        np.testing.assert_allclose(g, w, rtol=0, atol=23 * 2.0**-23 * jnp.abs(w).max())


def test_bfloat16_is_stored_but_not_accumulated():
    ones = jnp.full((1, 1000, 1, 2), 1 / 16, jnp.bfloat16)
    y, last = linear_attention(ones, ones, ones)
    assert y.dtype == jnp.bfloat16 and last.dtype == jnp.float32
    np.testing.assert_allclose(last, 1000 / 256, rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": (2, 3, 1, 5)}, r"k must have the shape of q \[2, 3, 1, 4\], got \[2, 3, 1, 5\]"),
        ({"q": (2, 0, 1, 4), "k": (2, 0, 1, 4)}, r"T = 0"),
        ({"q": (2, 3, 3, 4), "k": (2, 3, 3, 4)}, r"2 heads, which is not a multiple of the 3 heads"),
        ({"v": (2, 4, 2, 5)}, r"v must have shape \[2, 3, .* got \[2, 4, 2, 5\]"),
        ({"log_decay": (2, 3)}, r"log_decay must have shape \[2, 3, 2\] .* \[2, 3, 2, 4\] .* got \[2, 3\]"),
        ({"initial": (2, 2, 5, 4)}, r"initial must have shape \[2, 2, 4, 5\], got \[2, 2, 5, 4\]"),
        ({"method": "chunk"}, r"did you mean 'chunked'"),
        ({"chunk_size": 0}, r"chunk_size must be a positive integer, got 0"),
    ],
)
def test_wrong_arguments_are_refused_in_one_line(as_users_see_it, change, message):
    shapes = {"q": (2, 3, 1, 4), "k": (2, 3, 1, 4), "v": (2, 3, 2, 5), "log_decay": (2, 3, 2), "initial": (2, 2, 4, 5)}
    arguments = {name: jnp.ones(shape) for name, shape in shapes.items()}
    arguments |= {n: jnp.ones(c) if isinstance(c, tuple) else c for n, c in change.items()}
    with pytest.raises(ValueError, match=message):
        linear_attention(**arguments)


def test_integers_and_complex_numbers_are_refused(as_users_see_it):
    x = jnp.ones((1, 2, 1, 2))
    with pytest.raises(TypeError, match="v must be a floating-point array, got int32"):
        linear_attention(x, x, x.astype(int))
    with pytest.raises(TypeError, match="q must be real, got complex64"):
        linear_attention(x.astype(complex), x, x)
