"""BaseConv: a short causal convolution, gated by a linear map of the same token.

Arora et al. (2023), Zoology: Measuring and Improving Recall in Efficient Language Models, arXiv 2312.04927; with the silu
and the widened projections of Arora et al. (2024), Based, arXiv 2402.18668, and Just Read Twice, arXiv 2407.05483.

With x_t [D], E = expansion D channels, K taps, convolutions depthwise:

    [u_t, g_t] = W_in x_t + b_in                               E numbers each
    y_t = W_out (silu(sum_{j<K} kernel_j * u_{t-j}) * g_t) + b_out

The convolution has no bias (``conv_bias``: the released CUDA path has one); it does not look over the borders of documents.
In the code the last row of ``kernel`` is that of the token itself.

Time O(B T (D E + K E)), parallel over time; state: the last K - 1 values of u.
"""

from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from zoo.checks import check_positive, check_sequence, check_state
from zoo.layers.attention import document_positions
from zoo.layers.convolution import depthwise_convolution, recent
from zoo.layers.initializers import symmetric_uniform
from zoo.layers.projections import linear
from zoo.registry import register


@struct.dataclass
class BaseConvState:
    """Carried state: ``history`` [B, K - 1, E], the last values of u; ``age`` [B], tokens of the document so far."""

    history: Float[Array, "B J E"]
    age: Int[Array, " B"]


def base_conv(
    params: Mapping[str, Array],
    x: Float[Array, "B T D"],
    state: BaseConvState | None = None,
    *,
    reset: Bool[Array, "B T"] | None = None,
) -> tuple[Float[Array, "B T D"], BaseConvState]:
    """The layer of the module docstring.

    Args:
      params: ``input`` [D, 2 E], ``input_bias`` [2 E], ``kernel`` [K, E], ``output`` [E, D], ``output_bias`` [D]; where the
        convolution has a bias also ``kernel_bias`` [E].
      x: inputs; their dtype is the compute dtype.
      state: state before the first token, None for the start.
      reset: True at the first token of a new document.

    Returns:
      (y, state after the last token); y has x's dtype.
    """
    taps, history = params["kernel"].shape[0], None if state is None else state.history
    age = document_positions(reset, None if state is None else state.age, shape=x.shape[:2])
    u, gate = jnp.split(linear(x, params, "input"), 2, axis=-1)
    mixed = depthwise_convolution(u, params["kernel"], age, history=history)
    if "kernel_bias" in params:
        mixed = mixed + params["kernel_bias"].astype(mixed.dtype)
    y = linear(jax.nn.silu(mixed) * gate, params, "output")
    return y, BaseConvState(recent(u, taps - 1, history), age[:, -1] + 1)


@register("base_conv", variants={"default": {}, "bias": {"expansion": 1, "conv_size": 4, "conv_bias": True}})
class BaseConv(nn.Module):
    """BaseConv: a short causal convolution, gated by a linear map of the same token.

    Attributes:
      dim: width D of input and output.
      expansion: channels E of the convolution over D (released code: expand_proj = 2 E / D).
      conv_size: taps K.
      conv_bias: the convolution has a bias.
      dtype: compute dtype; the convolution's sum is at least float32.
    """

    dim: int
    expansion: int = 2
    conv_size: int = 3
    conv_bias: bool = False
    dtype: str = "float32"

    causal: ClassVar[bool] = True
    paper: ClassVar[str] = "Arora et al. 2023, Zoology; Arora et al. 2024, Based"

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], state: BaseConvState | None = None, *, reset: Bool[Array, "B T"] | None = None
    ) -> tuple[Float[Array, "B T D"], BaseConvState]:
        check_sequence(x, self.dim, reset)
        check_positive("expansion", self.expansion)
        check_positive("conv_size", self.conv_size)
        if state is not None:
            check_state(state, self.initial_state(x.shape[0]))
        inner, dense, zeros = self.expansion * self.dim, nn.initializers.lecun_normal(), nn.initializers.zeros
        declared = {
            "input": (dense, (self.dim, 2 * inner)),
            "input_bias": (zeros, (2 * inner,)),
            "kernel": (symmetric_uniform(self.conv_size**-0.5), (self.conv_size, inner)),
            "output": (dense, (inner, self.dim)),
            "output_bias": (zeros, (self.dim,)),
        }
        if self.conv_bias:
            declared["kernel_bias"] = (symmetric_uniform(self.conv_size**-0.5), (inner,))
        params = {name: self.param(name, *how) for name, how in declared.items()}
        return base_conv(params, x.astype(self.dtype), state, reset=reset)

    def initial_state(self, batch_size: int, dtype: str | None = None) -> BaseConvState:
        """Zeros; ``dtype`` is the storage dtype of the history."""
        history = jnp.zeros((batch_size, self.conv_size - 1, self.expansion * self.dim), dtype or self.dtype)
        return BaseConvState(history, jnp.zeros(batch_size, jnp.int32))
