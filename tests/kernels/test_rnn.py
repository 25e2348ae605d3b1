"""rnn: the fused and alternating kernels of both platforms give the numbers of the recurrence, forward and gradient.

``oracle`` is the recurrence in NumPy, written from the equations alone. Its derivatives come from complex steps: the
imaginary part of f(x + i e d) / e is the derivative along d up to e^2, so with e = 1e-30 exact to rounding.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pallas_kernels import rnn as package
from pallas_kernels.compat import lower_for
from pallas_kernels.rnn import cells, gpu, reference, rnn
from pallas_kernels.rnn.tiles import Tiles, fits, tiles

CELLS = ("elman", "gru", "lstm", "slstm")
PLATFORMS = ("gpu", "tpu")
ARGUMENTS = ("Wx", "R", "b", "states")


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def log_sigmoid(x):
    tail = np.log1p(np.exp(np.where(x.real > 0, -x, x)))
    return np.where(x.real > 0, 0, x) - tail


def oracle(function, Wx, R, b, states, clip=None):
    """States [S, B, T, N, D]."""
    state, out = states[:, :, 0], []
    for t in range(Wx.shape[1]):
        x, (h, *rest) = Wx[:, t], state
        r = [np.einsum("nij,bnj->bni", R[g], h) for g in range(R.shape[0])]
        if function == "gru":
            g = r[0] + b[0]
            reset = sigmoid(x[:, 0] + r[1] + b[1])
            z = sigmoid(x[:, 1] + r[2] + b[2])
            state = [z * h + (1 - z) * np.tanh(x[:, 2] + b[3] + reset * g)]
        else:
            raw = [x[:, g] + r[g] + b[g] for g in range(len(r))]
            if function == "elman":
                state = [np.tanh(raw[0])]
            elif function == "lstm":
                c = sigmoid(raw[1]) * rest[0] + sigmoid(raw[0]) * np.tanh(raw[2])
                state = [sigmoid(raw[3]) * np.tanh(c), c]
            else:
                c, n, m = rest
                f = log_sigmoid(raw[1]) + m
                new_m = np.where((n == 0) | (raw[0].real >= f.real), raw[0], f)
                i, f = np.exp(raw[0] - new_m), np.where(n == 0, 0, np.exp(f - new_m))
                c, n = f * c + i * np.tanh(raw[2]), f * n + i
                state = [sigmoid(raw[3]) * c / n, c, n, new_m]
        if clip is not None:
            state[0] = np.where(np.abs(state[0].real) < clip, state[0], np.sign(state[0].real) * clip)
        out.append(np.stack(state))
    return np.stack(out, axis=2)


def make(function, shape, dtype=np.float64, seed=0):
    """Wx, R, b, states, and the gradients of states and last states: h of all steps, every state but m at the end."""
    cell = cells.cell(function)
    batch, steps, heads, dim = shape
    rng = np.random.default_rng(seed)
    values = [
        rng.normal(size=s)
        for s in (
            (batch, steps, cell.gates_w, heads, dim),
            (cell.gates_r, heads, dim, dim),
            (cell.gates_t, heads, dim),
            (cell.states, batch, 1, heads, dim),
            (cell.states, batch, steps, heads, dim),
            (cell.states, batch, 1, heads, dim),
        )
    ]
    values[1] /= np.sqrt(dim)
    if function == "slstm":  # c, n and m are one running average: an arbitrary start has n = 0, or n >= 1 with any m
        values[3][2] = 1 + np.abs(values[3][2])
        values[4][3] = values[5][3] = 0
    return [v.astype(dtype) for v in values]


@functools.partial(jax.jit, static_argnames=("options",))
def with_gradient(arguments, cotangents, options):
    outputs, pullback = jax.vjp(functools.partial(rnn, **dict(options)), *arguments)
    return outputs, pullback(tuple(c.astype(o.dtype) for c, o in zip(cotangents, outputs, strict=True)))


def run(values, dtype=jnp.float32, **options):
    """((states, last), gradients of Wx, R, b, states)."""
    values = [jnp.asarray(v, dtype) for v in values]
    return with_gradient(values[:4], values[4:], tuple(options.items()))


@functools.cache
def expected(function, shape, seed=0):
    """What ``run`` should give, in float64: JAX's own derivative of the plain recurrence, which is held to the oracle."""
    with jax.enable_x64(True):
        values = [jnp.asarray(v) for v in make(function, shape, seed=seed)]

        def plain(Wx, R, b, states):
            out, last, _ = reference.forward(
                cells.cell(function), Wx, R, b, states[:, :, 0], save_gates=False, clip=None
            )
            return out, last[:, :, None]

        def both(*values):
            outputs, pullback = jax.vjp(plain, *values[:4])
            return outputs, pullback(values[4:])

        return jax.tree.map(np.asarray, jax.jit(both)(*values))


