"""What layers with a delta-rule memory share: short convolutions, unit keys, write strengths, decays, the normed output.

The parameters lie in the mixer's dictionary, see the functions for their names. Everything but projections and convolutions
runs in at least float32.
"""

import math
from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from zoo.checks import check_divides, check_positive
from zoo.dtypes import accumulator
from zoo.layers.convolution import depthwise_convolution, recent
from zoo.layers.initializers import symmetric_uniform
from zoo.layers.norms import rms_norm
from zoo.layers.projections import linear
from zoo.layers.step_sizes import step_size_bias

LENGTH_EPS = 1e-6
PROJECTIONS = ("query", "key", "value")


def short_convolutions(
    params: Mapping[str, Array], x: Float[Array, "B T D"], history: Float[Array, "B J C"], age: Int[Array, "B T"]
) -> tuple[list[Float[Array, "B T _"]], Float[Array, "B J C"]]:
    """([q, k, v], the new history): silu of the projections after a causal depthwise convolution.

    Args:
      params: ``query``, ``key``, ``value`` [D, C_i]; their filters ``query_kernel``, ... [taps, C_i], or the filters of
        all of them ``kernel`` [taps, C]; without filters silu is applied to the projections.
      x: inputs.
      history: the last taps - 1 projections before x, side by side; J = 0 without filters.
      age: position of every token in its document.
    """
    u = [linear(x, params, name) for name in PROJECTIONS]
    borders = [u[0].shape[-1], u[0].shape[-1] + u[1].shape[-1]]
    u = jnp.concatenate(u, axis=-1)
    kernel = params.get("kernel")
    if "query_kernel" in params:
        kernel = jnp.concatenate([params[f"{name}_kernel"] for name in PROJECTIONS], axis=-1)
    mixed = u if kernel is None else depthwise_convolution(u, kernel, age, history=history)
    return jnp.split(jax.nn.silu(mixed), borders, axis=-1), recent(u, history.shape[1], history)


def unit_length(a: Float[Array, "*B K"]) -> Float[Array, "*B K"]:
    """``a`` scaled to length 1 in at least float32, a / sqrt(|a|^2 + 1e-6): zero stays zero."""
    a = a.astype(accumulator(a.dtype))
    return a * lax.rsqrt(jnp.sum(a**2, axis=-1, keepdims=True) + LENGTH_EPS)


def write_strength(
    params: Mapping[str, Array], x: Float[Array, "B T D"], allow_neg_eigval: bool
) -> Float[Array, "B T _"]:
    """beta = sigmoid(x W_b) in (0, 1), or twice that, which lets 1 - beta, an eigenvalue of the transition, be negative.

    Grazzi et al. (2025), Unlocking State-Tracking in Linear RNNs Through Negative Eigenvalues, arXiv 2411.12537.
    """
    beta = jax.nn.sigmoid(linear(x, params, "beta").astype(accumulator(x.dtype)))
    return 2 * beta if allow_neg_eigval else beta


def forget_gate(
    params: Mapping[str, Array], x: Float[Array, "B T D"], heads: int, reset: Bool[Array, "B T"] | None = None
) -> Float[Array, "B T H"] | None:
    """Log decays -exp(A_log) softplus(x W_a + b_a), -inf at a reset.

    ``params``: ``dt`` [D, H], ``dt_bias`` and ``A_log`` [H]; without these nothing decays (0, or None without resets).
    """
    wide = accumulator(x.dtype)
    decay = None
    if "A_log" in params:
        rough = (x @ params["dt"].astype(x.dtype)).astype(wide)
        decay = -jnp.exp(params["A_log"].astype(wide)) * jax.nn.softplus(rough + params["dt_bias"])
    if reset is not None:
        decay = jnp.where(
            reset[..., None], -jnp.inf, jnp.zeros((*x.shape[:2], heads), wide) if decay is None else decay
        )
    return decay


def normed_output(
    params: Mapping[str, Array], read: Float[Array, "B T H V"], x: Float[Array, "B T D"], eps: float
) -> Float[Array, "B T D"]:
    """W_o (rms_norm(read) * scale * silu(W_z x)): every head normed on its own, the gate where there is a ``gate`` [D, H V].

    ``params``: ``scale`` [V], the same for all heads; ``output`` [H V, D].
    """
    y = rms_norm(read, params["scale"], eps)
    if "gate" in params:
        y = y * jax.nn.silu(linear(x, params, "gate").reshape(read.shape).astype(y.dtype))
    return linear(y.reshape(*x.shape[:2], -1).astype(x.dtype), params, "output")


def small_xavier(gain: float = 2**-2.5) -> Callable:
    """Glorot's uniform initialiser times ``gain``, as the delta-rule layers of flash-linear-attention begin."""
    return nn.initializers.variance_scaling(gain**2, "fan_avg", "uniform")


def kernel_initializer(taps: int) -> Callable:
    """U(-1/sqrt(taps), 1/sqrt(taps)) for the filters of a depthwise convolution [taps, C]."""
    return symmetric_uniform(taps**-0.5)


def decay_initializers(
    heads: int,
    dim: int,
    dense: Callable,
    a_range: tuple[float, float],
    dt_range: tuple[float, float],
    floor: float = 0.0,
) -> dict[str, tuple[Callable, tuple[int, ...]]]:
    """Initialisers and shapes of the parameters of ``forget_gate``.

    exp(A_log) is uniform in (low, high], softplus(dt_bias) log-uniform in ``dt_range`` and at least ``floor``.
    """
    low, high = a_range
    if not 0 <= low <= high or not high > 0:
        raise ValueError(f"a_range must be two numbers 0 <= low <= high, high > 0, got {a_range}")

    def a_log(key, shape):
        return jnp.log(high - jax.random.uniform(key, shape, maxval=high - low))  # never log(0)

    return {
        "dt": (dense, (dim, heads)), "dt_bias": (step_size_bias(*dt_range, floor), (heads,)), "A_log": (a_log, (heads,)),
    }  # fmt: skip


def default_head_dim(dim: int, heads: int) -> int:
    """dim / heads; ValueError where that is no integer."""
    check_positive("heads", heads)
    check_divides("heads", heads, "dim", dim)
    return dim // heads


def head_widths(heads: int, value_heads: int | None, head_dim: int, expand_v: float) -> tuple[int, int]:
    """(H, V): heads of values, ``heads`` for None, and their width ``head_dim * expand_v``.

    Raises:
      ValueError: a size is not positive, H is not a multiple of ``heads``, or V is not an integer.
    """
    count = heads if value_heads is None else value_heads
    for name, size in (("heads", heads), ("value_heads", count), ("head_dim", head_dim)):
        check_positive(name, size)
    check_divides("heads", heads, "value_heads", count)
    width = head_dim * expand_v
    if not math.isclose(width, round(width), rel_tol=1e-9) or round(width) < 1:
        raise ValueError(f"head_dim * expand_v must be a positive integer, got {head_dim} * {expand_v} = {width}")
    return count, round(width)
