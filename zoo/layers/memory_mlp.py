"""The memory MLP of test-time memories (Titans, TTT, Miras): a small MLP per head whose weights are the memory's state.

    plain           M(x) = sigma(... sigma(x W_0 + b_0) ...) W_{L-1} + b_{L-1}
    residual_norm   M(x) = x + norm(that) * (1 + gain), norm to mean 0 and deviation 1 over the channels

x [K]; W_0 [K, N], W_i [N, N], W_{L-1} [N, K], one layer: W_0 [K, K]. Weights lie in a dictionary: ``W0``, ``W1``, ...;
``b0``, ... where there are biases; ``gain`` [K] where the norm's gain is part of the memory and is learned with it. Any
axes may stand in front of these, such as [batch, heads].

``memory_mlp`` makes the function that ``zoo.scans.memory_descent`` and its kin take (contract: zoo/scans/chunked/memory.py);
``zoo.scans.apply_memory`` reads it, ``zoo.scans.token_gradients`` gives the factors h_j, delta_j of every token's gradient.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Key

from zoo.checks import check_choice, check_positive
from zoo.layers.mlp import ACTIVATIONS
from zoo.scans.chunked.memory import Memory


def memory_mlp(
    depth: int,
    *,
    activation: str = "silu",
    residual_norm: bool = False,
    bias: bool = False,
    gain: bool = False,
    norm_scale: Float[Array, "#*B #C K"] | None = None,
    norm_bias: Float[Array, "#*B #C K"] | None = None,
    eps: float = 1e-5,
) -> Memory:
    """The memory of the module docstring as a function ``memory(use, x)``.

    Args:
      depth: layers L >= 1.
      activation: between layers, a name of ``zoo.layers.mlp.ACTIVATIONS``.
      residual_norm: x + norm(mlp(x)) instead of mlp(x).
      bias: layers have biases, among the memory's weights.
      gain: the norm has the gain 1 + ``gain``, among the memory's weights.
      norm_scale, norm_bias: constant scale and bias of the norm, which the memory does not write (as in TTT); None: 1 and 0.
      eps: of the norm, added to the variance.

    Raises:
      ValueError: depth < 1, an unknown activation, or a norm's option without ``residual_norm``.
    """
    check_positive("depth", depth)
    check_choice("activation", activation, ACTIVATIONS)
    if not residual_norm and (gain or norm_scale is not None or norm_bias is not None):
        raise ValueError("gain, norm_scale and norm_bias belong to the norm: they need residual_norm=True")
    sigma = ACTIVATIONS[activation]

    def memory(use, x):
        z = x
        for layer in range(depth):
            z = use(f"W{layer}", sigma(z) if layer else z)
            if bias:
                z = z + use(f"b{layer}", jnp.ones_like(z))
        if not residual_norm:
            return z
        z = z - jnp.mean(z, axis=-1, keepdims=True)
        z = z * lax.rsqrt(jnp.mean(z**2, axis=-1, keepdims=True) + eps)
        if gain:
            z = z + use("gain", z)
        if norm_scale is not None:
            z = z * norm_scale
        return x + (z if norm_bias is None else z + norm_bias)

    return memory


def memory_shapes(
    depth: int, width: int, hidden: int, *, bias: bool = False, gain: bool = False
) -> dict[str, tuple[int, ...]]:
    """Shapes of the weights by name, for inputs and outputs of ``width`` and ``hidden`` channels between layers."""
    for name, value in (("depth", depth), ("width", width), ("hidden", hidden)):
        check_positive(name, value)
    widths = [width, *[hidden] * (depth - 1), width]
    shapes = {f"W{layer}": (widths[layer], widths[layer + 1]) for layer in range(depth)}
    if bias:
        shapes |= {f"b{layer}": (widths[layer + 1],) for layer in range(depth)}
    return shapes | ({"gain": (width,)} if gain else {})


def initial_memory(
    key: Key[Array, ""],
    depth: int,
    width: int,
    hidden: int,
    *,
    heads: int,
    bias: bool = False,
    gain: bool = False,
) -> dict[str, Float[Array, "H ..."]]:
    """Weights of every head: matrices after Glorot and Bengio (Xavier, normal), vectors 0."""
    shapes = memory_shapes(depth, width, hidden, bias=bias, gain=gain)
    xavier = nn.initializers.variance_scaling(1.0, "fan_avg", "normal", batch_axis=0)
    return {
        name: xavier(each, (heads, *shape)) if len(shape) == 2 else jnp.zeros((heads, *shape))
        for (name, shape), each in zip(shapes.items(), jax.random.split(key, len(shapes)))
    }
