"""TTT-Linear: a linear memory per head, which learns at test time by gradient descent, chunk by chunk.

Sun et al. (2024), Learning to (Learn at Test Time): RNNs with Expressive Hidden States, arXiv 2407.04620. With x_t [D], H
memories of width K = D / H and weights W [K, K], b [K]:

    f(z) = z + norm(z W + b) * scale + bias                        norm over the K channels
    W_t = W_(t-1) - eta_t grad ||f(k_t) - v_t||^2 / (2 K)      at the weights after the chunk before; eta_t per head
    y_t = W_o (layer_norm(f_t(q_t)) * gelu(W_z x_t))

q_t, k_t, v_t and eta_t = eta_base sigmoid(x_t w + b) as in ``zoo.layers.test_time_training``. eta_base is 1.0, chunks are 16
tokens long, as in the paper; without a gate and a convolution it is the form for a Transformer's block, with both that for
Mamba's. Chunks count from the first token of a document.

Time O(B T (D^2 + D K)), chunks one after another. State per row: the weights, as they are and as they were at the
anchor, D K + D numbers each, and the last taps - 1 inputs of the convolution.
"""

from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
from jaxtyping import Array, Bool, Float

from zoo.checks import check_positive, check_sequence, check_state
from zoo.layers.test_time_training import TTTState, initial_learner, learn_at_test_time, learner_parameters
from zoo.registry import register


def ttt_linear(
    params: Mapping[str, Array],
    x: Float[Array, "B T D"],
    state: TTTState | None,
    *,
    heads: int,
    chunk_size: int = 16,
    eta_base: float = 1.0,
    rotary: bool = True,
    reset: Bool[Array, "B T"] | None = None,
    method: str = "auto",
) -> tuple[Float[Array, "B T D"], TTTState]:
    """The layer of the module docstring; arguments as of ``zoo.layers.test_time_training.learn_at_test_time``."""
    return learn_at_test_time(
        params, x, state, depth=1, heads=heads, chunk_size=chunk_size, eta_base=eta_base, rotated=rotary, reset=reset,
        method=method,
    )  # fmt: skip


@register(
    "ttt_linear",
    variants={
        "default": {"heads": 2, "chunk_size": 4},
        "mamba_block": {"heads": 2, "chunk_size": 5, "conv_size": 3, "gate": True, "rotary": False},
    },
)
class TTTLinear(nn.Module):
    """TTT-Linear: a linear memory per head, written by gradient descent at test time.

    Attributes:
      dim: width D of input and output.
      heads: memories H; divides ``dim``.
      chunk_size: tokens whose gradients are taken at the same weights.
      eta_base: largest step.
      conv_size: taps of a causal convolution on queries and keys; 0: none.
      gate: the output has a gate.
      rotary: queries and keys are rotated to their places in the chunk.
      method: see ``zoo.scans.memory_descent``.
      dtype: compute dtype of the projections; memories are at least float32.
    """

    dim: int
    heads: int = 4
    chunk_size: int = 16
    eta_base: float = 1.0
    conv_size: int = 0
    gate: bool = False
    rotary: bool = True
    method: str = "auto"
    dtype: str = "float32"

    causal: ClassVar[bool] = True
    paper: ClassVar[str] = "Sun et al. 2024, Learning to (Learn at Test Time): RNNs with Expressive Hidden States"

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], state: TTTState | None = None, *, reset: Bool[Array, "B T"] | None = None
    ) -> tuple[Float[Array, "B T D"], TTTState]:
        check_sequence(x, self.dim, reset)
        check_positive("chunk_size", self.chunk_size)
        if not self.eta_base > 0:
            raise ValueError(f"eta_base must be positive, got {self.eta_base}")
        params = learner_parameters(self, dim=self.dim, gate=self.gate, **self._sizes())
        if state is not None:
            check_state(state, self.initial_state(x.shape[0]))
        options = {name: getattr(self, name) for name in ("heads", "chunk_size", "eta_base", "rotary", "method")}
        return ttt_linear(params, x.astype(self.dtype), state, reset=reset, **options)

    def _sizes(self) -> dict[str, int]:
        return {"heads": self.heads, "depth": 1, "expansion": 1, "conv_size": self.conv_size}

    def initial_state(self, batch_size: int, dtype: str | None = None) -> TTTState:
        """Zeros; ``dtype`` is the storage dtype of the convolution's history, memories are at least float32."""
        return initial_learner(
            dim=self.dim, batch=batch_size, dtype=dtype or self.dtype, compute_dtype=self.dtype, **self._sizes()
        )
