"""Aaren: attention with a learned query, read as a recurrent network.

Feng, Tung, Hajimirsadeghi, Ahmed, Bengio, Mori (2024), Attention as an RNN, arXiv 2405.13956.

Each layer owns one query token e [D] that does not depend on the input. With H heads of width d = D / H, x_t [D]:

    q = W_q e                                   [D], split in heads: q_h [d]
    k_t = W_k x_t,  v_t = W_v x_t               [D], split in heads
    s_{t,h} = <q_h, k_{t,h}> / sqrt(d)          one score per head and step
    o_{t,h} = sum_{j<=t} exp(s_{j,h}) v_{j,h} / sum_{j<=t} exp(s_{j,h})
    y_t = W_o concat_h o_{t,h}                  [D]

So y_t is softmax attention over x_1..x_t, as in a causal Transformer, but with the same query at every step. That makes
it a recurrence: a set A of steps is summed up, per head, by its largest score m, u = sum_A exp(s - m) and
w = sum_A exp(s - m) v, with output w / u. Two disjoint sets merge, in any order, by

    m = max(m_A, m_B),  u = u_A e^{m_A - m} + u_B e^{m_B - m},  w = w_A e^{m_A - m} + w_B e^{m_B - m}

and one more token is the merge with (s_t, 1, v_t): the RNN view, whose numerator a, denominator c and maximum m are w,
u and m here. ``zoo.scans.softmax_scan`` (under the name ``prefix_attention``) computes all prefixes, in four
equivalent forms: naive O(T^2), sequential, chunked, and associative (parallel over time).

Cost: time O(B T D^2) for the projections and O(B T D) for the scan; decoding costs O(D) per token besides the
projections, whatever came before. State: B * H * (d + 2) numbers in at least float32, whatever T (a Transformer keeps
2 B T D). Parameters: D more than self-attention of the same shape, for the query token; W_q is redundant with it and
kept for parity.

The weights depend on content only: without a position signal in x, y_T is the same for every order of x_1..x_T. Steps
cannot be taken back out of a state (the merge has no inverse), so there is no sliding window. A prefix in which every
step is masked has no attention output; it is defined as zeros.
"""

from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float

from zoo.checks import check_choice, check_divides, check_positive, check_sequence, check_state
from zoo.dtypes import accumulator
from zoo.registry import register
from zoo.scans import SoftmaxState, softmax_merge, softmax_pool, softmax_scan

METHODS = ("auto", "naive", "sequential", "chunked", "associative")

prefix_attention = softmax_scan


@struct.dataclass
class AarenState:
    """Softmax statistics of the tokens read so far, per head; nothing read: (-inf, 0, 0).

    Attributes:
      maximum: m, the largest score.
      denominator: u, the sum of exp(score - m).
      numerator: w, the sum of exp(score - m) * value.
    """

    maximum: Float[Array, "B H"]
    denominator: Float[Array, "B H"]
    numerator: Float[Array, "B H d"]

    def merge(self, other: "AarenState") -> "AarenState":
        """State after the tokens of both, which must be disjoint pieces of one sequence; order does not matter.

        Only the states of one layer over the same parameters can be merged. With several layers this holds for the
        first: the inputs of later layers depend on all that came before.
        """
        return AarenState(*softmax_merge(self.statistics(), other.statistics()))

    def statistics(self) -> SoftmaxState:
        """The same numbers as a ``zoo.scans.SoftmaxState``."""
        return SoftmaxState(self.maximum, self.denominator, self.numerator)


def aaren(
    params: Mapping[str, Array],
    x: Float[Array, "B T D"],
    state: AarenState,
    *,
    reset: Bool[Array, "B T"] | None = None,
    mask: Bool[Array, "B T"] | None = None,
    method: str = "auto",
    chunk_size: int | None = None,
) -> tuple[Float[Array, "B T D"], AarenState]:
    """The attention of the module docstring over every prefix (many-to-many).

    Args:
      params: ``query_token`` [D]; ``query``, ``key``, ``value``, ``output`` [D, D], acting as x @ W.
      x: inputs.
      state: statistics of the tokens before the first; its shape gives the number of heads.
      reset: True at the first token of a new document.
      mask: False where a step is padding: it contributes nothing. Before the first True, y is zeros.
      method: how the scan is computed, see ``zoo.scans.softmax_scan``.
      chunk_size: steps per chunk of the chunked form; None chooses.

    Returns:
      (y, state after the last token); y has x's dtype.
    """
    scores, values = _scores_and_values(params, x, state.maximum.shape[-1])
    outputs, last = prefix_attention(
        scores, values, state.statistics(), mask=mask, reset=reset, method=method, chunk_size=chunk_size
    )
    y = outputs.reshape(x.shape).astype(x.dtype) @ params["output"].astype(x.dtype)
    return y, AarenState(*last)


