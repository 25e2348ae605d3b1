"""A temporal convolution network as an operator: a stack of dilated convolutions over time, without projections.

Bai, Kolter, Koltun (2018), An Empirical Evaluation of Generic Convolutional and Recurrent Networks for Sequence
Modeling; in place of an exponential moving average: Terzic et al. (2023), TCNCA.

Layer l = 0 .. L - 1 has n convolutions of K taps with dilation f^l; from x_0 [T, D], a_0 = x_l:

    w = g v / ||v||                                   weight norm: over the taps of a channel (of an output channel if full)
    a_{i+1,t} = act(sum_k w_i[k] a_{i,t-(K-1-k) f^l} + b_i)     i < n; zeros before the document
    x_{l+1} = a_n, or x_l + a_n with ``residual``
    y = SiLU(x_L + omega * x_0) with ``skip``, else x_L

Depthwise (w [K, D]) or full (w [K, D, D]). Without act, residual and biases the stack is one long kernel of
R = 1 + n (K - 1) (f^L - 1) / (f - 1) taps in factors of K, without gaps if K >= f. The bidirectional form has (K - 1) / 2
taps to either side (rounded down: to the left).

Time O(n L K) multiply-adds per number. State of the causal form: for every convolution a ring of its last (K - 1) f^l
inputs, and the position in the document, by which taps that reach over its start are left out. One token reads and
writes K places.
"""

import warnings
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from zoo.checks import check_positive
from zoo.dtypes import accumulator
from zoo.layers.attention import document_positions, unroll_ring
from zoo.layers.nonlinearities import nonlinearity
from zoo.scans.dilated_convolution import dilated_convolution, receptive_field


@struct.dataclass
class TemporalConvolutionState:
    """Carried state: ``rings`` of inputs [B, (K - 1) f^l, D], one per convolution; ``slot`` [B] int32, where the next token
    goes in the longest ring (modulo its length in the others); ``age`` [B] int32, tokens of the document so far."""

    rings: tuple[Float[Array, "B R D"], ...]
    slot: Int[Array, " B"]
    age: Int[Array, " B"]


def temporal_convolution(
    params: Mapping[str, Array],
    x: Float[Array, "B T D"],
    state: TemporalConvolutionState | None = None,
    *,
    factor: int,
    convolutions: int = 1,
    activation: str = "identity",
    residual: bool = False,
    causal: bool = True,
    reset: Bool[Array, "B T"] | None = None,
) -> tuple[Float[Array, "B T D"], TemporalConvolutionState | None]:
    """The operator of the module docstring.

    Args:
      params: ``direction`` [L, n, K, D] or [L, n, K, D, D], v with the oldest tap first; ``gain`` [L, n, D],
        None or missing for no weight norm; ``bias`` [L, n, D], None or missing for none; ``omega`` [D], None or missing
        for no skip.
      x: inputs.
      state: state before the first token, None for the start; causal form only.
      factor: f.
      convolutions: n.
      activation: name of act, see ``zoo.layers.nonlinearity``.
      residual: add x_l.
      causal: read no later step.
      reset: True at the first token of a new document.

    Returns:
      (y in x's dtype, state after the last token, None if not causal).
    """
    act = nonlinearity(activation).function
    weights = normalised_weights(params["direction"], params.get("gain"))
    taps, (batch, time) = weights.shape[2], x.shape[:2]
    age = document_positions(reset, None if state is None else state.age, shape=(batch, time))
    before = None if state is None and reset is None else age
    ahead, after = 0, None
    if not causal:
        ahead = (taps - 1) // 2
        after = None if reset is None else remaining_steps(reset)
    rings, y = [], x
    for layer in range(weights.shape[0]):
        hidden = y
        for i in range(convolutions):
            index, dilation = len(rings), factor**layer
            ring = None if state is None else state.rings[index]
            kernel = weights[layer, i]
            if ring is not None and time == 1:
                hidden, ring = _one_step(hidden, kernel, ring, state.slot, age, dilation)
            else:
                hidden, ring = _all_steps(hidden, kernel, ring, state, dilation, ahead, before, after)
            rings.append(ring)
            if params.get("bias") is not None:
                hidden = hidden + params["bias"][layer, i].astype(hidden.dtype)
            hidden = act(hidden)
        y = y + hidden if residual else hidden
    if params.get("omega") is not None:
        y = jax.nn.silu(y + params["omega"].astype(x.dtype) * x)
    if not causal:
        return y, None
    slot = jnp.zeros((batch,), jnp.int32) if state is None else state.slot
    return y, TemporalConvolutionState(tuple(rings), (slot + time) % rings[-1].shape[1], age[:, -1] + 1)


