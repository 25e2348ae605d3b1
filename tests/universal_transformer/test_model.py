"""The Universal Transformer's own laws: what one step is, when positions halt, what is masked, what is refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zoo
from tests.oracles import universal_transformer as oracles
from zoo.layers.transformer_layer import Layer, transformer_layer
from zoo.mixers import UniversalTransformer, UniversalTransformerEncoder, ponder_cost, step_histogram

B, T, D = 2, 7, 8
SMALL = {"dim": D, "heads": 2, "mlp_dim": 12}
ACT = {**SMALL, "steps": 5, "recurrence": "act", "halting_bias": -1.0}


@functools.cache
def inputs(time=T):
    return jax.random.normal(jax.random.key(3), (B, time, D), jnp.float32)


def parameters(module, x=None, noise=0.1):
    """Initial values, moved away from zeros and ones."""
    params = jax.jit(module.init)(jax.random.key(0), inputs() if x is None else x)
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return jax.tree.unflatten(structure, [a + noise * jax.random.normal(k, a.shape) for a, k in zip(leaves, keys)])


def run(module, params, x, **options):
    return jax.jit(lambda p, x: module.apply(p, x, method="run", **options))(params, x)


def wide(params):
    return jax.tree.map(np.float64, params)["params"]


def halting(params, bias, weight=0.0):
    """``params`` with a halting unit that ignores the state."""
    unit = params["params"]["halting"]
    unit = {"weight": weight * unit["weight"], "bias": jnp.full_like(unit["bias"], bias)}
    return {"params": {**params["params"], "halting": unit}}


# --- what a step is ----------------------------------------------------------------------------------------------------


def test_one_step_is_a_transformer_layer():
    module = UniversalTransformerEncoder(**SMALL, steps=1, norm="post", position_signal="none", step_signal="none")
    params = parameters(module)
    block = jax.tree.map(lambda a: a[0], params["params"]["block"])

    def attention(q, k, v, cache):
        scores = jnp.einsum("bthk,bshk->bhts", q, k) / 2.0
        return jnp.einsum("bhts,bshk->bthk", jax.nn.softmax(scores), v), (None, None), None

    age = jnp.broadcast_to(jnp.arange(T), (B, T))
    layer = Layer(jnp.float32, 2, False, attention, age, jnp.full((B, T), T))
    want, _ = transformer_layer(block, inputs(), None, None, layer)
    np.testing.assert_allclose(run(module, params, inputs())[0], want, atol=1e-5)


def test_one_step_with_shared_and_with_own_weights_agree():
    shared = UniversalTransformerEncoder(**SMALL, steps=1)
    params = parameters(shared)
    own = {"params": {**params["params"], "block": jax.tree.map(lambda a: a[None], params["params"]["block"])}}
    want = run(shared, params, inputs())[0]
    np.testing.assert_allclose(run(shared.clone(shared=False), own, inputs())[0], want, atol=1e-6)


def test_own_weights_at_every_step_are_used_in_order():
    """A Transformer of three different layers with step signals, one layer after the other."""
    module = UniversalTransformerEncoder(**SMALL, steps=3, shared=False)
    params = parameters(module)
    p = wide(params)
    got = run(module, params, inputs())[0]
    for b in range(B):
        s = np.float64(inputs()[b])
        for t in range(3):
            own = jax.tree.map(lambda a, t=t: a[t], p["block"])
            s = oracles.layers(module, own, oracles.with_signal(module, p, s, t))
        np.testing.assert_allclose(got[b], oracles.norm(p["final_norm"], s), atol=2e-5)


def test_own_weights_under_act_are_the_same_in_the_scanned_and_the_traced_form():
    module = UniversalTransformerEncoder(**ACT, shared=False)
    params = parameters(module)
    np.testing.assert_allclose(run(module, params, inputs())[0], run(module, params, inputs(), maps=True)[0], atol=1e-6)


def test_parameter_counts_of_the_pointer_chasing_arms():
    """The specification's numbers: 8,416 in a block of width 32, six times that for six layers of their own."""

    def size(**options):
        module = UniversalTransformerEncoder(dim=32, heads=2, mlp_dim=64, position_signal="none", **options)
        shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 3, 32)))
        return sum(a.size for a in jax.tree.leaves(shapes["params"]["block"]))

    assert size(steps=6) == size(steps=1) == size(steps=6, recurrence="act") == 8416
    assert size(steps=6, shared=False) == 50496


