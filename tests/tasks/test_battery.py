"""Counting, and several problems as one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo.tasks import Battery, Counting, Parity, PasskeyStream


def test_counts_are_those_of_a_loop():
    batch = Counting(time=20, symbols=3, most=4).batch(jax.random.key(0), 5)
    for inputs, targets, mask in zip(*(np.asarray(a) for a in (batch.inputs, batch.targets, batch.mask))):
        seen = {}
        for symbol, target, counts in zip(inputs, targets, mask):
            seen[symbol] = seen.get(symbol, 0) + 1
            assert target == min(seen[symbol], 4)
            assert counts == (seen[symbol] > 1)


def test_a_battery_holds_its_problems_padded():
    problems = (Parity(time=6), PasskeyStream(time=9))
    key = jax.random.key(3)
    got = Battery(problems).example(key)
    for i, (problem, k) in enumerate(zip(problems, jax.random.split(key, 2))):
        want = problem.example(k, problem.data())
        time = len(want.inputs)
        np.testing.assert_array_equal(got.inputs[i, :time], want.inputs)
        np.testing.assert_array_equal(got.targets[i, :time], want.targets)
        np.testing.assert_array_equal(got.mask[i, :time], True if want.mask is None else want.mask)
        assert not jnp.any(got.mask[i, time:])
    with pytest.raises(ValueError, match="problems is empty"):
        Battery(())
