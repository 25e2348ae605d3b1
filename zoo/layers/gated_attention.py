"""Chunked attention of one head between an operator over time and two gates: the layer of MEGA, whatever the operator.

Ma et al. (2022), Mega: Moving Average Equipped Gated Attention; with a dilated convolution as the operator, Terzic et
al. (2023), TCNCA. With x_t [D] the residual stream, n_t = norm(x_t), m = operator(n) [D] (an exponential moving
average in MEGA), sizes D, Z (queries and keys) and V (values):

    v = SiLU(W_v n)                                         [V]
    [u | z | r | s] = W_m m                                 [D], [Z], [V], [D]
    u = sigmoid(u), z = SiLU(z), r = SiLU(r)
    q = z * gamma_0 + beta_0,  k = z * gamma_1 + beta_1     [Z]
    h = SiLU(s + W_h (attention(q, k, v) * r))              [D]
    y = u * (h - x),  so that x + y = u h + (1 - u) x       x without the norm, in both places

Attention is within chunks: token t of a document belongs to chunk t // c of it and sees, in the causal form, the
tokens of its chunk up to itself. Weights by ``activation``, with j - i the distance between two positions:

    softmax    softmax_j(q_i . k_j / sqrt(Z) + b_{j-i})
    laplace    0.5 (1 + erf((s - sqrt(1/2)) / (sqrt(1/(4 pi)) sqrt 2))),  s = q_i . k_j / count_i + b_{j-i}
    relu2      max(s, 0)^2,  count_i the number of tokens that i sees

The bias b is "simple", a learned number per distance [2 P - 1] for chunks of at most P tokens; "rotary",
b_{j-i} = rot(a, i) . rot(b, j) with learned a, b [Z] and rot as in rotary positions; or "none".

Time O(T c (Z + V)) for the attention. State of the causal form: keys and values of the present chunk, at their place
in it [c, Z] and [c, V], and the position in the document: the cache is empty again whenever the chunk is full.
"""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from zoo.checks import check_choice, check_positive
from zoo.dtypes import accumulator
from zoo.layers.attention import document_positions, rotary, unroll_ring

ACTIVATIONS = ("softmax", "laplace", "relu2")
BIASES = ("simple", "rotary", "none")


@struct.dataclass
class ChunkCache:
    """Carried state: ``keys`` [B, c, Z] and ``values`` [B, c, V] at their place in the chunk (older ones behind those of the
    present chunk); ``age`` [B] int32, tokens of the document so far."""

    keys: Float[Array, "B C Z"]
    values: Float[Array, "B C V"]
    age: Int[Array, " B"]


def relative_bias(params: Mapping[str, Array], size: int) -> Float[Array, " R"] | None:
    """b_d for the R = 2 size - 1 distances d = 1 - size .. size - 1.

    Args:
      params: ``relative_bias`` [2 P - 1], or ``relative_query`` and ``relative_key`` [Z]; without either there is
        no bias: None.
      size: positions in a chunk.

    Raises:
      ValueError: the table is too short.
    """
    if "relative_bias" in params:
        table = params["relative_bias"]
        longest = (table.shape[0] + 1) // 2
        if size > longest:
            raise ValueError(f"max_positions={longest} is less than the {size} positions of a chunk")
        return table[longest - size : longest + size - 1]
    if "relative_query" in params:
        distances = jnp.arange(1 - size, size)
        turned = rotary(
            jnp.broadcast_to(params["relative_key"], (1, 2 * size - 1, 1, len(params["relative_key"]))),
            distances[None],
        )
        return turned[0, :, 0] @ params["relative_query"]
    return None


