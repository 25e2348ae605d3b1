"""What attention without softmax shares: feature maps, normalisation, the parameters, and dropout on the weights."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Key

from zoo.checks import check_choice, check_divides, check_positive
from zoo.dtypes import accumulator

FEATURE_MAPS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "elu": lambda x: jax.nn.elu(x) + 1,
    "relu": jax.nn.relu,
    "exp": jnp.exp,
    "identity": lambda x: x,
}

TAYLOR_STORAGES = ("full", "symmetric")
TAYLOR_EPS = 1e-12  # added to sums of Taylor weights, each of which is at least 1/2: it only forbids a 0 / 0


def taylor_features(x: Float[Array, "*B F"], storage: str = "full") -> Float[Array, "*B K"]:
    """phi(x) with phi(q) . phi(k) = 1 + s + s^2 / 2 >= 1/2, s = q . k / sqrt(F): exp(s) to second order (Zhang et al. 2024).

    phi(x) = [1, x / F^(1/4), x_i x_j / sqrt(2 F)].

    Args:
      x: queries or keys.
      storage: "full": all F^2 products, row by row, as published; "symmetric": every product once, i <= j, those with
        i < j times sqrt(2): the same weights with nearly half of the numbers.

    Returns:
      K = ``taylor_dim(F, storage)`` features in x's dtype.
    """
    check_choice("storage", storage, TAYLOR_STORAGES)
    width = x.shape[-1]
    if storage == "full":
        second = (x[..., :, None] * x[..., None, :]).reshape(*x.shape[:-1], width**2)
    else:
        rows, columns = np.triu_indices(width)
        factors = np.where(rows == columns, 1.0, 2.0**0.5)
        second = x[..., rows] * x[..., columns] * factors.astype(x.dtype)
    return jnp.concatenate([jnp.ones_like(x[..., :1]), x * width**-0.25, second * (2 * width) ** -0.5], axis=-1)


def taylor_weights(q: Float[Array, "B T H F"], k: Float[Array, "B S H F"]) -> Float[Array, "B H T S"]:
    """phi(q) . phi(k) of ``taylor_features`` without the features: 1 + s + s^2 / 2."""
    s = jnp.einsum("bthf,bshf->bhts", q, k, precision=lax.Precision.HIGHEST) * q.shape[-1] ** -0.5
    return 1 + s + s**2 / 2


def taylor_dim(width: int, storage: str = "full") -> int:
    """Features of ``taylor_features`` for inputs of ``width``: 1 + F + F^2, or 1 + F + F (F + 1) / 2."""
    check_choice("storage", storage, TAYLOR_STORAGES)
    return 1 + width + (width**2 if storage == "full" else width * (width + 1) // 2)


def taylor_sums(
    batch: int, heads: int, width: int, values: int, storage: str, dtype: jnp.dtype
) -> tuple[Float[Array, "B H K V"], Float[Array, "B H K"]]:
    """Zeros: the sums of phi(k) v^T and of phi(k) over nothing, K = ``taylor_dim(width, storage)``."""
    memory = jnp.zeros((batch, heads, taylor_dim(width, storage), values), dtype)
    return memory, memory[..., 0]


def retention_decays(heads: int, start: float = -5.0) -> Float[Array, " H"]:
    """log(1 - 2^(start - h)) of heads h = 0, 1, ...: RetNet's fixed decays for start -5, Based's for -3."""
    return jnp.log1p(-(2.0 ** (start - jnp.arange(heads))))


def append_normalizer(
    v: Float[Array, "B T H V"], memory: Float[Array, "B H K V"], key_sum: Float[Array, "B H K"]
) -> tuple[Float[Array, "B T H V+1"], Float[Array, "B H K V+1"]]:
    """Values and memory with one more channel, of which the values are 1: it sums the weights."""
    values = jnp.concatenate([v, jnp.ones_like(v[..., :1])], axis=-1)
    return values, jnp.concatenate([memory, key_sum[..., None]], axis=-1)


def normalized(y: Float[Array, "B T H V+1"], eps: float = 0.0) -> Float[Array, "B T H V"]:
    """The channels of ``append_normalizer`` over the last of them, the sum of the weights, plus ``eps``."""
    return y[..., :-1] / (y[..., -1:] + eps)


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


def expanded_widths(dim: int, heads: int, key_expansion: float, value_expansion: float) -> tuple[int, int]:
    """(K, V) of H heads with H K = ``key_expansion`` D and H V = ``value_expansion`` D; ValueError where they do not fit."""
    check_positive("heads", heads)
    widths = []
    for name, expansion in (("key_expansion", key_expansion), ("value_expansion", value_expansion)):
        check_positive(f"dim * {name}, rounded down,", int(dim * expansion))
        check_divides("heads", heads, f"dim * {name}", int(dim * expansion))
        widths.append(int(dim * expansion) // heads)
    return widths[0], widths[1]


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
