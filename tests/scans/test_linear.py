"""linear_scan: every form equals the recurrence, forward and derivative, in every dtype and composition."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from tests.oracles import scans as oracle
from zoo.scans import compiling_for, linear_scan

METHODS = ("sequential", "chunked", "associative")


def make(shape, decay_shape, seed=0, dtype=np.float64, low=0.3):
    """decay, inputs, initial, and cotangents of states and last."""
    rng = np.random.default_rng(seed)

    def normal(shape):
        real = rng.normal(size=shape)
        return (real + 1j * rng.normal(size=shape) if np.issubdtype(dtype, np.complexfloating) else real).astype(dtype)

    decay = rng.uniform(low, 1, size=decay_shape).astype(dtype)
    if np.issubdtype(dtype, np.complexfloating):
        decay = decay * np.exp(1j * rng.uniform(-3, 3, size=decay_shape))
    state = (shape[0], *shape[2:])
    return decay, normal(shape), normal(state), normal(shape), normal(state)


@functools.partial(jax.jit, static_argnames=("reverse", "method", "chunk_size"))
def run_with_gradient(decay, inputs, initial, states_bar, last_bar, reverse, method, chunk_size):
    outputs, pullback = jax.vjp(
        lambda *arguments: linear_scan(*arguments, reverse=reverse, method=method, chunk_size=chunk_size),
        decay, inputs, initial,
    )  # fmt: skip
    return outputs, pullback((states_bar, last_bar))


CASES = {
    "full": ((2, 13, 3), (2, 13, 3)),
    "one_row": ((1, 7, 2), (1, 7, 2)),
    "one_step": ((2, 1, 3), (2, 1, 3)),
    "constant": ((2, 11, 4), (1, 1, 4)),
    "vector": ((2, 9, 4), (4,)),
    "per_head": ((2, 10, 2, 3), (2, 10, 2, 1)),
    "no_trailing": ((3, 12), (3, 12)),
    "prime": ((2, 63, 1), (1, 63, 1)),
}


COMPLEX = ("full", "one_step", "constant")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("case", "dtype"), [(c, np.float64) for c in CASES] + [(c, np.complex128) for c in COMPLEX],
    ids=[*CASES, *(f"{c}_complex" for c in COMPLEX)],
)  # fmt: skip
def test_forward_and_every_gradient_equal_the_oracle(float64, method, case, dtype):
    arguments = make(*CASES[case], dtype=dtype)
    for reverse in (False, True):
        got = run_with_gradient(*arguments, reverse, method, 4)
        want = oracle.linear(*arguments[:3], reverse), oracle.linear_gradient(*arguments, reverse)
        for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            np.testing.assert_allclose(g, w, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("chunk_size", [1, 5, 64, None])
def test_chunk_size_does_not_change_the_numbers(float64, chunk_size):
    arguments = make((2, 23, 3), (2, 23, 3))
    states, last = linear_scan(*map(jnp.asarray, arguments[:3]), method="chunked", chunk_size=chunk_size)
    want = oracle.linear(*arguments[:3])
    np.testing.assert_allclose(states, want[0], rtol=1e-12)
    np.testing.assert_allclose(last, want[1], rtol=1e-12)


@pytest.mark.parametrize(
    ("method", "dtype"), [*((m, np.float64) for m in METHODS), ("sequential", np.complex128)],
    ids=[*METHODS, "complex"],
)  # fmt: skip
def test_second_derivatives_in_both_modes(float64, method, dtype):
    arguments = tuple(map(jnp.asarray, make((1, 5, 2), (1, 5, 2), dtype=dtype)[:3]))
    function = functools.partial(linear_scan, method=method, chunk_size=2)
    # check_grads compares real functions; squaring makes second derivatives non-zero in every argument
    squared = jax.jit(lambda *a: jax.tree.map(lambda y: jnp.real(y * y), function(*a)))
    check_grads(squared, arguments, 2, ("fwd", "rev"))


@pytest.mark.parametrize("wrt", [(0,), (1,), (2,), (0, 2)])
def test_gradient_of_any_subset_of_arguments(float64, wrt):
    arguments = make((2, 6, 3), (2, 6, 3))
    want = oracle.linear_gradient(*arguments)
    decay, inputs, initial, states_bar, last_bar = map(jnp.asarray, arguments)

    def loss(*a):
        states, last = linear_scan(*a)
        return jnp.sum(states * states_bar) + jnp.sum(last * last_bar)

    for i, g in zip(wrt, jax.grad(loss, wrt)(decay, inputs, initial), strict=True):
        np.testing.assert_allclose(g, want[i], rtol=1e-11, atol=1e-12)


def test_real_decay_with_complex_inputs(float64):
    decay, inputs, initial, states_bar, last_bar = make((2, 6, 3), (3,), dtype=np.complex128)
    decay = np.abs(decay)
    got = run_with_gradient(decay, inputs, initial, states_bar, last_bar, False, "sequential", None)
    want = oracle.linear_gradient(decay.astype(complex), inputs, initial, states_bar, last_bar)
    np.testing.assert_allclose(got[0][0], oracle.linear(decay, inputs, initial)[0], rtol=1e-12)
    np.testing.assert_allclose(got[1][0], want[0].real, rtol=1e-11)
    np.testing.assert_allclose(got[1][2], want[2], rtol=1e-11)


@pytest.mark.parametrize("method", METHODS)
def test_reverse_mode_keeps_nothing_but_decay_and_states(method):
    """Differentiating through the associative tree, or through the loop, would keep several times as much."""
    decay, inputs = jnp.full((1, 64, 8), 0.9), jnp.ones((1, 64, 8))
    function = jax.jit(lambda a, b: linear_scan(a, b, method=method, chunk_size=8)[0])
    _, pullback = jax.vjp(function, decay, inputs)
    kept = {id(leaf): leaf.size for leaf in jax.tree.leaves(pullback) if hasattr(leaf, "size")}
    assert sum(kept.values()) <= 3.1 * inputs.size


@pytest.mark.parametrize("method", METHODS)
def test_extreme_decays_stay_finite_and_right(method):
    """Decays of 0 (resets), 1, tiny and subnormal in float32, over a longer sequence."""
    rng = np.random.default_rng(1)
    decay = rng.choice([0.0, 1.0, 1e-30, 1e-42, 0.999], size=(2, 97, 3)).astype(np.float32)
    inputs = rng.normal(size=decay.shape).astype(np.float32)
    bars = rng.normal(size=decay.shape).astype(np.float32), np.zeros((2, 3), np.float32)
    zero = np.zeros((2, 3), np.float32)
    got = run_with_gradient(decay, inputs, zero, *bars, False, method, 8)
    want = oracle.linear(decay.astype(float), inputs.astype(float), zero)
    gradient = oracle.linear_gradient(decay.astype(float), inputs.astype(float), zero, *bars)
    np.testing.assert_allclose(got[0][0], want[0], atol=97 * 2.0**-23 * np.abs(want[0]).max())
    np.testing.assert_allclose(got[1][0], gradient[0], atol=2 * 97 * 2.0**-23 * np.abs(gradient[0]).max())
    np.testing.assert_allclose(got[1][1], gradient[1], atol=97 * 2.0**-23 * np.abs(gradient[1]).max())


@pytest.mark.parametrize("method", METHODS)
def test_a_reset_cuts_exactly(method):
    """decay = 0 lets nothing through, not even rounding."""
    rng = np.random.default_rng(2)
    decay = rng.uniform(0.9, 1, size=(1, 20, 2)).astype(np.float32)
    decay[:, 11] = 0
    inputs = rng.normal(size=decay.shape).astype(np.float32)
    other = inputs.copy()
    other[:, :11] *= -7
    scan = jax.jit(lambda x: linear_scan(jnp.asarray(decay), x, method=method, chunk_size=4)[0])
    states = [scan(x) for x in (inputs, other)]
    np.testing.assert_array_equal(states[0][:, 11:], states[1][:, 11:])


def test_bfloat16_is_stored_but_not_accumulated():
    """1000 additions of 1/256 would stall at 1 in bfloat16 sums; the state handed on is float32."""
    inputs = jnp.full((1, 1000, 2), 1 / 256, jnp.bfloat16)
    states, last = linear_scan(jnp.ones((1, 1, 2), jnp.bfloat16), inputs)
    assert states.dtype == jnp.bfloat16 and last.dtype == jnp.float32
    np.testing.assert_allclose(last, 1000 / 256, rtol=1e-6)
    gradient = jax.grad(lambda x: linear_scan(jnp.ones((2,), jnp.bfloat16), x)[1].sum())(inputs)
    assert gradient.dtype == jnp.bfloat16
    np.testing.assert_array_equal(gradient.astype(jnp.float32), 1.0)


@pytest.mark.parametrize("cut", [1, 6, 12])
def test_cutting_anywhere_changes_nothing(float64, cut):
    decay, inputs, initial = map(jnp.asarray, make((2, 13, 3), (2, 13, 3))[:3])
    states, last = linear_scan(decay, inputs, initial)
    first, middle = linear_scan(decay[:, :cut], inputs[:, :cut], initial)
    second, end = linear_scan(decay[:, cut:], inputs[:, cut:], middle)
    np.testing.assert_allclose(jnp.concatenate([first, second], 1), states, rtol=1e-13)
    np.testing.assert_allclose(end, last, rtol=1e-13)


@pytest.mark.parametrize("method", METHODS)
def test_vmap_remat_scan_and_pmap_compose(float64, method):
    decay, inputs, initial = map(jnp.asarray, make((4, 7, 3), (4, 7, 3))[:3])

    def loss(decay, inputs, initial):
        states, last = linear_scan(decay, inputs, initial, method=method, chunk_size=3)
        return jnp.sum(jnp.sin(states)) + jnp.sum(last**2)

    value_and_grad = jax.value_and_grad(loss, (0, 1, 2))
    want = jax.jit(value_and_grad)(decay, inputs, initial)
    split = jax.tree.map(lambda leaf: leaf.reshape(2, 2, *leaf.shape[1:]), (decay, inputs, initial))

    def check(got):
        np.testing.assert_allclose(jnp.sum(got[0]), want[0], rtol=1e-12)
        for g, w in zip(got[1], want[1], strict=True):
            np.testing.assert_allclose(g.reshape(w.shape), w, rtol=1e-11, atol=1e-12)

    check(jax.jit(jax.vmap(value_and_grad))(*split))
    check(jax.jit(jax.value_and_grad(jax.checkpoint(loss), (0, 1, 2)))(decay, inputs, initial))
    check(jax.jit(lambda a: jax.lax.map(lambda x: value_and_grad(*x), a))(split))
    check(jax.pmap(value_and_grad, devices=jax.devices()[:2])(*split))
    one_decay = jax.vmap(lambda x: linear_scan(decay[:1], x[None], method=method, chunk_size=3)[0])(inputs)
    np.testing.assert_allclose(
        one_decay[:, 0], oracle.linear(np.array(decay[:1]), np.array(inputs), 0 * np.array(initial))[0], rtol=1e-12
    )


def test_a_constant_decay_is_not_expanded():
    """The compiled sequential form of a [1, 1, N] decay needs no more scratch memory than one copy of the states."""
    compiled = jax.jit(lambda a, x: linear_scan(a, x, method="sequential")).lower(
        jax.ShapeDtypeStruct((1, 1, 64), jnp.float32), jax.ShapeDtypeStruct((2, 512, 64), jnp.float32)
    )
    assert compiled.compile().memory_analysis().temp_size_in_bytes < 1.2 * 4 * 2 * 512 * 64


@pytest.mark.parametrize("dtype", [np.float32, np.complex64])
def test_the_kernel_has_all_derivatives_too(dtype):
    """method="pallas" inside the linear solve, interpreted here: gradients equal the oracle, second derivatives exist."""
    arguments = make((2, 5, 3), (2, 5, 3), dtype=dtype)
    got = run_with_gradient(*arguments, False, "pallas", None)
    wide = [a.astype(np.complex128) for a in arguments]
    want = oracle.linear(*wide[:3]), oracle.linear_gradient(*wide)
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(g, w, atol=5 * 2.0**-23 * np.abs(w).max() * 4)

    def loss(method):
        return lambda x: jnp.sum(jnp.abs(linear_scan(jnp.asarray(arguments[0]), x, method=method)[0]) ** 4)

    along = (jnp.asarray(arguments[1]),), (jnp.asarray(arguments[3]),)
    kernel, plain = (jax.jvp(jax.grad(loss(m)), *along)[1] for m in ("pallas", "sequential"))
    np.testing.assert_allclose(kernel, plain, rtol=1e-4, atol=1e-4 * float(jnp.abs(plain).max()))


def test_the_kernel_is_what_auto_takes_when_compiling_for_an_accelerator():
    def primitives(platform, dtype):
        x = jax.ShapeDtypeStruct((2, 9, 4), dtype)
        with compiling_for(platform):
            return str(jax.make_jaxpr(lambda a, x: linear_scan(a, x))(x, x))

    assert "pallas_call" in primitives("gpu", jnp.float32) and "pallas_call" in primitives("tpu", jnp.float32)
    assert "pallas_call" in primitives("tpu", jnp.complex64)
    assert "pallas_call" not in primitives("cpu", jnp.float32)
    with jax.enable_x64(True):
        assert "pallas_call" not in primitives("gpu", jnp.float64)


def test_compiling_for_an_unknown_platform_is_refused():
    with pytest.raises(ValueError, match="cpu, gpu, tpu"), compiling_for("cuda"):
        pass


X = jnp.ones((2, 3, 4))


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((X, X.astype(int)), {}, TypeError, "inputs must be a floating-point array, got int32"),
        ((X > 0, X), {}, TypeError, "decay must be a floating-point array, got bool"),
        ((X, X[0, 0]), {}, ValueError, r"inputs must have shape \[batch, time, ...\], got \[4\]"),
        ((X[:, :0], X[:, :0]), {}, ValueError, "T = 0"),
        ((X[:, :2], X), {}, ValueError, r"decay of shape \[2, 2, 4\] does not broadcast .* \[2, 3, 4\]"),
        ((X[None], X), {}, ValueError, "does not broadcast"),
        ((X, X, X), {}, ValueError, r"initial must have shape \[2, 4\]"),
        ((X, X, X[:, 0].astype(int)), {}, TypeError, "initial must be a floating-point array"),
        ((X, X), {"method": "chunk"}, ValueError, "method='chunk' is not one of .*did you mean 'chunked'"),
        ((X, X), {"chunk_size": 0}, ValueError, "chunk_size must be a positive integer, got 0"),
        ((3.0, X), {}, TypeError, "decay must be a floating-point array, got float"),
    ],
)
def test_errors_say_what_was_wrong(as_users_see_it, arguments, options, error, message):
    with pytest.raises(error, match=message):
        linear_scan(*arguments, **options)


def test_numpy_arrays_are_welcome(as_users_see_it):
    states, last = linear_scan(np.full((1, 1, 1), 0.5, np.float32), np.ones((1, 3, 1), np.float32))
    np.testing.assert_allclose(states[0, :, 0], [1, 1.5, 1.75])
    assert isinstance(last, jax.Array)
