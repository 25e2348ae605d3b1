"""adaptive_halting: both forms equal the position-by-position loop, and the scan form is differentiable."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from tests.oracles import scans as oracle
from zoo.scans import adaptive_halting

B, M, D = 2, 5, 3
rng = np.random.default_rng(0)
STATE = rng.normal(size=(B, M, D))
MIX = rng.normal(size=(D, D)) / np.sqrt(D)
PROBE = rng.normal(size=D)
SIGNAL = rng.normal(size=(8, D))
HALTED = np.zeros((B, M), bool)
HALTED[1, 3:] = True


def halt(state, t, probe=PROBE, bias=-1.0):
    return 1 / (1 + jnp.exp(-(state @ probe + bias)))


def run(state=STATE, mix=MIX, probe=PROBE, bias=-1.0, signal=SIGNAL, max_steps=6, **options):
    # neighbours along the sequence see each other, as under attention, halted or not
    return adaptive_halting(
        lambda s, t: jnp.tanh(s @ mix + 0.5 * jnp.roll(s, 1, axis=-2)),
        lambda s, t: halt(s, t, probe, bias),
        jnp.asarray(state),
        prepare=lambda s, t: s + jnp.asarray(signal)[t],
        max_steps=max_steps,
        **options,
    )


@pytest.mark.parametrize("method", ["scan", "while"])
@pytest.mark.parametrize("variant", ["basic", "accumulated"])
@pytest.mark.parametrize("freeze_halted", [False, True])
@pytest.mark.parametrize("max_steps", [1, 6])
def test_equals_the_loop_position_by_position(float64, method, variant, freeze_halted, max_steps):
    got = jax.jit(functools.partial(run, method=method, variant=variant, freeze_halted=freeze_halted,
                                    max_steps=max_steps))(halted=jnp.asarray(HALTED))  # fmt: skip
    want = oracle.halting(
        lambda s, t: np.tanh(s @ MIX + 0.5 * np.roll(s, 1, axis=-2)),
        lambda s, t: 1 / (1 + np.exp(-(s @ PROBE - 1.0))),
        lambda s, t: s + SIGNAL[t],
        STATE, max_steps, 0.01, variant, freeze_halted, HALTED,
    )  # fmt: skip
    for name, g, w in zip(got._fields, got, want, strict=True):
        np.testing.assert_allclose(g, w, rtol=1e-12, atol=1e-13, err_msg=name)
    np.testing.assert_array_equal(got.steps[HALTED], 0)
    np.testing.assert_array_equal(got.output[HALTED], 0)
    if max_steps == 6:
        assert len(np.unique(got.steps[~HALTED])) > 1, "the case must have positions that halt at different steps"


def test_both_methods_give_identical_numbers():
    a, b = (jax.jit(functools.partial(run, method=m))(STATE.astype(np.float32)) for m in ("scan", "while"))
    for name, g, w in zip(a._fields, a, b, strict=True):
        np.testing.assert_allclose(g, w, rtol=1e-6, atol=1e-6, err_msg=name)
    np.testing.assert_array_equal(a.steps, b.steps)
    assert a.loops == b.loops


def test_weights_sum_to_one_where_halted_and_to_less_where_cut_off(float64):
    result = run(bias=-3.0, max_steps=3)
    cut_off = np.array(result.remainder) == 0
    assert cut_off.any() and (np.array(result.halting)[cut_off] < 1).all()
    result = run(bias=1.0, max_steps=8)
    np.testing.assert_allclose(result.halting, 1, rtol=1e-15)
    assert result.loops < 8, "the loop stops when everyone has halted"
    np.testing.assert_array_equal(run(max_steps=8, bias=1.0, method="while").loops, result.loops)


def test_certain_halting_is_one_plain_step(float64):
    result = run(bias=40.0)
    np.testing.assert_array_equal(result.steps, 1)
    np.testing.assert_allclose(result.remainder, 1)
    prepared = STATE + SIGNAL[0]
    np.testing.assert_allclose(result.output, np.tanh(prepared @ MIX + 0.5 * np.roll(prepared, 1, axis=-2)))


def test_a_halted_position_never_runs_again_in_float32():
    """Halting sums of 0.99999994 must not restart a position: n counts every position's steps once."""
    key = jax.random.key(0)
    result = adaptive_halting(
        lambda s, t: s,
        lambda s, t: jax.random.uniform(jax.random.fold_in(key, t), (4096,), minval=0.01, maxval=0.4),
        jnp.ones((4096, 1)),
        max_steps=64,
        variant="accumulated",
    )
    np.testing.assert_allclose(result.output[:, 0], 1, rtol=1e-6)  # weights sum to one
    assert result.steps.max() == result.loops < 64


