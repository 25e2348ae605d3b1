"""Linear regression in context with outliers: does a memory survive observations that are far off?

After Behrouz et al. (2025), Miras, arXiv 2504.13173, whose claim it is that a robust attentional bias protects a memory from
extreme events; the sizes are chosen here.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from zoo.checks import check_positive
from zoo.tasks.base import Batch, Task


@dataclasses.dataclass(frozen=True)
class OutlierRegression(Task):
    """Pairs x_t, y_t = W x_t of a new W for every sequence; some of the y_t are observed with a large error.

    W [dim, dim] has entries N(0, 1 / dim), x_t is uniform on the sphere, and with probability ``outliers`` the observation
    is y_t + ``outlier_scale`` N(0, I). Batch: ``inputs`` [time, 2 dim], x_t and the observed y_t; ``targets`` [time, dim],
    the true y_t; ``mask`` [time], the second half. Step t is to be predicted from x_t and the pairs before it.

    Attributes:
      dim: width of x and y.
      time: pairs, at least 2.
      outliers: share of observations that are off.
      outlier_scale: by how much.
    """

    dim: int = 8
    time: int = 48
    outliers: float = 0.1
    outlier_scale: float = 5.0

    def __post_init__(self):
        check_positive("dim", self.dim)
        check_positive("time", self.time)
        if self.time < 2:
            raise ValueError(f"time must be at least 2, got {self.time}")
        if not 0 <= self.outliers <= 1:
            raise ValueError(f"outliers must lie in [0, 1], got {self.outliers}")
        if not self.outlier_scale >= 0:
            raise ValueError(f"outlier_scale must not be negative, got {self.outlier_scale}")

    def example(self, key: Key[Array, ""], data: None = None) -> Batch:
        keys = jax.random.split(key, 4)
        matrix = jax.random.normal(keys[0], (self.dim, self.dim)) * self.dim**-0.5
        x = jax.random.normal(keys[1], (self.time, self.dim))
        x = x / jnp.linalg.norm(x, axis=-1, keepdims=True)
        y = x @ matrix.T
        off = jax.random.bernoulli(keys[2], self.outliers, (self.time, 1))
        seen = y + jnp.where(off, self.outlier_scale * jax.random.normal(keys[3], y.shape), 0)
        return Batch(jnp.concatenate([x, seen], axis=-1), y, jnp.arange(self.time) >= self.time // 2)


def normalized_squared_error(
    predictions: Float[Array, "*B D"], targets: Float[Array, "*B D"], mask: Bool[Array, "*B"] | None = None
) -> Float[Array, ""]:
    """NMSE: the sum of squared errors over the sum of squared targets, where ``mask`` is True."""
    where = jnp.ones(targets.shape[:-1], bool) if mask is None else mask
    error = jnp.sum(jnp.where(where[..., None], (predictions - targets) ** 2, 0))
    return error / jnp.sum(jnp.where(where[..., None], targets**2, 0))