@pytest.mark.parametrize(
    "options",
    [
        {"recurrence": "lstm", "step_signal": "none"},
        {"recurrence": "skip", "gate_inputs": "ti", "position_signal": "none"},
        {"recurrence": "dwa", "dwa_axis": "channel"},
        {"recurrence": "highway", "couple_gates": True, "sinusoid": "concatenated"},
        {"transition": "sepconv", "kernel_sizes": (2, 4), "combine": "concat", "norm": "post"},
    ],
    ids=lambda o: "-".join(map(str, o.values())),
)
def test_what_the_laws_do_not_run_equals_the_oracle(options, float64):
    module = UniversalTransformerEncoder(**SMALL, steps=3, dtype="float64", **options)
    params = jax.tree.map(np.float64, parameters(module))
    x = jnp.asarray(inputs(), jnp.float64)
    want = oracles.oracle(module, params["params"], np.asarray(x))
    np.testing.assert_allclose(run(module, params, x)[0], want, rtol=1e-9, atol=1e-10)


def test_cross_attention_equals_the_oracle(float64):
    module = UniversalTransformer(**SMALL, steps=2, cross=True, window=4, inner_layers=2, mix_after=1, dtype="float64")
    memory, mask = jnp.asarray(inputs(5), jnp.float64), np.ones((B, 5), bool)
    mask[1, 3:] = False

    def both(module, x, memory):
        return module.run(x, memory=module.project(memory), memory_mask=jnp.asarray(mask))[0]

    x = jnp.asarray(inputs(), jnp.float64)
    params = jax.jit(lambda k: module.init(k, x, memory, method=both))(jax.random.key(0))
    got = jax.jit(lambda p: module.apply(p, x, memory, method=both))(params)
    for b in range(B):
        want = oracles.document(module, wide(params), np.asarray(x[b]), np.asarray(memory[b])[mask[b]])
        np.testing.assert_allclose(got[b], want, rtol=1e-9, atol=1e-10)


def test_random_start_shifts_positions_in_training_only():
    module = UniversalTransformerEncoder(**SMALL, steps=2, position_start="random")
    plain = module.clone(position_start="none")
    params, x = parameters(module), inputs()
    np.testing.assert_array_equal(run(module, params, x)[0], run(plain, params, x)[0])
    shifted = [
        module.apply(params, x, rngs={"dropout": jax.random.key(i)}, method="run", deterministic=fixed)[0]
        for i, fixed in ((0, False), (1, False), (1, True))
    ]
    assert not np.allclose(shifted[0], shifted[1])
    np.testing.assert_allclose(shifted[2], run(plain, params, x)[0], atol=1e-6)


def test_dropout_acts_only_with_an_rng():
    module = UniversalTransformerEncoder(**SMALL, steps=2, dropout=0.5)
    params, x = parameters(module), inputs()
    calm = run(module.clone(dropout=0.0), params, x)[0]
    np.testing.assert_array_equal(run(module, params, x)[0], calm)
    noisy = [module.apply(params, x, rngs={"dropout": jax.random.key(i)})[0] for i in range(2)]
    assert not np.allclose(noisy[0], calm)
    assert not np.allclose(noisy[0], noisy[1])


# --- adaptive halting --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [UniversalTransformerEncoder, UniversalTransformer])
def test_a_sure_halting_unit_stops_everyone_after_one_step(cls):
    module = cls(**ACT)
    params = halting(parameters(module), 20.0)
    y, _, depth = run(module, params, inputs())
    assert np.all(np.asarray(depth.steps) == 1)
    np.testing.assert_allclose(depth.remainder, 1.0)
    one = module.clone(recurrence="basic", steps=1)
    without = {"params": {k: v for k, v in params["params"].items() if k != "halting"}}
    np.testing.assert_allclose(y, run(one, without, inputs())[0], atol=1e-6)


@pytest.mark.parametrize("act_type", ["basic", "accumulated", "global", "random"])
@pytest.mark.parametrize("freeze", [False, True])
def test_while_loop_scan_and_traced_form_give_the_same_numbers(act_type, freeze):
    module = UniversalTransformerEncoder(**ACT, act_type=act_type, freeze_halted=freeze, step_signal="none")
    params, valid = parameters(module), jnp.arange(T) < jnp.array([[T], [4]])
    rngs = {"halting": jax.random.key(5)} if act_type == "random" else {}
    options = {"valid": valid, "rngs": rngs}
    scan = run(module, params, inputs(), **options)
    loop = run(module.clone(act_method="while"), params, inputs(), **options)
    traced = run(module, params, inputs(), maps=True, **options)
    for other in (loop, traced):
        np.testing.assert_allclose(other[0], scan[0], atol=1e-6)
        np.testing.assert_array_equal(other[2].steps, scan[2].steps)
        np.testing.assert_allclose(other[2].remainder, scan[2].remainder, atol=1e-6)
        assert other[2].loops == scan[2].loops
    steps = np.asarray(scan[2].steps)
    assert np.all(steps[~valid] == 0)
    assert np.all(np.asarray(scan[2].remainder)[~valid] == 0)
    assert np.all((steps[valid] >= 1) & (steps[valid] <= 5))
    if act_type == "global":
        assert len(set(steps[0])) == 1
    if act_type == "random":
        assert np.any(run(module, params, inputs(), valid=valid, rngs={"halting": jax.random.key(6)})[2].steps != steps)


