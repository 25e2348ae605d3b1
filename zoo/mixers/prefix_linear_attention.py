"""Prefix linear attention (JRT-RNN): Based, whose first M tokens are read without regard to their order.

Arora, Timalsina, Singhal, Spector, Eyuboglu, Zhao, Rao, Rudra, Re (2024), Just Read Twice: Closing the Recall Gap for
Recurrent Language Models, arXiv 2407.05483.

A recurrent model decides what to keep of a token before it knows what will be asked. Here the first M tokens of a document,
its prefix, are read twice: causally, and by an encoder with keys k^e and values v^e of its own whose sums every token has
from the start. With queries, keys, values and phi of ``zoo.mixers.based``, M' = min(M, tokens of the prefix):

    k^e_j = W_k^e x_j [H, F],  v^e_j = W_v^e x_j [H, V]        j <= M'; ``shared``: k and v again
    y_t = W_o (sum_{j<=t} w(q_t, k_j) v_j + sum_{j<=M'} w(q_t, k^e_j) v^e_j)
          / (sum_{j<=t} w(q_t, k_j) + sum_{j<=M'} w(q_t, k^e_j) + eps)          w(q, k) = phi(q) . phi(k)

for every t: the causal sums run over the prefix too, and both parts stand in one denominator.

What is causal. From token M' on, nothing depends on what comes later. Inside the prefix every output depends on all of it:
a next-token loss there would be shown its answers (``zoo.layers.prefix_lm_loss`` leaves it out). So ``causal`` is False for
M > 1, and yet there is a state: the sums, both parts in one, from which it goes on as Based. The call that begins a document
is its prefill: the prefix is what that call holds of the first M tokens. A document is begun by a call without a state (or
with one of length 0), or by a reset. Cutting a sequence at M or later changes nothing; cutting it earlier makes the prefix
shorter, which is another function. ``prefill`` and ``decode`` are the two halves for who wants to be told of a mix-up.

Padding. Training has prefixes of M tokens; the published evaluation pads shorter prompts on the left to M and marks the
padding by ``mask``. "clean" (default, ours) takes masked tokens out of all sums. "reference" does as the released code,
which sets k and k^e to 0 before phi: phi(0) = [1, 0, ...], so each masked token still adds its values, with weight 1.

Time O(B T (D (D + H F) + D K)) and once more for the prefix (resets: for all tokens); state: K (D + H) numbers per row, as
Based, whatever M. A call with a state computes the encoder for rows that may begin with it; ``decode`` does not.
"""

from collections.abc import Mapping
from functools import partial
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from zoo.checks import check_choice, check_flags, check_positive, check_sequence, check_state
from zoo.dtypes import accumulator
from zoo.layers.attention import document_positions, merge_heads, project_heads
from zoo.layers.linear_attention import (
    TAYLOR_EPS,
    TAYLOR_STORAGES,
    append_normalizer,
    head_sizes,
    linear_attention_parameters,
    normalized,
    taylor_features,
    taylor_sums,
    taylor_weights,
)
from zoo.registry import register
from zoo.scans import prefix_linear_attention as prefix_scan

PADDINGS = ("clean", "reference")


@struct.dataclass
class PrefixLinearAttentionState:
    """Carried state: ``memory`` [B, H, K, V] and ``key_sum`` [B, H, K], sums of phi(k) v^T and phi(k) over all tokens and
    those of the encoder; ``length`` [B] int32, tokens of the document so far: 0 is before the prefill."""

    memory: Float[Array, "B H K V"]
    key_sum: Float[Array, "B H K"]
    length: Int[Array, " B"]


