"""A window equals its definition in float64 in every form, across cuts, and where decays are so near 1 that states explode;
a clipped state obeys its bound."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo.scans import (
    chunk_clipped_linear_attention,
    clip_state,
    clipped_linear_attention,
    linear_attention,
    window_difference,
    windowed_linear_attention,
)

GROUPS, HEADS, KEYS, VALUES = 2, 4, 3, 5


def inputs(steps, rate=0.3, dtype=np.float32, rows=2, seed=0):
    random = np.random.default_rng(seed)
    q, k = random.standard_normal((2, rows, steps, GROUPS, KEYS)).astype(dtype)
    v = random.standard_normal((rows, steps, HEADS, VALUES)).astype(dtype)
    decay = -rate * random.random((rows, steps, HEADS)).astype(dtype)
    return tuple(map(jnp.asarray, (q, k, v, decay)))


def by_definition(q, k, v, decay, window):
    """(y, states): every pair of steps by itself, in float64."""
    q, k, v, decay = (np.asarray(a, np.float64) for a in (q, k, v, decay))
    states = np.zeros((*v.shape[:2], HEADS, KEYS, VALUES))
    for t in range(v.shape[1]):
        for s in range(max(0, t - window + 1), t + 1):
            weight = np.exp(np.sum(decay[:, s + 1 : t + 1], axis=1))
            keys = np.repeat(k[:, s], HEADS // GROUPS, axis=1)
            states[:, t] += weight[..., None, None] * keys[..., None] * v[:, s, :, None]
    return np.einsum("bthk,bthkv->bthv", np.repeat(q, HEADS // GROUPS, axis=2), states), states


run = jax.jit(windowed_linear_attention, static_argnames=("window", "method"))


@pytest.mark.parametrize("method", ["sequential", "banded", "blocks"])
@pytest.mark.parametrize("window", [1, 4, 30])
def test_every_form_is_the_definition(method, window):
    given = inputs(13)
    want, states = by_definition(*given, window)
    y, last, _ = run(*given, window=window, method=method)
    np.testing.assert_allclose(y, want, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(last, states[:, -1], rtol=1e-5, atol=1e-5)


def test_a_reset_lets_nothing_through_in_any_form():
    q, k, v, decay = inputs(13)
    decay = decay.at[:, 6].set(-jnp.inf)
    first, second = ([a[:, part] for a in (q, k, v, decay)] for part in (slice(0, 6), slice(6, 13)))
    want = np.concatenate([by_definition(*first, 4)[0], by_definition(*second, 4)[0]], axis=1)
    for method in ("sequential", "banded", "blocks"):
        np.testing.assert_allclose(run(q, k, v, decay, window=4, method=method)[0], want, rtol=1e-5, atol=1e-5)


def test_the_difference_of_states_is_the_same_state():
    """The paper's formula, from all states without a window."""
    with jax.enable_x64(True):
        q, k, v, decay = inputs(13, dtype=np.float64)
        _, states = by_definition(q, k, v, decay, 13)
        for window in (1, 4, 13, 20):
            want = by_definition(q, k, v, decay, window)[1]
            got = window_difference(jnp.asarray(states), jnp.asarray(decay), window)
            np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("method", ["banded", "blocks"])