def test_freezing_halted_positions_changes_what_the_others_see():
    module = UniversalTransformerEncoder(**ACT, step_signal="none")  # the step signal is what makes them halt together
    params = parameters(module)
    free = run(module, params, inputs())
    frozen = run(module.clone(freeze_halted=True), params, inputs())
    steps = np.asarray(free[2].steps)
    assert np.any(steps.max(1) - steps.min(1) >= 2), "nothing to tell apart: all positions halt together"
    assert not np.allclose(frozen[0], free[0], atol=1e-4)


@pytest.mark.parametrize("cls", [UniversalTransformerEncoder, UniversalTransformer])
def test_ponder_cost_has_a_gradient_through_the_remainder_alone(cls, float64):
    """dL/dp = -1 for every step before the last of a position that halted, nothing for the others."""
    module = cls(**{**ACT, "dtype": "float64"})
    params = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), halting(parameters(module), -1.0))

    x = jnp.asarray(inputs(), jnp.float64)

    def cost(bias):
        own = {"params": {**params["params"], "halting": {**params["params"]["halting"], "bias": bias}}}
        depth = module.apply(own, x, method="run")[2]
        return ponder_cost(depth.steps, depth.remainder), depth

    gradient, depth = jax.jit(jax.grad(cost, has_aux=True))(jnp.array([-1.0]))
    p = 1 / (1 + np.exp(1.0))
    assert np.all(np.asarray(depth.steps) == 4)  # 3 * p < 0.99 < 4 * p
    np.testing.assert_allclose(gradient, -3 * p * (1 - p), rtol=1e-12)


def test_a_position_that_runs_out_of_steps_has_no_remainder():
    module = UniversalTransformerEncoder(**ACT, act_type="accumulated")
    depth = run(module, halting(parameters(module), -5.0), inputs())[2]
    assert np.all(np.asarray(depth.steps) == 5)
    assert np.all(np.asarray(depth.remainder) == 0)


def test_ponder_cost_and_histogram_leave_padding_out():
    steps, remainder = jnp.array([[1, 3, 0], [2, 2, 2]]), jnp.array([[0.5, 0.25, 9.0], [1.0, 1.0, 1.0]])
    mask = jnp.array([[True, True, False], [True, False, False]])
    np.testing.assert_allclose(ponder_cost(steps, remainder, mask), (1.5 + 3.25 + 3.0) / 3)
    np.testing.assert_array_equal(step_histogram(steps, 4, mask), [0, 1, 1, 1, 0])
    np.testing.assert_array_equal(step_histogram(steps, 4), [1, 1, 3, 1, 0])


@pytest.mark.parametrize(
    "options", [{}, {"act_type": "global"}, {"transition": "sepconv"}, {"position_start": "step"}], ids=str
)
def test_padding_is_not_seen_wherever_it_stands(options):
    """Rows of 5 real positions, padded on either side, agree with the row without padding."""
    module = UniversalTransformerEncoder(**ACT, **options)
    params, x = parameters(module), inputs(5)
    alone, _, depth = run(module, params, x)
    for left in (0, 1, 3):
        padded = jnp.full((B, 8, D), 7.0).at[:, left : left + 5].set(x)
        valid = jnp.zeros((B, 8), bool).at[:, left : left + 5].set(True)
        y, _, padded_depth = run(module, params, padded, valid=valid)
        np.testing.assert_allclose(y[:, left : left + 5], alone, atol=1e-5)
        np.testing.assert_array_equal(padded_depth.steps[:, left : left + 5], depth.steps)
        assert np.all(np.isfinite(y))


# --- caches ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("freeze", [False, True])
def test_cached_decoding_equals_the_whole_also_with_act(freeze):
    module = UniversalTransformer(**ACT, freeze_halted=freeze, window=16, transition="sepconv", step_signal="none")
    params = parameters(module)
    whole, _, depth = run(module, params, inputs())
    step = jax.jit(lambda p, x, state: module.apply(p, x, state, method="run"))
    state = module.initial_state(B)
    for t in range(T):
        y, state, now = step(params, inputs()[:, t : t + 1], state)
        np.testing.assert_allclose(y[:, 0], whole[:, t], atol=1e-5)
        np.testing.assert_array_equal(now.steps[:, 0], depth.steps[:, t])
    assert len(set(np.asarray(depth.steps).ravel())) > 1


