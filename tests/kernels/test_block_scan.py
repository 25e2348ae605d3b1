"""The block_scan kernels: interpreted numbers against a float64 oracle, lowering, bytes moved, fallback, errors."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.aot import moved_bytes
from pallas_kernels.block_scan import block_scan
from pallas_kernels.compat import lower_for
from pallas_kernels.linear_scan import tiles
from tests.oracles import scans as oracle
from zoo.scans import affine_scan

PLATFORMS = ("gpu", "tpu")
EPS = 2.0**-23


def make(shape, seed=0):
    """matrices, inputs, initial, cotangents of states and last, for [B, T, N]."""
    rng = np.random.default_rng(seed)
    state = (shape[0], shape[2], 2)
    sizes = ((*shape, 2, 2), (*shape, 2), state, (*shape, 2), state)
    matrices, *rest = (rng.normal(size=s).astype(np.float32) for s in sizes)
    return matrices / 3, *rest


@functools.partial(jax.jit, static_argnames=("reverse", "platform"))
def run(matrices, inputs, initial, states_bar, last_bar, reverse, platform):
    def scan(*a):
        return block_scan(*a, reverse=reverse, platform=platform)

    outputs, pullback = jax.vjp(scan, matrices, inputs, initial)
    return outputs, pullback((states_bar, last_bar))


def check(shape, platform, reverse):
    arguments = make(shape)
    got = run(*arguments, reverse=reverse, platform=platform)
    wide = [a.astype(np.float64) for a in arguments]
    want = oracle.affine(*wide[:3], reverse), oracle.affine_gradient(*wide, reverse)
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert g.shape == w.shape and g.dtype == np.float32
        np.testing.assert_allclose(g, w, rtol=0, atol=8 * (shape[1] + 8) * EPS * max(1, np.abs(w).max()))


@pytest.mark.parametrize("platform", PLATFORMS)
@hypothesis.given(shape=st.tuples(st.integers(1, 2), st.integers(1, 23), st.integers(1, 5)), reverse=st.booleans())
@hypothesis.example((1, 1, 2), False)
@hypothesis.settings(max_examples=2, deadline=None, derandomize=True)
def test_forward_and_gradient_equal_the_oracle_at_any_size(platform, shape, reverse):
    check(shape, platform, reverse)


def test_a_long_sequence_is_cut_into_chunks_of_time():
    assert tiles.gpu_tile(1, 261, 2, 6).chunks > 1
    check((1, 261, 2), "gpu", False)


def test_time_blocks_hand_their_carry_on(monkeypatch):
    monkeypatch.setattr(tiles, "VMEM_BLOCKS", 0)
    check((1, 21, 3), "tpu", True)


@pytest.mark.parametrize("platform", PLATFORMS)
def test_forward_and_backward_lower_and_move_every_plane_once(platform):
    shape = (16, 512, 2048)
    matrices, inputs = (jax.ShapeDtypeStruct(s, jnp.float32) for s in ((*shape, 2, 2), (*shape, 2)))

    def both(matrices, inputs):
        states, pullback = jax.vjp(lambda *a: block_scan(*a, platform=platform, interpret=False)[0], matrices, inputs)
        return states, pullback(states)

    text = lower_for({"gpu": "cuda", "tpu": "tpu"}[platform], both, matrices, inputs)
    assert text.count({"gpu": "triton", "tpu": "tpu_custom_call"}[platform]) >= 2
    moved, _ = moved_bytes(both, matrices, inputs)
    planes = 4 * np.prod(shape)
    minimum = (4 + 2 + 2) * planes + (4 + 2 + 2 + 4 + 2) * planes
    assert minimum <= moved <= 1.1 * minimum


def test_affine_scan_takes_it_with_all_derivatives():
    """First derivatives of a loss through the kernel equal those of the sequential form, and so do second ones."""
    matrices, inputs, initial, along, _ = map(jnp.asarray, make((1, 6, 2)))

    def loss(method):
        return lambda a, x: jnp.sum(affine_scan(a, x, initial, method=method)[0] ** 3)

    def derivatives(method):
        first = jax.grad(loss(method), (0, 1))
        return jax.jit(lambda: jax.jvp(lambda x: first(matrices, x), (inputs,), (along,)))()

    for g, w in zip(jax.tree.leaves(derivatives("pallas")), jax.tree.leaves(derivatives("sequential")), strict=True):
        np.testing.assert_allclose(g, w, atol=100 * EPS * float(jnp.abs(w).max()))


def test_float64_falls_back_to_the_reference(float64):
    arguments = [jnp.asarray(a, jnp.float64) for a in make((2, 5, 3))[:3]]
    assert "pallas_call" not in str(jax.make_jaxpr(block_scan)(*arguments))
    for g, w in zip(block_scan(*arguments), oracle.affine(*map(np.asarray, arguments)), strict=True):
        np.testing.assert_allclose(g, w, rtol=1e-13)


X = jnp.ones((2, 3, 4, 2))
J = jnp.ones((2, 3, 4, 2, 2))


@pytest.mark.parametrize(
    ("function", "arguments", "error", "message"),
    [
        (block_scan, (J, X.astype(int)), TypeError, "inputs must be a real array, got int32"),
        (block_scan, (J, X[..., 0]), ValueError, r"\[batch, time, channels, 2\]"),
        (block_scan, (J, X[:, :0]), ValueError, "time >= 1"),
        (block_scan, (X, X), ValueError, r"matrices must have shape \[2, 3, 4, 2, 2\], got \[2, 3, 4, 2\]"),
        (block_scan, (J, X, X), ValueError, r"initial must have shape \[2, 4, 2\]"),
        (functools.partial(affine_scan, method="pallas"), (jnp.ones((1, 1, 3, 3)), X[..., :1].repeat(3, -1)[:, :, 0]),
         ValueError, "real 2 x 2 matrices, got float32 and N = 3"),
    ],
)  # fmt: skip
def test_errors_say_what_was_wrong(as_users_see_it, function, arguments, error, message):
    with pytest.raises(error, match=message):
        function(*arguments)