def prefix_linear_attention(
    params: Mapping[str, Array],
    x: Float[Array, "B T D"],
    state: PrefixLinearAttentionState | None = None,
    *,
    prefix_length: int,
    mask: Bool[Array, "B T"] | None = None,
    padding: str = "clean",
    eps: float = TAYLOR_EPS,
    storage: str = "full",
    reset: Bool[Array, "B T"] | None = None,
    method: str = "auto",
    chunk_size: int | None = None,
) -> tuple[Float[Array, "B T D"], PrefixLinearAttentionState]:
    """The layer of the module docstring.

    Args:
      params: ``query``, ``key``, ``encoder_key`` [D, H, F], ``value``, ``encoder_value`` [D, H, V], ``output`` [H, V, D].
        Without ``encoder_key`` the encoder has the other keys and values.
      x: inputs; projections run in their dtype.
      state: state before the first token; None for the start.
      prefix_length: M; 0 is Based.
      mask: False at padding, which counts as tokens of the prefix; None: there is none.
      padding: "clean" or "reference", see the module docstring.
      eps: added to the denominator.
      storage: of the features, see ``zoo.layers.taylor_features``.
      reset: True at the first token of a new document.
      method: how the scan is computed, see ``zoo.scans.prefix_linear_attention``.
      chunk_size: steps per chunk, likewise.

    Returns:
      (y, state after the last token); y has x's dtype.
    """
    (batch, time, _), wide = x.shape, accumulator(x.dtype)
    q, k, v = (a.astype(wide) for a in project_heads(params, x, None, 0.0))
    if state is None:
        sums = taylor_sums(batch, *q.shape[2:], v.shape[3], storage, wide)
        state = PrefixLinearAttentionState(*sums, jnp.zeros(batch, jnp.int32))
    age = document_positions(reset, state.length, shape=(batch, time))
    size = min(prefix_length, time) if reset is None else time
    begun = (state.length == 0)[:, None]
    begun = begun if reset is None else begun | (jnp.cumsum(reset, axis=1) > 0)
    member = begun & (age[:, :size] < prefix_length)
    prefix_k, prefix_v = encoder_projections(params, x[:, :size]) if "encoder_key" in params else (k, v)
    prefix_k, prefix_v = (a[:, :size].astype(wide) for a in (prefix_k, prefix_v))
    values, start = append_normalizer(v, state.memory, state.key_sum)
    prefix_values, _ = append_normalizer(prefix_v, state.memory, state.key_sum)
    if mask is not None and padding == "reference":
        k = jnp.where(mask[..., None, None], k, 0)
        prefix_k = jnp.where(mask[:, :size, None, None], prefix_k, 0)
    elif mask is not None:
        values = jnp.where(mask[..., None, None], values, 0)
        member = member & mask[:, :size]
    prefix_values = jnp.where(member[..., None, None], prefix_values, 0)
    y, last = prefix_scan(
        q, k, values, prefix_k, prefix_values, start, starts=reset, method=method, chunk_size=chunk_size,
        feature_map=partial(taylor_features, storage=storage),
    )  # fmt: skip
    y = normalized(y, eps).astype(x.dtype)
    return merge_heads(params, y), PrefixLinearAttentionState(last[..., :-1], last[..., -1], age[:, -1] + 1)


def prefix_parallel(
    q: Float[Array, "B T H F"],
    k: Float[Array, "B T H F"],
    v: Float[Array, "B T H V"],
    prefix_k: Float[Array, "B M H F"],
    prefix_v: Float[Array, "B M H V"],
    *,
    eps: float = TAYLOR_EPS,
) -> Float[Array, "B T H V"]:
    """The attention of the module docstring from the start in its parallel form: [T, T + M] weights, and no features."""
    time = q.shape[1]
    causal = jnp.where(jnp.tril(jnp.ones((time, time), bool)), taylor_weights(q, k), 0)
    weights = jnp.concatenate([causal, taylor_weights(q, prefix_k)], axis=-1)
    values = jnp.concatenate([v, prefix_v], axis=1)
    y = jnp.einsum("bhts,bshv->bthv", weights, values, precision=lax.Precision.HIGHEST)
    return y / (jnp.swapaxes(jnp.sum(weights, axis=-1), 1, 2)[..., None] + eps)


def encoder_projections(
    params: Mapping[str, Array], x: Float[Array, "B M D"]
) -> tuple[Float[Array, "B M H F"], Float[Array, "B M H V"]]:
    """Keys and values of the encoder."""
    names = ("encoder_key", "encoder_value")
    return tuple(jnp.einsum("btd,dhk->bthk", x, params[name].astype(x.dtype)) for name in names)


