"""Descent at test time: its forms agree with a NumPy loop and each other, wherever cut, and contain the delta rules."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.oracles.neural_memory import Memory
from zoo.layers.memory_mlp import initial_memory, memory_mlp
from zoo.scans import apply_memory, gated_delta_rule, memory_descent, start_descent

BATCH, TIME, HEADS, WIDTH, CHUNK = 2, 11, 2, 3, 4
FULL = {"residual_norm": True, "bias": True, "gain": True}
CASES = {
    "mlp": dict(depth=2, **FULL),
    "matrix": {"depth": 1},
}


def problem(depth, seed=0, channels=False, time=TIME, **options):
    """Memory, its float64 weights, and q, k, v, theta, alpha, eta."""
    rng = np.random.default_rng(seed)
    parts = {name: options[name] for name in ("bias", "gain") if name in options}
    with jax.enable_x64(True):
        weights = initial_memory(jax.random.key(seed), depth, WIDTH, 4, heads=HEADS, **parts)
        weights = {name: np.asarray(w, np.float64) + 0.1 * rng.standard_normal(w.shape) for name, w in weights.items()}
    shape = (BATCH, time, HEADS)
    q, k, v = (rng.standard_normal((*shape, WIDTH)) for _ in range(3))

    def gate(low, high):
        if channels:
            return {name: rng.uniform(low, high, (*shape, w.shape[-1])) for name, w in weights.items()}
        return rng.uniform(low, high, shape)

    unit = [a / np.linalg.norm(a, axis=-1, keepdims=True) for a in (q, k)]
    arrays = (*unit, v, gate(0, 0.3), gate(0, 0.5), gate(0, 0.9))
    return memory_mlp(depth, **options), *jax.tree.map(jnp.asarray, (weights, arrays))


def looped(weights, arrays, *, starts=(), chunk=CHUNK, gates_per="token", residual=False, max_norm=None, mask=None):
    """The NumPy loop; ``starts``: (row, step) of new documents."""
    weights, arrays = jax.tree.map(np.asarray, (weights, arrays))
    y = np.zeros_like(arrays[2])
    for b in range(len(y)):
        for h in range(HEADS):
            one = {name: w[h] for name, w in weights.items()}
            memory = Memory(one, chunk, residual, max_norm)
            for t in range(y.shape[1]):
                if (b, t) in starts:
                    memory = Memory(one, chunk, residual, max_norm)
                q, k, v = (a[b, t, h] for a in arrays[:3])
                if gates_per == "token" or memory.count % chunk == 0:
                    gates = [jax.tree.map(lambda g, b=b, t=t, h=h: g[b, t, h], g) for g in arrays[3:]]
                if mask is None or mask[b, t]:
                    memory.write(k, v, *gates)
                else:
                    if memory.count % chunk == 0:
                        memory.anchor = memory.m
                    memory.count += 1
                y[b, t, h] = memory.read(q)
    return y


@functools.partial(jax.jit, static_argnames=("case", "method", "gates_per", "max_gradient_norm", "chunk_size"))
def run(case, weights, arrays, state=None, reset=None, mask=None, *, method, gates_per="token", max_gradient_norm=None,
        chunk_size=CHUNK):  # fmt: skip
    return memory_descent(
        memory_mlp(**CASES[case]), weights, *arrays, state, reset=reset, mask=mask, method=method,
        gates_per=gates_per, max_gradient_norm=max_gradient_norm, chunk_size=chunk_size,
    )  # fmt: skip


def resets(*starts):
    reset = np.zeros((BATCH, TIME), bool)
    for place in starts:
        reset[place] = True
    return reset


@pytest.mark.parametrize("method", ["sequential", "scan", "chunked"])
def test_every_form_is_the_loop_with_documents_masks_and_short_gradients(float64, method):
    _, weights, arrays = problem(**CASES["mlp"])
    starts = ((0, 3), (0, 5), (1, 6))
    mask = np.ones((BATCH, TIME), bool)
    mask[0, 7] = mask[1, 2] = mask[1, 10] = False
    y, _ = run("mlp", weights, arrays, reset=resets(*starts), mask=mask, method=method, max_gradient_norm=1.5)
    want = looped(weights, arrays, starts=starts, residual=True, max_norm=1.5, mask=mask)
    np.testing.assert_allclose(y, want, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("method", ["scan", "chunked"])
def test_gradients_of_every_form_are_those_of_the_sequential_one(float64, method):
    _, weights, arrays = problem(**CASES["mlp"], seed=1)
    weight = np.random.default_rng(5).standard_normal(arrays[2].shape)
    state = run("mlp", weights, jax.tree.map(lambda a: a[:, :6], arrays), method="sequential")[1]

    def loss(weights, arrays, state, method):
        y, last = run("mlp", weights, arrays, state, resets((0, 2), (1, 9)), method=method)
        return jnp.sum(y * weight) + sum(jnp.sum(jnp.sin(a)) for a in jax.tree.leaves(last[:3]))

    grad = jax.grad(loss, (0, 1, 2), allow_int=True)
    got, want = (jax.tree.leaves(grad(weights, arrays, state, m)) for m in (method, "sequential"))
    for a, b in zip(got, want, strict=True):
        if jnp.issubdtype(a.dtype, jnp.floating):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("gates_per", ["token", "chunk"])
def test_a_cut_anywhere_is_the_whole_and_states_too(float64, gates_per):
    _, weights, arrays = problem(**CASES["matrix"])
    y, last = run("matrix", weights, arrays, method="chunked", gates_per=gates_per)
    np.testing.assert_allclose(y, looped(weights, arrays, gates_per=gates_per), rtol=1e-11, atol=1e-12)
    for sizes in ([5, 6], [6, 5], [1] * TIME):
        pieces, state, start = [], None, 0
        for size in sizes:
            part = jax.tree.map(lambda a, i=start, n=size: a[:, i : i + n], arrays)
            piece, state = run("matrix", weights, part, state, method="auto", gates_per=gates_per)
            pieces.append(piece)
            start += size
        np.testing.assert_allclose(jnp.concatenate(pieces, axis=1), y, rtol=1e-11, atol=1e-12)
        for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(last), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(("method", "gates_per"), [("scan", "token"), ("chunked", "chunk")])
def test_documents_may_begin_behind_tokens_that_all_of_them_share(float64, method, gates_per):
    """``fresh`` is where a memory is after the first ``lead`` tokens, in the middle of its chunk, with momentum."""
    _, weights, arrays = problem(**CASES["mlp"], seed=2)
    prefix = jax.tree.map(lambda a: a[:1, :2], problem(**CASES["mlp"], seed=4)[2])

    @jax.jit
    def packed(weights, prefix, arrays, reset):
        options = {"chunk_size": CHUNK, "gates_per": gates_per, "method": method}
        fresh = memory_descent(memory_mlp(**CASES["mlp"]), weights, *prefix, **options)[1]
        state = jax.tree.map(lambda a: jnp.broadcast_to(a, (BATCH, *a.shape[1:])), fresh)
        options |= {"fresh": fresh, "lead": 2, "reset": reset}
        return memory_descent(memory_mlp(**CASES["mlp"]), weights, *arrays, state, **options)[0]

    y = packed(weights, prefix, arrays, resets((0, 3), (1, 0), (1, 7)))
    for row, starts in enumerate(((0, 3, TIME), (0, 7, TIME))):
        for start, stop in itertools.pairwise(starts):
            one = [jnp.concatenate([p, a[row : row + 1, start:stop]], axis=1) for p, a in zip(prefix, arrays)]
            alone = looped(weights, one, residual=True, gates_per=gates_per)
            np.testing.assert_allclose(y[row, start:stop], alone[0, 2:], rtol=1e-10, atol=1e-11)


def test_gates_per_channel(float64):
    _, weights, arrays = problem(**CASES["mlp"], seed=3, channels=True)
    y, _ = run("mlp", weights, arrays, method="auto")
    np.testing.assert_allclose(y, looped(weights, arrays, residual=True), rtol=1e-10, atol=1e-11)
    with pytest.raises(ValueError, match="method='scan'"):
        run("mlp", weights, arrays, method="chunked")


def test_chunks_of_one_are_plain_descent_and_larger_chunks_are_not(float64):
    _, weights, arrays = problem(**CASES["matrix"])
    want = looped(weights, arrays, chunk=1)
    y = run("matrix", weights, arrays, method="chunked", chunk_size=1)[0]
    np.testing.assert_allclose(y, want, rtol=1e-11, atol=1e-12)
    assert np.max(np.abs(looped(weights, arrays) - want)) > 1e-3


def test_without_momentum_a_matrix_is_the_gated_delta_rule(float64):
    """With alpha = 0 it is DeltaNet. theta = beta / 2, since the loss has no factor 1/2. There the decay comes before the
    prediction, here behind it: beta_t (v_t - (1 - alpha) k_t S) is reached with theta_t and v_t scaled by 1 - alpha."""
    memory, _, (q, k, v, beta, alpha, _) = problem(**CASES["matrix"])
    weights = {"W0": jnp.zeros((HEADS, WIDTH, WIDTH))}
    y, last = memory_descent(memory, weights, q, k, v, beta / 2, chunk_size=1)
    want, state = gated_delta_rule(q, k, v, beta)
    np.testing.assert_allclose(y, want, rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(last.weights["W0"], state, rtol=1e-11, atol=1e-12)
    y, last = memory_descent(memory, weights, q, k, v, beta * (1 - alpha) / 2, alpha, chunk_size=1)
    want, state = gated_delta_rule(q, k, v * (1 - alpha)[..., None], beta, jnp.log1p(-alpha))
    np.testing.assert_allclose(y, want, rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(last.weights["W0"], state, rtol=1e-11, atol=1e-12)


def test_orthonormal_keys_are_recalled_exactly(float64):
    """theta = 1/2 without momentum and decay overwrites what lies under a key, in one chunk as well as token by token."""
    rng = np.random.default_rng(0)
    k = jnp.asarray(np.linalg.qr(rng.standard_normal((6, 6)))[0][None, :, None])
    v = jnp.asarray(rng.standard_normal((1, 6, 1, 6)))
    weights = {"W0": jnp.asarray(rng.standard_normal((1, 6, 6)))}
    for chunk in (1, 4, 64):
        _, state = memory_descent(memory_mlp(1), weights, k, k, v, jnp.full((1, 6, 1), 0.5), chunk_size=chunk)
        read = apply_memory(memory_mlp(1), state.weights, k[:, :, 0][:, None])
        np.testing.assert_allclose(read[0, 0], v[0, :, 0], rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("method", ["sequential", "scan", "chunked"])
def test_alpha_of_one_erases_and_momentum_moves_on_without_writing(float64, method):
    _, weights, (q, k, v, theta, alpha, eta) = problem(**CASES["matrix"])
    alpha, theta, eta = alpha.at[:, 7:].set(0), theta.at[:, 7:].set(0), eta.at[:, 7].set(0)
    y, _ = run("matrix", weights, (q, k, v, theta, alpha.at[:, 7].set(1), eta), method=method)
    np.testing.assert_allclose(y[:, 7:], 0, atol=1e-14)
    eta = eta.at[:, 7:].set(0.5)
    before = run("matrix", weights, jax.tree.map(lambda a: a[:, :7], (q, k, v, theta, alpha, eta)), method="chunked")[1]
    after = run("matrix", weights, (q, k, v, theta, alpha, eta), method=method)[1]
    moved = sum(0.5**i for i in range(1, 5)) * before.momentum["W0"]
    np.testing.assert_allclose(after.weights["W0"], before.weights["W0"] + moved, rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(after.momentum["W0"], 0.5**4 * before.momentum["W0"], rtol=1e-11, atol=1e-12)


def test_truncation_stops_derivatives_between_blocks_and_changes_no_value(float64):
    memory, weights, arrays = problem(**CASES["matrix"])

    def last(weights, k, truncate):
        y = memory_descent(memory, weights, arrays[0], k, *arrays[2:], chunk_size=CHUNK, truncate=truncate)[0]
        return jnp.sum(y[:, -1])

    (a, whole), (b, cut) = (jax.value_and_grad(last, 1)(weights, arrays[1], t) for t in (False, True))
    assert a == b and np.all(whole[:, :8] != 0)
    assert np.all(cut[:, :8] == 0) and np.all(cut[:, 8:] != 0)


def test_wrong_arguments_say_what_would_be_right(as_users_see_it):
    memory, weights, arrays = problem(**CASES["matrix"])
    with pytest.raises(ValueError, match="chunk_size must be a positive integer"):
        memory_descent(memory, weights, *arrays, chunk_size=0)
    with pytest.raises(ValueError, match="depth must be a positive integer"):
        memory_mlp(0)
    with pytest.raises(ValueError, match=r"state.weights must have shapes"):
        memory_descent(memory, weights, *arrays, start_descent(weights, BATCH + 1))
    with pytest.raises(ValueError, match="theta must have shape"):
        memory_descent(memory, weights, *arrays[:3], arrays[3][:, 1:])
    with pytest.raises(ValueError, match="T = 0"):
        memory_descent(memory, weights, *(a[:, :0] for a in arrays))
