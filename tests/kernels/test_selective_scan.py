"""The selective_scan kernels: numbers of both platforms against a float64 oracle, and lowering for absent hardware."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.compat import lower_for
from pallas_kernels.selective_scan import gpu, selective_scan, tpu
from pallas_kernels.selective_scan.reference import reference
from pallas_kernels.selective_scan.tiles import fits
from tests.oracles import scans as oracle

PLATFORMS = ("gpu", "tpu")


def make(batch, steps, channels, size, seed=0, dtype=np.float32):
    """x, delta, a, b, c, initial, cotangents of y and last, and resets."""
    rng = np.random.default_rng(seed)
    state = np.promote_types(dtype, np.float32)
    x, y_bar = (jnp.asarray(rng.normal(size=(batch, steps, channels)), dtype) for _ in range(2))
    b, c = (jnp.asarray(rng.normal(size=(batch, steps, size)), dtype) for _ in range(2))
    initial, last_bar = (jnp.asarray(rng.normal(size=(batch, channels, size)), state) for _ in range(2))
    delta, a = (
        jnp.asarray(rng.exponential(size=x.shape), state),
        -jnp.asarray(rng.exponential(size=initial.shape[1:]), state),
    )
    return (x, delta, a, b, c, initial, y_bar, last_bar), jnp.asarray(rng.random((batch, steps)) < 0.1)


def with_gradient(function):
    @jax.jit
    def both(x, delta, a, b, c, initial, y_bar, last_bar, reset):
        outputs, pullback = jax.vjp(lambda *given: function(*given, reset=reset), x, delta, a, b, c, initial)
        return outputs, pullback((y_bar, last_bar))

    return both


RUN = {p: with_gradient(functools.partial(selective_scan, platform=p, interpret=True)) for p in PLATFORMS}


def check(got, arguments, reset, digits=2.0**-23):
    """Every output and gradient: off by less than the rounding of T + B + D additions of the largest number there."""
    x, delta, a, b, c, initial, y_bar, last_bar = (np.asarray(array, np.float64) for array in arguments)
    none = np.zeros(x.shape[2])
    gradient = oracle.selective_gradient(x, delta, a, b, c, none, initial, y_bar, last_bar, reset)
    want = oracle.selective(x, delta, a, b, c, none, initial, reset), gradient[:5] + gradient[6:]
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert g.shape == w.shape
        np.testing.assert_allclose(np.asarray(g, float), w, rtol=0, atol=sum(x.shape) * digits * np.abs(w).max())


@pytest.mark.parametrize("platform", PLATFORMS)
@hypothesis.given(steps=st.integers(1, 150), channels=st.integers(1, 70), size=st.integers(1, 17), resets=st.booleans())
@hypothesis.example(steps=1, channels=150, size=3, resets=False)
@hypothesis.settings(max_examples=1, deadline=None, derandomize=True, database=None)
def test_odd_sizes_equal_the_oracle(platform, steps, channels, size, resets):
    arguments, reset = make(1, steps, channels, size)
    reset = reset if resets else None
    check(RUN[platform](*arguments, reset), arguments, reset)


@pytest.mark.parametrize("platform", PLATFORMS)
def test_several_chunks_with_resets_equal_the_oracle(platform):
    arguments, reset = make(2, 150, 3, 4)
    check(RUN[platform](*arguments, reset), arguments, reset)


@pytest.mark.parametrize("platform", PLATFORMS)
def test_bfloat16_is_stored_but_not_accumulated(platform):
    """Everything is computed in float32: only what is written is rounded, to 8 bits."""
    arguments, _ = make(1, 20, 3, 4, dtype=jnp.bfloat16)
    got = RUN[platform](*arguments, None)
    assert got[0][0].dtype == jnp.bfloat16 and got[0][1].dtype == jnp.float32
    assert [g.dtype for g in got[1]] == [array.dtype for array in arguments[:6]]
    check(got, arguments, None, digits=2.0**-8 / 20)


def test_the_reference_equals_the_oracle():
    arguments, reset = make(2, 70, 3, 4)
    check(with_gradient(reference)(*arguments, reset), arguments, reset)


def test_what_fits_no_tile_runs_the_reference(monkeypatch, float64):
    """Wide states and float64: the same numbers without a kernel."""
    assert not fits("gpu", 64, jnp.float32) and not fits("tpu", 128, jnp.float32) and not fits("gpu", 16, jnp.float64)
    for module in (gpu, tpu):
        monkeypatch.setattr(module, "forward", None)
    arguments, reset = make(1, 5, 2, 2, dtype=np.float64)
    check(
        with_gradient(functools.partial(selective_scan, platform="tpu"))(*arguments, reset), arguments, reset, 2.0**-50
    )


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize("resets", [False, True], ids=["whole", "resets"])
def test_forward_and_backward_lower_for_hardware_that_is_not_here(platform, resets):
    (x, delta, a, b, c, initial, y_bar, last_bar), reset = make(1, 300, 200, 16, dtype=jnp.bfloat16)
    function = functools.partial(selective_scan, platform={"cuda": "gpu"}.get(platform, platform), interpret=False)

    def both(*arguments):
        given, reset = arguments[:6], arguments[8] if resets else None
        return jax.vjp(lambda *a: function(*a, reset=reset), *given)[1](arguments[6:8])

    text = lower_for(platform, both, x, delta, a, b, c, initial, y_bar, last_bar, reset)
    assert text.count({"cuda": "triton", "tpu": "tpu_custom_call"}[platform]) >= 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"delta": (2, 3, 1)}, r"delta must have shape \[2, 3, 4\], got \[2, 3, 1\]"),
        ({"c": (2, 3, 4)}, r"c must have shape \[2, 3, 5\]"),
        ({"initial": (2, 5, 4)}, r"initial must have shape \[2, 4, 5\]"),
        ({"x": (2, 0, 4)}, "time >= 1"),
        ({"platform": "rocm"}, "not one of gpu, tpu"),
        ({"reset": (2, 3)}, "reset must be a bool array"),
    ],
)
def test_wrong_arguments_are_refused(as_users_see_it, change, message):
    shapes = {"x": (2, 3, 4), "delta": (2, 3, 4), "a": (4, 5), "b": (2, 3, 5), "c": (2, 3, 5), "initial": (2, 4, 5)}
    arguments = {name: jnp.ones(shape) for name, shape in shapes.items()}
    arguments |= {n: jnp.ones(s) if isinstance(s, tuple) else s for n, s in change.items()}
    with pytest.raises((ValueError, TypeError), match=message):
        selective_scan(**arguments)
