"""Moneta: an MLP memory trained by an l_p loss and kept by an l_q norm.

Behrouz, Razaviyayn, Zhong, Mirrokni (2025), It's All Connected: A Journey Through Test-Time Memorization, Attentional Bias,
Retention, and Online Optimization, arXiv 2504.13173.

    A_t = alpha_t A_{t-1} - eta_t d|M(W_{t-1}; k_t) - v_t|_p^p / dW
    W_t = A_t / |A_t|_q^(q-2)                             per matrix of weights, |.|_q over all entries

p = 3, q = 4. The power's sign and absolute value are smooth, tanh(10 e) and sqrt(e^2 + 1e-6). A_0 inverts the map: A_0 =
W_0 / |W_0|_4^2. For q = 4 a small A makes large weights; the norm is guarded at 1e-6. The paper divides by the norm at
the ends of chunks only; here, where A_t is there for every step of a chunk, each is divided by its own norm.

The layer around it is that of ``zoo.mixers.miras``: convolution, gates, norm and gate of the output. The memory of a head
of width P is M(x) = x + norm(gelu(x W0) W1), W0 [P, 4 P], W1 [4 P, P], by default; W0 and W1 at the start are learned.
Cost and state as there.
"""

from typing import ClassVar

import flax.linen as nn
from jaxtyping import Array, Bool, Float

from zoo.checks import check_sequence, check_state
from zoo.mixers.miras import MirasLayerState, make_memory, miras_initial_state, miras_layer, miras_parameters
from zoo.registry import register
from zoo.scans import Miras


@register(
    "moneta",
    variants={
        "default": {"heads": 2, "chunk_size": 4, "rank": 2},
        "sequential": {"heads": 1, "gates": "head", "expansion": 2, "chunk_size": 1},
    },
)
class Moneta(nn.Module):
    """Moneta: a memory with an l_p attentional bias and l_q retention.

    Attributes:
      dim: width D of input and output.
      heads: number of heads H; divides ``dim``.
      p: power of the attentional bias, at least 1.
      q: power of the retention's norm, above 1; 2 is no division.
      exact_mirror: the retention's exact mirror map, which the paper's printed form shortens.
      depth: layers of the memory.
      expansion: width between the memory's layers, over that of a head.
      gates: "head", one number each, or "channel".
      rank: of the projection of channel gates.
      decay_init, step_init: gates at initialisation, where their input is 0;
        ``step_init`` None: see ``zoo.mixers.miras.first_step``.
      conv_size: taps of the convolution.
      chunk_size: steps per chunk, part of the model; 1: the sequential form.
      norm_eps: of the output's norm.
      dtype: compute dtype of the projections; the memory runs in at least float32.
    """

    dim: int
    heads: int = 4
    p: float = 3.0
    q: float = 4.0
    exact_mirror: bool = False
    depth: int = 2
    expansion: int = 4
    gates: str = "channel"
    rank: int = 32
    decay_init: float = 0.98
    step_init: float | None = None
    conv_size: int = 4
    chunk_size: int = 16
    norm_eps: float = 1e-6
    dtype: str = "float32"

    causal: ClassVar[bool] = True
    paper: ClassVar[str] = "Behrouz, Razaviyayn, Zhong and Mirrokni 2025, It's All Connected (Moneta)"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        state: MirasLayerState | None = None,
        *,
        reset: Bool[Array, "B T"] | None = None,
    ) -> tuple[Float[Array, "B T D"], MirasLayerState]:
        check_sequence(x, self.dim, reset)
        parts, shapes = self.parts()
        biases = {"decay": self.decay_init, "step": self.step_init}
        params = miras_parameters(self, parts, shapes, biases)
        initial = self.initial_state(x.shape[0])
        if state is not None:
            check_state(state, initial)
        return miras_layer(
            params, x.astype(self.dtype), initial if state is None else state, parts=parts, chunk_size=self.chunk_size,
            norm_eps=self.norm_eps, reset=reset,
        )  # fmt: skip

    def parts(self) -> tuple[Miras, dict[str, tuple[int, ...]]]:
        """(the four parts, shapes of the memory's weights)."""
        spec = {"name": "mlp", "depth": self.depth, "expansion": self.expansion}
        memory, shapes = make_memory(spec, self.dim // self.heads)
        return Miras(
            memory, {"name": "lp", "p": self.p}, {"name": "lq", "q": self.q, "exact_mirror": self.exact_mirror}
        ), shapes

    def initial_state(self, batch_size: int, dtype: str | None = None) -> MirasLayerState:
        """Zeros; see ``zoo.mixers.miras.miras_initial_state``."""
        return miras_initial_state(self, *self.parts(), batch_size, dtype)
