"""What attention without softmax shares: feature maps, the parameters, and dropout on the weights."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from zoo.checks import check_divides, check_positive
from zoo.dtypes import accumulator

FEATURE_MAPS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "elu": lambda x: jax.nn.elu(x) + 1,
    "relu": jax.nn.relu,
    "exp": jnp.exp,
    "identity": lambda x: x,
}


def linear_attention_parameters(
    module: nn.Module, *, dim: int, heads: int, key_dim: int | None
) -> dict[str, Float[Array, "..."]]:
    """Checks the sizes; declares ``query``, ``key`` [D, H, K], ``value`` [D, H, V], ``output`` [H, V, D] on ``module``.

    V = D / H; K = ``key_dim``, or V when it is None.
    """
    value_dim, key_dim = head_sizes(dim, heads, key_dim)
    into = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal", in_axis=0, out_axis=(1, 2))
    out_of = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal", in_axis=(0, 1), out_axis=2)
    return {
        "query": module.param("query", into, (dim, heads, key_dim)),
        "key": module.param("key", into, (dim, heads, key_dim)),
        "value": module.param("value", into, (dim, heads, value_dim)),
        "output": module.param("output", out_of, (heads, value_dim, dim)),
    }


def head_sizes(dim: int, heads: int, key_dim: int | None) -> tuple[int, int]:
    """(V, K) as in ``linear_attention_parameters``; ValueError for sizes that do not fit."""
    check_positive("heads", heads)
    check_divides("heads", heads, "dim", dim)
    if key_dim is not None:
        check_positive("key_dim", key_dim)
    return dim // heads, dim // heads if key_dim is None else key_dim


def check_dropout(rate: float) -> None:
    """Raises ValueError unless 0 <= rate < 1."""
    if not 0 <= rate < 1:
        raise ValueError(f"dropout must lie in [0, 1), got {rate!r}")


def dropped_attention(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T H K"],
    v: Float[Array, "B T H V"],
    divisor: Float[Array, "B T H"] | None,
    memory: Float[Array, "B H K V"],
    *,
    key: Key[Array, ""],
    rate: float,
    reset: Bool[Array, "B T"] | None = None,
) -> Float[Array, "B T H V"]:
    """Causal attention with weights q_i . k_j / divisor_i, of which a share ``rate`` is dropped after the division.

    Dropout acts on single weights, which the recurrent form does not have: this is the quadratic form, for training.
    What comes from before the call, ``memory`` (sums of k v^T), has no weights any more and is not dropped.
    """
    dtype = accumulator(q.dtype)
    time = q.shape[1]
    seen = jnp.tril(jnp.ones((time, time), bool))[None]
    before = jnp.ones(q.shape[:2], bool)
    if reset is not None:
        document = jnp.cumsum(reset, axis=1)
        seen = seen & (document[:, :, None] == document[:, None])
        before = document == 0
    weights = jnp.einsum("bthk,bshk->bhts", q, k, preferred_element_type=dtype)
    past = jnp.einsum("bthk,bhkv->bthv", q.astype(dtype), memory) * before[..., None, None]
    if divisor is not None:
        weights = weights / jnp.swapaxes(divisor, 1, 2)[..., None]
        past = past / divisor[..., None]
    kept = jax.random.bernoulli(key, 1 - rate, weights.shape) & seen[:, None]
    weights = jnp.where(kept, weights / (1 - rate), 0)
    return jnp.einsum("bhts,bshv->bthv", weights, v.astype(dtype)) + past