@register(
    "prefix_linear_attention",
    variants={
        "default": {"heads": 2, "feature_dim": 3, "prefix_length": 4},
        "shared": {
            "heads": 2, "feature_dim": 2, "prefix_length": 1, "shared": True, "storage": "symmetric", "chunk_size": 4
        },
    },
)  # fmt: skip
class PrefixLinearAttention(nn.Module):
    """Prefix linear attention (JRT-RNN): Based with a first part of every document that is read without its order.

    Attributes:
      dim: width D of input and output.
      heads: number of heads H; divides ``dim``.
      feature_dim: numbers F of a query or key, before the feature map.
      prefix_length: tokens M of the prefix ("encoder length"); 0 is Based.
      shared: the encoder has no projections of its own.
      padding: what becomes of masked tokens, "clean" or "reference".
      storage: "full" or "symmetric", see ``zoo.layers.taylor_features``.
      eps: added to the denominator.
      chunk_size: steps per chunk; None: chosen from the shape.
      dtype: compute dtype of the projections; the recurrence runs in at least float32.
    """

    dim: int
    heads: int = 16
    feature_dim: int = 16
    prefix_length: int = 1024
    shared: bool = False
    padding: str = "clean"
    storage: str = "full"
    eps: float = TAYLOR_EPS
    chunk_size: int | None = None
    dtype: str = "float32"

    paper: ClassVar[str] = "Arora et al. 2024, Just Read Twice: Closing the Recall Gap for Recurrent Language Models"

    @property
    def causal(self) -> bool:
        """False where the tokens of a prefix see each other; there is a state all the same."""
        return self.prefix_length <= 1

    def __call__(
        self,
        x: Float[Array, "B T D"],
        state: PrefixLinearAttentionState | None = None,
        *,
        reset: Bool[Array, "B T"] | None = None,
        mask: Bool[Array, "B T"] | None = None,
    ) -> tuple[Float[Array, "B T D"], PrefixLinearAttentionState]:
        """``mask`` is False at padding tokens."""
        return self._run(x, state, reset, mask, self.prefix_length)

    def prefill(
        self,
        x: Float[Array, "B T D"],
        state: PrefixLinearAttentionState | None = None,
        *,
        reset: Bool[Array, "B T"] | None = None,
        mask: Bool[Array, "B T"] | None = None,
    ) -> tuple[Float[Array, "B T D"], PrefixLinearAttentionState]:
        """The call that begins documents; ValueError where ``state`` has read something already (unless traced)."""
        if state is not None and _known(state.length, lambda n: n > 0):
            raise ValueError("prefill begins a document, but the state has read tokens already; go on with decode")
        return self._run(x, state, reset, mask, self.prefix_length)

    def decode(
        self, x: Float[Array, "B T D"], state: PrefixLinearAttentionState | None
    ) -> tuple[Float[Array, "B T D"], PrefixLinearAttentionState]:
        """Goes on without an encoder; ValueError where there was no prefill (unless traced)."""
        if state is None or _known(getattr(state, "length", None), lambda n: n == 0):
            raise ValueError("decode goes on after a prefill, but the state is that before the first token")
        return self._run(x, state, None, None, 0)

    @nn.compact
    def _run(self, x, state, reset, mask, prefix_length):
        check_sequence(x, self.dim, reset)
        check_choice("storage", self.storage, TAYLOR_STORAGES)
        check_choice("padding", self.padding, PADDINGS)
        check_positive("feature_dim", self.feature_dim)
        if not isinstance(self.prefix_length, int) or self.prefix_length < 0:
            raise ValueError(f"prefix_length must be an integer of at least 0, got {self.prefix_length!r}")
        initial = self.initial_state(x.shape[0])
        if state is not None:
            check_state(state, initial)
        check_flags("mask", mask, x.shape[:2])
        params = linear_attention_parameters(self, dim=self.dim, heads=self.heads, key_dim=self.feature_dim)
        if not self.shared:
            into = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal", in_axis=0, out_axis=(1, 2))
            for name in ("key", "value"):
                params[f"encoder_{name}"] = self.param(f"encoder_{name}", into, params[name].shape)
        return prefix_linear_attention(
            params, x.astype(self.dtype), initial if state is None else state, prefix_length=prefix_length, mask=mask,
            padding=self.padding, eps=self.eps, storage=self.storage, reset=reset, chunk_size=self.chunk_size,
        )  # fmt: skip

    def initial_state(self, batch_size: int, dtype: str | None = None) -> PrefixLinearAttentionState:
        """Zeros, sums at least float32 whatever ``dtype``."""
        values, width = head_sizes(self.dim, self.heads, self.feature_dim)
        sums = taylor_sums(batch_size, self.heads, width, values, self.storage, accumulator(self.dtype))
        return PrefixLinearAttentionState(*sums, jnp.zeros(batch_size, jnp.int32))


def _known(length, holds) -> bool:
    """Whether a number of ``length`` is there to look at and ``holds`` is true of one."""
    if length is None or isinstance(length, jax.core.Tracer):
        return False
    return bool(holds(length).any())
