"""What the laws do not say about attention, S5, the LRU and Liquid-S4: windows, caches, initialisation, sampling rates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zoo
from zoo.layers import discretize, legs, legs_eigen
from zoo.layers.attention import windowed_attention
from zoo.mixers.attention import AttentionState, attention
from zoo.mixers.liquid_s4 import LiquidS4State, liquid_scan, liquid_second_order
from zoo.mixers.s5 import S5State, s5, s5_bidirectional

KEY = jax.random.key(3)


def normal(*shape, seed=0):
    return jax.random.normal(jax.random.fold_in(KEY, seed), shape)


@pytest.mark.parametrize("time", [9, 16])
@pytest.mark.parametrize("past", [False, True])
def test_chunked_attention_equals_the_full_matrix(time, past):
    window, total = 4, time + (4 if past else 0)
    q, k, v = normal(2, time, 4, 6), normal(2, total, 2, 6, seed=1), normal(2, total, 2, 6, seed=2)
    visible = jax.random.randint(KEY, (2, time), 1, window + 1)
    visible = jnp.minimum(visible, jnp.arange(total - time, total) + 1)
    chunked = windowed_attention(q, k, v, visible, window=window)
    scores = jnp.einsum("bthk,bshk->bths", q, jnp.repeat(k, 2, axis=2)) / 6**0.5
    back = jnp.arange(total - time, total)[:, None] - jnp.arange(total)
    seen = (back >= 0) & (back < visible[..., None])
    weights = jax.nn.softmax(jnp.where(seen[:, :, None], scores, -jnp.inf), axis=-1)
    np.testing.assert_allclose(chunked, jnp.einsum("bths,bshk->bthk", weights, jnp.repeat(v, 2, axis=2)), atol=1e-5)


def test_rows_of_one_batch_may_stand_at_different_places():
    module = zoo.create("attention", dim=8, heads=2, window=4)
    x = normal(2, 13, 8)
    params = module.init(KEY, x)
    apply = jax.jit(module.apply)
    states = [apply(params, x[b : b + 1, :n])[1] for b, n in ((0, 3), (1, 9))]
    together = jax.tree.map(lambda *a: jnp.concatenate(a), *states)
    y, _ = apply(params, jnp.stack([x[0, 3:7], x[1, 9:13]]), together)
    whole, _ = apply(params, x)
    np.testing.assert_allclose(y, jnp.stack([whole[0, 3:7], whole[1, 9:13]]), atol=1e-5)


def test_a_bfloat16_cache_gives_the_same_numbers_in_pieces():
    module = zoo.create("attention", dim=8, heads=2, window=4)
    x = normal(2, 9, 8)
    params = module.init(KEY, x)
    empty = module.initial_state(2, "bfloat16")
    whole, end = module.apply(params, x, empty)
    assert end.keys.dtype == jnp.bfloat16 and whole.dtype == jnp.float32
    state, pieces = empty, []
    for t in range(9):
        y, state = module.apply(params, x[:, t : t + 1], state)
        pieces.append(y)
    np.testing.assert_allclose(jnp.concatenate(pieces, axis=1), whole, atol=1e-5)


def test_relative_positions_survive_a_very_long_document():
    """Rotary scores depend on distances only: a document that is 100,000 tokens old behaves like a young one."""
    module = zoo.create("attention", dim=8, heads=2, window=4)
    x = normal(1, 12, 8)
    params = module.init(KEY, x)
    _, young = module.apply(params, x[:, :8])
    shifted = AttentionState(young.keys, young.values, young.slot, young.length)

    def aged(length):  # keys cached at the positions they would have in the old document
        past = AttentionState(*jax.tree.leaves(module.initial_state(1))).replace(length=jnp.array([length], jnp.int32))
        return module.apply(params, x[:, :8], past)[1]

    y, _ = module.apply(params, x[:, 8:], shifted)
    old, _ = module.apply(params, x[:, 8:], aged(100_000))
    np.testing.assert_allclose(old, y, atol=2e-2)  # float32 angles of 1e5 radians: 1e5 * 2^-24 = 6e-3 each


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"heads": 3}, "heads=3"),
        ({"kv_heads": 3}, "kv_heads=3"),
        ({"heads": 8}, "even head dimension"),
        ({"window": 0}, "window"),
        ({"positions": "rotery"}, "did you mean 'rotary'"),
    ],
)
def test_attention_refuses_impossible_sizes(options, words, as_users_see_it):
    with pytest.raises(ValueError, match=words):
        jax.eval_shape(zoo.create("attention", dim=8, **options).init, KEY, normal(1, 3, 8))


def test_attention_without_flax():
    params = {"query": normal(8, 2, 4), "key": normal(8, 1, 4), "value": normal(8, 1, 4), "output": normal(2, 4, 8)}
    y, state = attention(params, normal(3, 5, 8), window=4)
    assert y.shape == (3, 5, 8) and state.keys.shape == (3, 4, 1, 4)


def test_legs_is_normal_plus_rank_one_and_its_eigenbasis_is_unitary():
    for size in (1, 2, 5, 16):
        a, b = legs(size)
        assert np.all(np.triu(a, 1) == 0) and np.allclose(np.diag(a), -np.arange(1, size + 1))
        eigen = legs_eigen(size)
        v, p = eigen.vectors, np.sqrt(np.arange(size) + 0.5)
        assert np.allclose(v.conj().T @ v, np.eye(size))
        assert np.allclose(eigen.eigenvalues.real, -0.5)
        assert np.all(np.diff(eigen.eigenvalues.imag) >= 0)
        assert np.allclose(v @ np.diag(eigen.eigenvalues) @ v.conj().T - np.outer(p, p), a)
        assert np.allclose(v @ eigen.into, b) and np.allclose(v @ eigen.low_rank, p)


def test_discretisations_follow_the_continuous_system(float64):
    eigenvalues, step = jnp.array([-0.5 + 3j, -2.0 + 0j, -1e-9 + 1e-9j]), jnp.array([0.1, 0.5, 0.01])
    decay, gain = discretize(eigenvalues, step)
    np.testing.assert_allclose(decay, np.exp(np.asarray(eigenvalues * step)), rtol=1e-14)
    small_steps = 100_000  # of forward Euler, whose error is lambda dt / (2 * small_steps)
    euler = (np.asarray(1 + eigenvalues * step / small_steps) ** small_steps - 1) / np.asarray(eigenvalues)
    np.testing.assert_allclose(gain[:2], euler[:2], rtol=1e-5)
    np.testing.assert_allclose(gain[2], step[2], rtol=1e-9)  # no cancellation
    small = 1e-3
    zoh, bilinear = discretize(eigenvalues, step * small), discretize(eigenvalues, step * small, "bilinear")
    np.testing.assert_allclose(bilinear[0], zoh[0], rtol=1e-9)  # third order in lambda dt


def test_s5_keeps_its_meaning_at_another_sampling_rate(float64):
    """Every sample held for k steps of dt/k is the same signal; zero-order hold makes that exact."""
    x, k = normal(2, 7, 4), 3
    module = zoo.create("s5", dim=4, state_dim=6, activation="none", dtype="float64")
    params = module.init(KEY, x)
    faster = module.clone(step_rescale=1 / k)
    y, state = module.apply(params, x)
    held, held_state = faster.apply(params, jnp.repeat(x, k, axis=1))
    np.testing.assert_allclose(held[:, k - 1 :: k], y, atol=1e-12)
    np.testing.assert_allclose(held_state.hidden, state.hidden, atol=1e-12)


def s5_parameters(modes, width, directions=1):
    return {
        "Lambda_re": -jnp.abs(normal(modes)), "Lambda_im": normal(modes, seed=1), "log_step": normal(modes, seed=2) - 1,
        "B_re": normal(modes, width, seed=3), "B_im": normal(modes, width, seed=4),
        "C_re": normal(width, directions * modes, seed=5), "C_im": normal(width, directions * modes, seed=6),
        "D": normal(width, seed=7),
    }  # fmt: skip


def test_conjugate_symmetry_stands_for_the_doubled_system():
    half = s5_parameters(3, 4)

    def mirrored(name, value):
        sign = -1 if name.endswith("_im") else 1
        return value if name == "D" else jnp.concatenate([value, sign * value], axis=1 if name.startswith("C") else 0)

    full = {name: mirrored(name, value) for name, value in half.items()}
    x = normal(2, 9, 4)
    want, _ = s5(full, x, S5State(jnp.zeros((2, 6), jnp.complex64)), conj_sym=False)
    got, _ = s5(half, x, S5State(jnp.zeros((2, 3), jnp.complex64)))
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_bidirectional_s5_reads_both_directions():
    params, x = s5_parameters(3, 4, directions=2), normal(2, 9, 4)
    state = S5State(jnp.zeros((2, 3), jnp.complex64))
    halves = [{**params, "D": d, "C_re": params["C_re"][:, s], "C_im": params["C_im"][:, s]}
              for s, d in ((slice(3), params["D"]), (slice(3, 6), jnp.zeros(4)))]  # fmt: skip
    forward, _ = s5(halves[0], x, state)
    backward, _ = s5(halves[1], x[:, ::-1], state)
    np.testing.assert_allclose(s5_bidirectional(params, x), forward + backward[:, ::-1], atol=1e-5)


def test_s5_starts_from_blocks_of_hippo():
    module = zoo.create("s5", dim=4, state_dim=12, blocks=3)
    params = module.init(KEY, normal(1, 2, 4))["params"]
    want = legs_eigen(4).eigenvalues[:2]
    np.testing.assert_allclose(params["Lambda_re"] + 1j * params["Lambda_im"], np.tile(want, 3), rtol=1e-6)
    assert np.all((params["log_step"] >= np.log(0.001)) & (params["log_step"] <= np.log(0.1)))
    assert not np.allclose(params["B_re"], params["B_im"])


def test_clip_eigs_keeps_s5_stable():
    params = {**s5_parameters(3, 4), "Lambda_re": jnp.array([2.0, 0.5, 0.0])}
    x, state = normal(1, 2000, 4), S5State(jnp.zeros((1, 3), jnp.complex64))
    assert np.all(np.isfinite(s5(params, x, state)[0]))
    assert not np.all(np.isfinite(s5(params, x, state, clip_eigs=False)[0]))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"state_dim": 5}, "even size"),
        ({"state_dim": 8, "blocks": 3}, "blocks=3"),
        ({"discretization": "euler"}, "discretization"),
        ({"activation": "half_glu"}, "did you mean 'half_glu"),
        ({"dt_min": 1.0}, "dt_min"),
        ({"step_rescale": 0.0}, "step_rescale"),
    ],
)
def test_s5_refuses_impossible_options(options, words, as_users_see_it):
    with pytest.raises(ValueError, match=words):
        jax.eval_shape(zoo.create("s5", dim=4, **options).init, KEY, normal(1, 3, 4))


def test_lru_starts_on_its_ring_with_unit_variance():
    module = zoo.create("lru", dim=4, state_dim=500, r_min=0.7, r_max=0.95)
    params = module.init(KEY, normal(1, 2, 4))["params"]
    radius = np.exp(-np.exp(np.asarray(params["nu_log"], np.float64)))
    assert np.all((radius >= 0.7 - 1e-6) & (radius <= 0.95 + 1e-6))
    # uniform by area: radius^2 is uniform between the squares; its mean has standard error (range) / sqrt(12 * 500)
    span = 0.95**2 - 0.7**2
    assert abs(np.mean(radius**2) - (0.95**2 + 0.7**2) / 2) < 4 * span / np.sqrt(12 * 500)
    np.testing.assert_allclose(np.exp(params["gamma_log"]), np.sqrt(1 - radius**2), rtol=1e-4)


def liquid_system():
    decay = jnp.exp(-0.1 * jnp.abs(normal(2, 3)) + 1j * normal(2, 3, seed=1))
    gain, readout = (normal(2, 3, seed=s) + 1j * normal(2, 3, seed=s + 1) for s in (2, 4))
    return decay, 0.3 * gain, readout


def liquid_zeros(form, order, dtype=jnp.complex64):
    kept = 0 if form == "exact" else order - 1
    return LiquidS4State(jnp.zeros((1, 2, 3), dtype), jnp.zeros((1, kept, 2)))


def test_the_expansions_of_liquid_s4_have_the_order_they_claim(float64):
    """Against the exact form, the linear model errs by u^2, and the second-order one by u^3."""
    system, errors = liquid_system(), []
    for scale in (1e-2, 5e-3):
        x = scale * normal(1, 11, 2, seed=9)
        exact, _ = liquid_scan(*system, x, liquid_zeros("exact", 2, jnp.complex128))
        linear, _ = liquid_scan(*system, x, liquid_zeros("kb", 1, jnp.complex128), form="kb", order=1)
        second = liquid_second_order(*system, x)
        errors.append([float(jnp.max(jnp.abs(exact - y))) for y in (linear, second)])
    ratios = np.array(errors[0]) / errors[1]
    np.testing.assert_allclose(ratios, [4, 8], rtol=0.05)


def test_kb_keeps_of_the_second_order_only_adjacent_inputs():
    """Inputs that are never adjacent have no adjacent products; a pair of neighbours has one."""
    system = liquid_system()
    x = jnp.zeros((1, 9, 2)).at[:, ::2].set(normal(1, 5, 2))
    linear, _ = liquid_scan(*system, x, liquid_zeros("kb", 1), form="kb", order=1)
    apart, _ = liquid_scan(*system, x, liquid_zeros("kb", 2), form="kb", order=2)
    np.testing.assert_allclose(apart, linear, atol=1e-6)
    neighbours, _ = liquid_scan(*system, x.at[:, 1].set(1.0), liquid_zeros("kb", 2), form="kb", order=2)
    alone, _ = liquid_scan(*system, x.at[:, 1].set(1.0), liquid_zeros("kb", 1), form="kb", order=1)
    assert np.max(np.abs(neighbours - alone)) > 1e-2
