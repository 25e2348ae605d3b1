"""Linear regression in context with outliers: what is drawn, and the metric."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo.tasks import OutlierRegression, normalized_squared_error


def test_pairs_are_linear_but_for_the_outliers():
    task = OutlierRegression(dim=3, time=400)
    batch = jax.jit(lambda key: task.batch(key, 4))(jax.random.key(0))
    x, seen = np.split(np.asarray(batch.inputs), 2, axis=-1)
    assert np.allclose(np.linalg.norm(x, axis=-1), 1, atol=1e-5)
    assert np.array_equal(batch.mask[0], np.arange(400) >= 200)
    off = np.any(seen != batch.targets, axis=-1)
    assert 0.07 < off.mean() < 0.13
    assert 4.5 < np.std((seen - batch.targets)[off]) < 5.5
    for row in range(4):
        matrix, *_ = np.linalg.lstsq(x[row], batch.targets[row])
        assert np.allclose(x[row] @ matrix, batch.targets[row], atol=1e-4), "one matrix explains a whole sequence"
    assert not np.allclose(batch.targets[0], batch.targets[1])
    clean = OutlierRegression(outliers=0.0).example(jax.random.key(0))
    assert np.array_equal(clean.inputs[:, 8:], clean.targets)


def test_the_metric_is_one_for_no_answer():
    targets = jax.random.normal(jax.random.key(0), (2, 5, 3))
    assert normalized_squared_error(jnp.zeros_like(targets), targets) == 1
    assert normalized_squared_error(targets, targets) == 0
    mask = jnp.arange(5) > 2
    wrong = jnp.where(mask[:, None], targets, 99.0)
    assert normalized_squared_error(wrong, targets, jnp.broadcast_to(mask, (2, 5))) == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"time": 1}, "time must be at least 2"),
        ({"outliers": 1.5}, "outliers"),
        ({"outlier_scale": -1.0}, "outlier_scale"),
    ],
)
def test_refused(options, words):
    with pytest.raises(ValueError, match=words):
        OutlierRegression(**options)