def chunked_attention(
    queries: Float[Array, "B T Z"],
    keys: Float[Array, "B T Z"],
    values: Float[Array, "B T V"],
    cache: ChunkCache | None = None,
    *,
    chunk: int,
    activation: str = "softmax",
    bias: Float[Array, " R"] | None = None,
    reset: Bool[Array, "B T"] | None = None,
    dropout: Callable[[Array], Array] | None = None,
) -> tuple[Float[Array, "B T V"], ChunkCache]:
    """The causal attention of the module docstring.

    Rows that are one document from the start are cut into chunks; where chunks may begin anywhere (after a reset or
    with a cache), blocks of c queries look at their own and the c keys before.

    Args:
      queries, keys, values: of every token.
      cache: what earlier tokens left, None for the start.
      chunk: c.
      activation: "softmax", "laplace" or "relu2".
      bias: of every distance, as ``relative_bias`` returns.
      reset: True at the first token of a new document.
      dropout: applied to the weights.

    Returns:
      (y in the dtype of ``values``, cache after the last token).
    """
    batch, time, _ = queries.shape
    age = document_positions(reset, None if cache is None else cache.age, shape=(batch, time))
    place = age % chunk
    weigh = _Weights(activation, bias, chunk, dropout)
    if cache is None:
        empty = [jnp.zeros((batch, chunk, a.shape[2]), a.dtype) for a in (keys, values)]
        cache = ChunkCache(*empty, jnp.zeros((batch,), jnp.int32))
        fresh = True
    else:
        fresh = False
        # Through the cache's dtype in every case: a token must look the same from this call and from the next.
        keys, values = keys.astype(cache.keys.dtype), values.astype(cache.values.dtype)
    if time == 1 and not fresh:
        rows = jnp.arange(batch)
        k, v = (old.at[rows, place[:, 0]].set(new[:, 0]) for old, new in ((cache.keys, keys), (cache.values, values)))
        distance = place - jnp.arange(chunk)  # [B, c]
        seen = (distance >= 0)[:, None]
        y = weigh(queries, k.astype(queries.dtype), v.astype(queries.dtype), -distance[:, None], seen)
        return y, ChunkCache(k, v, age[:, -1] + 1)

    def last(old, new):
        """The cache after the new ones: the last c tokens, the last of all at its place in the chunk."""
        rolled = unroll_ring(old[:, :, None], cache.age % chunk)[:, :, 0]
        kept = jnp.concatenate([rolled, new], axis=1)[:, -chunk:]
        return unroll_ring(kept[:, :, None], (chunk - 1 - place[:, -1]) % chunk)[:, :, 0], rolled

    (new_keys, old_keys), (new_values, old_values) = last(cache.keys, keys), last(cache.values, values)
    after = ChunkCache(new_keys, new_values, age[:, -1] + 1)
    if fresh and reset is None:
        size = min(chunk, time)
        q, k, v = (_blocks(a, size) for a in (queries, keys, values))
        difference = jnp.arange(size) - jnp.arange(size)[:, None]
        y = weigh(q, k, v, difference, difference <= 0)
        return y.reshape(batch, -1, y.shape[-1])[:, :time], after
    q, visible = _blocks(queries, chunk), _blocks(place[..., None] + 1, chunk)

    def pairs(old, new):
        """[B * blocks, 2 c, ...]: every block with the c tokens before it."""
        new = new.astype(queries.dtype)
        padded = jnp.pad(new, ((0, 0), (0, -time % chunk), (0, 0)))
        both = jnp.concatenate([old.astype(new.dtype), padded], axis=1).reshape(batch, -1, chunk, new.shape[-1])
        return jnp.concatenate([both[:, :-1], both[:, 1:]], axis=2).reshape(-1, 2 * chunk, new.shape[-1])

    difference = jnp.arange(2 * chunk) - jnp.arange(chunk, 2 * chunk)[:, None]
    seen = (difference <= 0) & (-difference < visible)
    y = weigh(q, pairs(old_keys, keys), pairs(old_values, values), difference, seen)
    return y.reshape(batch, -1, y.shape[-1])[:, :time], after


def bidirectional_chunked_attention(
    queries: Float[Array, "B T Z"],
    keys: Float[Array, "B T Z"],
    values: Float[Array, "B T V"],
    *,
    chunk: int | None,
    activation: str = "softmax",
    bias: Float[Array, " R"] | None = None,
    reset: Bool[Array, "B T"] | None = None,
    dropout: Callable[[Array], Array] | None = None,
) -> Float[Array, "B T V"]:
    """Every token sees its whole chunk, or with ``chunk=None`` its whole document; see ``chunked_attention``."""
    batch, time, _ = queries.shape
    size = time if chunk is None else min(chunk, time)
    weigh = _Weights(activation, bias, size, dropout)
    if reset is None:
        valid = _blocks(jnp.ones((batch, time, 1), bool), size)
        q, k, v = (_blocks(a, size) for a in (queries, keys, values))
        difference = jnp.arange(size) - jnp.arange(size)[:, None]
        y = weigh(q, k, v, difference, jnp.swapaxes(valid, 1, 2))
        return y.reshape(batch, -1, y.shape[-1])[:, :time]
    number = jnp.cumsum(document_positions(reset) % size == 0, axis=1)[..., None]  # of the chunk in its row, from 1 on
    if size == time:
        return weigh(
            queries, keys, values, jnp.arange(time) - jnp.arange(time)[:, None], number == jnp.swapaxes(number, 1, 2)
        )
    # A chunk may begin anywhere: blocks of queries look at their own keys and those of the blocks beside it.

    def neighbours(a):
        padded = jnp.pad(a, ((0, 0), (size, size + -time % size), (0, 0))).reshape(batch, -1, size, a.shape[-1])
        return jnp.concatenate([padded[:, :-2], padded[:, 1:-1], padded[:, 2:]], axis=2).reshape(
            -1, 3 * size, a.shape[-1]
        )

    difference = jnp.arange(3 * size) - jnp.arange(size, 2 * size)[:, None]
    seen = _blocks(number, size) == jnp.swapaxes(neighbours(number), 1, 2)  # the padding has number 0
    seen = seen & (abs(difference) < size)
    y = weigh(_blocks(queries, size), neighbours(keys), neighbours(values), difference, seen)
    return y.reshape(batch, -1, y.shape[-1])[:, :time]