def test_attention_maps_are_probabilities_over_what_is_visible():
    x = inputs()
    causal = UniversalTransformer(**SMALL, steps=2, inner_layers=2, window=3)
    maps = np.asarray(run(causal, parameters(causal), x, maps=True)[2].maps)
    assert maps.shape == (2, 2, B, T, T)
    np.testing.assert_allclose(maps.sum(-1), 1, atol=1e-5)
    distance = np.arange(T)[:, None] - np.arange(T)
    assert np.all(maps[..., (distance < 0) | (distance >= 3)] == 0)
    encoder = UniversalTransformerEncoder(**SMALL, steps=2)
    valid = jnp.arange(T) < jnp.array([[T], [4]])
    maps = np.asarray(run(encoder, parameters(encoder), x, maps=True, valid=valid)[2].maps)
    assert np.all(maps[:, :, 1, :4, 4:] == 0)


def test_compile_time_does_not_grow_with_steps():
    def size(steps):
        module = UniversalTransformer(**{**ACT, "steps": steps}, window=4)
        params = jax.eval_shape(module.init, jax.random.key(0), inputs())
        return len(jax.jit(module.apply).lower(params, inputs()).as_text())

    assert size(64) < 1.1 * size(4)


# --- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cls", "options", "words"),
    [
        (UniversalTransformerEncoder, {"act_type": "bsaic"}, "act_type.*did you mean 'basic'"),
        (UniversalTransformerEncoder, {"recurrence": "rnn"}, "recurrence='rnn' is not one of"),
        (UniversalTransformerEncoder, {"heads": 3}, "dim=8 is not divisible by heads=3"),
        (UniversalTransformerEncoder, {"recurrence": "gru"}, "step_signal='none'"),
        (UniversalTransformerEncoder, {"recurrence": "lstm", "step_signal": "sinusoid"}, "step_signal='none'"),
        (UniversalTransformerEncoder, {"recurrence": "gru", "step_signal": "none", "inner_layers": 2}, "inner_layers"),
        (UniversalTransformerEncoder, {"gate_inputs": "x"}, "gate_inputs"),
        (UniversalTransformerEncoder, {"epsilon": 1.0}, "epsilon"),
        (UniversalTransformerEncoder, {"dropout": 1.0}, "dropout"),
        (UniversalTransformerEncoder, {"steps": 0}, "steps must be a positive integer"),
        (UniversalTransformerEncoder, {"mix_before": -1}, "mix_before"),
        (UniversalTransformerEncoder, {"kernel_sizes": (3,)}, "kernel_sizes"),
        (UniversalTransformerEncoder, {"shared": 1}, "shared must be True or False"),
        (UniversalTransformer, {"recurrence": "act", "act_type": "global"}, "cannot be causal"),
        (UniversalTransformer, {"position_start": "step"}, "cannot be streamed"),
        (UniversalTransformer, {"position_start": "random"}, "cannot be streamed"),
        (UniversalTransformer, {"window": 0}, "window"),
    ],
)
def test_options_that_make_no_sense_are_refused(cls, options, words, as_users_see_it):
    module = cls(**{**SMALL, **options})
    with pytest.raises((ValueError, TypeError), match=words):
        jax.eval_shape(module.init, jax.random.key(0), inputs())


@pytest.mark.parametrize("recurrence", ["basic", "dwa"])
def test_more_steps_than_the_table_has_are_refused_fewer_are_not(recurrence, as_users_see_it):
    module = UniversalTransformerEncoder(**SMALL, steps=3, recurrence=recurrence)
    params = parameters(module)
    with pytest.raises(ValueError, match="steps=4 goes beyond the 3 steps"):
        module.clone(steps=4).apply(params, inputs())
    assert run(module.clone(steps=2), params, inputs())[2].loops == 2


def test_a_sinusoid_has_no_limit():
    module = UniversalTransformerEncoder(**SMALL, steps=3, step_signal="sinusoid")
    assert run(module.clone(steps=9), parameters(module), inputs())[2].loops == 9


def test_calls_that_make_no_sense_are_refused(as_users_see_it):
    x, causal = inputs(), UniversalTransformer(**SMALL, steps=2, window=4)
    params = parameters(causal)
    with pytest.raises(ValueError, match="valid must be bool"):
        causal.apply(params, x, valid=jnp.ones((B, T)), method="run")
    with pytest.raises(ValueError, match="cross=True"):
        causal.apply(params, x, memory={}, method="run")
    with pytest.raises(ValueError, match="cross=True"):
        causal.apply(params, x, method="project")
    with pytest.raises(ValueError, match="maps=True needs state=None"):
        causal.apply(params, x, causal.initial_state(B), maps=True, method="run")
    random = UniversalTransformerEncoder(**ACT, act_type="random")
    with pytest.raises(ValueError, match="rngs="):
        random.apply(parameters(random), x)
    with pytest.raises(ValueError, match=r"no option"):
        zoo.create("universal_transformer", dim=8, recurence="act")