def test_pieces_and_single_steps_go_on_where_the_last_call_ended(method):
    given = inputs(13)
    whole, last, ring = run(*given, window=4, method=method)
    state, parts = (None, None), []
    for start, stop in ((0, 5), (5, 6), (6, 13)):
        y, *state = run(
            *(a[:, start:stop] for a in given), *state, window=4, method="sequential" if stop == 6 else method
        )
        parts.append(y)
    np.testing.assert_allclose(np.concatenate(parts, axis=1), whole, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(state[0], last, rtol=1e-5, atol=1e-5)
    assert all(np.allclose(a, b, atol=1e-6) for a, b in zip(state[1], ring))


@pytest.mark.parametrize("method", ["sequential", "banded", "blocks"])
def test_decays_of_nearly_one_over_a_long_time_leave_the_window_exact(method):
    """All states together grow to 2000 times one step's; the window of 16 keeps its digits in float32."""
    steps, window = 2000, 16
    q, k, v, decay = inputs(steps, rate=1e-6, rows=1)
    k, v = jnp.abs(k), jnp.abs(v)
    y, last, _ = run(q, k, v, decay, window=window, method=method)
    tail = [a[:, -window:] for a in (q, k, v, decay)]
    want, states = by_definition(*tail, window)
    np.testing.assert_allclose(last, states[:, -1], rtol=1e-4)
    np.testing.assert_allclose(y[:, -1], want[:, -1], rtol=1e-4, atol=1e-3)
    assert linear_attention(q, k, v, decay)[1].max() > 50 * states[:, -1].max()


def test_gradients_of_the_forms_agree():
    given = inputs(9)
    weights = np.random.default_rng(1).standard_normal((2, 9, HEADS, VALUES)).astype(np.float32)

    @functools.partial(jax.jit, static_argnums=1)
    @functools.partial(jax.grad, argnums=0)
    def gradient(given, method):
        return jnp.sum(weights * windowed_linear_attention(*given, window=4, method=method)[0])

    for other in ("banded", "blocks"):
        for a, b in zip(gradient(given, "sequential"), gradient(given, other)):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_a_clipped_state_is_clipped_at_every_step_and_carried_on_so():
    q, k, v, decay = inputs(9)
    bound, state, want = 2.0, np.zeros((2, HEADS, KEYS, VALUES)), []
    for t in range(9):
        keys = np.repeat(k[:, t], HEADS // GROUPS, axis=1)
        state = np.exp(decay[:, t])[..., None, None] * state + keys[..., None] * v[:, t, :, None]
        norm = np.sqrt(np.sum(state**2, axis=(-2, -1), keepdims=True))
        state = state * np.minimum(1, bound / norm)
        want.append(np.einsum("bhk,bhkv->bhv", np.repeat(q[:, t], HEADS // GROUPS, axis=1), state))
    y, last = jax.jit(clipped_linear_attention, static_argnames="max_norm")(q, k, v, decay, max_norm=bound)
    np.testing.assert_allclose(y, np.stack(want, axis=1), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(last, state, rtol=1e-5, atol=1e-5)
    assert not np.allclose(last, linear_attention(q, k, v, decay)[1], atol=0.1)


def test_clipping_chunks_is_linear_inside_them_and_clipping_chunks_of_one_is_clipping_steps():
    given = inputs(9)
    run = jax.jit(chunk_clipped_linear_attention, static_argnames=("max_norm", "chunk_size"))
    _, last = run(*given, max_norm=2.0, chunk_size=1)
    _, state = clipped_linear_attention(*given, max_norm=2.0)
    np.testing.assert_allclose(last, state, rtol=1e-5, atol=1e-5)
    y, _ = run(*given, max_norm=2.0, chunk_size=4)
    first, middle = linear_attention(*(a[:, :4] for a in given))
    np.testing.assert_allclose(y[:, :4], first, rtol=1e-5, atol=1e-5)
    second, _ = linear_attention(*(a[:, 4:8] for a in given), clip_state(middle, 2.0))
    np.testing.assert_allclose(y[:, 4:8], second, rtol=1e-5, atol=1e-5)


def test_clipping_has_finite_gradients_at_a_state_of_zero():
    assert np.all(np.isfinite(jax.grad(lambda s: jnp.sum(clip_state(s, 1.0)))(jnp.zeros((2, 2)))))


def test_wrong_arguments_say_what_would_be_right():
    given = inputs(5)
    _, last, ring = windowed_linear_attention(*given, window=2)
    with pytest.raises(ValueError, match="window must be a positive integer, got 0"):
        windowed_linear_attention(*given, window=0)
    with pytest.raises(ValueError, match="the ring holds 2 steps, but window=3"):
        windowed_linear_attention(*given, last, ring, window=3)
    with pytest.raises(ValueError, match="initial and ring go together"):
        windowed_linear_attention(*given, last, window=2)
    with pytest.raises(ValueError, match="max_norm must be positive, got 0"):
        clipped_linear_attention(*given, max_norm=0.0)
