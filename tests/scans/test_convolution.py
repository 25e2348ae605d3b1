"""fft_convolution equals the causal sum."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.test_util import check_grads

from tests.oracles import scans as oracle
from zoo.scans import fft_convolution, linear_scan
from zoo.scans.convolution import fast_length


@pytest.mark.parametrize(("steps", "taps"), [(1, 1), (1, 5), (7, 1), (63, 63), (17, 40), (29, 4)])
def test_equals_the_direct_sum(float64, steps, taps):
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(2, steps, 3))
    for kernel in (rng.normal(size=(taps, 3)), rng.normal(size=taps)):
        got = fft_convolution(jnp.asarray(inputs), jnp.asarray(kernel))
        np.testing.assert_allclose(got, oracle.causal_convolution(inputs, kernel), rtol=1e-11, atol=1e-12)


def test_is_the_linear_scan_with_constant_decay(float64):
    decay = jnp.array([0.9, 0.5])
    inputs = jax.random.normal(jax.random.key(0), (2, 33, 2))
    kernel = decay ** jnp.arange(33)[:, None]
    np.testing.assert_allclose(fft_convolution(inputs, kernel), linear_scan(decay, inputs)[0], rtol=1e-11)


def test_the_future_stays_out(float64):
    """Taps that would wrap round a circular product land in the padding."""
    inputs = jnp.zeros((1, 16, 1)).at[:, -1].set(1e6)
    outputs = fft_convolution(inputs, jnp.ones((16, 1)))
    np.testing.assert_allclose(outputs[:, :-1], 0, atol=1e-9)


def test_second_derivatives_in_both_modes(float64):
    rng = np.random.default_rng(0)
    function = jax.jit(lambda x, k: fft_convolution(x, k) ** 2)
    check_grads(function, (rng.normal(size=(1, 5, 2)), rng.normal(size=(3, 2))), 2, ("fwd", "rev"))


def test_bfloat16_goes_through_float32():
    inputs = jnp.ones((1, 9, 2), jnp.bfloat16)
    outputs = fft_convolution(inputs, jnp.ones((9, 2), jnp.bfloat16))
    assert outputs.dtype == jnp.bfloat16
    np.testing.assert_array_equal(outputs[0, :, 0].astype(jnp.float32), np.arange(1, 10))


@given(st.integers(1, 100_000))
def test_fast_length_is_the_next_smooth_number(least):
    def smooth(n):
        for p in (2, 3, 5):
            while n % p == 0:
                n //= p
        return n == 1

    found = fast_length(least)
    assert found >= least and smooth(found) and not any(smooth(n) for n in range(least, found))


X = jnp.ones((2, 3, 4))


@pytest.mark.parametrize(
    ("inputs", "kernel", "error", "message"),
    [
        (X.astype(int), X[0], TypeError, "inputs must be a floating-point array"),
        (X, X[0] + 0j, TypeError, "kernel must be real, got complex64"),
        (X[0], X[0], ValueError, r"inputs must have shape \[batch, time, channels\], got \[3, 4\]"),
        (X, X[0, :, :3], ValueError, r"kernel must have shape \[length\] or \[length, 4\], got \[3, 3\]"),
        (X, X, ValueError, "kernel must have shape"),
        (X[:, :0], X[0], ValueError, "at least one step each, got T = 0 and L = 3"),
    ],
)
def test_errors_say_what_was_wrong(as_users_see_it, inputs, kernel, error, message):
    with pytest.raises(error, match=message):
        fft_convolution(inputs, kernel)
