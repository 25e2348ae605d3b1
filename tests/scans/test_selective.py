"""selective_scan: every form equals the recurrence, forward and derivative, and none keeps the states of all steps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.oracles import scans as oracle
from zoo.scans import selective_scan

METHODS = ("sequential", "chunked")


def make(batch, steps, channels, size, seed=0):
    """x, delta, a, b, c, skip, initial, and cotangents of y and last; and resets."""
    rng = np.random.default_rng(seed)
    x, y_bar = rng.normal(size=(2, batch, steps, channels))
    b, c = rng.normal(size=(2, batch, steps, size))
    initial, last_bar = rng.normal(size=(2, batch, channels, size))
    delta, a = rng.exponential(size=x.shape), -rng.exponential(size=(channels, size))
    return (x, delta, a, b, c, rng.normal(size=channels), initial, y_bar, last_bar), rng.random((batch, steps)) < 0.2


@functools.partial(jax.jit, static_argnames=("method", "chunk_size"))
def run_with_gradient(x, delta, a, b, c, skip, initial, y_bar, last_bar, reset, method, chunk_size):
    function = functools.partial(selective_scan, reset=reset, method=method, chunk_size=chunk_size)
    outputs, pullback = jax.vjp(function, x, delta, a, b, c, skip, initial)
    return outputs, pullback((y_bar, last_bar))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("resets", [False, True], ids=["whole", "resets"])
@pytest.mark.parametrize(("sizes", "chunk_size"), [((2, 23, 3, 4), 8), ((1, 1, 2, 1), None)], ids=["long", "one_step"])
def test_forward_and_every_gradient_equal_the_oracle(float64, method, resets, sizes, chunk_size):
    arguments, reset = make(*sizes)
    reset = reset if resets else None
    got = run_with_gradient(*arguments, reset, method, chunk_size)
    want = oracle.selective(*arguments[:7], reset), oracle.selective_gradient(*arguments, reset)
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(g, w, rtol=1e-11, atol=1e-11)


def test_forward_mode_and_second_derivatives(float64):
    """Along one direction, against differences of the oracle, which are off by step^2 times its third derivatives."""
    (*arguments, y_bar, last_bar), _ = make(1, 5, 2, 2)
    direction = make(1, 5, 2, 2, seed=1)[0][:7]
    function = functools.partial(selective_scan, method="sequential", chunk_size=4)

    @jax.jit
    def derivatives(*arguments):
        def gradient(*arguments):
            return jax.vjp(function, *arguments)[1]((y_bar, last_bar))

        return jax.jvp(function, arguments, direction)[1], jax.jvp(gradient, arguments, direction)[1]

    near = [[a + sign * 1e-5 * d for a, d in zip(arguments, direction, strict=True)] for sign in (1, -1)]
    values = [oracle.selective(*a) for a in near]
    gradients = [oracle.selective_gradient(*a, y_bar, last_bar) for a in near]
    for got, (high, low) in zip(derivatives(*map(jnp.asarray, arguments)), (values, gradients), strict=True):
        for g, p, m in zip(got, high, low, strict=True):
            np.testing.assert_allclose(g, (p - m) / 2e-5, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_the_states_of_all_steps_are_never_in_memory(method):
    """Not in the compiled gradient either: its temporary memory is far below [B, T, D, N]."""
    shapes = [(1, 4096, 32), (1, 4096, 32), (32, 32), (1, 4096, 32), (1, 4096, 32)]

    @jax.jit
    def gradient(*arguments):
        return jax.grad(lambda *a: jnp.sum(selective_scan(*a, method=method, chunk_size=32)[0]), (0, 1, 2, 3, 4))(
            *arguments
        )

    compiled = gradient.lower(*(jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes)).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 0.5 * 4 * 4096 * 32 * 32


@pytest.mark.parametrize("method", METHODS)
def test_extreme_steps_stay_finite_and_right(method):
    """Step sizes of 0 and 1000, transitions from -1e-3 to -1e3, in float32."""
    (x, delta, a, *rest), _ = make(1, 40, 3, 4)
    rng = np.random.default_rng(2)
    delta, a = rng.choice([0, 1e-3, 1, 1000], size=delta.shape), -rng.choice([1e-3, 1, 1000], size=a.shape)
    arguments = [array.astype(np.float32) for array in (x, delta, a, *rest)]
    got = run_with_gradient(*arguments, None, method, 8)
    exact = [array.astype(float) for array in arguments]
    want = oracle.selective(*exact[:7]), oracle.selective_gradient(*exact)
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(g, w, rtol=0, atol=40 * 2.0**-23 * np.abs(w).max())


def test_the_kernel_gives_the_same_numbers():
    """method="pallas", interpreted here."""
    (*arguments, _, _), reset = make(1, 20, 3, 4)
    arguments, reset = [jnp.asarray(a, jnp.float32) for a in arguments], jnp.asarray(reset)
    got = selective_scan(*arguments, reset=reset, method="pallas")
    want = selective_scan(*arguments, reset=reset, method="sequential")
    for g, w in zip(got, want, strict=True):
        np.testing.assert_allclose(g, w, rtol=0, atol=24 * 2.0**-23 * jnp.abs(w).max())


def test_bfloat16_is_stored_but_not_accumulated():
    ones = jnp.ones((1, 1000, 2), jnp.bfloat16)
    y, last = selective_scan(ones, ones / 256, jnp.zeros((2, 1)), ones[..., :1], ones[..., :1])
    assert y.dtype == jnp.bfloat16 and last.dtype == jnp.float32
    np.testing.assert_allclose(last, 1000 / 256, rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"delta": (2, 3, 1)}, r"delta must have shape \[2, 3, 4\], got \[2, 3, 1\]"),
        ({"b": (2, 3, 4)}, r"b must have shape \[2, 3, 5\], got \[2, 3, 4\]"),
        ({"initial": (2, 5, 4)}, r"initial must have shape \[2, 4, 5\], got \[2, 5, 4\]"),
        ({"x": (2, 0, 4)}, r"T = 0"),
        ({"method": "kernel"}, "not one of auto, sequential, chunked, pallas"),
        ({"reset": (2, 3)}, "reset must be a bool array"),
    ],
)
def test_wrong_arguments_are_refused_in_one_line(as_users_see_it, change, message):
    shapes = {"x": (2, 3, 4), "delta": (2, 3, 4), "a": (4, 5), "b": (2, 3, 5), "c": (2, 3, 5), "initial": (2, 4, 5)}
    arguments = {name: jnp.ones(shape) for name, shape in shapes.items()}
    arguments |= {n: jnp.ones(s) if isinstance(s, tuple) else s for n, s in change.items()}
    with pytest.raises((ValueError, TypeError), match=message):
        selective_scan(**arguments)
