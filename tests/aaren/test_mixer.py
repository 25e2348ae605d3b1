"""What the laws do not say about Aaren: four equal forms, merging, many-to-one, huge scores, masks, constant state."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zoo
from tests.oracles.aaren import oracle
from zoo.mixers.aaren import Aaren, AarenState, aaren, aaren_pool, prefix_attention
from zoo.models import Stack
from zoo.scans import SoftmaxState

B, T, D, H = 2, 13, 8, 2
FORMS = [("naive", None), ("sequential", None), ("associative", None), ("chunked", 1), ("chunked", 5), ("chunked", 64)]


@functools.lru_cache
def subject():
    module = Aaren(dim=D, heads=H)
    with jax.enable_x64(False):
        x = jax.random.normal(jax.random.key(0), (B, T, D))
        return module, jax.jit(module.init)(jax.random.key(1), x), x


def wide():
    """Parameters and inputs in float64, for tests that run with x64 on."""
    module, params, x = subject()
    return jax.tree.map(np.float64, params["params"]), np.float64(x), module


def empty(dtype=jnp.float64, batch=B):
    return AarenState(*SoftmaxState.empty(batch, H, D // H, dtype))


@pytest.mark.parametrize(("method", "chunk_size"), FORMS)
def test_every_form_equals_the_definition_and_its_gradient(method, chunk_size, float64):
    params, x, module = wide()
    weights = np.random.default_rng(0).standard_normal(x.shape)

    def loss(params, x, **form):
        y, _ = aaren(params, x, empty(), **form)
        return jnp.sum(y * weights), y

    run = jax.jit(jax.value_and_grad(functools.partial(loss, method=method, chunk_size=chunk_size), (0, 1), True))
    (_, y), grads = run(params, x)
    np.testing.assert_allclose(y, oracle(module, params, x), rtol=1e-11, atol=1e-12)
    if method != "naive":
        want = jax.jit(jax.grad(lambda p, x: loss(p, x, method="naive")[0], (0, 1)))(params, x)
        for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(want)):
            np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-11)


def test_the_step_form_equals_the_parallel_form_and_compiles_once():
    module, params, x = subject()
    traces = []

    @jax.jit
    def step(x_t, state):
        traces.append(1)
        return module.apply(params, x_t, state)

    state, steps = module.initial_state(B), []
    for t in range(T):
        y_t, state = step(x[:, t : t + 1], state)
        steps.append(y_t)
    y, last = module.apply(params, x)
    np.testing.assert_allclose(jnp.concatenate(steps, axis=1), y, atol=1e-5)
    assert len(traces) == 1
    assert all(np.allclose(a, b, atol=1e-5) for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(last)))


def test_a_permutation_of_the_past_leaves_the_last_output_unchanged():
    module, params, x = subject()
    order = np.concatenate([np.random.default_rng(1).permutation(T - 1), [T - 1]])
    y, shuffled = module.apply(params, x)[0], module.apply(params, x[:, order])[0]
    np.testing.assert_allclose(shuffled[:, -1], y[:, -1], atol=1e-5)
    assert not np.allclose(shuffled[:, :-1], y[:, :-1], atol=1e-3)


def test_states_of_disjoint_pieces_merge_in_any_order():
    module, params, x = subject()
    pieces = [module.apply(params, part)[1] for part in (x[:, :4], x[:, 4:9], x[:, 9:])]
    whole = module.apply(params, x)[1]
    a, b, c = pieces
    for merged in (a.merge(b).merge(c), c.merge(a).merge(b), a.merge(c.merge(b)), whole.merge(module.initial_state(B))):
        for got, want in zip(jax.tree.leaves(merged), jax.tree.leaves(whole)):
            np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("chunk_size", [None, 1, 4, 64])
def test_many_to_one_is_the_last_output_and_updates_a_state_by_blocks(chunk_size):
    _, params, x = subject()
    start = aaren(params["params"], x[:, :3], empty(jnp.float32))[1]
    y, last = aaren(params["params"], x[:, 3:], start)
    pooled, state = aaren_pool(params["params"], x[:, 3:], start, chunk_size=chunk_size)
    np.testing.assert_allclose(pooled, y[:, -1], atol=1e-5)
    for got, want in zip(jax.tree.leaves(state), jax.tree.leaves(last)):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_masked_steps_contribute_nothing_and_a_fully_masked_prefix_gives_zeros():
    _, params, x = subject()
    mask = jnp.ones((B, T), bool).at[0, :4].set(False).at[1, 6].set(False)

    def loss(x):
        y, _ = aaren(params["params"], x, empty(jnp.float32), mask=mask)
        return jnp.sum(y**2), y

    run = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (want, y), _ = run(x)
    assert np.all(np.asarray(y[0, :4]) == 0)
    alone, _ = aaren(params["params"], x[:1, 4:], empty(jnp.float32, 1))
    np.testing.assert_allclose(y[0, 4:], alone[0], atol=1e-5)
    (value, _), grad = run(x.at[0, 0].set(1e4))
    assert np.isfinite(value) and np.all(np.isfinite(grad)) and np.all(np.asarray(grad[~np.asarray(mask)]) == 0)
    np.testing.assert_allclose(value, want, rtol=1e-6)


@pytest.mark.parametrize("size", [1e3, 1e4])
def test_huge_scores_are_finite_in_value_and_gradient(size):
    scores = size * jax.random.normal(jax.random.key(2), (B, T, H)).clip(-1, 1)
    scores = scores.at[:, 0].set(-size).at[:, 5].set(size)
    values = jax.random.normal(jax.random.key(3), (B, T, H, 3))

    def loss(scores, values, method):
        return jnp.sum(prefix_attention(scores, values, method=method)[0] ** 2)

    for method in ("naive", "sequential", "chunked", "associative"):
        run = jax.jit(jax.value_and_grad(functools.partial(loss, method=method), (0, 1)))
        value, grads = run(scores, values)
        assert np.isfinite(value) and all(np.all(np.isfinite(g)) for g in grads)
        np.testing.assert_allclose(value, loss(scores, values, "naive"), rtol=1e-5)


def test_stacked_layers_are_causal_to_the_bit():
    stack = Stack(dim=D, pattern=({"name": "aaren", "heads": H},), depth=3)
    x = subject()[2]
    params = jax.jit(stack.init)(jax.random.key(4), x)
    run = jax.jit(lambda x: stack.apply(params, x)[0])
    y = np.asarray(run(x))
    for t in (1, 6, T - 1):
        changed = np.asarray(run(x.at[:, t].add(1.0)))
        assert np.array_equal(changed[:, :t], y[:, :t]) and not np.array_equal(changed[:, t:], y[:, t:])


def test_the_state_has_the_same_size_after_any_number_of_tokens():
    module, params, _ = subject()

    def size(tokens):
        shapes = jax.eval_shape(lambda x: module.apply(params, x)[1], jnp.zeros((B, tokens, D)))
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))

    assert size(16) == size(1024) == B * H * (D // H + 2) * 4


def test_one_vector_per_layer_more_than_a_transformer():
    def count(pattern):
        stack = Stack(dim=D, pattern=(pattern,), depth=3, mlp="gelu")
        shapes = jax.eval_shape(stack.init, jax.random.key(0), jnp.zeros((1, 4, D)))
        return sum(leaf.size for leaf in jax.tree.leaves(shapes))

    attention = {"name": "attention", "heads": H, "positions": "none"}
    assert count({"name": "aaren", "heads": H}) - count(attention) == 3 * D


def test_wrong_options_are_named(as_users_see_it):
    x = jnp.zeros((1, 3, 8))
    for options, words in (
        ({"heads": 3}, "dim=8 is not divisible by heads=3"),
        ({"heads": 0}, "heads must be a positive integer"),
        ({"method": "chunk"}, "did you mean 'chunked'"),
    ):
        with pytest.raises(ValueError, match=words):
            zoo.create("aaren", dim=8, **options).init(jax.random.key(0), x)
