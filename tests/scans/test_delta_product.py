"""delta_product: every form equals a plain loop, forward and derivative; products of reflections are what theory says."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo.scans import (
    delta_product,
    delta_product_step,
    flatten_steps,
    gated_delta_rule,
    gated_delta_rule_step,
)

METHODS = ("sequential", "chunked", "associative")
product = jax.jit(delta_product, static_argnames=("method", "chunk_size"))
NAMES = ("q", "k", "v", "beta", "log_decay", "initial")


def naive(q, k, v, beta, log_decay, initial):
    """The equations of the module, token by token and step by step."""
    share = v.shape[3] // q.shape[2]
    q, k = jnp.repeat(q, share, axis=2), jnp.repeat(k, share, axis=3)
    state, outputs = initial, []
    for t in range(q.shape[1]):
        if log_decay is not None:
            state = jnp.exp(log_decay[:, t])[..., None, None] * state
        for j in range(k.shape[2]):
            error = v[:, t, j] - jnp.einsum("bhk,bhkv->bhv", k[:, t, j], state)
            state = state + beta[:, t, j][..., None, None] * k[:, t, j][..., None] * error[..., None, :]
        outputs.append(jnp.einsum("bhk,bhkv->bhv", q[:, t], state))
    return jnp.stack(outputs, axis=1), state


def make(batch, time, steps, groups, heads, keys, values, decay=True, seed=0, choices=None):
    """Arguments and cotangents of both outputs; keys have length 1 but for a few that are 0, beta is 2 here and there."""
    rng = np.random.default_rng(seed)
    q = rng.normal(size=(batch, time, groups, keys))
    k = rng.normal(size=(batch, time, steps, groups, keys))
    k = k / np.linalg.norm(k, axis=-1, keepdims=True)
    k[:, 1::5, 0] = 0
    v = rng.normal(size=(batch, time, steps, heads, values))
    beta = rng.uniform(0, 2, size=v.shape[:-1])
    beta[:, ::3] = 2
    shape = (batch, time, heads)
    log_decay = -rng.exponential(size=shape) if choices is None else rng.choice(choices, shape)
    initial, last_bar = rng.normal(size=(2, batch, heads, keys, values))
    y_bar = rng.normal(size=(batch, time, heads, values))
    return (q, k, v, beta, log_decay if decay else None, initial), (y_bar, last_bar)


@functools.partial(jax.jit, static_argnames=("method", "chunk_size"))
def run_with_gradient(arguments, cotangents, method, chunk_size=None):
    function = naive if method == "naive" else functools.partial(delta_product, method=method, chunk_size=chunk_size)
    outputs, pullback = jax.vjp(function, *arguments)
    return outputs, pullback(cotangents)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("sizes", "chunk_size", "decay"),
    [((2, 11, 2, 1, 2, 3, 5), 4, True), ((1, 7, 3, 2, 2, 4, 2), 3, False), ((2, 9, 1, 1, 1, 2, 3), None, True)],
    ids=["groups", "no_decay", "one_step"],
)
def test_forward_and_every_gradient_equal_a_plain_loop(float64, method, sizes, chunk_size, decay):
    """The cotangents are those of the outputs and of the last state; chunks do not divide the time."""
    arguments, cotangents = make(*sizes, decay)
    got = run_with_gradient(arguments, cotangents, method, chunk_size)
    want = run_with_gradient(arguments, cotangents, "naive")
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(g, w, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("method", METHODS)
def test_extreme_decays_stay_finite_and_right(float64, method):
    """Log decays of 0, -50 and -inf in float32, against the loop in float64."""
    arguments, cotangents = make(1, 40, 2, 1, 2, 4, 3, seed=1, choices=[0, -50, -1e-3, -0.5, -np.inf, -1e-30])
    narrow = jax.tree.map(np.float32, (arguments, cotangents))
    (y, last), gradients = run_with_gradient(*narrow, method, 32)
    for g, w in zip((y, last), naive(*arguments), strict=True):
        np.testing.assert_allclose(g, w, atol=80 * 2.0**-23 * np.abs(w).max())
    assert y.dtype == np.float32
    assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(gradients))


@pytest.mark.parametrize("method", METHODS)
def test_a_reset_cuts_exactly_and_steps_of_zero_strength_change_nothing(method):
    (q, k, v, beta, log_decay, initial), _ = jax.tree.map(jnp.float32, make(1, 12, 2, 1, 1, 3, 2))
    log_decay = log_decay.at[:, 5].set(-jnp.inf)
    scan = functools.partial(product, method=method, chunk_size=4)
    one, two = (scan(q, k, v.at[:, :5].multiply(c), beta, log_decay, c * initial) for c in (1.0, -7.0))
    np.testing.assert_array_equal(one[0][:, 5:], two[0][:, 5:])
    np.testing.assert_array_equal(one[1], two[1])
    padded = scan(q, k, v, beta.at[:, 9:].set(0), log_decay.at[:, 9:].set(0), initial)[1]
    np.testing.assert_allclose(padded, scan(q[:, :9], k[:, :9], v[:, :9], beta[:, :9], log_decay[:, :9], initial)[1],
                               rtol=1e-6, atol=1e-6)  # fmt: skip


def test_repeated_keys_with_strength_two_stay_exact_in_one_large_system():
    """64 reflections along one key: the inverse has entries of 2, and no row loses its digits."""
    key = np.zeros((1, 32, 2, 1, 4), np.float32)
    key[..., 0] = 1
    (q, _, v, _, _, initial), _ = jax.tree.map(jnp.float32, make(1, 32, 2, 1, 1, 4, 3))
    arguments = (q, jnp.asarray(key), v, jnp.full((1, 32, 2, 1), 2.0), None, initial)
    got = product(*arguments, method="chunked", chunk_size=32)
    want = product(*arguments, method="sequential")
    for g, w in zip(got, want, strict=True):
        np.testing.assert_allclose(g, w, atol=64 * 2.0**-22 * float(np.abs(w).max()))


def test_it_is_the_gated_delta_rule_over_the_flattened_steps(float64):
    (*inputs, initial), _ = jax.tree.map(jnp.asarray, make(2, 6, 3, 1, 2, 3, 2))
    y, last = product(*inputs, initial)
    flat, flat_last = jax.jit(gated_delta_rule)(*flatten_steps(*inputs), initial)
    np.testing.assert_allclose(flat[:, 2::3], y, rtol=1e-11, atol=1e-12)
    np.testing.assert_array_equal(flat[:, ::3], 0)
    np.testing.assert_allclose(flat_last, last, rtol=1e-11, atol=1e-12)


def test_pieces_and_single_tokens_equal_the_whole(float64):
    (*inputs, state), _ = jax.tree.map(jnp.asarray, make(2, 7, 2, 1, 2, 3, 4))
    y, last = product(*inputs, state, method="sequential")
    first, middle = product(*(a[:, :3] for a in inputs), state)
    second, end = product(*(a[:, 3:] for a in inputs), middle)
    np.testing.assert_allclose(jnp.concatenate([first, second], axis=1), y, rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(end, last, rtol=1e-11, atol=1e-12)
    step, rule = jax.jit(delta_product_step), jax.jit(gated_delta_rule_step)
    single = state
    for t in range(7):
        q, k, v, beta, decay = (a[:, t] for a in inputs)
        now, after = step(q, k, v, beta, decay, state)
        np.testing.assert_allclose(now, y[:, t], rtol=1e-11, atol=1e-12)
        _, single = rule(q, k[:, 0], v[:, 0], beta[:, 0], decay, single)
        again, single = rule(q, k[:, 1], v[:, 1], beta[:, 1], None, single)
        np.testing.assert_allclose(again, now, rtol=1e-12, atol=1e-13)
        state = after
    np.testing.assert_allclose(state, last, rtol=1e-11, atol=1e-12)


def test_the_lower_precision_is_stored_but_not_accumulated():
    arguments = [np.full(s, c) for s, c in (((1, 500, 1, 2), 1 / 16), ((1, 500, 2, 1, 2), 1 / 16),
                                            ((1, 500, 2, 1, 2), 1 / 16), ((1, 500, 2, 1), 0.25))]  # fmt: skip
    y, last = product(*(jnp.asarray(a, jnp.bfloat16) for a in arguments))
    assert y.dtype == jnp.bfloat16 and last.dtype == jnp.float32
    np.testing.assert_allclose(last, product(*map(jnp.float32, arguments))[1], rtol=1e-5)


def transition(keys, beta, method="sequential"):
    """A of one token with keys [n, K]: what it makes of the unit matrix."""
    steps, width = keys.shape
    zeros = jnp.zeros((1, 1, steps, 1, width))
    return product(
        zeros[:, :, 0], jnp.asarray(keys)[None, None, :, None], zeros, jnp.full((1, 1, steps, 1), beta), None,
        jnp.eye(width)[None, None], method=method,
    )[1][0, 0]  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
def test_reflections_compose_to_orthogonal_matrices_and_other_strengths_never_stretch(float64, method):
    keys = np.random.default_rng(0).normal(size=(3, 5))
    keys /= np.linalg.norm(keys, axis=1, keepdims=True)
    A = transition(keys, 2.0, method)
    np.testing.assert_allclose(A @ A.T, np.eye(5), atol=1e-14)
    assert np.linalg.det(A) == pytest.approx(-1)  # (-1)^3
    one = [np.eye(5) - 2 * np.outer(key, key) for key in keys]
    np.testing.assert_allclose(A, one[2] @ one[1] @ one[0], atol=1e-14)  # the latest on the left
    for beta in (0.0, 0.7, 1.0, 1.9):
        assert np.linalg.norm(transition(keys, beta, method), 2) <= 1 + 1e-14
    np.testing.assert_allclose(transition(keys[:1], 1.0, method) @ keys[0], 0, atol=1e-14)  # a projection
    np.testing.assert_allclose(
        np.sort(np.linalg.eigvalsh(transition(keys[:1], 1.7, method))), [-0.7, 1, 1, 1, 1], atol=1e-14
    )


@pytest.mark.parametrize("length", [2, 3, 5])
def test_a_cycle_of_k_points_is_a_product_of_k_minus_one_householders_and_of_no_fewer(float64, length):
    """(1 2 ... k) = (1 2)(2 3) ... (k-1 k), and a transposition is the reflection along (e_i - e_j) / sqrt(2)."""
    permutation = np.eye(5)
    permutation[:, :length] = np.roll(np.eye(5)[:, :length], -1, axis=1)
    keys = np.zeros((length - 1, 5))
    for i in range(length - 1):
        keys[length - 2 - i, [i, i + 1]] = np.sqrt([0.5, 0.5]) * [1, -1]
    found = transition(keys, 2.0)
    assert any(np.allclose(found, m, atol=1e-14) for m in (permutation, permutation.T))
    # n factors leave alone all but n directions at most, and the cycle moves k - 1
    assert np.linalg.matrix_rank(found - np.eye(5)) == length - 1


def test_every_permutation_of_three_is_two_householders_at_most(float64):
    swaps = {(0, 1): [1, -1, 0], (0, 2): [1, 0, -1], (1, 2): [0, 1, -1]}
    words = [*([s] for s in swaps), *itertools.product(swaps, repeat=2)]
    matrices = [transition(np.array([swaps[s] for s in word]) / np.sqrt(2), 2.0) for word in words]
    assert len({tuple(np.rint(m).astype(int).ravel().tolist()) for m in matrices}) == 6
    np.testing.assert_allclose(np.stack(matrices), np.rint(np.stack(matrices)), atol=1e-14)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": (2, 3, 4)}, r"k must have shape \[batch, time, steps, heads, width\], got \[2, 3, 4\]"),
        ({"k": (2, 3, 0, 1, 4), "v": (2, 3, 0, 2, 5), "beta": (2, 3, 0, 2)}, r"k has no steps per token \(n = 0\)"),
        ({"v": (2, 3, 2, 2, 5)}, r"v has 2 steps per token on axis 2, but k has 3"),
        ({"beta": (2, 3, 1, 2)}, r"beta has 1 steps per token on axis 2, but k has 3"),
        ({"beta": (2, 3, 3, 1)}, r"beta must have shape \[2, 3, 2\]"),
        ({"k": (2, 4, 3, 1, 4)}, r"k must have the shape of q"),
        ({"v": (2, 4, 3, 2, 5)}, r"v must have shape \[2, 3"),
        ({"v": (2, 3, 3, 3, 5), "k": (2, 3, 3, 2, 4), "q": (2, 3, 2, 4)}, r"3 heads, which is not a multiple of the 2"),
        ({"log_decay": (2, 3, 3, 2)}, r"log_decay must have shape"),
        ({"initial": (2, 2, 5, 4)}, r"initial must have shape"),
        ({"method": "sequentially"}, r"did you mean 'sequential'"),
    ],
)
def test_wrong_arguments_are_refused_in_one_line(as_users_see_it, change, message):
    shapes = {"q": (2, 3, 1, 4), "k": (2, 3, 3, 1, 4), "v": (2, 3, 3, 2, 5), "beta": (2, 3, 3, 2)}
    arguments = {name: jnp.ones(shape) for name, shape in shapes.items()}
    arguments |= {n: jnp.ones(c) if isinstance(c, tuple) else c for n, c in change.items()}
    with pytest.raises(ValueError, match=message):
        delta_product(**arguments)
