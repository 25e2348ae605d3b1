"""A Transformer layer as a pure function (Vaswani et al. 2017), for models that apply one layer many times.

    norm "post":  a = LN(x + MHSA(x));  a = LN(a + Cross(a));  y = LN(a + Trans(a))
    norm "pre":   a = x + MHSA(LN(x));  a = a + Cross(LN(a));  y = a + Trans(LN(a))

MHSA has no biases; Cross, an attention over a memory, is there if a memory is given. Trans(h) = relu(h up + b) down + b,
with a depthwise convolution over time before each of the products when ``params`` has ``up_kernel`` and ``down_kernel``.
Sublayers compute in ``Layer.dtype``, the residual stream keeps its own precision.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from zoo.layers.attention import grouped_attention
from zoo.layers.convolution import depthwise_convolution, recent
from zoo.layers.norms import layer_norm

Params = Mapping[str, Any]


class Layer(NamedTuple):
    """How layers are applied.

    Attributes:
      dtype: compute dtype.
      heads: number of heads; head j owns channels j K to (j + 1) K.
      pre: norm before each sublayer, else after.
      attention: (queries, keys, values [B, T, H, K], cache) -> (y [B, T, H, K], (key, value) caches, attention map).
      age: [B, T] position in the document, from 0.
      lengths: [B, T] length of the document, for centred convolutions; None: causal ones.
      memory_mask: [B, S] where the memory is real, None: everywhere.
      dropout: rate on every residual branch, when a key is given.
    """

    dtype: Any
    heads: int
    pre: bool
    attention: Callable[..., tuple[Array, Any, Any]]
    age: Array
    lengths: Array | None = None
    memory_mask: Array | None = None
    dropout: float = 0.0


class LayerCache(NamedTuple):
    """What a layer remembers of earlier tokens: rings of ``keys`` and ``values``, latest inputs of the convolutions."""

    keys: Any = None
    values: Any = None
    up_inputs: Any = None
    down_inputs: Any = None


class LayerTrace(NamedTuple):
    """What a layer leaves behind: its ``cache`` after the call, and the attention ``map`` if there is one."""

    cache: LayerCache
    map: Any


def transformer_layer(
    params: Params,
    x: Float[Array, "B T D"],
    cache: LayerCache | None,
    memory: tuple[Array, Array] | None,
    layer: Layer,
    key: Any = None,
    *,
    gated: bool = False,
) -> tuple[Float[Array, "B T D"], LayerTrace]:
    """The layer of the module docstring.

    Args:
      params: ``query``, ``key``, ``value``, ``output`` [D, D]; ``up`` [D, F], ``up_bias``, ``down`` [F, D],
        ``down_bias``; ``attention_norm``, ``transition_norm`` {``scale``, ``bias``} [D]; for a memory ``cross_query``,
        ``cross_output`` and ``cross_norm``; for convolutions ``up_kernel`` [taps, D], ``down_kernel`` [taps, F].
      x: the residual stream.
      cache: of the tokens before x, None if there are none.
      memory: keys and values [B, S, H, K], as ``project_memory`` makes them; None: no cross-attention.
      layer: how it is applied.
      key: randomness for dropout; None: no dropout.
      gated: only LN(MHSA(x)), without residual, and the attention over the memory: what a gated transition starts from.

    Returns:
      (y, what the layer leaves behind).
    """
    rings, tails, maps = (None, None), (None, None), None

    def drop(y, index):
        y = y.astype(x.dtype)
        if key is None or not layer.dropout:
            return y
        keep = jax.random.bernoulli(jax.random.fold_in(key, index), 1 - layer.dropout, y.shape)
        return jnp.where(keep, y / (1 - layer.dropout), 0)

    def before(x, name):
        return (layer_normed(params, name, x) if layer.pre else x).astype(layer.dtype)

    def after(x, name):
        return x if layer.pre else layer_normed(params, name, x)

    h = x.astype(layer.dtype) if gated else before(x, "attention_norm")
    q, k, v = (_split_heads(params, name, h, layer.heads) for name in ("query", "key", "value"))
    y, rings, maps = layer.attention(q, k, v, cache)
    y = drop(_merge_heads(params, "output", y), 0)
    x = layer_normed(params, "attention_norm", y) if gated else after(x + y, "attention_norm")

    if memory is not None:
        q = _split_heads(params, "cross_query", before(x, "cross_norm"), layer.heads)
        mask = None if layer.memory_mask is None else layer.memory_mask[:, None]
        y = _merge_heads(params, "cross_output", grouped_attention(q, *memory, mask))
        x = after(x + drop(y, 1), "cross_norm")

    if not gated:
        y, tails = _transition(params, before(x, "transition_norm"), cache, layer)
        x = after(x + drop(y, 2), "transition_norm")
    return x, LayerTrace(LayerCache(*rings, *tails), maps)


def transformer_layers(
    params: Params,
    x: Float[Array, "B T D"],
    caches: Any,
    memory: Any,
    layer: Layer,
    key: Any = None,
    *,
    gated: bool = False,
) -> tuple[Float[Array, "B T D"], LayerTrace]:
    """Layers whose parameters, caches and memories are stacked on axis 0, one after the other; traces are stacked too."""

    def one(x, at):
        own, cache, seen, index = at
        draw = None if key is None else jax.random.fold_in(key, index)
        return transformer_layer(own, x, cache, seen, layer, draw, gated=gated)

    count = params["query"].shape[0]
    if count > 1:
        return lax.scan(one, x, (params, caches, memory, jnp.arange(count)))
    x, trace = one(x, jax.tree.map(lambda a: a[0], (params, caches, memory, jnp.arange(1))))
    return x, jax.tree.map(lambda a: a[None], trace)


def project_memory(params: Params, memory: Float[Array, "B S D"], heads: int) -> tuple[Array, Array]:
    """Cross-attention keys and values [n, B, S, H, K] of ``memory`` for n stacked layers: the same for every token."""

    def project(own):
        return tuple(_split_heads(own, name, memory, heads) for name in ("cross_key", "cross_value"))

    return jax.vmap(project)({name: params[name] for name in ("cross_key", "cross_value")})


def layer_normed(params: Params, name: str, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
    """Layer norm with ``params[name]``."""
    return layer_norm(x, params[name]["scale"], params[name]["bias"])


def _transition(params: Params, h: Array, cache: LayerCache | None, layer: Layer) -> tuple[Array, tuple[Any, Any]]:
    """Trans(h) and the latest inputs of the two convolutions."""
    tails = []
    for name in ("up", "down"):
        if f"{name}_kernel" in params:
            kernel = params[f"{name}_kernel"]
            history = None if cache is None else getattr(cache, f"{name}_inputs")
            tails.append(recent(h, kernel.shape[0] - 1, history) if layer.lengths is None else None)
            h = depthwise_convolution(h, kernel, layer.age, layer.lengths, history)
        h = h @ params[name].astype(h.dtype) + params[f"{name}_bias"].astype(h.dtype)
        h = jax.nn.relu(h) if name == "up" else h
    return h, tuple(tails) or (None, None)


def _split_heads(params: Params, name: str, h: Array, heads: int) -> Array:
    y = h @ params[name].astype(h.dtype)
    return y.reshape(*y.shape[:-1], heads, -1)


def _merge_heads(params: Params, name: str, y: Array) -> Array:
    return y.reshape(*y.shape[:2], -1) @ params[name].astype(y.dtype)
