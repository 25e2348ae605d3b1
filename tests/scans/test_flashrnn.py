"""flashrnn: every backend and memory choice gives the numbers and gradients of the equations.

Gradients are compared along directions d with complex steps of the float64 oracle: Im f(x + i e d) / e is the derivative
up to e^2, so with e = 1e-30 it is exact to rounding.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.rnn import cells
from tests.oracles.flashrnn import run as oracle
from zoo.scans import cell_counts, compiling_for, flashrnn, register_cell

CELLS = ("elman", "gru", "lstm", "slstm")
FORMS = {
    "vanilla": {"backend": "vanilla"},
    "vanilla_fwbw": {"backend": "vanilla_fwbw"},
    "alternating": {"backend": "alternating", "save": "states"},
    "chunks": {"backend": "vanilla_fwbw", "save": 3},
}
SHAPES = [(t, n) for t in (1, 7, 64) for n in (1, 3)]
QUICK = [(form, (7, 3)) for form in FORMS] + [("vanilla_fwbw", (1, 1))]  # the others are for `make test-all`
CASES = [
    pytest.param(
        form, shape, id=f"{form}-T{shape[0]}N{shape[1]}", marks=[] if (form, shape) in QUICK else pytest.mark.slow
    )
    for form in FORMS
    for shape in SHAPES
]


def make(function, shape, seed=0):
    """Wx, R, b, initial states, and weights for a loss of h, all float64."""
    gates_r, gates_w, _, gates_t, count = cell_counts(function)
    batch, steps, heads, dim = shape
    rng = np.random.default_rng(seed)
    Wx = rng.normal(size=(batch, steps, gates_w, heads, dim))
    R = rng.normal(size=(gates_r, heads, dim, dim)) * dim**-0.5
    b = rng.normal(size=(gates_t, heads, dim))
    states = rng.normal(size=(count, batch, 1, heads, dim))
    if function == "slstm":
        states[2] = 1 + np.abs(states[2])
    return Wx, R, b, states, rng.normal(size=(batch, steps, heads, dim))


@functools.partial(jax.jit, static_argnames=("function", "options"))
def value_and_grads(arguments, weights, reset, function, options):
    """h, last states and gradients of sum(h * weights) + sum(last h)."""

    def loss(*arguments):
        states, last = flashrnn(*arguments, function=function, reset=reset, **dict(options))
        return jnp.sum(states[0] * weights) + jnp.sum(last[0]), (states, last)

    (_, outputs), grads = jax.value_and_grad(loss, tuple(range(len(arguments))), has_aux=True)(*arguments)
    return outputs, grads


def run(arguments, weights, function, reset=None, **options):
    return value_and_grads(arguments, weights, reset, function, tuple(options.items()))


def oracle_h(function, arguments, reset=None):
    Wx, R, b, states = arguments
    initial = states[:, :, 0]
    if function == "slstm":  # c and n are scaled by exp(-m)
        h, c, n, m = initial
        initial = h, c * np.exp(m), n * np.exp(m)
    return oracle(function, Wx, R, b, reset, initial)


@pytest.mark.parametrize("function", CELLS)
@pytest.mark.parametrize(("form", "shape"), CASES)
def test_states_and_gradients_equal_the_oracle(float64, function, form, shape):
    steps, heads = shape
    *arguments, weights = make(function, (3, steps, heads, 2))
    rng = np.random.default_rng(1)
    reset = rng.uniform(size=(3, steps)) < 0.2 if steps == 7 else None
    (states, last), grads = run(arguments, weights, function, reset, **FORMS[form])
    want = oracle_h(function, arguments, reset)
    np.testing.assert_allclose(states[0], want, rtol=1e-11, atol=1e-11)
    np.testing.assert_array_equal(last[:, :, 0], states[:, :, -1])
    for _ in range(3):
        directions = [rng.normal(size=a.shape) for a in arguments]
        if function == "slstm":
            directions[3][3] = 0  # m is held constant
        moved = oracle_h(function, [a + 1e-30j * d for a, d in zip(arguments, directions)], reset)
        slope = (np.sum(moved * weights) + np.sum(moved[:, -1])).imag / 1e-30
        got = sum(float(np.sum(g * d)) for g, d in zip(grads, directions))
        # roundings of a sum over all entries, each at most a few hundred eps
        assert abs(got - slope) <= 1e-11 * max(1, sum(float(np.sum(np.abs(g * d))) for g, d in zip(grads, directions)))


@pytest.mark.parametrize("function", CELLS)
@pytest.mark.parametrize("form", [pytest.param("vanilla", marks=pytest.mark.slow), "alternating"])
def test_bfloat16_is_close_to_float64(float64, function, form):
    *arguments, weights = make(function, (3, 16, 2, 8))
    want, want_grads = run(arguments, weights, function, **FORMS["vanilla"])
    single = [a.astype(np.float32) for a in arguments]
    (states, last), grads = run(single, weights, function, dtype="bfloat16", **FORMS[form])
    assert states.dtype == jnp.bfloat16 and last.dtype == jnp.float32
    close = functools.partial(np.testing.assert_allclose, rtol=0.2, atol=0.1)
    close(np.float64(states[0]), want[0][0])
    for got, expected in zip(grads, want_grads):
        scale = max(1.0, np.max(np.abs(expected)))  # sums over B T terms are not of size one
        np.testing.assert_allclose(np.float64(got) / scale, expected / scale, rtol=0.4, atol=0.2)


@pytest.mark.parametrize("function", ["gru", "slstm"])
def test_two_halves_with_the_carried_state_are_one_run_gradients_too(float64, function):
    *arguments, weights = make(function, (2, 7, 2, 3))

    @jax.jit
    def halves(Wx, R, b, states):
        first, carried = flashrnn(Wx[:, :4], R, b, states, function=function)
        second, last = flashrnn(Wx[:, 4:], R, b, carried, function=function)
        every = jnp.concatenate([first, second], axis=2)
        return jnp.sum(every[0] * weights) + jnp.sum(last[0]), (every, last)

    whole, whole_grads = run(arguments, weights, function)
    (_, pieces), grads = jax.value_and_grad(halves, (0, 1, 2, 3), has_aux=True)(*arguments)
    for got, want in zip(jax.tree.leaves((pieces, grads)), jax.tree.leaves((whole, whole_grads)), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("form", ["vanilla", "vanilla_fwbw"])
@pytest.mark.parametrize("sign", [1, -1])
def test_slstm_is_finite_for_extreme_gates(form, sign):
    Wx, R, b, _, weights = (a.astype(np.float32) for a in make("slstm", (2, 9, 1, 4)))
    Wx[:, :, 0], Wx[:, :, 1] = sign * 1000, -sign * 1000
    Wx[:, 4:6, 0] *= -1  # and changes of mind
    (states, _), grads = run((Wx, R, b), weights, "slstm", **FORMS[form])
    assert all(np.all(np.isfinite(a)) for a in (states, *grads))
    assert np.all(np.abs(states[0]) <= 1) and np.all(states[2] >= 1)


MOST = [pytest.param(f, marks=() if f in ("gru", "lstm") else pytest.mark.slow) for f in CELLS]


@pytest.mark.parametrize("function", MOST)
def test_clipping_and_cutting_are_the_same_by_hand_and_by_autodiff(float64, function):
    *arguments, weights = make(function, (2, 7, 2, 3))
    plain = oracle_h(function, arguments)
    for option in ({"gradient_recurrent_clipval": 0.05, "forward_clipval": 0.3}, {"gradient_recurrent_cut": True}):
        by_hand, by_autodiff = (
            run(arguments, weights, function, backend=b, **option) for b in ("vanilla_fwbw", "vanilla")
        )
        for got, want in zip(jax.tree.leaves(by_hand), jax.tree.leaves(by_autodiff), strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-11, atol=1e-11)
        (states, _), grads = by_hand
        if "forward_clipval" in option:
            assert np.max(np.abs(states[0])) == 0.3
            np.testing.assert_allclose(states[0, :, 0], np.clip(plain[:, 0], -0.3, 0.3), rtol=1e-12)
        else:
            np.testing.assert_allclose(states[0], plain, rtol=1e-11, atol=1e-11)
        first = np.abs(grads[3][0])  # of h before the first step; only the GRU has another way back to it
        assert (np.max(first) <= option.get("gradient_recurrent_clipval", 0)) == (function != "gru")


@pytest.mark.parametrize("function", CELLS)
def test_gradients_of_the_cells_equal_those_that_jax_derives(float64, function):
    cell = cells.cell(function)
    rng = np.random.default_rng(0)
    raw = tuple(jnp.asarray(3 * rng.normal(size=(4, 5))) for _ in range(cell.gates_t))
    before = [jnp.asarray(rng.normal(size=(4, 5))) for _ in range(cell.states)]
    if function == "slstm":
        before[1:3] = before[1].at[0].set(0), (1 + before[2] ** 2).at[0].set(0)  # the first row is at the start
    d_after = tuple(jnp.asarray(rng.normal(size=(4, 5))) for _ in before)
    (after, saved), pullback = jax.vjp(cell.step, raw, tuple(before))
    want = pullback((d_after, tuple(map(jnp.zeros_like, saved))))
    got = cell.backward(d_after, saved, before, after)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-13, atol=1e-13)


def minimal_gated(raw, states):
    """h' = (1 - f) h + f tanh(z + u), where R feeds f and u, and Wx feeds f and z."""
    f, u, z = raw
    f = jax.nn.sigmoid(f)
    return ((1 - f) * states[0] + f * jnp.tanh(z + u),)