def _blocks(a: Array, size: int) -> Array:
    """[B, T, ...] -> [B * ceil(T / size), size, ...], padded with zeros."""
    padded = jnp.pad(a, ((0, 0), (0, -a.shape[1] % size), (0, 0)))
    return padded.reshape(-1, size, a.shape[2])


class _Weights:
    """(q [B, Q, Z], k [B, S, Z], v [B, S, V], difference j - i, seen), both broadcasting to [B, Q, S] -> y [B, Q, V]."""

    def __init__(self, activation: str, bias: Array | None, size: int, dropout: Callable | None):
        check_choice("activation", activation, ACTIVATIONS)
        self.activation, self.bias, self.size, self.dropout = activation, bias, size, dropout

    def __call__(self, q: Array, k: Array, v: Array, difference: Array, seen: Array) -> Array:
        dtype = accumulator(q.dtype)
        scores = jnp.einsum("bqz,bsz->bqs", q, k, preferred_element_type=dtype)
        shift = 0
        if self.bias is not None:
            middle = (self.bias.shape[0] - 1) // 2
            shift = self.bias.astype(dtype)[jnp.clip(difference + middle, 0, 2 * middle)]
        if self.activation == "softmax":
            scores = scores * q.shape[-1] ** -0.5 + shift
            weights = jax.nn.softmax(jnp.where(seen, scores, jnp.finfo(dtype).min), axis=-1)
        else:
            count = jnp.maximum(jnp.sum(jnp.broadcast_to(seen, scores.shape), axis=-1, keepdims=True), 1)
            scores = scores / count.astype(dtype) + shift
            weights = laplace(scores) if self.activation == "laplace" else jnp.square(jax.nn.relu(scores))
        weights = jnp.where(seen, weights, 0)
        if self.dropout is not None:
            weights = self.dropout(weights)
        return jnp.einsum("bqs,bsv->bqv", weights.astype(v.dtype), v, preferred_element_type=dtype).astype(q.dtype)


def laplace(scores: Array) -> Array:
    """0.5 (1 + erf((s - mu) / (sigma sqrt 2))) with mu = sqrt(1/2), sigma = sqrt(1 / (4 pi)), rounded as published."""
    return 0.5 * (1 + jax.lax.erf((scores - 0.707107) / (0.282095 * 2**0.5)))


def gated_attention(
    params: Mapping[str, Array],
    x: Float[Array, "B T D"],
    normed: Float[Array, "B T D"],
    moved: Float[Array, "B T D"],
    cache: ChunkCache | None = None,
    *,
    chunk: int | None,
    causal: bool = True,
    activation: str = "softmax",
    reset: Bool[Array, "B T"] | None = None,
    dropout: Callable[[Array], Array] | None = None,
    attention_dropout: Callable[[Array], Array] | None = None,
) -> tuple[Float[Array, "B T D"], ChunkCache | None]:
    """The layer of the module docstring, given its operator's output.

    Args:
      params: ``value`` [D, V], ``value_bias``; ``mix`` [D, D + Z + V + D], columns u, z, r, s, ``mix_bias``;
        ``scale`` and ``shift`` [2, Z], gamma and beta of queries and keys; ``output`` [V, D], ``output_bias``; those of
        ``relative_bias``.
      x: the residual stream; its dtype is the compute dtype.
      normed: norm(x).
      moved: operator(norm(x)).
      cache: of earlier tokens, None for the start; causal form only.
      chunk: c; None (not causal): whole documents.
      causal: see no later token.
      activation: "softmax", "laplace" or "relu2".
      reset: True at the first token of a new document.
      dropout: applied to h.
      attention_dropout: applied to the attention's weights.

    Returns:
      (u * (h - x), cache after the last token, None if not causal).
    """
    dim, width = x.shape[-1], params["value"].shape[1]
    size = params["scale"].shape[1]
    v = jax.nn.silu(_affine(params, "value", normed))
    u, z, r, s = jnp.split(_affine(params, "mix", moved), (dim, dim + size, dim + size + width), axis=-1)
    q, k = queries_and_keys(params, jax.nn.silu(z))
    longest = x.shape[1] if chunk is None else chunk if causal else min(chunk, x.shape[1])
    options = {
        "chunk": chunk, "activation": activation, "bias": relative_bias(params, longest), "reset": reset,
        "dropout": attention_dropout,
    }  # fmt: skip
    if causal:
        attended, cache = chunked_attention(q, k, v, cache, **options)
    else:
        attended = bidirectional_chunked_attention(q, k, v, **options)
    h = jax.nn.silu(s + _affine(params, "output", attended * jax.nn.silu(r)))
    h = h if dropout is None else dropout(h)
    return jax.nn.sigmoid(u) * (h - x), cache


