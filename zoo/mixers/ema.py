"""Multi-head damped exponential moving average alone, as a mixer: the operator of MEGA without its attention.

Ma et al. (2022), Mega: Moving Average Equipped Gated Attention, section 3.1. Per channel j of D, with N hidden
entries,

    h_t = (1 - p a) h_{t-1} + p beta x_t [D, N],   y_t = SiLU(sum_n gamma h_t / sqrt(N) + omega x_t) [D]

with p and a sigmoids of learned [D, N]: a diagonal, real state space layer. Equations, forms and costs in
``zoo.layers.damped_ema``. State: D N numbers per row, and the last ``truncation`` inputs where only so many taps
count.
"""

from typing import ClassVar

import flax.linen as nn
from jaxtyping import Array, Bool, Float

from zoo.checks import check_sequence, check_state
from zoo.layers.damped_ema import EMAState, damped_ema, ema_parameters, initial_ema
from zoo.registry import register


@register("ema", variants={"default": {"state_dim": 3}, "truncated": {"state_dim": 2, "truncation": 4}})
class EMA(nn.Module):
    """Multi-head damped exponential moving average: decaying sums per channel, mixed.

    Attributes:
      dim: width D of input and output.
      state_dim: decaying sums N per channel.
      truncation: taps that count; None: all.
      dtype: compute dtype; the recurrence runs in at least float32.
    """

    dim: int
    state_dim: int = 16
    truncation: int | None = None
    dtype: str = "float32"

    causal: ClassVar[bool] = True
    paper: ClassVar[str] = "Ma et al. 2022, Mega: Moving Average Equipped Gated Attention"

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], state: EMAState | None = None, *, reset: Bool[Array, "B T"] | None = None
    ) -> tuple[Float[Array, "B T D"], EMAState]:
        check_sequence(x, self.dim, reset)
        params = ema_parameters(self, dim=self.dim, state_dim=self.state_dim, truncation=self.truncation)
        if state is not None:
            check_state(state, self.initial_state(x.shape[0]))
        return damped_ema(params, x.astype(self.dtype), state, truncation=self.truncation, reset=reset)

    def initial_state(self, batch_size: int, dtype: str | None = None) -> EMAState:
        """Zeros, in at least float32 whatever ``dtype``."""
        return initial_ema(batch_size, self.dim, self.state_dim, self.truncation, self.dtype)