def test_a_registered_cell_runs_in_every_backend_with_a_derived_gradient(float64):
    register_cell(
        "minimal", minimal_gated, (2, 2, 3, 3, 1), simple_agg=False, recurrent_gates=(0, 1), input_gates=(0, 2)
    )
    *arguments, weights = make("minimal", (2, 7, 2, 3))
    want = run(arguments, weights, "minimal", **FORMS["vanilla"])
    Wx, R, b, states = arguments
    h = states[0, :, 0]
    for t in range(7):
        f, u = (np.einsum("nij,bnj->bni", R[g], h) + b[g] for g in range(2))
        f = 1 / (1 + np.exp(-f - Wx[:, t, 0]))
        h = (1 - f) * h + f * np.tanh(Wx[:, t, 1] + b[2] + u)
        np.testing.assert_allclose(want[0][0][0, :, t], h, rtol=1e-12)
    for form in ("vanilla_fwbw", "alternating", "chunks"):
        for a, b in zip(jax.tree.leaves(run(arguments, weights, "minimal", **FORMS[form])), jax.tree.leaves(want)):
            np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(
    ("counts", "options", "message"),
    [
        ((1, 1, 1, 1, 0), {}, "at least 1"),
        ((1, 2, 2, 2, 1), {}, "simple_agg"),
        ((1, 1, 2, 1, 1), {}, "gates_i = gates_t"),
        ((1, 1, 3, 3, 1), {"simple_agg": False}, "neither"),
        ((2, 1, 2, 2, 1), {"simple_agg": False, "recurrent_gates": (0, 2)}, "recurrent_gates"),
        ((2, 2, 2, 2, 1), {"simple_agg": False}, "contradicts"),
    ],
)
def test_a_cell_that_contradicts_itself_is_refused(counts, options, message):
    with pytest.raises(ValueError, match=message):
        register_cell("wrong", minimal_gated, counts, **options)