def normalised_weights(direction: Float[Array, "L n K *D"], gain: Float[Array, "L n D"] | None) -> Array:
    """w = gain * direction / ||direction||, the norm over the taps (and input channels); ``direction`` without a gain."""
    if gain is None:
        return direction
    axes = tuple(range(2, direction.ndim - 1))
    norm = jnp.sqrt(jnp.sum(direction**2, axis=axes, keepdims=True))
    return direction * (jnp.expand_dims(gain, axes) / norm)


def remaining_steps(reset: Bool[Array, "B T"]) -> Int[Array, "B T"]:
    """Steps of its document that follow every step."""
    last = jnp.concatenate([reset[:, 1:], jnp.ones_like(reset[:, :1])], axis=1)
    return jnp.flip(document_positions(jnp.flip(last, axis=1)), axis=1)


def _all_steps(x, kernel, ring, state, dilation, ahead, before, after):
    """(convolution of x, ring of the last inputs)."""
    time, reach = x.shape[1], (kernel.shape[0] - 1) * dilation
    known = None if ring is None else unroll_ring(ring[:, :, None], state.slot % reach)[:, :, 0]
    y = dilated_convolution(x, kernel, dilation=dilation, ahead=ahead, history=known, before=before, after=after)
    if known is None:
        known = jnp.zeros((x.shape[0], reach, x.shape[2]), x.dtype)
    last = jnp.concatenate([known, x.astype(known.dtype)], axis=1)[:, -reach:]
    slot = jnp.zeros(x.shape[:1], jnp.int32) if state is None else state.slot
    return y, unroll_ring(last[:, :, None], -(slot + time) % reach)[:, :, 0]


def _one_step(x, kernel, ring, slot, age, dilation):
    """The same for one step with a ring: K places are read, one is written."""
    taps, reach = kernel.shape[0], ring.shape[1]
    lags = (taps - 1 - jnp.arange(taps - 1)) * dilation
    past = jnp.take_along_axis(ring, ((slot[:, None] - lags) % reach)[..., None], axis=1).astype(x.dtype)
    past = jnp.where((age >= lags)[..., None], past, 0)
    wide = accumulator(x.dtype, kernel.dtype)
    read = jnp.concatenate([past, x], axis=1)
    equation = "bkc,kc->bc" if kernel.ndim == 2 else "bkc,kcd->bd"
    y = jnp.einsum(equation, read.astype(wide), kernel.astype(wide))[:, None].astype(x.dtype)
    return y, ring.at[jnp.arange(len(x)), slot % reach].set(x[:, 0].astype(ring.dtype))


def initial_rings(
    batch_size: int, dim: int, taps: int, factor: int, depth: int, convolutions: int, dtype: Any
) -> TemporalConvolutionState:
    """The state before the first token."""
    reaches = [(taps - 1) * factor**layer for layer in range(depth) for _ in range(convolutions)]
    count = jnp.zeros((batch_size,), jnp.int32)
    return TemporalConvolutionState(tuple(jnp.zeros((batch_size, r, dim), dtype) for r in reaches), count, count)


def convolution_parameters(
    module: nn.Module,
    *,
    dim: int,
    taps: int,
    factor: int,
    depth: int,
    convolutions: int = 1,
    decay: float | None = 0.7,
    depthwise: bool = True,
    weight_norm: bool = True,
    skip: bool = True,
) -> dict[str, Array]:
    """Checks the sizes and declares ``direction``, ``gain``, ``bias`` and ``omega`` on ``module``.

    At initialisation v[k] = exp(-decay (K - 1 - k)) (1 + 0.1 N(0, 1)): positive taps that favour the newest step; with
    ``decay=None`` v[k] = N(0, 1 / K). For full convolutions these are the diagonal, the rest being N(0, 1 / (K D)) / 10.
    Gains and omega are 1, biases 0.
    """
    reached = receptive_field(taps, factor, depth, convolutions)
    check_positive("dim", dim)
    if taps < factor and depth > 1:
        warnings.warn(
            f"taps={taps} is less than factor={factor}: the {reached} steps that the stack reaches have gaps",
            stacklevel=2,
        )

    def direction(key, shape):
        noise = jax.random.normal(key, shape[:4])
        if decay is None:
            drawn = taps**-0.5 * noise
        else:
            drawn = jnp.exp(-decay * (taps - 1 - jnp.arange(taps, dtype=jnp.float32)))[:, None] * (1 + 0.1 * noise)
        if depthwise:
            return drawn
        mixing = jax.random.normal(jax.random.fold_in(key, 1), shape)
        return drawn[..., None] * jnp.eye(dim) + 0.1 * (taps * dim) ** -0.5 * mixing

    stack = (depth, convolutions)
    params = {"direction": module.param("direction", direction, (*stack, taps, *(dim,) * (1 if depthwise else 2)))}
    if weight_norm:
        params["gain"] = module.param("gain", nn.initializers.ones, (*stack, dim))
    params["bias"] = module.param("bias", nn.initializers.zeros, (*stack, dim))
    if skip:
        params["omega"] = module.param("omega", nn.initializers.ones, (dim,))
    return params