def queries_and_keys(params: Mapping[str, Array], z: Float[Array, "B T Z"]) -> tuple[Array, Array]:
    """z * scale_i + shift_i for i = 0 (queries) and 1 (keys)."""
    scale, shift = params["scale"].astype(z.dtype), params["shift"].astype(z.dtype)
    return z * scale[0] + shift[0], z * scale[1] + shift[1]


def _affine(params, name, x):
    return x @ params[name].astype(x.dtype) + params[f"{name}_bias"].astype(x.dtype)


def gated_attention_parameters(
    module: nn.Module, *, dim: int, key_dim: int, value_dim: int, chunk: int | None, bias: str, max_positions: int,
    weight_std: float | None = 0.02, scale_mean: float = 0.0, scale_std: float = 0.02,
) -> dict[str, Array]:  # fmt: skip
    """Checks the sizes and declares the parameters of ``gated_attention`` on ``module``.

    Weights are N(0, weight_std^2), or N(0, 1 / fan_in) for None; gamma is N(scale_mean, scale_std^2); the bias table
    and vectors are N(0, 0.02^2); biases and beta are 0.
    """
    declared = {
        "value": (dim, value_dim), "mix": (dim, 2 * dim + key_dim + value_dim), "output": (value_dim, dim),
    }  # fmt: skip
    return chunked_attention_parameters(
        module, declared, key_dim=key_dim, chunk=chunk, bias=bias, max_positions=max_positions, weight_std=weight_std,
        scale_mean=scale_mean, scale_std=scale_std,
    )  # fmt: skip


def chunked_attention_parameters(
    module: nn.Module, matrices: Mapping[str, tuple[int, int]], *, key_dim: int, chunk: int | None, bias: str,
    max_positions: int, weight_std: float | None, scale_mean: float, scale_std: float,
) -> dict[str, Array]:  # fmt: skip
    """Declares ``matrices`` with their biases, gamma and beta of queries and keys, and the relative bias."""
    check_choice("bias", bias, BIASES)
    check_positive("key_dim", key_dim)
    check_positive("max_positions", max_positions)
    for name, shape in matrices.items():
        for size in shape:
            check_positive(f"the sizes of {name}", size)
    if chunk is not None:
        check_positive("chunk", chunk)
        if bias == "simple" and chunk > max_positions:
            raise ValueError(f"chunk={chunk} is larger than max_positions={max_positions}, the size of the simple bias")
    if bias == "rotary" and key_dim % 2:
        raise ValueError(f"the rotary bias needs an even key_dim, got {key_dim}")
    params = {}
    for name, shape in matrices.items():
        std = shape[0] ** -0.5 if weight_std is None else weight_std
        params[name] = module.param(name, nn.initializers.normal(std), shape)
        params[f"{name}_bias"] = module.param(f"{name}_bias", nn.initializers.zeros, shape[1:])

    def scale(key, shape):
        return scale_mean + scale_std * jax.random.normal(key, shape)

    params["scale"] = module.param("scale", scale, (2, key_dim))
    params["shift"] = module.param("shift", nn.initializers.zeros, (2, key_dim))
    small = nn.initializers.normal(0.02)
    if bias == "simple":
        params["relative_bias"] = module.param("relative_bias", small, (2 * max_positions - 1,))
    elif bias == "rotary":
        params["relative_query"] = module.param("relative_query", small, (key_dim,))
        params["relative_key"] = module.param("relative_key", small, (key_dim,))
    return params


def droppers(module: nn.Module, *rates: float) -> list[Callable[[Array], Array] | None]:
    """Dropout functions of ``module``, None where the rate is 0 or there is no rng "dropout" (evaluation)."""
    training = module.has_rng("dropout") and not module.is_initializing()
    return [nn.Dropout(rate, deterministic=False) if rate and training else None for rate in rates]


def initial_cache(batch_size: int, chunk: int, key_dim: int, value_dim: int, dtype: Any) -> ChunkCache:
    """An empty cache."""
    return ChunkCache(
        jnp.zeros((batch_size, chunk, key_dim), dtype), jnp.zeros((batch_size, chunk, value_dim), dtype),
        jnp.zeros((batch_size,), jnp.int32),
    )  # fmt: skip
