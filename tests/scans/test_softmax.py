"""softmax_scan: every form equals softmax attention over every prefix, for scores of any size."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from tests.oracles import scans as oracle
from zoo.scans import SoftmaxState, softmax_merge, softmax_pool, softmax_prefix_statistics, softmax_scan

METHODS = ("naive", "sequential", "chunked", "associative", "auto")


def make(batch=2, steps=11, heads=2, dim=3, scale=1.0, seed=0):
    rng = np.random.default_rng(seed)
    scores = scale * rng.normal(size=(batch, steps, heads))
    values, bar = rng.normal(size=(2, batch, steps, heads, dim))
    return scores, values, bar


@functools.partial(jax.jit, static_argnames=("method", "chunk_size"))
def run_with_gradient(scores, values, bar, mask, reset, method, chunk_size=4):
    def function(scores, values):
        return softmax_scan(scores, values, mask=mask, reset=reset, method=method, chunk_size=chunk_size)

    (outputs, state), pullback = jax.vjp(function, scores, values)
    statistics = softmax_prefix_statistics(scores, values, mask=mask, reset=reset, method=method)
    return outputs, state, statistics, pullback((bar, jax.tree.map(jnp.zeros_like, state)))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scale", [1.0, 1e4], ids=["ordinary", "huge"])
@pytest.mark.parametrize("flags", ["plain", "mask", "mask_and_reset"])
def test_outputs_statistics_and_gradients_equal_the_oracle(float64, method, scale, flags):
    scores, values, bar = make(scale=scale)
    rng = np.random.default_rng(5)
    mask = reset = None
    if flags != "plain":
        mask = rng.uniform(size=scores.shape[:2]) < 0.6
        mask[0, :3] = False  # a prefix without any step
        values[~mask] = np.nan  # whatever stands at a masked step must not matter
    if flags == "mask_and_reset":
        reset = rng.uniform(size=scores.shape[:2]) < 0.3
    outputs, state, statistics, gradient = run_with_gradient(scores, values, bar, mask, reset, method)
    clean = np.nan_to_num(values)
    want = oracle.softmax_prefixes(scores, clean, mask, reset)
    tolerance = dict(rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(outputs, want[0], **tolerance)
    for got, expected in zip(statistics, want[1:], strict=True):
        np.testing.assert_allclose(got, expected, **tolerance)
    for got, expected in zip(state, want[1:], strict=True):
        np.testing.assert_allclose(got, expected[:, -1], **tolerance)
    for got, expected in zip(gradient, oracle.softmax_gradient(scores, clean, bar, mask, reset), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("method", METHODS)
def test_float32_with_scores_of_ten_thousand(method):
    scores, values, bar = (x.astype(np.float32) for x in make(steps=63, scale=1e4))
    outputs, _, _, gradient = run_with_gradient(scores, values, bar, None, None, method, 16)
    wide = scores.astype(float), values.astype(float)
    np.testing.assert_allclose(outputs, oracle.softmax_prefixes(*wide)[0], rtol=1e-4, atol=1e-5)
    # a score's gradient is a difference of terms as large as this, each rounded to float32
    term = np.abs(bar).max() * np.abs(values).max() * values.shape[-1]
    for got, want in zip(gradient, oracle.softmax_gradient(*wide, bar), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=63 * 2.0**-23 * term)


@pytest.mark.parametrize("method", ["naive", "sequential", "chunked"])
def test_minus_infinity_scores_are_masked_without_nan(float64, method):
    scores, values, bar = make()
    mask = np.random.default_rng(3).uniform(size=scores.shape[:2]) < 0.5
    mask[1] = False
    hidden = np.where(mask[..., None], scores, -np.inf)
    a = run_with_gradient(hidden, values, bar, None, None, method)
    b = run_with_gradient(scores, values, bar, mask, None, method)
    for got, want in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(got, want)
    assert all(np.isfinite(g).all() for g in a[3])
    np.testing.assert_array_equal(a[0][1], 0)  # a row without any step gives zeros


@pytest.mark.parametrize("method", ["naive", "sequential"])
def test_second_derivatives_in_both_modes(float64, method):
    scores, values, _ = make(1, 4, 1, 2)
    function = jax.jit(lambda s, v: softmax_scan(s, v, method=method)[0])
    check_grads(function, (scores, values), 2, ("fwd", "rev"))


@pytest.mark.parametrize(("method", "cut"), [("naive", 4), ("sequential", 1), ("sequential", 10), ("associative", 4)])
def test_cutting_anywhere_changes_neither_output_nor_gradient(float64, method, cut):
    scores, values, bar = map(jnp.asarray, make(scale=20.0))
    reset = jnp.zeros(scores.shape[:2], bool).at[0, 6].set(True)

    def pieces(scores, values):
        state, outputs = None, []
        for part in (slice(0, cut), slice(cut, None)):
            o, state = softmax_scan(scores[:, part], values[:, part], state, reset=reset[:, part], method=method)
            outputs.append(o)
        return jnp.sum(jnp.concatenate(outputs, 1) * bar)

    whole = lambda s, v: jnp.sum(softmax_scan(s, v, reset=reset, method="naive")[0] * bar)  # noqa: E731
    got, want = (jax.jit(jax.value_and_grad(f, (0, 1)))(scores, values) for f in (pieces, whole))
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(g, w, rtol=1e-10, atol=1e-11)


def test_step_by_step_equals_the_whole(float64):
    scores, values, _ = map(jnp.asarray, make())
    want, end = softmax_scan(scores, values)
    state = SoftmaxState.empty(2, 2, 3, jnp.float64)
    size = sum(leaf.nbytes for leaf in state)
    step = jax.jit(softmax_scan)
    for t in range(scores.shape[1]):
        output, state = step(scores[:, t : t + 1], values[:, t : t + 1], state)
        np.testing.assert_allclose(output[:, 0], want[:, t], rtol=1e-12)
    assert sum(leaf.nbytes for leaf in state) == size and step._cache_size() == 1
    for got, expected in zip(state, end, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-12)


@pytest.mark.parametrize("chunk_size", [None, 1, 4, 5, 64])
def test_pooling_block_by_block_is_the_last_output(float64, chunk_size):
    scores, values, bar = make(scale=10.0)
    mask = np.random.default_rng(4).uniform(size=scores.shape[:2]) < 0.7
    want = oracle.softmax_prefixes(scores, values, mask)[0][:, -1]
    last_bar = np.zeros_like(bar)
    last_bar[:, -1] = bar[:, -1]
    pool = jax.jit(lambda s, v: softmax_pool(s, v, mask=jnp.asarray(mask), chunk_size=chunk_size)[0])
    output, pullback = jax.vjp(pool, scores, values)
    np.testing.assert_allclose(output, want, rtol=1e-11)
    for got, expected in zip(pullback(bar[:, -1]), oracle.softmax_gradient(scores, values, last_bar, mask)):
        np.testing.assert_allclose(got, expected, rtol=1e-10, atol=1e-12)


def test_merge_is_associative_commutative_and_has_a_neutral_element(float64):
    scores, values, _ = map(jnp.asarray, make(scale=50.0))
    pool = jax.jit(lambda s, v: softmax_pool(s, v)[1])
    a, b, c = (pool(scores[:, i], values[:, i]) for i in (slice(0, 3), slice(3, 4), slice(4, None)))
    whole = pool(scores, values)
    empty = SoftmaxState.empty(2, 2, 3, jnp.float64)

    def same(x, y):
        for got, want in zip(x, y, strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-12)

    same(softmax_merge(softmax_merge(a, b), c), whole)
    same(a.merge(b.merge(c)), whole)
    same(c.merge(a).merge(b), whole)
    same(a.merge(empty), a)
    same(empty.merge(a), a)
    same(empty.merge(empty), empty)
    np.testing.assert_array_equal(empty.output(), 0)
    gradient = jax.grad(lambda n: jnp.sum(empty._replace(numerator=n).merge(empty).output()))(empty.numerator)
    assert np.isfinite(gradient).all()


_jitted = jax.jit(lambda scores, values: softmax_scan(scores, values)[0][:, -1])


@settings(max_examples=20, deadline=None)
@given(st.permutations(range(8)))
def test_the_order_of_the_past_does_not_matter(order):
    scores, values, _ = (jnp.asarray(x, jnp.float32) for x in make(1, 8, 1, 2))
    first, second = _jitted(scores, values), _jitted(scores[:, np.array(order)], values[:, np.array(order)])
    np.testing.assert_allclose(first, second, rtol=8 * 2.0**-22, atol=8 * 2.0**-22)


def test_bfloat16_keeps_its_statistics_in_float32():
    """1000 equal scores: a bfloat16 denominator would stall at 256."""
    outputs, state = softmax_scan(jnp.zeros((1, 1000, 1), jnp.bfloat16), jnp.ones((1, 1000, 1, 2), jnp.bfloat16))
    assert outputs.dtype == jnp.bfloat16 and {leaf.dtype for leaf in state} == {jnp.dtype("float32")}
    np.testing.assert_allclose(state.denominator, 1000)
    np.testing.assert_array_equal(outputs.astype(jnp.float32), 1)


def test_vmap_and_pmap_compose(float64):
    scores, values, bar = map(jnp.asarray, make(4))
    function = jax.value_and_grad(lambda s, v, c: jnp.sum(softmax_scan(s, v)[0] * c), (0, 1))
    want = jax.jit(function)(scores, values, bar)
    split = jax.tree.map(lambda leaf: leaf.reshape(2, 2, *leaf.shape[1:]), (scores, values, bar))
    for transform in (lambda f: jax.jit(jax.vmap(f)), functools.partial(jax.pmap, devices=jax.devices()[:2])):
        got = transform(function)(*split)
        np.testing.assert_allclose(got[0].sum(), want[0], rtol=1e-12)
        for g, w in zip(got[1], want[1], strict=True):
            np.testing.assert_allclose(g.reshape(w.shape), w, rtol=1e-11, atol=1e-12)


S, V = jnp.ones((2, 3, 4)), jnp.ones((2, 3, 4, 5))


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((S.astype(int), V), {}, TypeError, "scores must be a floating-point array"),
        ((S + 0j, V), {}, TypeError, "scores must be real, got complex64"),
        ((S[0], V), {}, ValueError, r"scores must have shape \[batch, time, heads\], got \[3, 4\]"),
        ((S[:, :0], V[:, :0]), {}, ValueError, "T = 0"),
        ((S, V[:, :2]), {}, ValueError, r"values must have shape \[2, 3, 4, 'd'\]"),
        ((S, V), {"mask": S[:, :, 0]}, TypeError, "mask must be a bool array, got float32"),
        ((S, V), {"reset": S[:, 0] > 0}, ValueError, r"reset must have shape \[2, 3\], got \[2, 4\]"),
        ((S, V, (S, S, V)), {}, TypeError, "initial must be a SoftmaxState, got tuple"),
        ((S, V, SoftmaxState.empty(2, 4, 6)), {}, ValueError, r"initial.numerator must have shape \[2, 4, 5\]"),
        ((S, V), {"method": "navie"}, ValueError, "did you mean 'naive'"),
    ],
)
def test_errors_say_what_was_wrong(as_users_see_it, arguments, options, error, message):
    with pytest.raises(error, match=message):
        softmax_scan(*arguments, **options)
