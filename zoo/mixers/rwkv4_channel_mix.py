"""RWKV-4's channel mixing: a gated feed-forward layer with squared ReLU that also sees the token before.

Peng et al. (2023), RWKV: Reinventing RNNs for the Transformer Era, arXiv 2305.13048.

With x_t [D] the (normalised) input, x_{t-1} = 0 before a document, and inner width I:

    r_t = W_r (mu_r x_t + (1 - mu_r) x_{t-1})      [D]
    k_t = W_k (mu_k x_t + (1 - mu_k) x_{t-1})      [I]
    y_t = sigmoid(r_t) * W_v relu(k_t)^2

Because it looks one token back it is a mixer, not an MLP. Time O(B T D I); state: the last input.
"""

from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float

from zoo.checks import check_positive, check_sequence, check_state
from zoo.layers.convolution import previous_token
from zoo.layers.projections import mixed_linear
from zoo.registry import register


@struct.dataclass
class RWKV4ChannelMixState:
    """Carried state: ``last`` [B, D], the last input; zeros at the start of a document."""

    last: Float[Array, "B D"]


def rwkv4_channel_mix(
    params: Mapping[str, Array],
    x: Float[Array, "B T D"],
    state: RWKV4ChannelMixState,
    *,
    reset: Bool[Array, "B T"] | None = None,
) -> tuple[Float[Array, "B T D"], RWKV4ChannelMixState]:
    """The layer of the module docstring.

    Args:
      params: ``receptance`` [D, D], ``key`` [D, I], ``value`` [I, D]; ``mix_receptance``, ``mix_key`` [D], mu.
      x: inputs; their dtype is the compute dtype.
      state: state before the first token.
      reset: True at the first token of a new document.

    Returns:
      (y, state after the last token); y has x's dtype.
    """
    before = previous_token(x, state.last, reset)
    gate = jax.nn.sigmoid(mixed_linear(x, before, params, "receptance"))
    hidden = jax.nn.relu(mixed_linear(x, before, params, "key")) ** 2
    return gate * (hidden @ params["value"].astype(x.dtype)), RWKV4ChannelMixState(x[:, -1].astype(state.last.dtype))


@register("rwkv4_channel_mix", variants={"default": {"hidden_dim": 12}})
class RWKV4ChannelMix(nn.Module):
    """RWKV-4's channel mixing: a gated squared-ReLU layer on the present token and the one before.

    Attributes:
      dim: width D of input and output.
      hidden_dim: inner width I; None: 4 D.
      dtype: compute dtype.
    """

    dim: int
    hidden_dim: int | None = None
    dtype: str = "float32"

    causal: ClassVar[bool] = True
    paper: ClassVar[str] = "Peng et al. 2023, RWKV: Reinventing RNNs for the Transformer Era"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        state: RWKV4ChannelMixState | None = None,
        *,
        reset: Bool[Array, "B T"] | None = None,
    ) -> tuple[Float[Array, "B T D"], RWKV4ChannelMixState]:
        check_sequence(x, self.dim, reset)
        hidden = 4 * self.dim if self.hidden_dim is None else self.hidden_dim
        check_positive("hidden_dim", hidden)
        initial = self.initial_state(x.shape[0])
        if state is not None:
            check_state(state, initial)
        dense = nn.initializers.lecun_normal()
        shares = jnp.arange(self.dim, dtype=jnp.float32) / self.dim
        params = {name: self.param(name, lambda _: shares) for name in ("mix_receptance", "mix_key")}
        shapes = {"receptance": (self.dim, self.dim), "key": (self.dim, hidden), "value": (hidden, self.dim)}
        params |= {name: self.param(name, dense, shape) for name, shape in shapes.items()}
        return rwkv4_channel_mix(params, x.astype(self.dtype), initial if state is None else state, reset=reset)

    def initial_state(self, batch_size: int, dtype: str | None = None) -> RWKV4ChannelMixState:
        """Zeros of the storage dtype ``dtype``."""
        return RWKV4ChannelMixState(jnp.zeros((batch_size, self.dim), dtype or self.dtype))
