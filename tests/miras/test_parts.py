"""Attentional biases and retentions by their definitions, what they refuse, and the traps between them."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zoo
from zoo.mixers import MirasLayer
from zoo.scans import (
    Miras,
    MirasGates,
    matrix_memory,
    miras_norms,
    miras_scan,
    miras_state,
    miras_weights,
    vector_memory,
)
from zoo.scans.chunked.attentional_bias import L1, L2, Huber, Lp, ValueShift
from zoo.scans.chunked.retention import (
    DIVERGENCES,
    Bregman,
    ElasticNet,
    FDivergence,
    KLRetention,
    L2Retention,
    LqRetention,
    soft_threshold,
)


@pytest.fixture(autouse=True)
def _wide():
    with jax.enable_x64(True):
        yield


def drawn(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape, jnp.float64)


def run(parts, weights, step=0.3, decay=None, threshold=None, steps=5, scale=1.0, **options):
    """A memory of one head, with scalar gates."""
    k = drawn(1, steps, 1, 3, seed=1)
    gates = MirasGates(*(None if g is None else jnp.full((1, steps, 1), g) for g in (step, decay, None, threshold)))
    v = scale * drawn(1, steps, 1, 3, seed=2)
    return jax.jit(lambda k, v: miras_scan(parts, k, k, v, gates, {"W0": weights}, **options))(k, v)


def test_huber_switches_by_the_norm_over_channels():
    e = jnp.asarray([0.6, -0.9])  # longer than 1, each channel shorter
    tanh = np.tanh(10 * e)
    assert np.allclose(Huber("coordinate").slope(e, e, 1.0), e)
    assert np.allclose(Huber("norm").slope(e, e, 1.0), e / np.linalg.norm(e))
    assert np.allclose(Huber("switched").slope(e, e, 1.0), tanh)
    assert np.allclose(Huber("switched", factor=1.0).slope(e, e, 2.0), e)
    assert np.allclose(Huber("switched").slope(e, e, 2.0), 2 * e)
    assert np.allclose(Huber("coordinate").slope(e, e, 0.5), 0.5 * tanh)


@pytest.mark.parametrize("form", ["coordinate", "norm", "switched"])
def test_the_threshold_learns_on_the_outer_branch_only(form):
    e = jnp.asarray([0.6, -0.9])
    slope = jax.grad(lambda delta: jnp.sum(Huber(form).slope(e, e, delta) * e))
    assert slope(5.0) == 0
    assert slope(0.1) != 0


@pytest.mark.parametrize("bias", [L2(), Lp(), L1(), *map(Huber, ("coordinate", "norm", "switched")), ValueShift()])
def test_no_error_gives_finite_slopes_and_derivatives(bias):
    zero = jnp.zeros(3)
    value, jacobian = bias.slope(zero, zero, 1.0), jax.jacobian(lambda e: bias.slope(e, e, 1.0))(zero)
    assert np.allclose(value, 0)
    assert np.all(np.isfinite(jacobian))


def test_the_hard_sign_stops_outer_gradients():
    e = jnp.asarray([0.6, -0.9])
    for sharpness, moves in ((10.0, True), (None, False)):
        slope = jax.grad(lambda e, s=sharpness: jnp.sum(L1(s).slope(e, e)))(e)
        assert bool(np.any(slope != 0)) == moves
    assert np.allclose(L1(None).slope(e, e), [1, -1])


def test_value_shift_is_the_worst_case_slope():
    """max over |dv| <= D of |e - dv|^2 / 2 is at dv = -D e / |e|."""
    e = drawn(4)
    radius = 0.7
    shifts = drawn(20000, 4, seed=3)
    shifts = radius * shifts / jnp.linalg.norm(shifts, axis=-1, keepdims=True)
    worst = max(0.5 * jnp.sum((e - shifts) ** 2, axis=-1))
    u = ValueShift(radius).slope(e, e)
    assert worst <= 0.5 * jnp.sum(u**2) <= worst * 1.05


def test_lp_of_two_is_l2_and_smooth_sign_is_ten_times():
    e = jnp.asarray([0.6, -0.9])
    assert np.allclose(Lp(2.0).slope(e, e), L2().slope(e, e), rtol=1e-4)
    assert np.allclose(Lp(3.0).slope(e, e), 3 * np.tanh(10 * e) * (e**2 + 1e-6))


# Retentions: minima by their first-order conditions


def test_l2_with_a_global_term_is_the_minimum():
    w, g, eta, alpha = drawn(3, 2), drawn(3, 2, seed=1), 0.4, 5.0
    new = L2Retention(alpha).update(w, -eta * g, None, eta)
    assert np.allclose(g + (new - w) / eta + new / alpha, 0)


def test_the_elastic_net_is_the_minimum():
    w, g, eta = drawn(5, 4), drawn(5, 4, seed=1), 0.4
    part = ElasticNet(alpha=2.0, beta=3.0)
    new = part.update(w, -eta * g, None, eta)
    slope = g + (new - w) / eta + new / part.beta
    moved = new != 0
    assert 0 < moved.sum() < moved.size, "some weights are exactly 0, others are not"
    assert np.allclose(jnp.where(moved, slope + jnp.sign(new) / part.alpha, 0), 0)
    assert np.all(np.abs(slope)[~moved] <= 1 / part.alpha)


def test_ftrl_and_smooth_thresholds():
    part = ElasticNet("ftrl", threshold=0.3)
    w = drawn(5, 4)
    assert np.allclose(part.primal(part.dual(w)), w)
    assert np.allclose(part.primal(part.update(part.dual(w), 0.1, None, 1.0)), soft_threshold(part.dual(w) + 0.1, 0.3))
    z = jnp.linspace(-60.0, 60.0, 7)
    assert np.allclose(soft_threshold(z, 0.3, smooth=True), soft_threshold(z, 0.3), atol=0.4)


def columns(*shape, c=1.0):
    return c * jax.nn.softmax(drawn(*shape, seed=4), axis=0)


def test_kl_is_the_minimum_on_the_simplex():
    w, g, eta, alpha = columns(4, 3, c=2.0), drawn(4, 3, seed=1), 0.4, 5.0
    part = KLRetention(c=2.0, alpha=alpha)
    new = part.primal(part.update(part.dual(w), -eta * g, None, eta))
    assert np.allclose(new.sum(0), 2.0)
    slope = g + jnp.log(new / w) / eta + jnp.log(new) / alpha  # the same for all weights of a column
    assert np.allclose(slope - slope.mean(0), 0)


@pytest.mark.parametrize("f", DIVERGENCES)
def test_f_divergences_keep_the_sum_and_have_its_derivative(f):
    part = FDivergence(f, c=1.5)
    w, change = columns(4, 3, c=1.5), 0.3 * drawn(4, 3, seed=1)
    update = jax.jit(lambda w, change: part.update(w, change, None, 1.0))
    new = update(w, change)
    assert np.all(new > 0)
    assert np.allclose(new.sum(0), 1.5, atol=1e-12)
    ratio = {"kl": lambda r: jnp.log(r) + 1, "reverse_kl": lambda r: -1 / r, "chi_square": lambda r: 2 * (r - 1),
             "hellinger": lambda r: 1 - r**-0.5}[f](new / w)  # fmt: skip
    multiplier = ratio - change
    assert np.allclose(multiplier - multiplier.mean(0), 0, atol=1e-9)
    if f == "kl":
        entropic = KLRetention(c=1.5)
        assert np.allclose(new, entropic.primal(entropic.update(entropic.dual(w), change, None, 1.0)))
    weights, direction = drawn(4, 3, seed=5), drawn(4, 3, seed=6)
    slope = jax.grad(lambda change: jnp.sum(update(w, change) * weights))(change)
    numeric = [jnp.sum(update(w, change + s * direction) * weights) for s in (1e-5, -1e-5)]
    assert np.allclose(jnp.sum(slope * direction), (numeric[0] - numeric[1]) / 2e-5, rtol=1e-6)


@pytest.mark.parametrize(
    ("q", "exact"), [(1.5, False), (2.5, False), (4.0, False), (5.0, False), (4.0, True), (3.0, True)]
)
def test_l_q_duals_invert_the_map(q, exact):
    w = drawn(3, 4)
    part = LqRetention(q, exact_mirror=exact)
    assert np.allclose(part.primal(part.dual(w)), w)
    z = part.dual(w)
    norm = jnp.sum(jnp.abs(z) ** q) ** (1 / q)
    want = jnp.sign(z) * jnp.abs(z) ** (q - 1) / norm ** (q - 2) if exact else z / norm ** (q - 2)
    assert np.allclose(part.primal(z), want)


def test_q_of_two_is_the_identity_and_three_forgets_the_scale():
    w = drawn(3, 4)
    for exact in (False, True):
        assert np.array_equal(LqRetention(2.0, exact).primal(w), w)
        assert np.array_equal(LqRetention(2.0, exact).dual(w), w)
    three = LqRetention(3.0)
    assert np.allclose(three.primal(three.dual(5 * w)), three.primal(three.dual(w)))
    options = {"weights": drawn(1, 3, 3, seed=7), "decay": 0.9}
    plain, identity = (run(Miras(matrix_memory, "lp", r), **options)[0] for r in ("l2", {"name": "lq", "q": 2.0}))
    assert np.array_equal(plain, identity)


def test_monetas_norm_is_guarded():
    """A memory that has died gives large but finite weights and gradients; at its start the norm is that of W_0."""
    part = LqRetention(4.0)
    zero = jnp.zeros((2, 2))
    assert np.all(np.isfinite(part.primal(zero)))
    assert np.all(np.isfinite(jax.grad(lambda z: jnp.sum(part.primal(z)))(zero)))
    y, state = run(Miras(matrix_memory, "lp", "lq"), drawn(1, 3, 3, seed=7), decay=1e-8, step=1e-30, steps=4)
    assert np.all(np.isfinite(y))
    assert miras_norms(Miras(matrix_memory, "lp", "lq"), state)["W0"].item() < 1e-6
    start = miras_state(Miras(matrix_memory, "lp", "lq"), {"W0": drawn(1, 3, 3, seed=7)}, 1)
    norms = miras_norms(Miras(matrix_memory, "lp", "lq"), start)["W0"]
    assert np.allclose(norms, 1 / jnp.sum(drawn(3, 3, seed=7) ** 4) ** 0.25)


@pytest.mark.parametrize("link", ["sigmoid", "tanh"])
def test_a_link_keeps_weights_in_its_interval(link):
    part = Bregman(link)
    w = jax.nn.sigmoid(drawn(1, 3, 3))
    assert np.allclose(part.primal(part.dual(w)), w)
    parts = Miras(matrix_memory, "l2", part)
    _, state = run(parts, w, step=1.0)
    weights = miras_weights(parts, state)["W0"]
    assert np.all((weights > (0 if link == "sigmoid" else -1)) & (weights < 1))


def test_memora_carries_logarithms():
    """Steps so large that weights underflow to 0 stay finite, and come back."""
    part = KLRetention()
    z = part.dual(columns(3, 2))
    change = jnp.zeros((3, 2)).at[0].set(-2000.0)
    gone = part.update(z, change, 1.0, 1.0)
    assert np.all(np.isfinite(gone))
    assert np.all(part.primal(gone)[0] == 0)
    assert np.allclose(part.primal(part.update(gone, -change, 1.0, 1.0)), part.primal(z))


def test_memora_is_back_on_the_simplex_after_a_chunk():
    """Linear steps inside a chunk lead off it (the weights are read as they are); its end brings them back."""
    parts = Miras(matrix_memory, "l2", "kl")
    for steps, kept in ((3, False), (4, True)):
        y, state = run(parts, columns(3, 3)[None], step=2.0, decay=0.5, steps=steps, scale=3.0, chunk_size=4)
        weights = miras_weights(parts, state)["W0"]
        assert np.all(np.isfinite(y))
        assert bool(np.all(weights > 0) and np.allclose(weights.sum(2), 1)) == kept


# What is refused


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Lp(0.5), "p must be at least 1, got 0.5"),
        (lambda: LqRetention(1.0), "q must be above 1"),
        (lambda: KLRetention(c=0.0), "c, the sum of a column, must be positive"),
        (lambda: FDivergence(c=-1.0), "must be positive"),
        (lambda: FDivergence("kll"), "did you mean 'kl'"),
        (lambda: Huber("switch"), "did you mean 'switched'"),
        (lambda: L2(0.0), "factor must be positive"),
        (lambda: ValueShift(-1.0), "radius must not be negative"),
        (lambda: L1(-1.0), "sharpness must be positive"),
        (lambda: L2Retention(alpha=0.0), "alpha must be positive"),
        (lambda: ElasticNet(beta=0.0), "beta must be positive"),
        (lambda: Bregman("sigmoit"), "did you mean 'sigmoid'"),
        (lambda: Miras(bias="hubber"), "did you mean 'huber'"),
        (lambda: Miras(retention="l3"), "retention='l3' is not one of"),
        (lambda: Miras(algorithm={"name": "multi_step", "step": 2}), "did you mean 'steps'"),
        (lambda: Miras(algorithm={"name": "multi_step", "steps": 0}), "steps must be a positive integer"),
        (lambda: Miras(vector_memory, algorithm="implicit"), "closed form"),
        (lambda: Miras(bias="l1", algorithm="implicit"), "closed form"),
        (lambda: Miras(retention="kl", algorithm={"name": "gradient_descent", "at": "decayed"}), "weights that decay"),
        (lambda: Miras(retention="l2", algorithm="non_parametric"), "no weights to retain"),
        (lambda: Miras(decay_axis="rows"), "decay_axis"),
        (lambda: miras_state(Miras(retention="kl"), {"W0": -jnp.ones((1, 2, 2))}, 1), "signed"),
        (lambda: miras_state(Miras(retention="kl"), {"W0": jnp.ones((1, 2, 2))}, 1), "a sum of 1.0"),
        (lambda: miras_state(Miras(retention="f_divergence"), {"W0": jnp.zeros((1, 2, 2))}, 1), "signed"),
        (lambda: miras_state(Miras(retention="bregman"), {"W0": -jnp.ones((1, 2, 2))}, 1), "outside"),
        (lambda: run(Miras(retention="l2"), jnp.zeros((1, 3, 3)), step=None), "need the gate 'step'"),
        (lambda: run(Miras(), jnp.zeros((1, 3, 3)), decay=0.5), "do not read the gate 'decay'"),
        (lambda: run(Miras(bias="huber"), jnp.zeros((1, 3, 3))), "need the gate 'threshold'"),
        (lambda: run(Miras(algorithm="multi_step", retention="l2"), jnp.zeros((1, 3, 3))), "k must have shape"),
        (lambda: run(Miras(), jnp.zeros((1, 3, 3)), method="chunkwise"), "did you mean 'chunked'"),
    ],
)  # fmt: skip
def test_refused(make, words):
    with pytest.raises(ValueError, match=words.replace("(", r"\(")):
        make()


def test_a_part_of_a_wrong_type_is_refused():
    with pytest.raises(TypeError, match="bias must be one of"):
        Miras(bias=KLRetention())


# The mixers


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"memory": "tensor"}, "memory='tensor' is not one of"),
        ({"memory": {"name": "mlp", "deph": 3}}, "did you mean 'depth'"),
        ({"memory": {"name": "matrix", "depth": 3}}, "no field 'depth'"),
        ({"gates": "heads"}, "did you mean 'head'"),
        ({"decay_init": 1.0}, r"decay_init must lie in \(0, 1\)"),
        ({"step_init": 0.0}, "step_init must be positive"),
        ({"rank": 0}, "rank must be a positive integer"),
        ({"heads": 3}, "not divisible"),
    ],
)  # fmt: skip
def test_mixer_options_that_are_refused(options, words):
    module = MirasLayer(**{"dim": 4, "heads": 2, "rank": 2, **options})
    with pytest.raises(ValueError, match=words):
        jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 2, 4)))


@pytest.mark.parametrize(("name", "options", "words"), [
    ("moneta", {"p": 0.5}, "p must be at least 1"), ("moneta", {"q": 1.0}, "q must be above 1"),
    ("memora", {"c": 0.0}, "must be positive"), ("yaad", {"huber": "norms"}, "did you mean 'norm'"),
])  # fmt: skip
def test_models_that_are_refused(name, options, words):
    with pytest.raises(ValueError, match=words):
        jax.eval_shape(zoo.create(name, dim=4, **options).init, jax.random.key(0), jnp.zeros((1, 2, 4)))


@pytest.mark.parametrize(
    "options",
    [
        {"algorithm": {"name": "multi_step", "steps": 2}, "memory": "matrix", "chunk_size": 3},
        {"retention": {"name": "f_divergence", "f": "chi_square"}, "memory": "matrix"},
        {"retention": "bregman", "memory": "vector", "bias": "lp", "gates": "head", "chunk_size": 1},
    ],
)
def test_other_parts_in_the_layer(options):
    """Combinations that are no registered variant: a cut inside a chunk, with a new document there in one row of two."""
    module = MirasLayer(**{"dim": 4, "heads": 2, "rank": 2, "chunk_size": 3, **options})
    x, reset = drawn(2, 4, 4), jnp.zeros((2, 4), bool).at[0, 2].set(True)
    start, none = module.initial_state(2), jnp.zeros((2, 2), bool)
    params = jax.jit(module.init)(jax.random.key(0), x[:, :2])
    apply = jax.jit(lambda p, x, state, reset: module.apply(p, x, state, reset=reset))
    whole, last = apply(params, x, start, reset)
    first, state = apply(params, x[:, :2], start, none)
    second, state = apply(params, x[:, 2:], state, reset[:, 2:])
    alone, _ = apply(params, x[:, 2:], start, none)
    got, want = (first, second, state, alone[0]), (whole[:, :2], whole[:, 2:], last, whole[0, 2:])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), got, want)


@pytest.mark.slow
def test_hybrids_are_patterns():
    """Moneta-H, Yaad-H, Memora-H: alternation with sliding-window attention, decoded token by token."""
    tokens = jnp.asarray([[1, 2, 3, 4, 5]])
    options = {"heads": 2, "chunk_size": 2, "rank": 2, "expansion": 1}
    pattern = ({"name": "yaad", **options}, {"name": "attention", "heads": 2, "window": 3})
    model = zoo.LanguageModel(vocab_size=7, dim=4, pattern=pattern, mlp="none")
    params = jax.jit(model.init)(jax.random.key(0), tokens)
    step = jax.jit(model.apply)
    logits, _ = step(params, tokens, model.initial_state(1))
    state, found = model.initial_state(1), []
    for now in jnp.split(tokens, 5, axis=1):
        y, state = step(params, now, state)
        found.append(y)
    assert np.allclose(jnp.concatenate(found, 1), logits, atol=1e-5)


def test_channel_gates_meet_the_axis_of_their_channels():
    """In an MLP of three layers: the input axis of the first, the output axis of the last, the mean in between."""
    from zoo.scans.chunked.miras import _spread

    weights = {"W0": jnp.zeros((3, 8)), "W1": jnp.zeros((8, 8)), "W2": jnp.zeros((8, 3))}
    spread = _spread(jnp.arange(3.0), weights, None)
    assert [spread[n].shape for n in weights] == [(3, 1), (1, 1), (1, 3)]
    assert spread["W1"].item() == 1.0
    for side, shape in itertools.product(("input",), ((3, 1),)):
        assert _spread(jnp.arange(3.0), {"W0": jnp.zeros((3, 3))}, side)["W0"].shape == shape
