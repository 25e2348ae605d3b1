"""affine_scan: every form equals the recurrence with matrices, forward and derivative."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from tests.oracles import scans as oracle
from zoo.scans import affine_scan, linear_scan

METHODS = ("sequential", "chunked", "associative")

CASES = {
    "dense": ((2, 11, 3), (2, 11, 3, 3)),
    "blocks": ((2, 7, 2, 3), (2, 7, 2, 3, 3)),
    "constant": ((2, 10, 4), (1, 1, 4, 4)),
    "one_matrix": ((2, 9, 2), (2, 2)),
    "shared_blocks": ((1, 8, 3, 2), (1, 8, 1, 2, 2)),
    "one_step": ((2, 1, 3), (2, 1, 3, 3)),
}


def make(shape, matrix_shape, seed=0, dtype=np.float64):
    rng = np.random.default_rng(seed)

    def normal(shape):
        real = rng.normal(size=shape)
        return (real + 1j * rng.normal(size=shape) if np.issubdtype(dtype, np.complexfloating) else real).astype(dtype)

    state = (shape[0], *shape[2:])
    return 0.6 * normal(matrix_shape), normal(shape), normal(state), normal(shape), normal(state)


@functools.partial(jax.jit, static_argnames=("reverse", "method"))
def run_with_gradient(matrices, inputs, initial, states_bar, last_bar, reverse, method):
    function = functools.partial(affine_scan, reverse=reverse, method=method, chunk_size=4)
    outputs, pullback = jax.vjp(function, matrices, inputs, initial)
    return outputs, pullback((states_bar, last_bar))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("case", [*CASES, "dense_complex"])
def test_forward_and_every_gradient_equal_the_oracle(float64, method, case):
    name, _, kind = case.partition("_complex") if case.endswith("_complex") else (case, "", None)
    arguments = make(*CASES[name], dtype=np.float64 if kind is None else np.complex128)
    for reverse in (False, True):
        got = run_with_gradient(*arguments, reverse, method)
        want = oracle.affine(*arguments[:3], reverse), oracle.affine_gradient(*arguments, reverse)
        for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            np.testing.assert_allclose(g, w, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("method", METHODS)
def test_second_derivatives_in_both_modes(float64, method):
    arguments = tuple(map(jnp.asarray, make((1, 4, 2), (1, 4, 2, 2))[:3]))
    function = functools.partial(affine_scan, method=method, chunk_size=2)
    check_grads(jax.jit(lambda *a: jax.tree.map(jnp.square, function(*a))), arguments, 2, ("fwd", "rev"))


def test_diagonal_matrices_are_the_linear_scan(float64):
    _, inputs, initial = map(jnp.asarray, make((2, 9, 3), (1,))[:3])
    decay = jnp.linspace(0.1, 0.9, 2 * 9 * 3).reshape(2, 9, 3)
    diagonal = decay[..., None] * jnp.eye(3)
    for got, want in zip(affine_scan(diagonal, inputs, initial), linear_scan(decay, inputs, initial), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-13)


@pytest.mark.parametrize("method", ["sequential", "chunked"])
def test_vmap_and_pmap_compose(float64, method):
    matrices, inputs, initial, _, _ = map(jnp.asarray, make((4, 6, 2), (4, 6, 2, 2)))

    def loss(*a):
        states, last = affine_scan(*a, method=method, chunk_size=3)
        return jnp.sum(jnp.sin(states)) + jnp.sum(last**2)

    want = jax.jit(jax.value_and_grad(loss, (0, 1, 2)))(matrices, inputs, initial)
    split = jax.tree.map(lambda leaf: leaf.reshape(2, 2, *leaf.shape[1:]), (matrices, inputs, initial))
    for transform in (lambda f: jax.jit(jax.vmap(f)), functools.partial(jax.pmap, devices=jax.devices()[:2])):
        got = transform(jax.value_and_grad(jax.checkpoint(loss), (0, 1, 2)))(*split)
        np.testing.assert_allclose(got[0].sum(), want[0], rtol=1e-12)
        for g, w in zip(got[1], want[1], strict=True):
            np.testing.assert_allclose(g.reshape(w.shape), w, rtol=1e-10, atol=1e-11)


def test_bfloat16_is_stored_but_not_accumulated():
    inputs = jnp.full((1, 1000, 2), 1 / 256, jnp.bfloat16)
    states, last = affine_scan(jnp.eye(2, dtype=jnp.bfloat16), inputs)
    assert states.dtype == jnp.bfloat16 and last.dtype == jnp.float32
    np.testing.assert_allclose(last, 1000 / 256, rtol=1e-6)


X = jnp.ones((2, 3, 4))


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((jnp.ones((4, 4), int), X), {}, TypeError, "matrices must be a floating-point array, got int32"),
        ((jnp.eye(4), X.astype(int)), {}, TypeError, "inputs must be a floating-point array"),
        ((jnp.eye(3), X), {}, ValueError, r"matrices must broadcast to \[2, 3, 4, 4\] .* got \[3, 3\]"),
        ((jnp.ones((2, 2, 4, 4)), X), {}, ValueError, "must broadcast to"),
        ((jnp.ones((1, 4)), X), {}, ValueError, "must broadcast to"),
        ((jnp.eye(4), X[0]), {}, ValueError, r"inputs must have shape \[batch, time, ..., N\], got \[3, 4\]"),
        ((jnp.eye(4), X[:, :0]), {}, ValueError, "T = 0"),
        ((jnp.eye(4), X, X), {}, ValueError, r"initial must have shape \[2, 4\]"),
        ((jnp.eye(4), X), {"method": "pallas"}, ValueError, "method='pallas' is for real 2 x 2 matrices"),
    ],
)
def test_errors_say_what_was_wrong(as_users_see_it, arguments, options, error, message):
    with pytest.raises(error, match=message):
        affine_scan(*arguments, **options)
