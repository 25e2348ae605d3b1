"""RWKV-4's time mixing: per channel, an exponentially weighted average of values with a bonus for the present token.

Peng et al. (2023), RWKV: Reinventing RNNs for the Transformer Era, arXiv 2305.13048. Its other half is
``zoo.mixers.rwkv4_channel_mix``: a model is the pattern ("rwkv4", "rwkv4_channel_mix") without MLPs.

With x_t [D] the (normalised) input, x_{t-1} = 0 before a document, everything but the matrices per channel:

    a_t = W_a (mu_a x_t + (1 - mu_a) x_{t-1})      for a = r, k, v (receptance, key, value)
    wkv_t = (sum_{s<t} e^{-(t-1-s) w + k_s} v_s + e^{u + k_t} v_t) / (the same with 1 for v)     w = e^decay, u the bonus
    y_t = W_o (sigmoid(r_t) * wkv_t)

Keys of any size are safe: numerator and denominator are linear recurrences whose state is kept relative to its largest
weight, see ``zoo.scans.stabilized_gates``.

Initialisation is that of the paper's first layer: rates and bonuses spread over the channels. Time O(B T D^2), parallel
over time by scans; state: 3 D numbers per row and the last input.
"""

import math
from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jax import lax
from jaxtyping import Array, Bool, Float

from zoo.checks import check_sequence, check_state
from zoo.dtypes import accumulator
from zoo.layers.convolution import previous_token
from zoo.layers.projections import mixed_linear
from zoo.registry import register
from zoo.scans import linear_scan, previous_steps, stabilized_gates


@struct.dataclass
class RWKV4State:
    """Carried state.

    Attributes:
      maximum: [B, D], log m of the largest weight; -inf at the start of a document.
      sums: [B, D, 2], numerator and denominator, times exp(-m).
      last: [B, D], the last input; zeros at the start.
    """

    maximum: Float[Array, "B D"]
    sums: Float[Array, "B D 2"]
    last: Float[Array, "B D"]


def wkv(
    decay: Float[Array, " D"],
    bonus: Float[Array, " D"],
    keys: Float[Array, "B T D"],
    values: Float[Array, "B T D"],
    maximum: Float[Array, "B D"],
    sums: Float[Array, "B D 2"],
    *,
    reset: Bool[Array, "B T"] | None = None,
    method: str = "auto",
) -> tuple[Float[Array, "B T D"], Float[Array, "B D"], Float[Array, "B D 2"]]:
    """wkv of the module docstring, in at least float32.

    Args:
      decay: log w.
      bonus: u.
      keys, values: k, v.
      maximum, sums: as in ``RWKV4State``.
      reset: True at the first token of a new document.
      method: how the sums are computed, see ``zoo.scans.linear_scan``.

    Returns:
      (wkv, maximum and sums after the last token).
    """
    wide = accumulator(keys.dtype)
    keys, values = keys.astype(wide), values.astype(wide)
    log_decay = jnp.broadcast_to(-jnp.exp(decay.astype(wide)), keys.shape)
    if reset is not None:
        log_decay = jnp.where(reset[..., None], -jnp.inf, log_decay)
    gates, inputs, m = stabilized_gates(log_decay, keys, maximum)
    pairs = jnp.exp(inputs)[..., None] * jnp.stack([values, jnp.ones_like(values)], axis=-1)
    states, last = linear_scan(jnp.exp(gates)[..., None], pairs, sums, method=method)
    before = previous_steps(maximum, m)
    if reset is not None:
        before = jnp.where(reset[..., None], -jnp.inf, before)
    present = bonus.astype(wide) + keys
    top = lax.stop_gradient(jnp.maximum(before, present))
    past = jnp.exp(before - top)[..., None] * previous_steps(sums, states)
    now = jnp.exp(present - top)
    return (past[..., 0] + now * values) / (past[..., 1] + now), m[:, -1], last


def rwkv4(
    params: Mapping[str, Array],
    x: Float[Array, "B T D"],
    state: RWKV4State,
    *,
    reset: Bool[Array, "B T"] | None = None,
    method: str = "auto",
) -> tuple[Float[Array, "B T D"], RWKV4State]:
    """The layer of the module docstring.

    Args:
      params: ``receptance``, ``key``, ``value``, ``output`` [D, D]; ``mix_receptance``, ``mix_key``, ``mix_value`` [D], mu;
        ``decay``, ``bonus`` [D].
      x: inputs; projections run in their dtype.
      state: state before the first token.
      reset: True at the first token of a new document.
      method: see ``wkv``.

    Returns:
      (y, state after the last token); y has x's dtype.
    """
    before = previous_token(x, state.last, reset)
    r, k, v = (mixed_linear(x, before, params, name) for name in ("receptance", "key", "value"))
    y, maximum, sums = wkv(
        params["decay"], params["bonus"], k, v, state.maximum, state.sums, reset=reset, method=method
    )
    y = (jax.nn.sigmoid(r) * y.astype(x.dtype)) @ params["output"].astype(x.dtype)
    return y, RWKV4State(maximum, sums, x[:, -1].astype(state.last.dtype))


@register("rwkv4", variants={"default": {}})
class RWKV4(nn.Module):
    """RWKV-4's time mixing: an exponentially weighted average of values per channel, behind a gate.

    Attributes:
      dim: width D of input and output.
      dtype: compute dtype of the projections; the average runs in at least float32.
    """

    dim: int
    dtype: str = "float32"

    causal: ClassVar[bool] = True
    paper: ClassVar[str] = "Peng et al. 2023, RWKV: Reinventing RNNs for the Transformer Era"

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], state: RWKV4State | None = None, *, reset: Bool[Array, "B T"] | None = None
    ) -> tuple[Float[Array, "B T D"], RWKV4State]:
        check_sequence(x, self.dim, reset)
        initial = self.initial_state(x.shape[0])
        if state is not None:
            check_state(state, initial)
        channel = jnp.arange(self.dim)
        inits = {
            "mix_receptance": (channel / self.dim) ** 0.5,
            "mix_key": channel / self.dim,
            "mix_value": channel / self.dim,
            "decay": -5 + 8 * (channel / max(self.dim - 1, 1)) ** 0.7,
            "bonus": math.log(0.3) + 0.5 * ((channel + 1) % 3 - 1.0),
        }
        params = {name: self.param(name, lambda _, value=value: jnp.float32(value)) for name, value in inits.items()}
        for name in ("receptance", "key", "value", "output"):
            params[name] = self.param(name, nn.initializers.lecun_normal(), (self.dim, self.dim))
        return rwkv4(params, x.astype(self.dtype), initial if state is None else state, reset=reset)

    def initial_state(self, batch_size: int, dtype: str | None = None) -> RWKV4State:
        """The start; ``dtype`` is the storage dtype of the last input."""
        wide = accumulator(self.dtype)
        return RWKV4State(
            jnp.full((batch_size, self.dim), -jnp.inf, wide),
            jnp.zeros((batch_size, self.dim, 2), wide),
            jnp.zeros((batch_size, self.dim), dtype or self.dtype),
        )