def test_the_fused_kernel_agrees_and_what_it_cannot_do_falls_back_or_raises(float64):
    *arguments, weights = make("lstm", (3, 5, 2, 4))
    single = [a.astype(np.float32) for a in arguments]
    want = run(single, weights, "lstm", **FORMS["vanilla"])
    got = run(single, weights, "lstm", backend="fused", fallback=False)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        # float32 sums of up to B T D = 60 terms in another order
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=60 * 2e-7 * max(1, np.max(np.abs(b))))
    np.testing.assert_array_equal(
        run(arguments, weights, "lstm", backend="fused")[0][0], run(arguments, weights, "lstm")[0][0]
    )
    with pytest.raises(ValueError, match="neither these dtypes nor a reset"):
        flashrnn(*map(jnp.asarray, arguments), backend="fused", fallback=False)
    wide = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((2, 3, 4, 1, 512), (4, 1, 512, 512), (4, 1, 512))]
    with pytest.raises(ValueError, match="no tile for head size 512"):
        jax.eval_shape(functools.partial(flashrnn, backend="fused", fallback=False), *wide)
    assert jax.eval_shape(functools.partial(flashrnn, backend="fused"), *wide)[0].shape == (2, 2, 3, 1, 512)


def test_auto_takes_the_kernel_where_it_compiles_for_a_gpu_or_tpu():
    *arguments, _ = (a.astype(np.float32) for a in make("lstm", (3, 5, 2, 16)))

    def program():
        return str(jax.make_jaxpr(lambda *a: flashrnn(*a))(*arguments))  # a new function: nothing is traced yet

    assert "pallas_call" not in program()
    for platform in ("gpu", "tpu"):
        with compiling_for(platform):
            assert "rnn_lstm_forward" in program() and "interpret=False" in program()


