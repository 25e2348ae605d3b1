"""What the laws do not say about S4, S4D, DSS, H3, Hyena and GSS: their forms, long kernels, matrices, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zoo
from zoo.layers.diagonal_system import diagonal_kernel, diagonal_system, powers
from zoo.layers.discretization import discretize
from zoo.layers.dplr import MATRICES, dplr, nplr
from zoo.layers.hippo import legs_eigen
from zoo.layers.long_convolution import causal_convolution
from zoo.layers.s4d_system import s4d_eigenvalues
from zoo.mixers.dss import DSS, dss_kernel
from zoo.mixers.h3 import h3
from zoo.mixers.hyena import hyena_filters
from zoo.mixers.s4 import S4System, restore_readout, s4_dense, s4_kernel, s4_run, s4_step, truncate_readout

KEY = jax.random.key(5)
kernel_of = jax.jit(s4_kernel, static_argnums=1)
EPS32 = float(np.finfo(np.float32).eps)


def normal(*shape, seed=0):
    return jax.random.normal(jax.random.fold_in(KEY, seed), shape)


def complex_normal(*shape, seed=0):
    return normal(*shape, seed=seed) + 1j * normal(*shape, seed=seed + 50)


@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.parametrize("size", [2, 6, 16])
def test_a_hippo_matrix_is_its_dplr_form_in_another_basis(name, size):
    a, b, p = nplr(name, size)
    normal_part = a + p.T @ p
    np.testing.assert_allclose(normal_part @ normal_part.T, normal_part.T @ normal_part, atol=1e-12 * size**4)
    form = dplr(name, size)
    v = np.hstack([form.vectors, form.vectors.conj()])
    low_rank = np.hstack([form.low_rank, form.low_rank.conj()])
    diagonal = np.diag(np.concatenate([form.eigenvalues, form.eigenvalues.conj()]))
    np.testing.assert_allclose(v.conj().T @ v, np.eye(size), atol=1e-13 * size)
    np.testing.assert_allclose(v @ (diagonal - low_rank.T @ low_rank.conj()) @ v.conj().T, a, atol=1e-13 * size**2)
    np.testing.assert_allclose(v @ np.concatenate([form.into, form.into.conj()]), b, atol=1e-13 * size)
    assert np.all(form.eigenvalues.imag <= 0)


def s4_example(rank, channels=3, modes=4):
    """A stable system of any rank that is no HiPPO matrix."""
    eigenvalues = -0.1 - jnp.abs(normal(channels, modes)) - 4j * jnp.abs(normal(channels, modes, seed=1))
    low_rank = complex_normal(channels, rank, modes, seed=2)
    into, readout = complex_normal(channels, modes, seed=3), complex_normal(channels, modes, seed=4)
    return S4System(eigenvalues, low_rank, into, readout, jnp.exp(normal(channels, seed=5) - 2))


def dense_kernel(system, length):
    """2 Re(C Abar^l Bbar) by products of dense matrices of both halves, from the continuous system."""
    rows = []
    for eigen, low, into, readout, step in zip(*map(np.asarray, system)):
        low = np.concatenate([low, low.conj()], axis=1).T
        a = np.diag(np.concatenate([eigen, eigen.conj()])) - low @ low.conj().T
        one, b = np.eye(len(a)), np.concatenate([into, into.conj()])
        transition = np.linalg.solve(one - step / 2 * a, one + step / 2 * a)
        state, row = np.linalg.solve(one - step / 2 * a, step * b), []
        for _ in range(length):
            row.append(np.sum(np.concatenate([readout, readout.conj()]) * state).real)
            state = transition @ state
        rows.append(row)
    return np.transpose(rows)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_the_kernel_the_step_and_the_dense_matrix_of_s4_agree_at_any_rank(float64, rank):
    system, length = s4_example(rank), 14
    kernel = kernel_of(system, length)
    np.testing.assert_allclose(kernel, dense_kernel(system, length), rtol=1e-9, atol=1e-11)
    (transition, gain), step = jax.jit(s4_dense)(system), jax.jit(s4_step)
    hidden, dense = jnp.zeros((1, 3, 4), complex), np.zeros((3, 8))
    for t in range(length):
        y, hidden = step(system, hidden, jnp.full((1, 3), float(t == 0)))
        dense = np.einsum("dij,dj->di", transition, dense) + np.asarray(gain) * float(t == 0)
        np.testing.assert_allclose(y[0], kernel[t], rtol=1e-9, atol=1e-11)
        np.testing.assert_allclose(np.concatenate([hidden[0].real, hidden[0].imag], -1), dense, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("length", [1, 2, 7, 8])
def test_even_and_odd_kernels_of_s4_agree_though_even_ones_meet_the_pole(float64, length):
    """At an even length one root of unity lies at -1, where the bilinear map has its pole."""
    system = s4_example(1)
    np.testing.assert_allclose(kernel_of(system, length), dense_kernel(system, length), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("length", [13, 256])
def test_float32_kernels_of_s4_are_accurate_also_where_modes_hardly_decay(length):
    """Within 100 roundings of the largest tap: without the smaller circle, Fourier is off by thousands."""
    forms = [dplr(name, 8) for name in MATRICES]
    low_rank = np.stack([np.vstack([f.low_rank, np.zeros((2 - len(f.low_rank), 4))]) for f in forms])
    eigenvalues = np.stack([np.minimum(f.eigenvalues.real, -1e-4) + 1j * f.eigenvalues.imag for f in forms])
    into, readout = np.stack([f.into for f in forms]), np.asarray(complex_normal(3, 4))
    system = S4System(eigenvalues, low_rank, into, readout, np.full(3, 0.1))
    single = jax.tree.map(lambda a: jnp.asarray(a, jnp.complex64 if np.iscomplexobj(a) else jnp.float32), system)
    want = dense_kernel(system, length)
    error = np.max(np.abs(np.asarray(kernel_of(single, length)) - want), axis=0)
    bound = 100 * EPS32 * np.max(np.abs(want), axis=0) * (1 + length / 64)
    assert np.all(error <= bound), (error, bound)


def test_readouts_survive_truncation_and_back(float64):
    system = s4_example(2)
    across = jnp.linalg.matrix_power(s4_dense(system)[0], 9)
    truncated = truncate_readout(system.readout, across)
    assert not np.allclose(truncated, system.readout, atol=1e-3)
    np.testing.assert_allclose(restore_readout(truncated, across), system.readout, rtol=1e-9)


FORMS = {
    "s4": {"state_dim": 4, "hippo": "legt", "dt_min": 0.05, "dt_max": 0.5, "activation": "none"},
    "s4d": {"state_dim": 4, "dt_min": 0.05, "dt_max": 0.5, "activation": "none"},
    "dss": {
        "state_dim": 4,
        "dt_min": 0.05,
        "dt_max": 0.5,
        "activation": "none",
        "normalization": "softmax",
        "length": 20,
    },
}


@pytest.mark.parametrize("name", FORMS)
def test_kernel_and_scan_form_agree_from_any_state_with_gradients(float64, name):
    module = zoo.create(name, dim=3, dtype="float64", **FORMS[name])
    x = normal(2, 9, 3)
    params = jax.jit(module.init)(KEY, x)
    state = module.initial_state(2)
    state = state.replace(hidden=complex_normal(*state.hidden.shape, seed=9))

    def run(form):
        def loss(params, x, state):
            y, last = module.clone(form=form).apply(params, x, state)
            return jnp.sum(y * y) + jnp.sum(jnp.abs(last.hidden) ** 2), (y, last)

        return jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(params, x, state)

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-9), run("kernel"), run("scan"))


def test_diagonal_powers_keep_their_phase_over_long_times():
    """4 l roundings for decay^l, whatever the frequency: that of rounding ``decay`` is among them."""
    length, angle = 16_384, np.array([0.3, 3.0, 1e-3])
    exact = np.exp(1j * angle[:, None] * np.arange(length))
    base = jnp.asarray(np.exp(1j * angle), jnp.complex64)
    steps = np.arange(length)
    assert np.all(np.abs(np.asarray(powers(base, length)) - exact) <= 4 * EPS32 * (1 + steps))
    kernel = np.asarray(diagonal_kernel(base[None], jnp.ones((1, 3), jnp.complex64), length))[:, 0]
    error = np.abs(kernel - exact.real.sum(axis=0))
    assert np.all(error <= 12 * EPS32 * (2 + steps))
    assert error[-1] > 10 * EPS32  # the bound is not an empty one


def test_a_kernel_form_is_causal_to_rounding():
    module = zoo.create("s4d", dim=2, state_dim=4)
    x = normal(1, 40, 2)
    params, apply = jax.jit(module.init)(KEY, x), jax.jit(module.apply)
    change = apply(params, x.at[:, 20:].add(1.0))[0] - apply(params, x)[0]
    assert np.max(np.abs(change[:, :20])) <= 100 * EPS32 < 1e-3 < np.max(np.abs(change[:, 20:]))


def test_diagonal_systems_start_where_the_papers_say():
    modes = 5
    np.testing.assert_allclose(s4d_eigenvalues("lin", modes)[3], -0.5 + 3j * np.pi)
    np.testing.assert_allclose(s4d_eigenvalues("inv", modes)[0], -0.5 + 1j * (10 / np.pi) * 9)
    np.testing.assert_allclose(s4d_eigenvalues("real", modes), [-1, -2, -3, -4, -5])
    np.testing.assert_allclose(s4d_eigenvalues("legs", modes), legs_eigen(10).eigenvalues[:5])
    params = zoo.create("s4d", dim=2000, state_dim=4, lambda_init="random").init(KEY, normal(1, 2, 2000))["params"]
    np.testing.assert_allclose(np.std(params["log_neg_re"]), 1, atol=0.05)
    np.testing.assert_allclose(np.std(params["Lambda_im"]), 2, atol=0.1)
    assert np.all((np.log(0.001) <= params["log_dt"]) & (params["log_dt"] <= np.log(0.1)))


def test_s4d_real_keeps_the_factor_two():
    """The stored modes of S4D-Real are real, and stand for a pair all the same."""
    decay, gain = discretize(jnp.array([[-1.0, -2.0]], jnp.complex64), jnp.full((1, 2), 0.1))
    y, _ = diagonal_system(decay, gain, 2 * jnp.ones((1, 2), jnp.complex64), jnp.ones((1, 1, 1)))
    np.testing.assert_allclose(y[0, 0, 0], 2 * ((1 - np.exp(-0.1)) + (1 - np.exp(-0.2)) / 2), rtol=1e-5)


def test_a_growing_mode_of_dss_does_not_overflow_its_softmax():
    length, rate = 4096, 0.2  # exp(rate * length) is far beyond float32
    params = {
        "Lambda_re": jnp.array([[rate]]), "Lambda_im": jnp.zeros((1, 1)), "w_re": jnp.ones((1, 1)),
        "w_im": jnp.zeros((1, 1)), "log_dt": jnp.zeros(1),
    }  # fmt: skip
    kernel = np.asarray(dss_kernel(params, 64, "softmax", length))[:, 0]
    assert np.all(np.isfinite(kernel))
    short = dss_kernel(params, 16, "softmax", 16)[:, 0]
    weights = np.exp(rate * (np.arange(16) - 15))
    np.testing.assert_allclose(short, weights / weights.sum() / rate, rtol=1e-4)


@pytest.mark.parametrize("taps", [3, 12])
def test_all_forms_of_a_convolution_agree_and_respect_documents(taps):
    x, kernel, past = normal(2, 10, 3), normal(taps, 3, seed=1), normal(2, taps - 1, 3, seed=2)
    direct, after = causal_convolution(x, kernel, past, form="direct")
    fft, same = causal_convolution(x, kernel, past, form="fft")
    extended = np.concatenate([past, x], axis=1)
    want = [np.sum(extended[:, t : t + taps] * np.asarray(kernel)[::-1], axis=1) for t in range(10)]
    np.testing.assert_allclose(direct, np.stack(want, axis=1), atol=1e-5)
    np.testing.assert_allclose(fft, direct, atol=1e-5)
    np.testing.assert_array_equal(after, extended[:, 10:])
    np.testing.assert_array_equal(same, after)
    reset = jnp.zeros((2, 10), bool).at[0, 6].set(True)
    packed, after = causal_convolution(x, kernel, past, reset=reset)
    alone, history = causal_convolution(x[:1, 6:], kernel)
    np.testing.assert_allclose(packed[1], direct[1], atol=1e-5)
    np.testing.assert_allclose(packed[0], jnp.concatenate([direct[0, :6], alone[0]]), atol=1e-5)
    np.testing.assert_array_equal(after[0], history[0])


def test_hyena_sees_no_further_than_its_filters():
    module = zoo.create("hyena", dim=2, order=1, max_length=4, conv_size=1, filter_dim=3)
    x = normal(1, 12, 2)
    params, apply = jax.jit(module.init)(KEY, x), jax.jit(module.apply)
    change = apply(params, x.at[:, 3].add(1.0))[0] - apply(params, x)[0]
    moved = np.max(np.abs(change[0]), axis=-1) > 1e-5
    np.testing.assert_array_equal(np.flatnonzero(moved), [3, 4, 5, 6])
    filters = hyena_filters(params["params"], 200)
    early, late = (np.max(np.abs(filters[:, taps])) for taps in (slice(0, 40), slice(160, 200)))
    assert late < early  # the window


def test_h3_with_wide_heads_recalls_a_value_by_its_key():
    """Keys and values are one-hot; a query brings back what stood with its key, summed over the past."""
    first, second = jnp.diag(jnp.arange(8) < 4).astype(jnp.float32), jnp.eye(8, k=-4)
    params = {
        "query": first, "key": first, "value": second, "output": jnp.eye(8), "shift": jnp.zeros((2, 8)),
        "shift_skip": jnp.ones(8), "skip": jnp.zeros(1), "log_neg_re": jnp.full((1, 1), -20.0),
        "Lambda_im": jnp.zeros((1, 1)),
        "B_re": jnp.ones((1, 1)), "B_im": jnp.zeros((1, 1)), "C_re": jnp.full((1, 1), 0.5), "C_im": jnp.zeros((1, 1)),
        "log_dt": jnp.zeros(1),
    }  # fmt: skip
    x = jnp.zeros((1, 3, 8)).at[0, 0, jnp.array([1, 6])].set(1.0).at[0, 1, jnp.array([3, 5])].set(1.0)
    x = x.at[0, 2, 1].set(1.0)  # asks for key 1, shows nothing
    y, _ = jax.jit(h3)(params, x)
    np.testing.assert_allclose(y[0, 2], [0, 0, 1, 0, 0, 0, 0, 0], atol=1e-5)


REFUSED = [
    ("s4", {"state_dim": 5}, "state_dim must be even"),
    ("s4", {"hippo": "leg"}, "did you mean 'leg"),
    ("s4", {"systems": 3}, "systems=3"),
    ("s4", {"dt_min": 1.0}, "dt_min"),
    ("s4", {"form": "convolution"}, "form"),
    ("s4d", {"state_dim": 3}, "state_dim must be even"),
    ("s4d", {"lambda_init": "linear"}, "did you mean 'lin"),
    ("s4d", {"discretization": "euler"}, "discretization"),
    ("s4d_bidirectional", {"activation": "glu"}, "full_glu"),
    ("dss", {"normalization": "softmx"}, "did you mean 'softmax'"),
    ("dss", {"normalization": "softmax", "length": 0}, "length"),
    ("h3", {"head_dim": 3}, "head_dim=3"),
    ("hyena", {"features": 4}, "features must be odd"),
    ("hyena", {"max_length": 0}, "max_length"),
    ("hyena", {"fast_decay": 2.0}, "fast_decay"),
    ("gss", {"ssm_dim": 0}, "ssm_dim"),
]


@pytest.mark.parametrize(("name", "options", "words"), REFUSED)
def test_impossible_options_are_refused(name, options, words, as_users_see_it):
    with pytest.raises(ValueError, match=words):
        jax.eval_shape(zoo.create(name, dim=8, **options).init, KEY, normal(1, 3, 8))


def test_the_kernel_form_refuses_documents(as_users_see_it):
    module = DSS(dim=2, state_dim=2, form="kernel")
    reset = jnp.zeros((1, 3), bool)
    with pytest.raises(ValueError, match="cannot have resets"):
        jax.eval_shape(lambda x: module.init(KEY, x, reset=reset), normal(1, 3, 2))
    with pytest.raises(ValueError, match="cannot have resets"):
        causal_convolution(normal(1, 3, 2), normal(2, 2), reset=reset, form="fft")
    with pytest.raises(ValueError, match="length"):
        s4_kernel(s4_example(1), 0)


def test_s4_runs_in_pieces_by_kernels_without_flax():
    system, u = s4_example(1), normal(2, 8, 3)
    run = jax.jit(lambda u, state: s4_run(system, u, state, form="kernel"))
    whole, last = run(u, None)
    first, state = run(u[:, :4], jnp.zeros((2, 3, 4), jnp.complex64))
    second, end = run(u[:, 4:], state)
    np.testing.assert_allclose(jnp.concatenate([first, second], axis=1), whole, atol=1e-4)
    np.testing.assert_allclose(end, last, atol=1e-4)