def check(got, want, tolerance):
    """Every array within ``tolerance`` of the largest element: sums over many steps have no small elements to hold to."""
    names = ("states", "last", *(f"gradient of {a}" for a in ARGUMENTS))
    for name, g, w in zip(names, jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(
            np.asarray(g, np.float64), w, rtol=0, atol=tolerance * max(1, np.abs(w).max()), err_msg=name
        )


@pytest.fixture
def small_tiles(monkeypatch):
    """TPU tiles of three steps and sixteen rows, so that small sizes have several, ragged ones."""

    def small(platform, cell, batch, steps, heads, dim, dtype):
        found = tiles(platform, cell, batch, steps, heads, dim, dtype)
        return found if platform == "gpu" else Tiles(16, found.lanes, steps=3)

    monkeypatch.setattr(package, "tiles", small)


@pytest.mark.parametrize("function", CELLS)
def test_the_reference_and_its_gradients_equal_the_oracle(float64, function):
    shape = (2, 5, 2, 3)
    values = make(function, shape)
    (states, last), gradients = expected(function, shape)
    want = oracle(function, *values[:4])
    np.testing.assert_allclose(states, want, atol=1e-12)
    np.testing.assert_allclose(last, want[:, :, -1:], atol=1e-12)
    check(run(values, jnp.float64, function=function), ((states, last), gradients), 1e-12)
    if (
        function == "slstm"
    ):  # c and n are known up to the factor exp(m): no gradient is stated for m, and it lacks in theirs
        values[4][1:] = values[5][1:] = 0
    gradients = run(values, jnp.float64, function=function)[1]
    directions = make(function, shape, seed=1)
    directions[3][3:] = 0
    for k in range(4):
        moved = [v + (1e-30j * directions[k] if i == k else 0) for i, v in enumerate(values[:4])]
        moved = oracle(function, *moved).imag * 1e30
        derivative = np.sum(moved * values[4]) + np.sum(moved[:, :, -1:] * values[5])
        assert np.sum(gradients[k] * directions[k]) == pytest.approx(derivative, rel=1e-9), ARGUMENTS[k]


SIZES = [(3, 1, 1, 5), (18, 7, 3, 5), (3, 64, 2, 24)]
FAST = [(c, SIZES[1]) for c in CELLS] + [("lstm", SIZES[0])]


# 2e-5: 40 roundings (T = 7, D = 5) of float32, of values that the recurrence may amplify a few times
@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize(
    ("function", "shape"),
    [pytest.param(c, s, marks=() if (c, s) in FAST else pytest.mark.slow) for c in CELLS for s in SIZES], ids=str,
)  # fmt: skip
def test_fused_kernels_equal_the_recurrence(small_tiles, function, platform, shape):
    got = run(make(function, shape), function=function, platform=platform)
    check(got, expected(function, shape), 2e-5)


@pytest.mark.parametrize(
    ("function", "platform"),
    [
        pytest.param(c, p, marks=() if (c, p) in {("lstm", "gpu"), ("gru", "tpu")} else pytest.mark.slow)
        for c in CELLS
        for p in PLATFORMS
    ],
)
def test_alternating_kernels_equal_the_recurrence(function, platform):
    shape = (3, 4, 3, 5)
    got = run(make(function, shape), function=function, platform=platform, form="alternating")
    check(got, expected(function, shape), 2e-5)


def test_small_heads_go_as_one_on_a_tpu(small_tiles):
    shape = (3, 4, 16, 16)
    check(run(make("lstm", shape), function="lstm", platform="tpu"), expected("lstm", shape), 2e-5)


@pytest.mark.parametrize("function", ["lstm", "gru"])
def test_the_sums_over_batch_and_time_take_every_step_once(function):
    cell = cells.cell(function)
    rng = np.random.default_rng(0)
    d_gates, states, initial = (
        jnp.asarray(rng.normal(size=s), jnp.float32)
        for s in ((18, 150, cell.gates_t, 2, 5), (cell.states, 18, 150, 2, 5), (cell.states, 18, 2, 5))
    )
    got = gpu.weight_gradient(cell, d_gates, states, initial, tiles=Tiles(16, 16), interpret=True)
    before = np.concatenate([initial[0, :, None], states[0, :, :-1]], 1)
    np.testing.assert_allclose(got[0], np.einsum("btgni,btnj->gnij", d_gates, before), atol=1e-3)
    np.testing.assert_allclose(got[1], np.sum(d_gates, (0, 1)), atol=1e-3)


@pytest.mark.parametrize(
    ("function", "save"), [("lstm", 3), ("lstm", 5), ("elman", 10), ("gru", "states"), ("gru", 4), ("slstm", "states")]
)
def test_what_is_kept_for_the_gradient_does_not_change_it(float64, function, save):
    shape = (2, 5, 2, 3)
    check(run(make(function, shape), jnp.float64, function=function, save=save), expected(function, shape), 1e-12)


@pytest.mark.parametrize("save", [pytest.param("states", marks=pytest.mark.slow), 3])
def test_the_kernels_run_again_where_gates_are_not_kept(small_tiles, save):
    check(run(make("lstm", SIZES[1]), function="lstm", platform="tpu", save=save), expected("lstm", SIZES[1]), 2e-5)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def clip_gradient(x, bound):
    return x


clip_gradient.defvjp(lambda x, bound: (x, None), lambda bound, _, g: (jnp.clip(g, -bound, bound),))


@functools.partial(jax.jit, static_argnames=("clip", "recurrent_clip", "cut"))
def gru_with_options(values, clip, recurrent_clip, cut):
    """A GRU whose options are written into the recurrence, for JAX to differentiate."""

    def forward(Wx, R, b, states):
        h, out = states[0, :, 0], []
        for t in range(Wx.shape[1]):
            into = jax.lax.stop_gradient(h) if cut else h
            r = jnp.einsum("gnij,bnj->gbni", R, into if recurrent_clip is None else clip_gradient(into, recurrent_clip))
            reset, z = jax.nn.sigmoid(Wx[:, t, 0] + r[1] + b[1]), jax.nn.sigmoid(Wx[:, t, 1] + r[2] + b[2])
            h = z * h + (1 - z) * jnp.tanh(Wx[:, t, 2] + b[3] + reset * (r[0] + b[0]))
            h = h if clip is None else jnp.clip(h, -clip, clip)
            out.append(h)
        return jnp.stack(out, 1)[None], h[None, :, None]

    outputs, pullback = jax.vjp(forward, *values[:4])
    return outputs, pullback(tuple(values[4:]))


@pytest.mark.parametrize("platform", ["reference", *PLATFORMS])
@pytest.mark.parametrize("clip, recurrent_clip, cut", [(0.5, 0.1, False), (None, None, True)])
def test_clipping_and_cutting_are_those_of_the_recurrence(float64, small_tiles, clip, recurrent_clip, cut, platform):
    values = make("gru", (3, 5, 2, 4))
    want = gru_with_options([jnp.asarray(v) for v in values], clip, recurrent_clip, cut)
    options = {"gradient_recurrent_cut": cut, "gradient_recurrent_clipval": recurrent_clip, "forward_clipval": clip}
    if platform == "reference":
        check(run(values, jnp.float64, function="gru", **options), want, 1e-12)
    else:
        check(run(values, function="gru", platform=platform, **options), want, 2e-5)
    assert cut or np.abs(run(values, jnp.float64, function="gru")[1][0] - want[1][0]).max() > 1e-2


@pytest.mark.parametrize(("function", "platform"), [("slstm", "gpu"), ("lstm", "tpu")])
def test_bfloat16_stays_within_the_bounds_of_the_paper(small_tiles, function, platform):
    shape = (3, 7, 2, 16)
    (states, last), gradients = run(make(function, shape), jnp.bfloat16, function=function, platform=platform)
    (want_states, _), want_gradients = expected(function, shape)
    assert states.dtype == jnp.bfloat16 and last.dtype == jnp.float32
    np.testing.assert_allclose(states[0].astype(jnp.float32), want_states[0], atol=0.1, rtol=0.2)
    for got, want in zip(gradients, want_gradients, strict=True):
        assert got.dtype == jnp.bfloat16
        np.testing.assert_allclose(got.astype(jnp.float32), want, atol=0.2 * max(1, np.abs(want).max() / 4), rtol=0.4)


@functools.partial(jax.jit, static_argnames=("options",))
def forward(arguments, options):
    return rnn(*arguments, **dict(options))


@pytest.mark.parametrize("platform", PLATFORMS)
def test_two_halves_are_the_whole_and_rows_do_not_see_each_other(platform):
    Wx, R, b, start = (jnp.asarray(v) for v in make("lstm", (19, 6, 2, 5), np.float32)[:4])
    options = (("platform", platform),)
    states, last = forward((Wx, R, b, start), options)
    first, middle = forward((Wx[:, :3], R, b, start), options)
    second, end = forward((Wx[:, 3:], R, b, middle), options)
    np.testing.assert_allclose(jnp.concatenate([first, second], 2), states, atol=1e-6)
    np.testing.assert_allclose(end, last, atol=1e-6)
    few, _ = forward((Wx[:2, :3], R, b, start[:, :2]), options)
    np.testing.assert_allclose(few, first[:, :2], atol=1e-6)


@given(st.sampled_from(PLATFORMS), st.integers(1, 35), st.integers(1, 70), st.integers(1, 3), st.integers(1, 40))
@settings(max_examples=4, deadline=None, derandomize=True)
def test_any_size(platform, batch, steps, heads, dim):
    values = make("lstm", (batch, steps, heads, dim))[:4]
    states, _ = forward([jnp.asarray(v, jnp.float32) for v in values], (("platform", platform),))
    np.testing.assert_allclose(states, oracle("lstm", *values), atol=1e-6 * (steps + dim))


@pytest.mark.parametrize("platform", PLATFORMS)
def test_slstm_gates_at_the_ends_of_their_range_stay_finite(platform):
    values = make("slstm", (2, 3, 1, 4), np.float32)
    values[0][:, :, 0], values[0][:, :, 1] = 1000, -1000
    values[3][:] = 0
    outputs, gradients = run(values, function="slstm", platform=platform)
    want = oracle("slstm", *(v.astype(np.float64) for v in values[:4]))
    np.testing.assert_allclose(outputs[0][0], want[0], atol=1e-5)
    assert all(bool(jnp.all(jnp.isfinite(x))) for x in jax.tree.leaves((outputs, gradients)))


@pytest.fixture
def minimal_cell():
    """A minimal gated unit, as a user would add it: no gradient of its own, and infinite at zero, as padding would be."""

    def pointwise(raw, states):
        gate = jax.nn.sigmoid(raw[0] + 0.1 / (states[1] + 1) - 0.1 / states[1])
        return (1 - gate) * states[0] + gate * jnp.tanh(raw[1]), states[1] + 1

    cells.register("minimal", pointwise, counts=(2, 2, 2, 2, 2))
    yield "minimal"
    del cells._CELLS["minimal"]


@pytest.mark.parametrize("form", ["fused", pytest.param("alternating", marks=pytest.mark.slow)])
@pytest.mark.parametrize("platform", PLATFORMS)
def test_a_cell_of_ones_own_runs_in_the_kernels(minimal_cell, platform, form):
    shape = (3, 4, 2, 5)
    values = make("minimal", shape)
    values[3][1] = 1 + np.abs(values[3][1])
    with jax.enable_x64(True):
        want = jax.tree.map(np.asarray, run(values, jnp.float64, function="minimal"))
    check(run(values, function="minimal", platform=platform, form=form), want, 2e-5)
    text = lower_for({"gpu": "cuda", "tpu": "tpu"}[platform], _gradient("minimal", platform, form), *_shapes("minimal"))
    assert "custom_call" in text


def _gradient(function, platform, form, **options):
    def total(*arguments):
        return rnn(*arguments, function=function, platform=platform, form=form, interpret=False, **options)[0].sum()

    return jax.grad(total, argnums=(0, 1, 2))


def _shapes(function, dim=64, dtype=jnp.bfloat16, heads=2):
    cell = cells.cell(function)
    shapes = (3, 8, cell.gates_w, heads, dim), (cell.gates_r, heads, dim, dim), (cell.gates_t, heads, dim)
    return [jax.ShapeDtypeStruct(s, dtype) for s in shapes]


@pytest.mark.parametrize("form", ["fused", "alternating"])
@pytest.mark.parametrize("function", CELLS)
@pytest.mark.parametrize("platform", PLATFORMS)
def test_kernels_lower_for_hardware_that_is_not_here(platform, function, form):
    options = {"gradient_recurrent_clipval": 1.0, "forward_clipval": 2.0}
    target = {"gpu": "cuda", "tpu": "tpu"}[platform]
    for dim, dtype, heads in ((64, jnp.bfloat16, 2), (24, jnp.float32, 100)):
        shapes = _shapes(function, dim, dtype, heads)
        text = lower_for(target, _gradient(function, platform, form, **options), *shapes)
        assert {"cuda": "triton", "tpu": "tpu_custom_call"}[target] in text
        assert f"rnn_{function}_{'forward' if form == 'fused' else 'pointwise'}" in text


def test_what_no_kernel_takes_falls_back_by_rule(float64):
    lstm = cells.cell("lstm")
    assert not fits("gpu", jnp.float64) and not fits("tpu", jnp.float16) and fits("gpu", jnp.float16)
    assert tiles("gpu", lstm, 16, 1024, 6, 128, jnp.bfloat16) and not tiles("gpu", lstm, 16, 1024, 6, 128, jnp.float32)
    assert tiles("tpu", lstm, 16, 1024, 1, 640, jnp.bfloat16) and not tiles(
        "tpu", lstm, 16, 1024, 1, 2048, jnp.bfloat16
    )
    for platform, dim, dtype, want in (
        ("gpu", 64, jnp.bfloat16, "rnn_lstm_forward"),
        ("gpu", 512, jnp.bfloat16, "rnn_lstm_pointwise"),
        ("tpu", 2048, jnp.bfloat16, "rnn_lstm_pointwise"),
        ("gpu", 64, jnp.float64, None),
        ("tpu", 64, jnp.float16, None),
    ):
        jaxpr = str(jax.make_jaxpr(functools.partial(rnn, platform=platform))(*_shapes("lstm", dim, dtype)))
        assert ("pallas_call" in jaxpr) == (want is not None)
        assert want is None or want in jaxpr


def test_storage_of_inputs_and_weights_may_differ():
    values = [jnp.asarray(v, jnp.float32) for v in make("lstm", (2, 3, 2, 16))[:4]]
    Wx, R, b, start = values
    states, last = forward((Wx.astype(jnp.bfloat16), R, b, start), (("platform", "gpu"),))
    assert states.dtype == jnp.bfloat16 and last.dtype == jnp.float32
    states, _ = forward((Wx, R.astype(jnp.bfloat16), b, start), (("platform", "gpu"),))
    assert states.dtype == jnp.float32
    np.testing.assert_allclose(states, oracle("lstm", *make("lstm", (2, 3, 2, 16))[:4]), atol=2e-2)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"function": "lstmm"}, ValueError, "lstm"),
        ({"function": "gru"}, ValueError, "gru takes 3 gates"),
        ({"form": "fast"}, ValueError, "form='fast'"),
        ({"save": 0}, ValueError, "save"),
        ({"forward_clipval": -1.0}, ValueError, "forward_clipval"),
        ({"platform": "rocm"}, ValueError, "gpu, tpu"),
        ({"Wx": jnp.zeros((2, 0, 4, 1, 3))}, ValueError, "time must be at least 1"),
        ({"Wx": jnp.zeros((0, 2, 4, 1, 3))}, ValueError, "batch and time"),
        ({"Wx": jnp.zeros((2, 2, 4, 3))}, ValueError, "batch, time, gates, heads, dim"),
        ({"Wx": jnp.zeros((2, 2, 4, 1, 3), jnp.int32)}, TypeError, "Wx must be a real"),
        ({"R": jnp.zeros((4, 1, 3, 2))}, ValueError, r"R must have shape \[4, 1, 3, 3\]"),
        ({"b": jnp.zeros((4, 3))}, ValueError, "b must have shape"),
        ({"states": jnp.zeros((2, 2, 1, 1, 3), jnp.complex64)}, TypeError, "states"),
        ({"states": jnp.zeros((2, 2, 1, 3))}, ValueError, "states must have shape"),
    ],
)
def test_wrong_input_is_named(as_users_see_it, change, error, says):
    arguments = {"Wx": jnp.zeros((2, 2, 4, 1, 3)), "R": jnp.zeros((4, 1, 3, 3)), "b": jnp.zeros((4, 1, 3))} | change
    with pytest.raises(error, match=says):
        rnn(arguments.pop("Wx"), arguments.pop("R"), arguments.pop("b"), **arguments)
