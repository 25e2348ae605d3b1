"""The moving average and the convolutional stack beyond the laws: forms, truncation, receptive field, weight norm."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zoo
from zoo.layers.damped_ema import coefficients, damped_ema
from zoo.layers.temporal_convolution import temporal_convolution
from zoo.scans import fft_convolution, receptive_field

DIM, STATE, TIME = 3, 2, 24


@functools.cache
def ema(time=TIME):
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (2, time, DIM))
    return zoo.create("ema", dim=DIM, state_dim=STATE).init(keys[1], x)["params"], x


@pytest.mark.parametrize("truncation", [None, 5, TIME + 3])
def test_recurrence_fft_and_kernel_agree(truncation):
    params, x = ema()
    forms = [
        damped_ema(params, x, truncation=truncation, method=m, scan_method=s)
        for m, s in (("fft", "auto"), ("scan", "sequential"), ("scan", "associative"))
    ]
    for y, state in forms[1:]:
        np.testing.assert_allclose(y, forms[0][0], atol=1e-5)
        np.testing.assert_allclose(state.hidden, forms[0][1].hidden, atol=1e-5)
    log_q, into, out_of = (np.asarray(a, np.float64) for a in coefficients(params, jnp.float32))
    lags = np.arange(min(TIME, truncation or TIME))[:, None, None]
    kernel = np.sum(np.exp(lags * log_q) * into * out_of, axis=-1)
    e = np.stack([[np.convolve(row[:, j], kernel[:, j])[:TIME] for j in range(DIM)] for row in np.asarray(x)])
    want = jax.nn.silu(np.swapaxes(e, 1, 2) + params["omega"] * x)
    np.testing.assert_allclose(forms[0][0], want, atol=1e-5)


def test_an_initial_state_adds_its_decayed_readout():
    params, x = ema()
    state = zoo.create("ema", dim=DIM, state_dim=STATE).initial_state(2)
    state = state.replace(hidden=jnp.ones_like(state.hidden))
    log_q, _, out_of = coefficients(params, jnp.float32)
    powers = jnp.exp(jnp.arange(1, TIME + 1)[:, None, None] * log_q)
    plain = {**params, "omega": jnp.zeros(DIM)}
    # SiLU is one to one above its minimum: compare its arguments, shifted there
    lift = 50.0

    def readout(state):
        moved = {**plain, "beta": jnp.zeros_like(params["beta"]), "omega": jnp.ones(DIM)}
        return damped_ema(moved, jnp.full_like(x, lift), state, method="fft")[0] - lift

    np.testing.assert_allclose(readout(state)[0], jnp.einsum("tdn,dn->td", powers, out_of), atol=2e-5)


def test_saturated_gates_stay_finite():
    params, x = ema()
    for large in (200.0, -200.0):
        hard = {**params, "delta": jnp.full((DIM, STATE), large), "alpha": jnp.full((DIM, STATE), large)}
        for method in ("fft", "scan"):
            value, grads = jax.value_and_grad(lambda p, m=method: jnp.sum(damped_ema(p, x, method=m)[0]))(hard)
            assert all(bool(jnp.all(jnp.isfinite(a))) for a in (value, *jax.tree.leaves(grads)))


def test_the_fft_refuses_documents_and_sliding_windows():
    params, x = ema()
    with pytest.raises(ValueError, match="one document"):
        damped_ema(params, x, reset=jnp.zeros(x.shape[:2], bool), method="fft")
    with pytest.raises(ValueError, match="truncation from the start"):
        damped_ema(params, x, damped_ema(params, x, truncation=4)[1], truncation=4, method="fft")


def stack(taps, factor, depth, convolutions=1, seed=0):
    random = np.random.default_rng(seed)
    return {"direction": jnp.asarray(random.uniform(0.5, 1, (depth, convolutions, taps, DIM)), jnp.float32)}


@pytest.mark.parametrize(("taps", "factor", "convolutions"), [(3, 2, 1), (3, 3, 2), (2, 4, 1)])
def test_the_impulse_response_ends_at_the_receptive_field(taps, factor, convolutions):
    depth, reach = 3, receptive_field(taps, factor, 3, convolutions)
    impulse = jnp.zeros((1, reach + 5, DIM)).at[:, 0].set(1.0)
    y, _ = temporal_convolution(
        stack(taps, factor, depth, convolutions), impulse, factor=factor, convolutions=convolutions
    )
    response = np.asarray(y[0, :, 0])
    assert response[reach - 1] > 0 and not response[reach:].any()
    assert (response[:reach] > 0).all() == (taps >= factor), (
        "without gaps exactly if there are as many taps as the factor"
    )


def test_a_linear_stack_is_one_long_kernel():
    params, x = stack(3, 3, 2), ema()[1]
    impulse = jnp.zeros((1, TIME, DIM)).at[:, 0].set(1.0)
    kernel = temporal_convolution(params, impulse, factor=3)[0][0]
    np.testing.assert_allclose(temporal_convolution(params, x, factor=3)[0], fft_convolution(x, kernel), atol=2e-5)


def test_with_weight_norm_only_the_gain_sets_the_length():
    params, x = stack(3, 2, 2), ema()[1]
    params["gain"] = jnp.full((2, 1, DIM), 0.7)
    twice = {**params, "direction": 2 * params["direction"]}
    y = temporal_convolution(params, x, factor=2)[0]
    np.testing.assert_allclose(temporal_convolution(twice, x, factor=2)[0], y, atol=1e-5)
    assert not np.allclose(temporal_convolution({**params, "gain": 2 * params["gain"]}, x, factor=2)[0], y)


def test_the_form_to_both_sides_is_centred():
    impulse = jnp.zeros((1, 15, DIM)).at[:, 7].set(1.0)
    y = temporal_convolution(stack(3, 2, 2), impulse, factor=2, causal=False)[0][0, :, 0]
    assert np.flatnonzero(y).tolist() == list(range(4, 11))


def test_gaps_are_warned_of_and_impossible_sizes_refused(as_users_see_it):
    x = jnp.ones((1, 4, DIM))
    with pytest.warns(UserWarning, match="have gaps"):
        jax.eval_shape(zoo.create("tcn", dim=DIM, taps=2, factor=3, depth=2).init, jax.random.key(0), x)
    for wrong in ({"taps": 1}, {"factor": 0}, {"depth": 0}, {"activation": "silo"}):
        with pytest.raises(ValueError, match=r"must be|not one of"):
            jax.eval_shape(zoo.create("tcn", **{"dim": DIM, "taps": 3, "factor": 2, "depth": 2, **wrong}).init,
                           jax.random.key(0), x)  # fmt: skip
