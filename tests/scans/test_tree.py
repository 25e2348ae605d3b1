"""tree_reduce: the balanced tree over any length and mask."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from tests.oracles import scans as oracle
from zoo.scans import tree_reduce


def bracket(a, b):
    """Neither associative nor commutative: the shape of the tree shows in the result."""
    return np.tanh(0.7 * a - 0.4 * b + 0.1)


def bracket_jax(a, b):
    return jnp.tanh(0.7 * a - 0.4 * b + 0.1)


@pytest.mark.parametrize("length", [1, 2, 3, 7, 8, 13])
def test_is_the_balanced_tree(float64, length):
    elements = np.random.default_rng(0).normal(size=(3, length, 2))
    mask = np.random.default_rng(1).uniform(size=(3, length)) < 0.6
    mask[2] = False
    plain = jax.jit(lambda x: tree_reduce(bracket_jax, x))(elements)
    masked = jax.jit(lambda x, m: tree_reduce(bracket_jax, x, mask=m, identity=-7.0))(elements, mask)
    for b in range(3):
        np.testing.assert_allclose(plain[b], oracle.tree_reduce(bracket, elements[b], [True] * length), rtol=1e-13)
        want = oracle.tree_reduce(bracket, elements[b], mask[b])
        np.testing.assert_allclose(masked[b], -7.0 if want is None else want, rtol=1e-13)


def test_pytrees_and_other_axes(float64):
    """Affine maps composed over axis 2, one of them a pytree of matrix and offset."""
    rng = np.random.default_rng(0)
    maps = {"a": jnp.asarray(rng.normal(size=(2, 3, 6, 2, 2))), "b": jnp.asarray(rng.normal(size=(2, 3, 6, 2)))}

    def compose(first, second):
        return {"a": second["a"] @ first["a"], "b": (second["a"] @ first["b"][..., None])[..., 0] + second["b"]}

    whole = jax.jit(lambda m: tree_reduce(compose, m, axis=2))(maps)
    state = np.zeros((2, 3, 2))
    for t in range(6):
        state = (maps["a"][:, :, t] @ state[..., None])[..., 0] + maps["b"][:, :, t]
    np.testing.assert_allclose(whole["b"], state, rtol=1e-12)


def test_depth_is_logarithmic():
    calls = []
    jax.eval_shape(lambda x: tree_reduce(lambda a, b: (calls.append(a.shape[1]), a + b)[1], x), jnp.ones((1, 100, 1)))
    assert calls == [50, 25, 12, 6, 3, 2, 1]


def test_gradients_skip_the_masked(float64):
    elements = np.random.default_rng(0).uniform(1, 2, size=(2, 4, 2))
    mask = jnp.asarray([[True, False, True, True], [False] * 4])
    function = jax.jit(lambda x: tree_reduce(lambda a, b: a / b + jnp.log(a * b), x, mask=mask))
    check_grads(function, (elements,), 1, ("fwd", "rev"))
    # what stands at a masked place, even where combine has no finite derivative, changes nothing
    poisoned = jnp.where(mask[..., None], elements, 0.0)
    gradient = jax.jit(jax.grad(lambda x: function(x).sum()))(poisoned)
    np.testing.assert_array_equal(gradient[~mask], 0)
    assert np.isfinite(gradient[0]).all()
    np.testing.assert_array_equal(function(poisoned), function(elements))


def test_vmap_and_pmap_compose(float64):
    elements = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 5, 2)))
    mask = jnp.asarray(np.random.default_rng(1).uniform(size=(2, 3, 5)) < 0.7)
    function = jax.jit(lambda x, m: tree_reduce(bracket_jax, x, mask=m))
    want = jnp.stack([function(x, m) for x, m in zip(elements, mask, strict=True)])
    np.testing.assert_allclose(jax.jit(jax.vmap(function))(elements, mask), want, rtol=1e-13)
    np.testing.assert_allclose(jax.pmap(function, devices=jax.devices()[:2])(elements, mask), want, rtol=1e-13)


X = jnp.ones((2, 3, 4))


@pytest.mark.parametrize(
    ("combine", "elements", "options", "error", "message"),
    [
        (bracket_jax, {}, {}, ValueError, "elements has no arrays"),
        (bracket_jax, X, {"axis": 3}, ValueError, "axis=3 must name an axis"),
        (bracket_jax, X[:, :0], {}, ValueError, "length 0 along axis 1"),
        (lambda a, b: a, (X, X[:, :2]), {}, ValueError, "differ in shape up to axis 1"),
        (bracket_jax, X, {"mask": X[..., 0]}, TypeError, "mask must be a bool array, got float32"),
        (bracket_jax, X, {"mask": X[0] > 0}, ValueError, r"mask must have shape \[2, 3\], got \[3, 4\]"),
        (lambda a, b: (a, b), X, {}, TypeError, "combine must return the structure"),
        (lambda a, b: a[..., :2], X, {}, ValueError, r"combine must keep shapes .*\[2, 1, 4\] became"),
    ],
)
def test_errors_say_what_was_wrong(as_users_see_it, combine, elements, options, error, message):
    with pytest.raises(error, match=message):
        tree_reduce(combine, elements, **options)
