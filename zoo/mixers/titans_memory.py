"""Titans LMM: the neural long-term memory as a sequence layer, an MLP per head whose weights are the state.

Behrouz, Zhong and Mirrokni (2025), Titans: Learning to Memorize at Test Time, arXiv 2501.00663. With x_t [D], H memories of
width K = D / H and depth L (L = 1: a matrix):

    q_t, k_t, v_t          linear, causal depthwise convolution, silu; q_t and k_t to length 1       [K] per head
    S_t = eta_t S_{t-1} - theta_t grad ||M_a(t)(k_t) - v_t||^2                                       surprise, with momentum
    M_t = (1 - alpha_t) M_{t-1} + S_t                                                                forgetting
    y_t = W_o (rms_norm(M_t(q_t)) * scale * silu(W_z x_t))                                           norm per head, scale [K]

a(t): the last token of the chunk before, see ``zoo.scans.memory_descent``. The gates and M are those of
``zoo.layers.neural_memory``, where also stands what of it is our choice. N_p persistent tokens are read before every
document.

Time O(B T (D^2 + L e D K)) with e the expansion, in chunks of b tokens, of which the gradients are parallel and the memories
follow each other. State per row: M, S and the anchor, 3 L e D K numbers, and the last taps - 1 inputs of the convolution.
"""

from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax
from flax import struct
from jaxtyping import Array, Bool, Float

from zoo.checks import check_choice, check_sequence, check_state
from zoo.dtypes import accumulator
from zoo.layers.neural_memory import (
    NeuralMemory,
    NeuralMemoryState,
    initial_neural_memory,
    neural_memory,
    neural_memory_parameters,
    persistent_tokens,
)
from zoo.layers.norms import rms_norm
from zoo.layers.projections import linear
from zoo.registry import register

OUTPUT_GATES = ("silu", "sigmoid", "none")


@struct.dataclass
class TitansMemoryState:
    """Carried state: ``memory``, see ``zoo.layers.neural_memory.NeuralMemoryState``."""

    memory: NeuralMemoryState


def titans_memory(
    params: Mapping[str, Array],
    x: Float[Array, "B T D"],
    state: TitansMemoryState | None,
    *,
    config: NeuralMemory,
    output_gate: str = "silu",
    norm_eps: float = 1e-6,
    reset: Bool[Array, "B T"] | None = None,
) -> tuple[Float[Array, "B T D"], TitansMemoryState]:
    """The layer of the module docstring.

    Args:
      params: those of ``zoo.layers.neural_memory``; ``scale`` [K], ``gate`` [D, D] where there is one, ``output`` [D, D],
        ``persistent`` [N_p, D] where there are such tokens.
      x: inputs; projections run in their dtype.
      state: state before the first token; None: the start, which is faster.
      config: the memory.
      output_gate: of ``OUTPUT_GATES``.
      norm_eps: of the norm.
      reset: True at the first token of a new document.

    Returns:
      (y, state after the last token); y has x's dtype.
    """
    r, _, memory = neural_memory(
        params, x, None if state is None else state.memory, config, reset=reset, persistent=params.get("persistent")
    )
    r = rms_norm(r.reshape(*x.shape[:2], config.heads, -1), params["scale"], norm_eps).reshape(x.shape)
    if output_gate != "none":
        z = linear(x, params, "gate").astype(accumulator(x.dtype))
        r = r * (jax.nn.silu(z) if output_gate == "silu" else jax.nn.sigmoid(z))
    return linear(r.astype(x.dtype), params, "output"), TitansMemoryState(memory)


@register(
    "titans_memory",
    variants={
        "default": {"heads": 2, "expansion": 2, "chunk_size": 4, "persistent": 2},
        "matrix": {
            "heads": 2, "depth": 1, "chunk_size": 5, "conv_size": 0, "gates_per": "chunk", "output_gate": "none",
            "residual_norm": True, "norm_gain": True, "max_gradient_norm": 2.0,
        },
        "channel": {"heads": 4, "depth": 1, "chunk_size": 3, "gates": "channel", "momentum": False, "conv_size": 2},
    },
)  # fmt: skip
class TitansMemory(nn.Module):
    """Titans LMM: a memory MLP per head, written by gradient descent at test time.

    Attributes:
      dim: width D of input and output.
      heads, depth, expansion, activation, residual_norm, norm_gain, chunk_size, conv_size, momentum, decay, gates,
        gates_per, theta_max, max_gradient_norm, truncate, method: see ``zoo.layers.neural_memory.NeuralMemory``.
      persistent: number N_p of persistent tokens.
      output_gate: "silu" or "sigmoid" of a linear map of x on the normalised output; "none".
      norm_eps: of the output's norm.
      dtype: compute dtype of the projections; memories are at least float32.
    """

    dim: int
    heads: int = 4
    depth: int = 2
    expansion: int = 4
    activation: str = "silu"
    residual_norm: bool | None = None
    norm_gain: bool = False
    chunk_size: int = 64
    conv_size: int = 4
    momentum: bool = True
    decay: bool = True
    gates: str = "head"
    gates_per: str = "token"
    theta_max: float = 0.1
    max_gradient_norm: float | None = None
    truncate: bool = False
    method: str = "auto"
    persistent: int = 0
    output_gate: str = "silu"
    norm_eps: float = 1e-6
    dtype: str = "float32"

    causal: ClassVar[bool] = True
    paper: ClassVar[str] = "Behrouz, Zhong and Mirrokni 2025, Titans: Learning to Memorize at Test Time"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        state: TitansMemoryState | None = None,
        *,
        reset: Bool[Array, "B T"] | None = None,
    ) -> tuple[Float[Array, "B T D"], TitansMemoryState]:
        check_sequence(x, self.dim, reset)
        check_choice("output_gate", self.output_gate, OUTPUT_GATES)
        config = self.config()
        params = neural_memory_parameters(self, config, self.dim)
        tokens = persistent_tokens(self, self.persistent, self.dim)
        if tokens is not None:
            params["persistent"] = tokens
        dense = nn.initializers.lecun_normal()
        params["scale"] = self.param("scale", nn.initializers.ones, (self.dim // self.heads,))
        for name in ("gate", "output") if self.output_gate != "none" else ("output",):
            params[name] = self.param(name, dense, (self.dim, self.dim))
        if state is not None:
            check_state(state, self.initial_state(x.shape[0]))
        return titans_memory(
            params, x.astype(self.dtype), state, config=config, output_gate=self.output_gate, norm_eps=self.norm_eps,
            reset=reset,
        )  # fmt: skip

    def config(self) -> NeuralMemory:
        """The memory that these attributes describe."""
        return NeuralMemory(**{name: getattr(self, name) for name in NeuralMemory.__dataclass_fields__})

    def initial_state(self, batch_size: int, dtype: str | None = None) -> TitansMemoryState:
        """Zeros; ``dtype`` is the storage dtype of the convolution's history, memories are at least float32."""
        return TitansMemoryState(initial_neural_memory(self.config(), self.dim, batch_size, dtype or self.dtype))
