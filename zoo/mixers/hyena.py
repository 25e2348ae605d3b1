"""Hyena: long convolutions with implicit filters, interleaved with gates, in place of attention.

Poli, Massaroli, Nguyen, Fu, Dao, Baccus, Bengio, Ermon, Re (2023), Hyena Hierarchy: Towards Larger Convolutional
Language Models.

With x_t [D], order n, and all products but the first elementwise:

    [v_t, x^1_t, ..., x^n_t] = sum_{l < conv_size} S_l (W_in x)_{t-l}     n + 1 projections, a short convolution
    z^0 = v,   z^i_t = x^i_t (sum_{l < L} h^i_l z^{i-1}_{t-l} + d_i z^{i-1}_t),   i = 1 .. n
    y_t = W_out z^n_t
    h^i_l = MLP(p_l)_i exp(-alpha l / (L - 1))                  [D]; one MLP with sine activations for all n filters
    p_l = [l / (L - 1), cos(2 pi f l / L), -sin(2 pi f l / L)]            (features - 1) / 2 frequencies f

The hidden layers are sin(a (W p + b)) with trainable rates a. alpha [D] is fixed, spread evenly between the two
decays that bring the window to ``floor`` at ``slow_decay`` and at ``fast_decay`` times L.

L = ``max_length`` is part of the definition: a token sees L - 1 tokens back at every stage, whatever the length of
the call, as with the window of attention. A filter that long is no recurrence of fixed size, so the state holds the
last L - 1 inputs of every stage (``zoo.layers.long_convolution``). The projections have no biases.

Time O(n B D T log T + B T D^2) for whole sequences, O(n B D T L) with documents, plus the filters, O(L) times the
MLP; decoding O(n D L) per token and the filters. State per row: n (L - 1) D numbers and the short convolution's.
"""

import math
from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float

from zoo.checks import check_positive, check_sequence, check_state
from zoo.layers.long_convolution import causal_convolution
from zoo.registry import register


@struct.dataclass
class HyenaState:
    """Carried state, newest last, zeros before the document.

    Attributes:
      projected: [B, conv_size - 1, (n + 1) D], what goes into the short convolution.
      stages: [B, n, L - 1, D], the inputs z^{i-1} of every long one.
    """

    projected: Float[Array, "B K C"]
    stages: Float[Array, "B N L D"]


def hyena(
    params: Mapping[str, Array],
    x: Float[Array, "B T D"],
    state: HyenaState | None = None,
    *,
    max_length: int,
    fast_decay: float = 0.3,
    slow_decay: float = 1.5,
    floor: float = 1e-2,
    reset: Bool[Array, "B T"] | None = None,
    form: str = "auto",
) -> tuple[Float[Array, "B T D"], HyenaState]:
    """The layer of the module docstring.

    Args:
      params: ``input`` [D, (n + 1) D], columns v, x^1 .. x^n; ``short`` [conv_size, (n + 1) D]; ``skip`` [n, D];
        ``output`` [D, D]; and the MLP's parameters, see ``hyena_filters``.
      x: inputs; projections run in their dtype.
      state: state before the first token; None for the start.
      max_length: L.
      fast_decay, slow_decay, floor: of the window.
      reset: True at the first token of a new document.
      form: of the long convolutions, see ``zoo.layers.long_convolution``.

    Returns:
      (y, state after the last token); y has x's dtype.
    """
    filters = hyena_filters(params, max_length, fast_decay=fast_decay, slow_decay=slow_decay, floor=floor)
    u = x @ params["input"].astype(x.dtype)
    u, projected = causal_convolution(u, params["short"], None if state is None else state.projected, reset=reset)
    z, *gates = jnp.split(u, len(filters) + 1, axis=-1)
    stages = []
    for i, gate in enumerate(gates):
        past = None if state is None else state.stages[:, i]
        long, after = causal_convolution(z, filters[i], past, reset=reset, form=form)
        z = gate * (long + params["skip"][i].astype(z.dtype) * z)
        stages.append(after)
    return z @ params["output"].astype(x.dtype), HyenaState(projected, jnp.stack(stages, axis=1))


