"""The linear_scan kernels: interpreted numbers against a float64 oracle, lowering, bytes moved, fallback, errors."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.aot import moved_bytes
from pallas_kernels.compat import lower_for
from pallas_kernels.linear_scan import linear_scan, reference, tiles
from tests.oracles import scans as oracle
from tests.scans.test_linear import make

PLATFORMS = ("gpu", "tpu")
EPS = 2.0**-23


@functools.partial(jax.jit, static_argnames=("reverse", "platform", "after"))
def run(decay, inputs, initial, states_bar, last_bar, reverse=False, platform="gpu", after=False):
    def scan(*arguments):
        return linear_scan(*arguments, reverse=reverse, platform=platform, after=after)

    outputs, pullback = jax.vjp(scan, decay, inputs, initial)
    return outputs, pullback((states_bar, last_bar))


def check(shape, decay_shape, platform, reverse=False, dtype=np.float32, seed=0):
    """Forward and every gradient within T roundings of the oracle's largest number."""
    arguments = make(shape, decay_shape, seed, dtype)
    got = run(*arguments, reverse=reverse, platform=platform)
    wide = [a.astype(np.result_type(a.dtype, np.float64)) for a in arguments]
    want = oracle.linear(*wide[:3], reverse), oracle.linear_gradient(*wide, reverse)
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert g.shape == w.shape and g.dtype == dtype
        np.testing.assert_allclose(g, w, rtol=0, atol=4 * (shape[1] + 8) * EPS * max(1, np.abs(w).max()))


@pytest.mark.parametrize("platform", PLATFORMS)
@hypothesis.given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 37), st.integers(1, 9)),
    constant=st.booleans(), one_row=st.booleans(), reverse=st.booleans(),
)  # fmt: skip
@hypothesis.example((2, 1, 3), False, False, False)
@hypothesis.settings(max_examples=3, deadline=None, derandomize=True)
def test_forward_and_gradient_equal_the_oracle_at_any_size(platform, shape, constant, one_row, reverse):
    check(shape, (1 if one_row or constant else shape[0], 1 if constant else shape[1], shape[2]), platform, reverse)


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize(
    ("reverse", "decay_shape"), [(True, (3,)), pytest.param(False, (2, 19, 3), marks=pytest.mark.slow)]
)
def test_complex_values_are_a_pair_of_planes(platform, reverse, decay_shape):
    check((2, 19, 3), decay_shape, platform, reverse, np.complex64)


@pytest.mark.parametrize(("reverse", "constant"), [(True, True), pytest.param(False, False, marks=pytest.mark.slow)])
def test_a_long_sequence_of_few_channels_is_cut_into_chunks_of_time(reverse, constant):
    shape = (1, 301, 3)
    tile = tiles.gpu_tile(*shape, 1)
    assert tile.chunks > 1 and shape[1] % tile.chunk
    check(shape, (1, 1, 3) if constant else shape, "gpu", reverse)


@pytest.mark.parametrize(("reverse", "constant"), [(False, True), (True, False)])
def test_time_blocks_hand_their_carry_on(monkeypatch, reverse, constant):
    """T over three TPU blocks, the last one partial."""
    monkeypatch.setattr(tiles, "VMEM_BLOCKS", 0)
    assert tiles.tpu_tile(1, 21, 5, 3, 4).steps == 8
    check((2, 21, 5), (1, 1, 5) if constant else (2, 21, 5), "tpu", reverse)


def test_trailing_axes_and_heads_broadcast():
    check((2, 9, 2, 3), (2, 9, 2, 1), "gpu")


@pytest.mark.parametrize("platform", PLATFORMS)
def test_the_transposed_recurrence_and_its_gradient(platform):
    """``after=True`` is the plain recurrence with decays moved by one step; its derivative is that of the reference."""
    arguments = make((2, 11, 3), (2, 11, 3), dtype=np.float32)

    def plain(*a):
        return reference(*a, reverse=True, after=True)

    outputs, pullback = jax.vjp(plain, *map(jnp.asarray, arguments[:3]))
    got = run(*arguments, reverse=True, platform=platform, after=True)
    want = outputs, pullback(tuple(map(jnp.asarray, arguments[3:])))
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(g, w, atol=4 * 20 * EPS * float(jnp.abs(w).max()))


@pytest.mark.parametrize("platform", PLATFORMS)
def test_bfloat16_is_stored_but_not_accumulated(platform):
    """1000 additions of 1/256 would stall at 1 in bfloat16 sums."""
    inputs = jnp.full((1, 1000, 2), 1 / 256, jnp.bfloat16)
    states, last = linear_scan(jnp.ones((1, 1, 2), jnp.bfloat16), inputs, platform=platform)
    assert states.dtype == jnp.bfloat16 and last.dtype == jnp.float32
    np.testing.assert_array_equal(last, 1000 / 256)


