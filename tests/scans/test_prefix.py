"""A prefix that every step sees: all forms are the definition; it is linear attention from another start; documents."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo.layers import taylor_features
from zoo.scans import linear_attention, linear_attention_step, prefix_linear_attention

ROWS, STEPS, GROUPS, HEADS, WIDTH, VALUES = 2, 7, 1, 2, 3, 2
FORMS = ("quadratic", "sequential", "chunked")


def inputs(size=STEPS, dtype=np.float64, seed=0):
    random = np.random.default_rng(seed)
    q, k = random.standard_normal((2, ROWS, STEPS, GROUPS, WIDTH)).astype(dtype)
    v = random.standard_normal((ROWS, STEPS, HEADS, VALUES)).astype(dtype)
    prefix_k = random.standard_normal((ROWS, size, GROUPS, WIDTH)).astype(dtype)
    prefix_v = random.standard_normal((ROWS, size, HEADS, VALUES)).astype(dtype)
    initial = random.standard_normal((ROWS, HEADS, WIDTH, VALUES)).astype(dtype)
    return tuple(map(jnp.asarray, (q, k, v, prefix_k, prefix_v, initial)))


def by_definition(q, k, v, prefix_k, prefix_v, initial, starts=None):
    """(y, state to go on from), one step and one head at a time."""
    y, last = np.zeros(v.shape), np.zeros(initial.shape)
    for row, head in np.ndindex(ROWS, HEADS):
        document = np.zeros(STEPS, int) if starts is None else np.cumsum(starts[row])
        for t in range(STEPS):
            state = initial[row, head].copy() if document[t] == 0 else np.zeros_like(initial[row, head])
            for j in range(t + 1):
                if document[j] == document[t]:
                    state += np.outer(k[row, j, head * GROUPS // HEADS], v[row, j, head])
            for j in range(prefix_k.shape[1]):
                if starts is None or document[j] == document[t]:
                    state += np.outer(prefix_k[row, j, head * GROUPS // HEADS], prefix_v[row, j, head])
            y[row, t, head] = q[row, t, head * GROUPS // HEADS] @ state
            last[row, head] = state
    return y, last


STARTS = jnp.zeros((ROWS, STEPS), bool).at[0, jnp.array([2, 5])].set(True).at[1, 0].set(True)


@pytest.mark.parametrize(("size", "starts"), [(4, None), (0, None), (STEPS, STARTS)])
def test_every_form_is_the_definition(size, starts):
    with jax.enable_x64(True):
        given = inputs(size)
        want = by_definition(*map(np.asarray, given), None if starts is None else np.asarray(starts))
        for method in FORMS:
            got = prefix_linear_attention(*given, starts=starts, method=method, chunk_size=3)
            for a, b in zip(got, want):
                np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12, err_msg=method)


def test_it_is_linear_attention_that_starts_from_the_sums_of_the_prefix():
    with jax.enable_x64(True):
        q, k, v, prefix_k, prefix_v, initial = inputs(4)
        y, last = prefix_linear_attention(q, k, v, prefix_k, prefix_v, initial, method="quadratic")
        sums = jnp.einsum("bjk,bjhv->bhkv", prefix_k[:, :, 0], prefix_v)
        same, also = linear_attention(q, k, v, None, initial + sums)
        np.testing.assert_allclose(same, y, rtol=1e-10, atol=1e-10)
        np.testing.assert_allclose(also, last, rtol=1e-10, atol=1e-10)
        _, state = prefix_linear_attention(q[:, :5], k[:, :5], v[:, :5], prefix_k, prefix_v, initial)
        for t in range(5, STEPS):
            step, state = linear_attention_step(q[:, t], k[:, t], v[:, t], None, state)
            np.testing.assert_allclose(step, y[:, t], rtol=1e-10, atol=1e-10)


def test_features_made_in_chunks_are_features_made_before():
    phi = functools.partial(taylor_features, storage="symmetric")
    q, k, v, *prefix, _ = inputs(4, np.float32)
    want = linear_attention(phi(q), phi(k), v)
    for method in ("sequential", "chunked"):
        got = linear_attention(q, k, v, method=method, chunk_size=3, feature_map=phi)
        for a, b in zip(got, want):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    want = prefix_linear_attention(phi(q), phi(k), v, phi(prefix[0]), prefix[1], method="quadratic")
    got = prefix_linear_attention(q, k, v, *prefix, feature_map=phi)
    for a, b in zip(got, want):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("starts", [None, STARTS])
def test_gradients_of_the_forms_agree(starts):
    with jax.enable_x64(True):
        given = inputs(STEPS)
        weights = np.random.default_rng(1).standard_normal((ROWS, STEPS, HEADS, VALUES))

        @functools.partial(jax.jit, static_argnums=1)
        def gradient(given, method):
            def value(given):
                y, last = prefix_linear_attention(*given, starts=starts, method=method, chunk_size=3)
                return jnp.sum(y * weights) + jnp.sum(last**2)

            return jax.grad(value)(given)

        for a, b in zip(gradient(given, "quadratic"), gradient(given, "chunked")):
            np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10)


def test_what_does_not_fit_is_refused(as_users_see_it):
    q, k, v, prefix_k, prefix_v, initial = inputs(4, np.float32)
    with pytest.raises(ValueError, match="method='parallel' is not one of quadratic"):
        prefix_linear_attention(q, k, v, prefix_k, prefix_v, method="parallel")
    with pytest.raises(ValueError, match="prefix_v must have shape"):
        prefix_linear_attention(q, k, v, prefix_k, prefix_v[:, :3])
    with pytest.raises(ValueError, match=r"starts must have shape .* prefix of 7 steps"):
        prefix_linear_attention(q, k, v, prefix_k, prefix_v, starts=STARTS)
    with pytest.raises(ValueError, match="initial must have shape"):
        prefix_linear_attention(q, k, v, prefix_k, prefix_v, initial, feature_map=taylor_features)
