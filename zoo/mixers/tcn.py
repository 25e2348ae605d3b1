"""A stack of dilated convolutions over time alone, as a mixer: the operator of TCNCA without its attention.

Terzic et al. (2023), TCNCA: Temporal Convolution Network with Chunked Attention; Bai, Kolter, Koltun (2018), An
Empirical Evaluation of Generic Convolutional and Recurrent Networks for Sequence Modeling. Layer l of ``depth`` has K
taps with dilation f^l, by default without nonlinearity between the layers, and the stack ends like the moving average
it stands in for:

    x_{l+1,t} = sum_k w_l[k] x_{l,t-(K-1-k) f^l} + b_l,   y_t = SiLU(x_{depth,t} + omega x_{0,t})

It reads R = 1 + (K - 1) (f^depth - 1) / (f - 1) steps; ``zoo.scans.choose_dilations`` finds (K, f, depth) for a
length. Other forms (activations, residual blocks of several convolutions, mixing of channels), equations and costs in
``zoo.layers.temporal_convolution``. State: for every convolution a ring of its last (K - 1) f^l inputs.
"""

from typing import ClassVar

import flax.linen as nn
from jaxtyping import Array, Bool, Float

from zoo.checks import check_sequence, check_state
from zoo.layers.temporal_convolution import (
    TemporalConvolutionState,
    convolution_parameters,
    initial_rings,
    temporal_convolution,
)
from zoo.registry import register


@register(
    "tcn",
    variants={
        "default": {"taps": 3, "factor": 2, "depth": 2},
        "residual": {
            "taps": 2, "factor": 2, "depth": 2, "convolutions": 2, "activation": "silu", "residual": True, "skip": False,
            "depthwise": False, "decay": None,
        },
    },
)  # fmt: skip
class TCN(nn.Module):
    """Temporal convolution network: a stack of causal dilated convolutions, depthwise or full.

    Attributes:
      dim: width D of input and output.
      taps: K of every convolution, at least 2.
      factor: dilation factor f; no gaps if at most K.
      depth: layers.
      convolutions: convolutions per layer, all of its dilation.
      activation: nonlinearity after each convolution, see ``zoo.layers.nonlinearity``.
      residual: add the layer's input.
      skip: end with SiLU(. + omega x).
      depthwise: a filter per channel; False mixes channels.
      weight_norm: direction and length of the filters are separate parameters.
      decay: taps are drawn around exp(-decay * lag); None: around 0.
      dtype: compute dtype; the sums run in at least float32.
    """

    dim: int
    taps: int = 17
    factor: int = 8
    depth: int = 4
    convolutions: int = 1
    activation: str = "identity"
    residual: bool = False
    skip: bool = True
    depthwise: bool = True
    weight_norm: bool = True
    decay: float | None = 0.7
    dtype: str = "float32"

    causal: ClassVar[bool] = True
    paper: ClassVar[str] = "Terzic et al. 2023, TCNCA: Temporal Convolution Network with Chunked Attention"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        state: TemporalConvolutionState | None = None,
        *,
        reset: Bool[Array, "B T"] | None = None,
    ) -> tuple[Float[Array, "B T D"], TemporalConvolutionState]:
        check_sequence(x, self.dim, reset)
        params = convolution_parameters(
            self, dim=self.dim, taps=self.taps, factor=self.factor, depth=self.depth, convolutions=self.convolutions,
            decay=self.decay, depthwise=self.depthwise, weight_norm=self.weight_norm, skip=self.skip,
        )  # fmt: skip
        if state is not None:
            check_state(state, self.initial_state(x.shape[0]))
        return temporal_convolution(
            params, x.astype(self.dtype), state, factor=self.factor, convolutions=self.convolutions,
            activation=self.activation, residual=self.residual, reset=reset,
        )  # fmt: skip

    def initial_state(self, batch_size: int, dtype: str | None = None) -> TemporalConvolutionState:
        """Zeros; ``dtype`` is the storage dtype of the rings."""
        return initial_rings(
            batch_size, self.dim, self.taps, self.factor, self.depth, self.convolutions, dtype or self.dtype
        )
