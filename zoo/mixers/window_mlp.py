"""Fixed-window MLP: the model without a memory that recurrent networks are set against.

Bengio, Ducharme, Vincent, Jauvin (2003), A Neural Probabilistic Language Model; reviewed by Lipton et al. (2015).

    y_t = W_2 act(sum_{j=0..k-1} W_1[j] x_{t-j} + b_1) + b_2

with W_1 [k, D, H], W_2 [H, D]; inputs from before the document are zeros. Nothing older than k - 1 steps can reach the
output. Time O(B T k D H), parallel over time; state: the last k - 1 inputs.
"""

from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float

from zoo.checks import check_choice, check_positive, check_sequence, check_state
from zoo.registry import register

ACTIVATIONS = {"tanh": jnp.tanh, "relu": jax.nn.relu, "gelu": jax.nn.gelu}


@struct.dataclass
class WindowMLPState:
    """Carried state: the last ``inputs`` [B, k - 1, D], zeros where they belong to an older document."""

    inputs: Float[Array, "B K D"]


def window_mlp(
    params: Mapping[str, Array],
    x: Float[Array, "B T D"],
    state: WindowMLPState,
    *,
    reset: Bool[Array, "B T"] | None = None,
    activation: str = "tanh",
) -> tuple[Float[Array, "B T D"], WindowMLPState]:
    """The network of the module docstring.

    Args:
      params: ``W_1`` [k, D, H], ``b_1`` [H], ``W_2`` [H, D], ``b_2`` [D].
      x: inputs.
      state: the inputs before the first token.
      reset: True at the first token of a new document.
      activation: "tanh", "relu" or "gelu".

    Returns:
      (y, state after the last token); y has x's dtype.
    """
    check_choice("activation", activation, ACTIVATIONS)
    w_1, b_1, w_2, b_2 = (params[k].astype(x.dtype) for k in ("W_1", "b_1", "W_2", "b_2"))
    past, time = w_1.shape[0] - 1, x.shape[1]
    padded = jnp.concatenate([state.inputs.astype(x.dtype), x], axis=1)  # step t of x is at past + t
    steps = jnp.arange(time)
    if reset is None:
        begin = jnp.full((1, time), -past)
    else:
        begin = jax.lax.cummax(jnp.where(reset, steps, -past), axis=1)  # first step of the document of step t

    hidden = b_1
    for lag in range(past + 1):
        lagged = padded[:, past - lag : past - lag + time]
        seen = (steps - lag >= begin)[..., None]
        hidden = hidden + jnp.where(seen, lagged, 0) @ w_1[lag]
    y = ACTIVATIONS[activation](hidden) @ w_2 + b_2
    kept = jnp.arange(time - past, time) >= begin[:, -1:]
    return y, WindowMLPState(jnp.where(kept[..., None], padded[:, time:], 0).astype(state.inputs.dtype))


@register("window_mlp", variants={"default": {"window": 4, "hidden_dim": 6}})
class WindowMLP(nn.Module):
    """Fixed-window MLP over the last ``window`` inputs: a baseline without memory.

    Attributes:
      dim: width D of input and output.
      hidden_dim: hidden units H, None = 4 dim.
      window: number k of inputs seen, the present one included.
      activation: "tanh", "relu" or "gelu".
      dtype: compute dtype.
    """

    dim: int
    hidden_dim: int | None = None
    window: int = 8
    activation: str = "tanh"
    dtype: str = "float32"

    causal: ClassVar[bool] = True
    paper: ClassVar[str] = "Bengio et al. 2003, A Neural Probabilistic Language Model"

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], state: WindowMLPState | None = None, *, reset: Bool[Array, "B T"] | None = None
    ) -> tuple[Float[Array, "B T D"], WindowMLPState]:
        check_sequence(x, self.dim, reset)
        check_positive("window", self.window)
        hidden = 4 * self.dim if self.hidden_dim is None else self.hidden_dim
        check_positive("hidden_dim", hidden)
        initial = self.initial_state(x.shape[0])
        if state is not None:
            check_state(state, initial)
        zeros, scaled = nn.initializers.zeros_init(), nn.initializers.variance_scaling
        params = {
            "W_1": self.param("W_1", scaled(1.0, "fan_in", "normal", in_axis=(0, 1)), (self.window, self.dim, hidden)),
            "b_1": self.param("b_1", zeros, (hidden,)),
            "W_2": self.param("W_2", scaled(1.0, "fan_in", "normal"), (hidden, self.dim)),
            "b_2": self.param("b_2", zeros, (self.dim,)),
        }
        state = initial if state is None else state
        return window_mlp(params, x.astype(self.dtype), state, reset=reset, activation=self.activation)

    def initial_state(self, batch_size: int, dtype: str | None = None) -> WindowMLPState:
        """No inputs yet: zeros in ``dtype`` (default: the compute dtype)."""
        return WindowMLPState(jnp.zeros((batch_size, self.window - 1, self.dim), dtype or self.dtype))
