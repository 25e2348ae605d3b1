"""The chunked kernels: numbers of both platforms against a float64 oracle, and lowering for hardware that is not here."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.chunked import chunked, gpu, tpu
from pallas_kernels.chunked.reference import reference
from pallas_kernels.chunked.tiles import fits, tiles
from pallas_kernels.compat import lower_for
from tests.oracles import scans as oracle

PLATFORMS = ("gpu", "tpu")
DECAYS = ("none", "head", "channel")


def make(batch, steps, groups, heads, keys, values, decay, seed=0, choices=None, dtype=np.float32):
    """q, k, v, log_decay, initial, and cotangents of y and last."""
    rng = np.random.default_rng(seed)
    state = np.promote_types(dtype, np.float32)
    shape = {"none": None, "head": (batch, steps, heads), "channel": (batch, steps, heads, keys)}[decay]
    if shape is not None:
        log_decay = -rng.exponential(size=shape) if choices is None else rng.choice(choices, size=shape)

    def normal(*shape, dtype=dtype):
        return jnp.asarray(rng.normal(size=shape), dtype)

    q, k = normal(batch, steps, groups, keys), normal(batch, steps, groups, keys)
    v, y_bar = normal(batch, steps, heads, values), normal(batch, steps, heads, values)
    initial, last_bar = (normal(batch, heads, keys, values, dtype=state) for _ in range(2))
    return q, k, v, None if shape is None else jnp.asarray(log_decay, state), initial, y_bar, last_bar


def with_gradient(function):
    @jax.jit
    def both(q, k, v, log_decay, initial, y_bar, last_bar):
        outputs, pullback = jax.vjp(function, q, k, v, log_decay, initial)
        return outputs, pullback((y_bar, last_bar))

    return both


RUN = {p: with_gradient(functools.partial(chunked, platform=p, interpret=True)) for p in PLATFORMS}


def check(got, arguments, digits=2.0**-23):
    """Every output and gradient: off by less than the rounding of T K additions of the largest number there."""
    exact = [None if a is None else np.asarray(a, np.float64) for a in arguments]
    want = oracle.matrix_state(*exact[:5]), oracle.matrix_state_gradient(*exact)
    steps, keys = arguments[0].shape[1], arguments[0].shape[3]
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert g.shape == w.shape
        np.testing.assert_allclose(np.asarray(g, np.float64), w, rtol=0, atol=(steps + keys) * digits * np.abs(w).max())


@pytest.mark.parametrize("platform", PLATFORMS)
@hypothesis.given(
    steps=st.integers(1, 150), heads=st.sampled_from([(1, 1), (1, 3), (2, 4)]), keys=st.integers(1, 40),
    values=st.integers(1, 40), decay=st.sampled_from(DECAYS),
)  # fmt: skip
@hypothesis.example(steps=1, heads=(1, 3), keys=16, values=40, decay="channel")
@hypothesis.example(steps=70, heads=(1, 3), keys=16, values=40, decay="head")  # one program sums over the heads
@hypothesis.settings(max_examples=1, deadline=None, derandomize=True, database=None)
def test_odd_sizes_equal_the_oracle(platform, steps, heads, keys, values, decay):
    arguments = make(2, steps, *heads, keys, values, decay)
    check(RUN[platform](*arguments), arguments)


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("decay", DECAYS)
def test_every_kind_of_decay_equals_the_oracle(platform, decay):
    """Several chunks, the last one not whole."""
    arguments = make(1, 150, 1, 2, 5, 3, decay)
    check(RUN[platform](*arguments), arguments)


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("decay", ["head", "channel"])
def test_extreme_decays_stay_finite_and_right(platform, decay):
    arguments = make(1, 150, 1, 2, 5, 3, decay, 1, [0, -50, -1e-3, -0.5, -np.inf, -1e-30])
    check(RUN[platform](*arguments), arguments)


def test_narrow_heads_that_share_a_program_equal_the_oracle():
    """On a TPU two heads of 64 columns are one block of 128; here the four heads of v also share one of q and k."""
    arguments = make(1, 20, 1, 4, 128, 64, "head")
    check(RUN["tpu"](*arguments), arguments)


@pytest.mark.parametrize("decay", ["head", "channel"])
def test_segments_of_time_do_not_change_the_numbers(decay):
    """One row and a long sequence: the GPU kernel runs pieces of time side by side."""
    arguments = make(1, 520, 1, 1, 4, 3, decay)
    assert tiles("gpu", 1, 520, 4, 3, decay == "channel", jnp.float32).segments > 1
    check(RUN["gpu"](*arguments), arguments)


@pytest.mark.parametrize("platform", PLATFORMS)
def test_bfloat16_is_stored_but_not_accumulated(platform):
    """Products round their operands to 8 bits; sums over time stay float32."""
    arguments = make(1, 150, 1, 1, 8, 8, "head", dtype=jnp.bfloat16)
    got = RUN[platform](*arguments)
    assert got[0][0].dtype == jnp.bfloat16 and got[0][1].dtype == jnp.float32
    assert [g.dtype for g in got[1]] == [a.dtype for a in arguments[:5]]
    exact = [np.asarray(a, np.float64) for a in arguments]
    want = oracle.matrix_state(*exact[:5]), oracle.matrix_state_gradient(*exact)
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(np.asarray(g, np.float64), w, rtol=0, atol=4 * 2.0**-8 * np.abs(w).max())


def test_the_reference_equals_the_oracle():
    arguments = make(2, 70, 2, 4, 3, 5, "channel")
    check(with_gradient(reference)(*arguments), arguments)


def test_what_fits_no_tile_runs_the_reference(monkeypatch, float64):
    """Wide states and float64: the same numbers without a kernel."""
    assert not fits("gpu", 300, 4, jnp.float32) and not fits("tpu", 4, 600, jnp.float32)
    assert not fits("gpu", 4, 4, jnp.float64)
    for module in (gpu, tpu):
        monkeypatch.setattr(module, "attend", None)
    arguments = make(1, 5, 1, 1, 2, 2, "head", dtype=np.float64)
    got = with_gradient(functools.partial(chunked, platform="gpu"))(*arguments)
    check(got, arguments, 2.0**-50)


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize("decay", DECAYS)
def test_forward_and_backward_lower_for_hardware_that_is_not_here(platform, decay):
    shapes = {"none": None, "head": (2, 300, 4), "channel": (2, 300, 4, 64)}
    q, v = (jax.ShapeDtypeStruct((2, 300, 4, n), jnp.bfloat16) for n in (64, 128))
    decay = None if decay == "none" else jax.ShapeDtypeStruct(shapes[decay], jnp.float32)
    state = jax.ShapeDtypeStruct((2, 4, 64, 128), jnp.float32)
    function = functools.partial(chunked, platform={"cuda": "gpu"}.get(platform, platform), interpret=False)

    def both(q, k, v, decay, state, y_bar, last_bar):
        return jax.vjp(function, q, k, v, decay, state)[1]((y_bar, last_bar))

    text = lower_for(platform, both, q, q, v, decay, state, v, state)
    assert text.count({"cuda": "triton", "tpu": "tpu_custom_call"}[platform]) >= 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": (2, 3, 1, 5)}, "k must have the shape of q"),
        ({"q": (2, 0, 1, 4)}, "time >= 1"),
        ({"v": (2, 3, 4, 5), "q": (2, 3, 3, 4), "k": (2, 3, 3, 4)}, "multiple of 3"),
        ({"log_decay": (2, 3)}, r"log_decay must have shape \[2, 3, 2\] or \[2, 3, 2, 4\], got \[2, 3\]"),
        ({"initial": (2, 2, 5, 4)}, r"initial must have shape \[2, 2, 4, 5\]"),
        ({"platform": "rocm"}, "not one of gpu, tpu"),
    ],
)
def test_wrong_arguments_are_refused(as_users_see_it, change, message):
    shapes = {"q": (2, 3, 1, 4), "k": (2, 3, 1, 4), "v": (2, 3, 2, 5), "log_decay": (2, 3, 2), "initial": (2, 2, 4, 5)}
    arguments = {name: jnp.ones(shape) for name, shape in shapes.items()}
    arguments |= {n: jnp.ones(c) if isinstance(c, tuple) else c for n, c in change.items()}
    with pytest.raises(ValueError, match=message):
        chunked(**arguments)