def test_one_probability_per_sequence_halts_whole_sequences(float64):
    result = adaptive_halting(
        lambda s, t: jnp.tanh(s @ MIX), lambda s, t: halt(s, t).mean(-1, keepdims=True), jnp.asarray(STATE), max_steps=6
    )
    assert (np.ptp(result.steps, axis=1) == 0).all()


@pytest.mark.parametrize(
    ("variant", "freeze_halted", "order"), [("basic", False, 2), ("accumulated", False, 1), ("basic", True, 1)]
)
def test_gradients_of_output_and_ponder_cost(float64, variant, freeze_halted, order):
    def function(state, mix, probe, bias):
        result = run(state, mix, probe, bias, variant=variant, freeze_halted=freeze_halted, max_steps=3)
        return result.output, result.remainder

    check_grads(jax.jit(function), (STATE, MIX, PROBE, 0.1), order, ("fwd", "rev"))


def test_gradient_of_the_remainder_is_minus_one_per_unfinished_step(float64):
    """R = 1 - sum of p over the steps before the halting one."""
    offsets = jnp.zeros((6, B, M))

    def ponder(offsets):
        result = adaptive_halting(
            lambda s, t: s, lambda s, t: 0.3 + offsets[t], jnp.asarray(STATE), max_steps=6, epsilon=0.05
        )
        return jnp.sum(result.steps + result.remainder)

    gradient = jax.grad(ponder)(offsets)
    np.testing.assert_array_equal(gradient[:3], -1)
    np.testing.assert_array_equal(gradient[3:], 0)


def test_vmap_and_pmap_compose(float64):
    function = jax.jit(lambda s: run(s, max_steps=4).output)
    states = jnp.stack([STATE, STATE[::-1]])
    want = jnp.stack([function(s) for s in states])
    np.testing.assert_allclose(jax.vmap(function)(states), want, rtol=1e-12)
    np.testing.assert_allclose(jax.vmap(lambda s: run(s, max_steps=4, method="while").output)(states), want, rtol=1e-12)
    np.testing.assert_allclose(jax.pmap(function, devices=jax.devices()[:2])(states), want, rtol=1e-12)


def test_bfloat16_state_keeps_float32_sums():
    result = run(jnp.asarray(STATE, jnp.bfloat16), *(jnp.asarray(x, jnp.bfloat16) for x in (MIX, PROBE)),
                 signal=jnp.asarray(SIGNAL, jnp.bfloat16))  # fmt: skip
    assert result.output.dtype == jnp.bfloat16 and result.halting.dtype == jnp.float32


@pytest.mark.parametrize(
    ("state", "options", "error", "message"),
    [
        (STATE.astype(int), {}, TypeError, "state must be a floating-point array"),
        (STATE, {"max_steps": 0}, ValueError, "max_steps must be a positive integer, got 0"),
        (STATE, {"epsilon": 1.0}, ValueError, r"epsilon must lie in \[0, 1\), got 1.0"),
        (STATE, {"variant": "acumulated"}, ValueError, "did you mean 'accumulated'"),
        (STATE, {"method": "whille"}, ValueError, "did you mean 'while'"),
        (STATE, {"halted": jnp.zeros((B, M))}, TypeError, "halted must be a bool array, got float32"),
        (STATE, {"halted": jnp.zeros((B,), bool)}, ValueError, r"halted must have shape \[2, 5\]"),
        (STATE, {"halt": lambda s, t: s}, ValueError, r"halt must return probabilities .* \[2, 5\], got \[2, 5, 3\]"),
        (STATE, {"block": lambda s, t: s[..., :1]}, ValueError, r"block must keep the state .*\[2, 5, 3\]"),
    ],
)
def test_errors_say_what_was_wrong(as_users_see_it, state, options, error, message):
    defaults = {"block": lambda s, t: s, "halt": halt, "max_steps": 3}
    with pytest.raises(error, match=message):
        adaptive_halting(**{**defaults, "state": jnp.asarray(state), **options})
