"""The fused Newton kernels: interpreted numbers against float64 oracles, convergence told, lowering, bytes, errors."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.aot import moved_bytes
from pallas_kernels.compat import lower_for
from pallas_kernels.newton import newton, tiles
from pallas_kernels.newton.reference import CELLS, reference

PLATFORMS = ("gpu", "tpu")
EPS = 2.0**-23


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def oracle(cell, p, params, state):
    """float64, one step after another, from the equations of the paper."""
    states = []
    for t in range(p.shape[1]):
        p_0, p_1, p_c = (p[:, t, i] for i in range(3))
        a = params["A"]
        if cell == "paragru":
            z, r = sigmoid(a[0] * state + p_0), sigmoid(a[1] * state + p_1)
            state = (1 - z) * state + z * np.tanh(a[2] * state * r + p_c)
        else:
            c, h = np.split(state, 2, axis=1)
            f, g = sigmoid(a[0] * h + params["C"][0] * c + p_0), np.tanh(a[2] * h + p_c)
            c = f * c + (1 - f) * g
            o = sigmoid(a[1] * h + params["C"][1] * c + p_1)
            state = np.concatenate([c, o * np.tanh(c)], axis=1)
        states.append(state)
    return np.stack(states, axis=1), state


def make(cell, batch, steps, width, scale=0.5, seed=0):
    """p, params, initial, cotangents of states and last."""
    rng = np.random.default_rng(seed)
    state = CELLS[cell].planes * width

    def normal(*shape):
        return rng.normal(size=shape).astype(np.float32)

    params = {name: scale * normal(rows, width) for name, rows in CELLS[cell].weights}
    return (
        normal(batch, steps, 3, width),
        params,
        normal(batch, state),
        normal(batch, steps, state),
        normal(batch, state),
    )


@functools.partial(jax.jit, static_argnames=("cell", "iterations", "tolerance", "platform"))
def run(p, params, initial, states_bar, last_bar, *, cell, iterations, tolerance, platform):
    def solve(*arguments):
        *outputs, diagnostics = newton(cell, *arguments, iterations=iterations, tolerance=tolerance, platform=platform)
        return tuple(outputs), diagnostics

    outputs, pullback, diagnostics = jax.vjp(solve, p, params, initial, has_aux=True)
    return outputs, pullback((states_bar, last_bar)), diagnostics


@jax.jit
def weighted(outputs, bars):
    return sum(jnp.sum(a * b) for a, b in zip(outputs, bars, strict=True))


def check(cell, platform, shape, iterations=12, tolerance=1e-6):
    """States equal the oracle, gradients those of the float64 sequential form, within T roundings of the largest."""
    p, params, initial, *bars = arguments = make(cell, *shape)
    outputs, gradients, diagnostics = run(
        *arguments, cell=cell, iterations=iterations, tolerance=tolerance, platform=platform
    )
    assert diagnostics.converged and diagnostics.finite
    wide = jax.tree.map(lambda a: a.astype(np.float64), (p, params, initial))
    bound = 8 * (shape[1] + 8) * EPS
    for g, w in zip(outputs, oracle(cell, *wide), strict=True):
        np.testing.assert_allclose(g, w, rtol=0, atol=bound * max(1, np.abs(w).max()))
    with jax.enable_x64(True):

        def loss(p, params, initial):
            weights = jnp.concatenate([params[name] for name, _ in CELLS[cell].weights])
            return weighted(reference(cell, p, weights, initial), [b.astype(np.float64) for b in bars])

        want = jax.jit(jax.grad(loss, (0, 1, 2)))(*jax.tree.map(jnp.asarray, wide))
    for g, w in zip(jax.tree.leaves(gradients), jax.tree.leaves(want), strict=True):
        assert g.shape == w.shape
        np.testing.assert_allclose(g, w, rtol=0, atol=bound * max(1, float(np.abs(w).max())))
    return diagnostics


@pytest.mark.parametrize("platform", PLATFORMS)
@hypothesis.given(shape=st.tuples(st.integers(1, 2), st.integers(2, 31), st.integers(1, 5)))
@hypothesis.settings(max_examples=1, deadline=None, derandomize=True)
@hypothesis.example((2, 1, 3))
def test_paragru_equals_the_sequential_cell_at_any_size(platform, shape):
    check("paragru", platform, shape)


@pytest.mark.parametrize("platform", PLATFORMS)
def test_paralstm_equals_the_sequential_cell(platform):
    check("paralstm", platform, (2, 13, 3))


@pytest.mark.parametrize(("cell", "steps"), [("paragru", 131), pytest.param("paralstm", 37, marks=pytest.mark.slow)])
def test_chunks_of_a_gpu_program_hand_their_solved_state_on(cell, steps):
    """T is prime and longer than a chunk, so the last chunk is partial."""
    diagnostics = check(cell, "gpu", (1, steps, 2))
    assert diagnostics.iterations.shape == (1, 1, 2)


@pytest.mark.parametrize("cell", ["paragru", pytest.param("paralstm", marks=pytest.mark.slow)])
def test_blocks_of_a_tpu_program_hand_their_solved_state_on(monkeypatch, cell):
    monkeypatch.setattr(tiles, "VMEM_BLOCKS", 0)
    diagnostics = check(cell, "tpu", (1, 19, 2))
    assert diagnostics.iterations.shape == (1, 1, 3)


@pytest.mark.parametrize("platform", PLATFORMS)
def test_iterations_are_exact_on_as_many_steps_and_the_residual_falls_quadratically(platform):
    p, params, initial, *_ = make("paragru", 1, 24, 2)
    states, _ = oracle("paragru", *jax.tree.map(lambda a: a.astype(np.float64), (p, params, initial)))
    solve = jax.jit(functools.partial(newton, "paragru", platform=platform), static_argnames="iterations")
    residuals = []
    for iterations in (1, 2):
        got, _, diagnostics = solve(p, params, initial, iterations=iterations)
        np.testing.assert_allclose(got[:, :iterations], states[:, :iterations], atol=32 * EPS)
        residuals.append(float(diagnostics.residual))
        assert (diagnostics.iterations == iterations).all()
        assert bool(diagnostics.converged) == (residuals[-1] <= 64 * EPS)
    assert 64 * EPS < residuals[0] < 0.1 and residuals[1] <= residuals[0] ** 2


@pytest.mark.parametrize("platform", PLATFORMS)
def test_what_does_not_converge_is_told(platform):
    """A cell that switches at every step needs more than two iterations; a NaN in p is never called converged."""
    p, params, initial, *_ = make("paragru", 1, 24, 2, scale=6)
    solve = jax.jit(functools.partial(newton, "paragru", iterations=2, tolerance=1e-6, platform=platform))
    _, _, diagnostics = solve(4 * p, params, initial)
    assert not diagnostics.converged and diagnostics.finite and diagnostics.residual > 1e-6
    p[0, 5] = np.nan
    _, _, diagnostics = solve(p, params, initial)
    assert not diagnostics.converged and not diagnostics.finite


@pytest.mark.parametrize("platform", PLATFORMS)
def test_bfloat16_inputs_are_solved_in_float32(platform):
    p, params, initial, *_ = make("paragru", 1, 24, 2)
    p = jnp.asarray(p, jnp.bfloat16)
    states, last, _ = jax.jit(functools.partial(newton, "paragru", iterations=8, platform=platform))(p, params, initial)
    assert states.dtype == last.dtype == jnp.float32
    wide = np.asarray(p.astype(jnp.float32), np.float64), jax.tree.map(lambda a: a.astype(float), params), initial
    np.testing.assert_allclose(states, oracle("paragru", *wide)[0], atol=8 * 32 * EPS)


def both(cell, platform):
    def function(p, params, initial):
        outputs, pullback = jax.vjp(
            lambda *a: newton(cell, *a, tolerance=1e-5, platform=platform, interpret=False)[:2], p, params, initial
        )
        return outputs, pullback(outputs)

    return function


@pytest.mark.parametrize("cell", list(CELLS))
@pytest.mark.parametrize("platform", PLATFORMS)
def test_forward_and_backward_lower_and_move_every_array_once(platform, cell):
    batch, steps, width, planes = 4, 2048, 512, CELLS[cell].planes
    p = jax.ShapeDtypeStruct((batch, steps, 3 * width), jnp.float32)
    params = {name: jax.ShapeDtypeStruct((rows, width), jnp.float32) for name, rows in CELLS[cell].weights}
    initial = jax.ShapeDtypeStruct((batch, planes * width), jnp.float32)
    text = lower_for({"gpu": "cuda", "tpu": "tpu"}[platform], both(cell, platform), p, params, initial)
    assert text.count({"gpu": "triton", "tpu": "tpu_custom_call"}[platform]) >= 2
    moved, calls = moved_bytes(both(cell, platform), p, params, initial)
    minimum = 4 * batch * steps * width * ((3 + planes) + (3 + 2 * planes + 3))
    assert calls == 2 and minimum <= moved <= 1.1 * minimum


def test_float64_falls_back_to_the_exact_reference(float64):
    p, params, initial, *_ = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), make("paralstm", 2, 5, 3))
    assert "pallas_call" not in str(jax.make_jaxpr(lambda *a: newton("paralstm", *a))(p, params, initial))
    states, last, diagnostics = newton("paralstm", p, params, initial)
    want = oracle("paralstm", np.asarray(p), jax.tree.map(np.asarray, params), np.asarray(initial))
    np.testing.assert_allclose(states, want[0], rtol=1e-13)
    np.testing.assert_allclose(last, want[1], rtol=1e-13)
    assert diagnostics.converged


P = jnp.ones((2, 3, 3, 4))
A = {"A": jnp.ones((3, 4))}


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (("gru", P, A), {}, ValueError, "cell='gru' is not one of paragru, paralstm"),
        (("paralstm", P, A), {}, ValueError, "params of paralstm are A, C, got A"),
        (("paragru", P[:, :0], A), {}, ValueError, "time >= 1"),
        (("paragru", P[:, :, :2], A), {}, ValueError, r"got \[2, 3, 2, 4\]"),
        (("paragru", P.astype(int), A), {}, TypeError, "p must be a real array, got int32"),
        (("paragru", P, {"A": jnp.ones((3, 5))}), {}, ValueError, r"A must have shape \[3, 4\], got \[3, 5\]"),
        (("paragru", P, A, jnp.ones((2, 8))), {}, ValueError, r"initial must have shape \[2, 4\], got \[2, 8\]"),
        (("paragru", P, A), {"iterations": 0}, ValueError, "iterations must be a positive integer, got 0"),
        (("paragru", P, A), {"tolerance": -1.0}, ValueError, "tolerance must be at least 0"),
    ],
)
def test_errors_say_what_was_wrong(as_users_see_it, arguments, options, error, message):
    with pytest.raises(error, match=message):
        newton(*arguments, **options)
