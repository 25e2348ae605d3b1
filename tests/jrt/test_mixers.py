"""The Taylor features, parallel forms, padding, prefill and decoding, and what is refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zoo
from zoo.layers import project_heads, retention_decays, taylor_dim, taylor_features
from zoo.mixers import based_attention, based_parallel, prefix_linear_attention, prefix_parallel
from zoo.mixers.prefix_linear_attention import encoder_projections

DIM, TIME, LENGTH = 8, 9, 4
MIXER = zoo.create("prefix_linear_attention", dim=DIM, heads=2, feature_dim=3, prefix_length=LENGTH)
BASED = zoo.create("based", dim=DIM, heads=2, feature_dim=3)
X = jax.random.normal(jax.random.key(0), (2, TIME, DIM))


@functools.cache
def params():
    return jax.jit(MIXER.init)(jax.random.key(1), X)


@functools.partial(jax.jit, static_argnums=0, static_argnames="method")
def _run(mixer, params, x, state, *, method, **options):
    return mixer.apply(params, x, state, method=method, **options)


def run(mixer, x, state=None, *, method=None, **options):
    return _run(mixer, params(), x, state, method=method, **options)


@pytest.mark.parametrize("storage", ["full", "symmetric"])
def test_the_product_of_features_is_exp_to_second_order(storage):
    with jax.enable_x64(True):
        q, k = (jax.random.normal(key, (5, 6), jnp.float64) for key in jax.random.split(jax.random.key(0)))
        s = jnp.sum(q * k, axis=-1) / 6**0.5
        got = jnp.sum(taylor_features(q, storage) * taylor_features(k, storage), axis=-1)
        np.testing.assert_allclose(got, 1 + s + s**2 / 2, rtol=1e-13)
        assert taylor_features(q, storage).shape[-1] == taylor_dim(6, storage) == {"full": 43, "symmetric": 28}[storage]


def test_parallel_forms_are_the_recurrent_ones():
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda p: p.astype(jnp.float64), params()["params"])
        x = X.astype(jnp.float64)
        q, k, v = project_heads(wide, x, None, 0.0)
        prefix = encoder_projections(wide, x[:, :LENGTH])
        want = jnp.einsum("bthv,hvd->btd", prefix_parallel(q, k, v, *prefix), wide["output"])
        layer = jax.jit(functools.partial(prefix_linear_attention, prefix_length=LENGTH))
        np.testing.assert_allclose(layer(wide, x)[0], want, rtol=1e-10, atol=1e-12)
        reset = jnp.zeros(x.shape[:2], bool).at[1, 3].set(True)
        for decay, storage in ((None, "full"), (retention_decays(2, -3.0), "symmetric")):
            recurrent = functools.partial(based_attention, log_decay=decay, reset=reset, storage=storage, chunk_size=4)
            want = based_parallel(q, k, v, log_decay=decay, reset=reset)
            np.testing.assert_allclose(jax.jit(recurrent)(q, k, v)[0], want, rtol=1e-10, atol=1e-12)


def test_decays_of_the_paper():
    """Head h keeps 1 - 2^(-3 - h) of its sums, of RetNet 1 - 2^(-5 - h)."""
    np.testing.assert_allclose(np.exp(retention_decays(3, -3.0)), [7 / 8, 15 / 16, 31 / 32], rtol=1e-6)
    np.testing.assert_allclose(np.exp(retention_decays(2)), [31 / 32, 63 / 64], rtol=1e-6)


def test_without_a_prefix_it_is_based_and_a_prefix_longer_than_the_input_is_the_input():
    y, state = run(MIXER.clone(prefix_length=0), X)
    want, sums = run(BASED, X)
    np.testing.assert_array_equal(y, want)
    np.testing.assert_array_equal(state.memory, sums.memory)
    np.testing.assert_array_equal(run(MIXER.clone(prefix_length=TIME), X)[0], run(MIXER.clone(prefix_length=99), X)[0])


def test_prefill_then_decode_is_the_whole_and_a_mix_up_is_told():
    y, last = run(MIXER, X)
    part, state = run(MIXER, X[:, :LENGTH], method="prefill")
    parts = [part]
    for t in range(LENGTH, TIME):
        part, state = run(MIXER, X[:, t : t + 1], state, method="decode")
        parts.append(part)
    np.testing.assert_allclose(jnp.concatenate(parts, axis=1), y, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(state.memory, last.memory, rtol=1e-5, atol=1e-5)
    one = X[:, :1]
    for nothing in (None, MIXER.initial_state(2)):
        with pytest.raises(ValueError, match="decode goes on after a prefill"):
            MIXER.apply(params(), one, nothing, method="decode")
    with pytest.raises(ValueError, match="prefill begins a document, but the state has read"):
        MIXER.apply(params(), one, last, method="prefill")


def test_a_prefix_ends_with_the_call_that_began_it():
    """After two tokens of four nothing goes to the encoder any more."""
    _, short = run(MIXER, X[:, :2])
    y, last = run(MIXER, X[:, 2:], short)
    want, state = run(MIXER, X[:, 2:], short, method="decode")
    np.testing.assert_allclose(y, want, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(last.memory, state.memory, rtol=1e-6, atol=1e-6)


def test_rows_that_begin_and_rows_that_go_on_share_a_call():
    """Row 0 goes on after five tokens, row 1 begins: each as if alone."""
    _, read = run(MIXER, X[:, :5])
    empty = MIXER.initial_state(2)
    mixed = jax.tree.map(lambda a, b: jnp.stack([a[0], b[1]]), read, empty)
    y, _ = run(MIXER, X[:, 5:], mixed)
    np.testing.assert_allclose(y[0], run(MIXER, X[:, 5:], read)[0][0], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(y[1], run(MIXER, X[:, 5:])[0][1], rtol=1e-6, atol=1e-6)


def test_clean_padding_is_not_there_and_reference_padding_leaks_ones():
    """Two tokens of padding in front; by the definition, in float64."""
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda p: p.astype(jnp.float64), params()["params"])
        x = X.astype(jnp.float64)
        mask = jnp.arange(TIME)[None] >= jnp.array([[2], [0]])
        layer = jax.jit(prefix_linear_attention, static_argnames=("prefix_length", "padding", "method"))
        q, k, v = project_heads(wide, x, None, 0.0)
        prefix_k, prefix_v = encoder_projections(wide, x[:, :LENGTH])
        k, prefix_k = (jnp.where(mask[:, : a.shape[1], None, None], a, 0) for a in (k, prefix_k))
        leaking = jnp.einsum("bthv,hvd->btd", prefix_parallel(q, k, v, prefix_k, prefix_v), wide["output"])
        for padding in ("clean", "reference"):
            y, _ = layer(wide, x, prefix_length=LENGTH, mask=mask, padding=padding, method="quadratic")
            np.testing.assert_allclose(y[1], layer(wide, x, prefix_length=LENGTH, method="quadratic")[0][1], rtol=1e-9)
            if padding == "reference":
                np.testing.assert_allclose(y, leaking, rtol=1e-9, atol=1e-12)
            else:  # the prefix of the padded row has two tokens
                alone, _ = layer(wide, x[:1, 2:], prefix_length=LENGTH - 2, method="quadratic")
                np.testing.assert_allclose(y[0, 2:], alone[0], rtol=1e-9, atol=1e-12)
        assert not np.allclose(y[0, 2:], alone[0], atol=1e-3)


def test_states_are_float32_in_bfloat16():
    state = jax.eval_shape(lambda: MIXER.clone(dtype="bfloat16").apply(params(), X)[1])
    assert state.memory.dtype == state.key_sum.dtype == jnp.float32


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"prefix_length": -1}, "prefix_length must be an integer of at least 0, got -1"),
        ({"feature_dim": 0}, "feature_dim must be a positive integer"),
        ({"heads": 3}, "dim=8 is not divisible by heads=3"),
        ({"padding": "left"}, "padding='left' is not one of clean, reference"),
        ({"storage": "half"}, "storage='half' is not one of full, symmetric"),
    ],
)
def test_what_cannot_be_is_refused(options, words, as_users_see_it):
    with pytest.raises(ValueError, match=words):
        jax.eval_shape(MIXER.clone(**options).init, jax.random.key(0), X)


def test_masks_are_checked(as_users_see_it):
    with pytest.raises(TypeError, match="mask must be a bool array"):
        MIXER.apply(params(), X, mask=jnp.ones(X.shape[:2]))
    with pytest.raises(ValueError, match="mask must have shape"):
        MIXER.apply(params(), X, mask=jnp.ones((2, TIME + 1), bool))


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("based", {"decay": True, "decay_start": 0.0}, "decay_start must be negative"),
        ("base_conv", {"conv_size": 0}, "conv_size must be a positive integer"),
        ("retnet", {"heads": 8}, "even key width per head, got 1"),
        ("retnet", {"norm": "group"}, "norm='group' is not one of rms, layer"),
        ("gla", {"gate_divisor": 0.0}, "gate_divisor must be positive"),
        ("gla", {"heads": 3}, "not divisible by heads=3"),
    ],
)
def test_other_mixers_refuse_too(name, options, words, as_users_see_it):
    with pytest.raises(ValueError, match=words):
        jax.eval_shape(zoo.create(name, dim=DIM, **options).init, jax.random.key(0), X)


def test_gates_of_gla_start_near_one():
    """log sigmoid of small numbers over 16: a gate keeps about 0.957 of a channel per token."""
    mixer = zoo.create("gla", dim=DIM, heads=1, gate_rank=2)
    made = jax.jit(mixer.init)(jax.random.key(0), X)["params"]
    made |= {"forget_up": jnp.zeros_like(made["forget_up"])}
    silence = jnp.concatenate([X[:, :1], jnp.zeros_like(X[:, :1])], axis=1)
    _, state = jax.jit(mixer.apply)({"params": made}, silence)
    k, v = (jnp.einsum("bd,dhk->bhk", X[:, 0], made[name]) for name in ("key", "value"))
    np.testing.assert_allclose(state.memory, k[..., None] * v[:, :, None] * 0.5 ** (1 / 16), rtol=1e-4, atol=1e-6)