@pytest.mark.parametrize("platform", PLATFORMS)
def test_a_reset_cuts_exactly_and_a_cut_changes_nothing(platform):
    decay, inputs, initial = make((1, 20, 2), (1, 20, 2), dtype=np.float32)[:3]
    decay[:, 11] = 0
    other = inputs.copy()
    other[:, :11] *= -7
    scan = jax.jit(functools.partial(linear_scan, platform=platform))
    states, last = zip(*(scan(decay, x, initial) for x in (inputs, other)), strict=True)
    np.testing.assert_array_equal(states[0][:, 11:], states[1][:, 11:])
    np.testing.assert_array_equal(last[0], states[0][:, -1])


@pytest.mark.parametrize("platform", PLATFORMS)
def test_vmap_is_a_larger_batch(platform):
    decay, inputs, initial, states_bar, _ = map(jnp.asarray, make((2, 9, 3), (2, 9, 3), dtype=np.float32))

    def gradient(*a):
        return jax.grad(lambda *b: jnp.sum(linear_scan(*b, platform=platform)[0] * states_bar[:1]), (0, 1, 2))(*a)

    split = tuple(a[:, None] for a in (decay, inputs, initial))
    got = jax.jit(jax.vmap(gradient))(*split)
    for i in range(2):
        want = jax.jit(gradient)(*(a[i] for a in split))
        for g, w in zip(got, want, strict=True):
            np.testing.assert_array_equal(g[i], w)


def both(platform):
    def function(decay, inputs, initial):
        outputs, pullback = jax.vjp(
            lambda *a: linear_scan(*a, platform=platform, interpret=False), decay, inputs, initial
        )
        return outputs, pullback(outputs)

    return function


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize(
    ("shape", "decay_shape", "dtype"),
    [((4, 100, 384), None, jnp.float32), ((1, 5000, 64), (1, 1, 64), jnp.complex64), ((3, 7, 130), None, jnp.bfloat16)],
    ids=["float32", "chunks_complex", "odd_bfloat16"],
)
def test_forward_and_backward_lower_for_hardware_that_is_not_here(platform, shape, decay_shape, dtype):
    arguments = [jax.ShapeDtypeStruct(s, dtype) for s in (decay_shape or shape, shape)]
    wide = jnp.promote_types(dtype, jnp.float32)
    arguments.append(jax.ShapeDtypeStruct((shape[0], shape[2]), wide))
    text = lower_for({"gpu": "cuda", "tpu": "tpu"}[platform], both(platform), *arguments)
    assert text.count({"gpu": "triton", "tpu": "tpu_custom_call"}[platform]) >= 2


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("constant", [False, True])
def test_every_array_goes_through_memory_once(platform, constant):
    """In the one-level form, at a size that fills the chip: at most 1.1 times the bytes of the arguments and results."""
    shape = (64, 512, 4096)
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    decay = jax.ShapeDtypeStruct((1, 1, 4096), jnp.float32) if constant else x
    size, small = 4 * x.size, 4 * decay.size
    forward = functools.partial(linear_scan, platform=platform, interpret=False)
    moved, calls = moved_bytes(forward, decay, x)
    assert calls == 1 and 2 * size + small <= moved <= 1.1 * (2 * size + small)

    state = jax.ShapeDtypeStruct((64, 4096), jnp.float32)
    moved, calls = moved_bytes(both(platform), decay, x, state)
    minimum = (2 * size + small) + (3 * size + 2 * small)
    assert calls == 2 and minimum <= moved <= 1.1 * minimum


def test_tiles_fill_the_chip_and_never_leave_memory_unread():
    one, many = tiles.gpu_tile(1, 1_000_000, 64, 1), tiles.gpu_tile(64, 512, 4096, 1)
    assert one.chunks >= 132 and one.chunk * one.chunks >= 1_000_000 > one.chunk * (one.chunks - 1)
    assert many.chunks == 1 and 64 * 4096 // many.channels >= 132


def test_what_no_kernel_fits_falls_back_to_the_reference(float64):
    arguments = tuple(map(jnp.asarray, make((2, 5, 3), (2, 5, 3))[:3]))
    assert "pallas_call" not in str(jax.make_jaxpr(linear_scan)(*arguments))
    states, last = linear_scan(*arguments)
    want = oracle.linear(*map(np.asarray, arguments))
    np.testing.assert_allclose(states, want[0], rtol=1e-13)
    np.testing.assert_allclose(last, want[1], rtol=1e-13)


X = jnp.ones((2, 3, 4))


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((X, X.astype(int)), {}, TypeError, "inputs must be a floating-point array, got int32"),
        ((X, X[:, :0]), {}, ValueError, r"time >= 1, got \[2, 0, 4\]"),
        ((X[:, :2], X), {}, ValueError, r"decay of shape \[2, 2, 4\] does not broadcast"),
        ((X, X, X), {}, ValueError, r"initial must have shape \[2, 4\], got \[2, 3, 4\]"),
        ((X, X), {"platform": "cuda"}, ValueError, "platform='cuda' is not one of gpu, tpu"),
    ],
)
def test_errors_say_what_was_wrong(as_users_see_it, arguments, options, error, message):
    with pytest.raises(error, match=message):
        linear_scan(*arguments, **options)
