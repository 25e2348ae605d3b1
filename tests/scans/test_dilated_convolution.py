"""dilated_convolution equals the sum it stands for; receptive fields and the choice of a stack."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from zoo.scans import choose_dilations, dilated_convolution, receptive_field

TIME = 9
BEFORE = np.array([[0, 1, 2, 0, 1, 2, 3, 4, 5], [3, 4, 5, 6, 7, 8, 9, 0, 1]])
AFTER = np.array([[2, 1, 0, 5, 4, 3, 2, 1, 0], [6, 5, 4, 3, 2, 1, 0, 1, 0]])


def direct_sum(x, kernel, dilation, ahead, history, before, after):
    every, taps = np.concatenate([history, x], axis=1), len(kernel)
    y = np.zeros((*x.shape[:2], kernel.shape[-1]))
    for row, t, k in itertools.product(range(len(x)), range(TIME), range(taps)):
        offset = (k + 1 - taps + ahead) * dilation
        place = history.shape[1] + t + offset
        reach = before if offset < 0 else after
        if 0 <= place < every.shape[1] and (reach is None or abs(offset) <= reach[row, t] or not offset):
            y[row, t] += every[row, place] * kernel[k] if kernel.ndim == 2 else every[row, place] @ kernel[k]
    return y


def limits(before, after):
    return {} if before is None else {"before": jnp.asarray(before), "after": jnp.asarray(after)}


def arrays(shape, known, seed=0):
    random = np.random.default_rng(seed)
    return (random.normal(size=s) for s in ((2, TIME, shape[1]), shape, (2, known, shape[1])))


@pytest.mark.parametrize("shape", [(3, 2), (4, 2, 3)], ids=["depthwise", "full"])
@pytest.mark.parametrize(("dilation", "ahead", "known"), [(1, 0, 0), (2, 0, 6), (2, 1, 0), (5, 2, 3), (20, 0, 0)])
def test_equals_the_direct_sum(float64, shape, dilation, ahead, known):
    x, kernel, history = arrays(shape, known)
    for before, after in ((None, None), (BEFORE, AFTER)):
        got = dilated_convolution(
            jnp.asarray(x), jnp.asarray(kernel), dilation=dilation, ahead=ahead, history=jnp.asarray(history),
            **limits(before, after),
        )  # fmt: skip
        np.testing.assert_allclose(got, direct_sum(x, kernel, dilation, ahead, history, before, after), atol=1e-12)


@pytest.mark.parametrize("edges", [(None, None), (BEFORE, AFTER)], ids=["one document", "documents"])
def test_derivatives_of_two_orders_in_both_modes(float64, edges):
    x, kernel, history = map(jnp.asarray, arrays((3, 2), 4))

    def run(x, kernel, history):
        x, kernel, history = map(jnp.asarray, (x, kernel, history))  # finite differences are taken with NumPy's
        return dilated_convolution(x, kernel, dilation=2, ahead=1, history=history, **limits(*edges))

    check_grads(run, (x, kernel, history), order=2, atol=1e-6, rtol=1e-6)


def test_taps_beyond_the_sequence_get_no_gradient():
    x, kernel = jnp.ones((1, 4, 2)), jnp.ones((3, 2))
    grads = jax.grad(lambda k: jnp.sum(dilated_convolution(x, k, dilation=3)))(kernel)
    np.testing.assert_array_equal(grads[:, 0], [0, 1, 4])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"dilation": 0}, "dilation must be"),
        ({"ahead": 3}, "ahead must be"),
        ({"kernel": jnp.ones((3, 4))}, "kernel must have"),
        ({"kernel": jnp.ones((0, 2))}, "kernel must have"),
        ({"inputs": jnp.ones((4, 2))}, "inputs must have"),
    ],
)
def test_wrong_arguments_are_refused(as_users_see_it, change, words):
    with pytest.raises(ValueError, match=words):
        dilated_convolution(**{"inputs": jnp.ones((1, 4, 2)), "kernel": jnp.ones((3, 2)), **change})


def test_receptive_fields():
    assert receptive_field(17, 8, 4) == 9361
    assert receptive_field(8, 8, 2) == 64
    assert receptive_field(3, 2, 3, convolutions=2) == 1 + 2 * 2 * 7
    for wrong in ((1, 2, 2), (3, 0, 2), (3, 2, 0)):
        with pytest.raises(ValueError, match="must be"):
            receptive_field(*wrong)


@pytest.mark.parametrize("length", [2, 3, 17, 64, 1000, 131_072])
def test_the_chosen_stack_is_the_cheapest_without_gaps(length):
    taps, factor, depth = choose_dilations(length)
    assert receptive_field(taps, factor, depth) >= length and factor <= taps <= 17
    cheaper = ((k, f, d) for d in range(1, 18) for k in range(2, 18) for f in range(1, k + 1) if k * d < taps * depth)
    assert not any(receptive_field(*stack) >= length for stack in cheaper)


def test_a_stack_may_be_asked_to_be_shallow():
    assert choose_dilations(4096, depth=2, max_taps=64)[2] == 2
    with pytest.raises(ValueError, match="no stack with at most 17 taps and depth=2"):
        choose_dilations(4096, depth=2)