def test_every_array_has_its_own_dtype():
    Wx, R, b, states, _ = (jnp.asarray(a, jnp.float32) for a in make("lstm", (2, 5, 2, 4)))
    every, last = flashrnn(Wx, R, b, states, dtype="bfloat16", dtype_s="float32")
    assert every.dtype == jnp.float32 and last.dtype == jnp.float32
    rounded = flashrnn(*(a.astype(jnp.bfloat16) for a in (Wx, R, b)), states, dtype_s="float32")[0]
    np.testing.assert_array_equal(every, rounded)
    assert flashrnn(Wx, R, b, states, dtype_s="float16")[0].dtype == jnp.float16
    one = [flashrnn(Wx, R, b, states, **{f"dtype_{name}": "bfloat16"})[0] for name in "wrb"]
    assert all(not np.array_equal(np.float32(a), np.float32(b)) for a, b in ((one[0], one[1]), (one[1], one[2])))
    with pytest.raises(TypeError, match="R is float32, but bfloat16"):
        flashrnn(Wx, R, b, dtype_r="bfloat16", autocast=False)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"function": "lstn"}, ValueError, "did you mean 'lstm'"),
        ({"backend": "cuda"}, ValueError, "backend='cuda'"),
        ({"function": "gru"}, ValueError, r"Wx must have shape \[2, 5, 3, 2, 4\]"),
        ({"R": (4, 2, 4, 5)}, ValueError, "R must have shape"),
        ({"R": (4, 1, 8, 8)}, ValueError, "R must have shape"),
        ({"b": (4, 2, 3)}, ValueError, "b must have shape"),
        ({"states": (1, 2, 1, 2, 4)}, ValueError, r"states must have shape \[2, 2, 1, 2, 4\]"),
        ({"Wx": (2, 0, 4, 2, 4)}, ValueError, "T = 0"),
        ({"Wx": (0, 5, 4, 2, 4)}, ValueError, "B = 0"),
        ({"Wx": (2, 5, 4, 8)}, ValueError, r"\[batch, time, gates, heads, dim\]"),
        ({"Wx": jnp.complex64}, TypeError, "Wx must be a real floating-point array, got complex64"),
        ({"R": jnp.int32}, TypeError, "R must be a real floating-point array, got int32"),
        ({"save": 0}, ValueError, "save"),
        ({"save": "all"}, ValueError, "save='all'"),
        ({"forward_clipval": 0.0}, ValueError, "forward_clipval"),
        ({"gradient_recurrent_clipval": -1.0}, ValueError, "gradient_recurrent_clipval"),
    ],
)
def test_bad_input_is_told_clearly(as_users_see_it, change, error, message):
    shapes = {"Wx": (2, 5, 4, 2, 4), "R": (4, 2, 4, 4), "b": (4, 2, 4), "states": (2, 2, 1, 2, 4)}
    options = {k: v for k, v in change.items() if k not in shapes}
    arrays = {k: jnp.zeros(change[k] if isinstance(change.get(k), tuple) else s) for k, s in shapes.items()}
    arrays |= {k: arrays[k].astype(v) for k, v in change.items() if k in shapes and not isinstance(v, tuple)}
    with pytest.raises(error, match=message):
        flashrnn(**arrays, **options)