def hyena_filters(
    params: Mapping[str, Array], length: int, *, fast_decay: float = 0.3, slow_decay: float = 1.5, floor: float = 1e-2
) -> Float[Array, "N L D"]:
    """The n filters h^i of L = ``length`` taps.

    Args:
      params: ``filter_kernel_0`` [features, W], ``filter_bias_0`` [W], ``filter_rate`` [W], any number of further
        ``filter_kernel_i`` [W, W] and ``filter_bias_i`` [W], ``filter_output`` [W, n D]; ``skip`` [n, D] tells n.
      length: L.
      fast_decay, slow_decay, floor: of the window.
    """
    first = params["filter_kernel_0"]
    place = jnp.arange(length, dtype=first.dtype)
    bands = (first.shape[0] - 1) // 2
    angles = 2 * math.pi * (place / length)[:, None] * jnp.linspace(1e-4, bands - 1, bands, dtype=first.dtype)
    share = (place / max(length - 1, 1))[:, None]
    hidden = jnp.concatenate([share, jnp.cos(angles), -jnp.sin(angles)], axis=-1)
    layer = 0
    while f"filter_kernel_{layer}" in params:
        hidden = hidden @ params[f"filter_kernel_{layer}"] + params[f"filter_bias_{layer}"]
        hidden = jnp.sin(params["filter_rate"] * hidden)
        layer += 1
    order, width = params["skip"].shape
    filters = (hidden @ params["filter_output"]).reshape(length, order, width)
    rate = -math.log(floor) / jnp.linspace(slow_decay, fast_decay, width, dtype=first.dtype)
    return jnp.moveaxis(filters * jnp.exp(-rate * share)[:, None], 0, 1)


@register(
    "hyena",
    variants={
        "default": {"max_length": 16, "features": 3, "filter_dim": 4},
        "order_3": {"max_length": 5, "order": 3, "features": 5, "filter_dim": 3, "filter_layers": 1, "conv_size": 2},
    },
)
class Hyena(nn.Module):
    """Hyena: gated long convolutions with implicit filters.

    Attributes:
      dim: width D of input and output.
      max_length: taps L of the long filters, the tokens that a stage can see; the state grows with it.
      order: number n of gates and long filters.
      conv_size: taps of the short convolution.
      features: odd number of positional features.
      filter_dim: width W of the filters' MLP.
      filter_layers: its hidden layers.
      filter_rate: initial rate a of its sines.
      fast_decay, slow_decay: shares of L after which the window of the fastest and the slowest channel is at ``floor``.
      floor: see there.
      dtype: compute dtype of the projections and gates; filters and convolutions run in at least float32.
    """

    dim: int
    max_length: int = 1024
    order: int = 2
    conv_size: int = 3
    features: int = 3
    filter_dim: int = 64
    filter_layers: int = 3
    filter_rate: float = 10.0
    fast_decay: float = 0.3
    slow_decay: float = 1.5
    floor: float = 1e-2
    dtype: str = "float32"

    causal: ClassVar[bool] = True
    paper: ClassVar[str] = "Poli et al. 2023, Hyena Hierarchy: Towards Larger Convolutional Language Models"

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], state: HyenaState | None = None, *, reset: Bool[Array, "B T"] | None = None
    ) -> tuple[Float[Array, "B T D"], HyenaState]:
        check_sequence(x, self.dim, reset)
        for name in ("max_length", "order", "conv_size", "features", "filter_dim", "filter_layers"):
            check_positive(name, getattr(self, name))
        if self.features % 2 == 0:
            raise ValueError(f"features must be odd (the place, sines and cosines), got {self.features}")
        if not (0 < self.fast_decay <= self.slow_decay and 0 < self.floor < 1):
            raise ValueError(
                "need 0 < fast_decay <= slow_decay and 0 < floor < 1, got "
                f"fast_decay={self.fast_decay}, slow_decay={self.slow_decay}, floor={self.floor}"
            )
        if state is not None:
            check_state(state, self.initial_state(x.shape[0]))
        return hyena(
            self._params(), x.astype(self.dtype), state, max_length=self.max_length, fast_decay=self.fast_decay,
            slow_decay=self.slow_decay, floor=self.floor, reset=reset,
        )  # fmt: skip

    def initial_state(self, batch_size: int, dtype: str | None = None) -> HyenaState:
        """Zeros; ``dtype`` is the storage dtype of the past inputs."""
        kept = dtype or self.dtype
        return HyenaState(
            jnp.zeros((batch_size, self.conv_size - 1, (self.order + 1) * self.dim), kept),
            jnp.zeros((batch_size, self.order, self.max_length - 1, self.dim), kept),
        )

    def _params(self) -> dict[str, Array]:
        d, channels, width = self.dim, (self.order + 1) * self.dim, self.filter_dim
        dense, normal, zeros = nn.initializers.lecun_normal(), nn.initializers.normal, nn.initializers.zeros
        declared = {
            "input": (dense, (d, channels)),
            "short": (normal(self.conv_size**-0.5), (self.conv_size, channels)),
            "skip": (normal(1.0), (self.order, d)),
            "output": (dense, (d, d)),
            "filter_rate": (nn.initializers.constant(self.filter_rate), (width,)),
            "filter_output": (dense, (width, self.order * d)),
        }
        for layer in range(self.filter_layers):
            declared[f"filter_kernel_{layer}"] = (dense, (width if layer else self.features, width))
            declared[f"filter_bias_{layer}"] = (zeros, (width,))
        return {name: self.param(name, *how) for name, how in declared.items()}