def aaren_pool(
    params: Mapping[str, Array],
    x: Float[Array, "B T D"],
    state: AarenState,
    *,
    mask: Bool[Array, "B T"] | None = None,
    chunk_size: int | None = None,
) -> tuple[Float[Array, "B D"], AarenState]:
    """Only the last output (many-to-one): the state takes in T tokens at once, block by block.

    Args:
      params, x, state, mask: as in ``aaren``.
      chunk_size: tokens per block: memory beyond the projections is O(chunk_size). All T at once when None.

    Returns:
      (y of the last step, state after the last token).
    """
    scores, values = _scores_and_values(params, x, state.maximum.shape[-1])
    output, last = softmax_pool(scores, values, state.statistics(), mask=mask, chunk_size=chunk_size)
    y = output.reshape(x.shape[0], -1).astype(x.dtype) @ params["output"].astype(x.dtype)
    return y, AarenState(*last)


def _scores_and_values(
    params: Mapping[str, Array], x: Float[Array, "B T D"], heads: int
) -> tuple[Float[Array, "B T H"], Float[Array, "B T H d"]]:
    """Scores s and values v of every step; scores are summed in at least float32."""
    dtype = accumulator(x.dtype)
    query = (params["query_token"].astype(dtype) @ params["query"].astype(dtype)).reshape(heads, -1)
    key, value = ((x @ params[name].astype(x.dtype)).reshape(*x.shape[:2], heads, -1) for name in ("key", "value"))
    scores = jnp.einsum("bthd,hd->bth", key.astype(dtype), query) * query.shape[-1] ** -0.5
    return scores, value.astype(dtype)


@register(
    "aaren",
    variants={
        "default": {"heads": 2},
        "chunked": {"heads": 2, "method": "chunked", "chunk_size": 5},
        "associative": {"heads": 4, "method": "associative"},
    },
)
class Aaren(nn.Module):
    """Attention as an RNN: softmax attention of a learned query over every prefix, with a state of constant size.

    Attributes:
      dim: width D of input and output.
      heads: number H of heads; divides ``dim``.
      method: form of the scan, "auto", "naive" (memory O(T^2)), "sequential", "chunked" or "associative".
      chunk_size: steps per chunk of the chunked form; None chooses.
      dtype: compute dtype of the projections; scores and softmax statistics are at least float32.
    """

    dim: int
    heads: int = 1
    method: str = "auto"
    chunk_size: int | None = None
    dtype: str = "float32"

    causal: ClassVar[bool] = True
    paper: ClassVar[str] = "Feng et al. 2024, Attention as an RNN"

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], state: AarenState | None = None, *, reset: Bool[Array, "B T"] | None = None
    ) -> tuple[Float[Array, "B T D"], AarenState]:
        check_sequence(x, self.dim, reset)
        check_choice("method", self.method, METHODS)
        initial = self.initial_state(x.shape[0])
        if state is not None:
            check_state(state, initial)
        options = {"method": self.method, "chunk_size": self.chunk_size}
        return aaren(self._params(), x.astype(self.dtype), initial if state is None else state, reset=reset, **options)

    def initial_state(self, batch_size: int, dtype: str | None = None) -> AarenState:
        """Nothing read yet: (-inf, 0, 0), in at least float32 whatever ``dtype``."""
        check_positive("heads", self.heads)
        check_divides("heads", self.heads, "dim", self.dim)
        return AarenState(*SoftmaxState.empty(batch_size, self.heads, self.dim // self.heads, dtype or self.dtype))

    def _params(self) -> dict[str, Array]:
        # A query token of unit variance gives scores of unit variance for normalised inputs, as in a Transformer.
        params = {"query_token": self.param("query_token", nn.initializers.normal(1.0), (self.dim,))}
        for name in ("query", "key", "value", "output"):
            params[name] = self.param(name, nn.initializers.lecun_normal(), (self.dim, self.dim))
        return params
