"""Gated attention: causal softmax attention with normalised queries and keys and a sigmoid gate on what every head reads.

Qiu et al. (2025), Gated Attention for Large Language Models, arXiv 2505.06708 (the gate); Henry et al. (2020), Query-Key
Normalization for Transformers; the attention layers of Qwen3-Next.

With x_t [D], H query heads, G key/value heads (G divides H), heads of width K, p_t the position in the document:

    q_t = rot(rms_norm(W_q x_t) * s_q, p_t) [H, K]      k_t = rot(rms_norm(W_k x_t) * s_k, p_t) [G, K]
    v_t = W_v x_t [G, K]                                g_t = sigmoid(W_g x_t) [H, K]
    a_ts = softmax over s of q_t . k_s / sqrt(K)        for s in the document of t with t - window < s <= t
    y_t = W_o (g_t * sum_s a_ts v_s)                    W_o [H K, D]

The norms run over the channels of one head and share s_q, s_k [K] among heads. Window, cache, cost and state are those
of ``zoo.mixers.attention``.
"""

from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from zoo.checks import check_positive, check_sequence, check_state
from zoo.layers.attention import attention_parameters, document_positions, merge_heads, project_heads, rotary
from zoo.layers.norms import rms_norm
from zoo.mixers.attention import AttentionState, cached_attention
from zoo.registry import register


def gated_attention(
    params: Mapping[str, Array],
    x: Float[Array, "B T D"],
    state: AttentionState | None = None,
    *,
    window: int,
    base: float = 10_000.0,
    rotary_fraction: float = 1.0,
    rotary_scaling: Mapping[str, float] | None = None,
    norm_eps: float = 1e-6,
    reset: Bool[Array, "B T"] | None = None,
) -> tuple[Float[Array, "B T D"], AttentionState]:
    """The attention of the module docstring.

    Args:
      params: ``query``, ``gate`` [D, H, K], ``key`` and ``value`` [D, G, K], ``query_norm``, ``key_norm`` [K], ``output``
        [H, K, D]; where there are biases also ``query_bias``, ``gate_bias`` [H, K], ``key_bias``, ``value_bias`` [G, K],
        ``output_bias`` [D].
      x: inputs; their dtype is the compute dtype.
      state: state before the first token, None for the start (then no empty cache is read).
      window: tokens that a token can see, itself included.
      base: base of the rotary wavelengths.
      rotary_fraction: share of a head's channels that is rotated.
      rotary_scaling: scaling of the rotary frequencies, see ``zoo.layers.rotary_frequencies``.
      norm_eps: of the norms.
      reset: True at the first token of a new document.

    Returns:
      (y, state after the last token).
    """
    age = document_positions(reset, None if state is None else state.length, shape=x.shape[:2])
    q, k, v = project_heads(params, x, None, base)
    q, k = (
        rotary(
            rms_norm(a, params[f"{n}_norm"], norm_eps), age, base=base, fraction=rotary_fraction, scaling=rotary_scaling
        )
        for n, a in (("query", q), ("key", k))
    )
    gate = jnp.einsum("btd,dhk->bthk", x, params["gate"].astype(x.dtype))
    if "gate_bias" in params:
        gate = gate + params["gate_bias"].astype(x.dtype)
    y, state = cached_attention(q, k, v, age, state, window=window)
    return merge_heads(params, y * jax.nn.sigmoid(gate)), state


@register(
    "gated_attention",
    variants={
        "default": {"heads": 2, "window": 16},
        "grouped": {
            "heads": 4,
            "kv_heads": 2,
            "window": 5,
            "head_dim": 4,
            "use_bias": True,
            "rotary_fraction": 0.5,
        },
    },
)
class GatedAttention(nn.Module):
    """Causal self-attention with normalised queries and keys, and a sigmoid gate on every channel of every head.

    Attributes:
      dim: width D of input and output.
      heads: number of query heads H.
      kv_heads: number of key/value heads G; divides ``heads``; None for ``heads``.
      window: tokens that a token can see, itself included: the stated maximum of the cache.
      base: base of the rotary wavelengths.
      head_dim: width K of a head; None: ``dim / heads``.
      use_bias: all projections have biases.
      rotary_fraction: share of a head's channels that is rotated.
      rotary_scaling: scaling of the rotary frequencies, see ``zoo.layers.rotary_frequencies``; None for none.
      norm_eps: of the norms of queries and keys.
      dtype: compute dtype; norms, scores and softmax in at least float32.
    """

    dim: int
    heads: int = 4
    kv_heads: int | None = None
    window: int = 1024
    base: float = 10_000.0
    head_dim: int | None = None
    use_bias: bool = False
    rotary_fraction: float = 1.0
    rotary_scaling: Mapping[str, float] | None = None
    norm_eps: float = 1e-6
    dtype: str = "float32"

    causal: ClassVar[bool] = True
    paper: ClassVar[str] = "Qiu et al. 2025, Gated Attention for Large Language Models; Qwen3-Next"

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], state: AttentionState | None = None, *, reset: Bool[Array, "B T"] | None = None
    ) -> tuple[Float[Array, "B T D"], AttentionState]:
        check_sequence(x, self.dim, reset)
        check_positive("window", self.window)
        params = attention_parameters(
            self, dim=self.dim, heads=self.heads, kv_heads=self.kv_heads, positions="rotary", head_dim=self.head_dim,
            use_bias=self.use_bias,
        )  # fmt: skip
        head_dim = params["query"].shape[-1]
        into = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal", in_axis=0, out_axis=(1, 2))
        params["gate"] = self.param("gate", into, params["query"].shape)
        if self.use_bias:
            params["gate_bias"] = self.param("gate_bias", nn.initializers.zeros, params["query"].shape[1:])
        for name in ("query_norm", "key_norm"):
            params[name] = self.param(name, nn.initializers.ones, (head_dim,))
        if state is not None:
            check_state(state, self.initial_state(x.shape[0]))
        options = {f: getattr(self, f) for f in ("window", "base", "rotary_fraction", "rotary_scaling", "norm_eps")}
        return gated_attention(params, x.astype(self.dtype), state, reset=reset, **options)

    def initial_state(self, batch_size: int, dtype: str | None = None) -> AttentionState:
        """An empty cache of ``dtype`` (default: the compute dtype)."""
        shape = (batch_size, self.window, self.kv_heads or self.heads, self.head_dim or self.dim // self.heads)
        empty = jnp.zeros(shape, dtype or self.dtype)
        count = jnp.zeros((batch_size,), jnp.int32)
        return AttentionState(empty, empty, count, count)
