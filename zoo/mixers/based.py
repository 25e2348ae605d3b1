"""Based linear attention: softmax's exponential replaced by its Taylor expansion to second order.

Arora et al. (2024), Simple Linear Attention Language Models Balance the Recall-Throughput Tradeoff, arXiv 2402.18668; the
feature map is that of Zhang et al. (2024), The Hedgehog & the Porcupine, arXiv 2402.04347.

With x_t [D], H heads, queries and keys of F numbers, values of V = D / H, K = 1 + F + F^2 features:

    q_t = W_q x_t,  k_t = W_k x_t  [H, F]      v_t = W_v x_t  [H, V]          no positions
    phi(q) . phi(k) = 1 + s + s^2 / 2,  s = q . k / sqrt(F)                    always positive
    S_t = exp(g) S_{t-1} + phi(k_t) v_t^T      [H, K, V]
    z_t = z_{t-1} + phi(k_t)                   [H, K]
    y_t = W_o (phi(q_t) S_t / (phi(q_t) . z_t + eps))

``decay`` gives head h the fixed log decay g = log(1 - 2^(decay_start - h)), in S and not in z, as the published 360M model
has it; without it g = 0 and the weights sum to one.

Forms, with the same numbers: recurrent and chunkwise (``based_attention``), with features made chunk by chunk; and parallel
(``based_parallel``), quadratic in T, without features. ``storage`` is about
the features alone: "symmetric" keeps every product of two coordinates once, the same numbers with K = 1 + F + F (F + 1) / 2
(ours). Sums, memory and division are at least float32 whatever ``dtype``.

Time O(B T (D (D + H F) + D K)), parallel over time by chunks; state: S and z, K (D + H) numbers per row.
"""

from collections.abc import Mapping
from functools import partial
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp
from flax import struct
from jax import lax
from jaxtyping import Array, Bool, Float

from zoo.checks import check_choice, check_positive, check_sequence, check_state
from zoo.dtypes import accumulator
from zoo.layers.attention import merge_heads, project_heads
from zoo.layers.linear_attention import (
    TAYLOR_EPS,
    TAYLOR_STORAGES,
    append_normalizer,
    head_sizes,
    linear_attention_parameters,
    normalized,
    retention_decays,
    taylor_features,
    taylor_sums,
    taylor_weights,
)
from zoo.registry import register
from zoo.scans import linear_attention


@struct.dataclass
class BasedState:
    """Carried state: ``memory`` [B, H, K, V], sums of phi(k) v^T; ``key_sum`` [B, H, K], sums of phi(k)."""

    memory: Float[Array, "B H K V"]
    key_sum: Float[Array, "B H K"]


def based_attention(
    q: Float[Array, "B T H F"],
    k: Float[Array, "B T H F"],
    v: Float[Array, "B T H V"],
    initial: BasedState | None = None,
    *,
    log_decay: Float[Array, " H"] | None = None,
    reset: Bool[Array, "B T"] | None = None,
    eps: float = TAYLOR_EPS,
    storage: str = "full",
    method: str = "auto",
    chunk_size: int | None = None,
) -> tuple[Float[Array, "B T H V"], BasedState]:
    """The attention of the module docstring over given queries, keys and values.

    Args:
      q, k: before the feature map.
      v: values.
      initial: state before the first step; None for the start.
      log_decay: g of every head, of the numerator alone; None for none.
      reset: True at the first step of a new document.
      eps: added to the denominator.
      storage: of the features, see ``zoo.layers.taylor_features``.
      method: how the scan is computed, see ``zoo.scans.linear_attention``.
      chunk_size: steps per chunk, likewise.

    Returns:
      (y in at least float32, state after the last step).
    """
    wide = accumulator(q.dtype, k.dtype, v.dtype)
    q, k, v = (a.astype(wide) for a in (q, k, v))
    if initial is None:
        initial = BasedState(*taylor_sums(len(q), *q.shape[2:], v.shape[3], storage, wide))
    values, start = append_normalizer(v, initial.memory, initial.key_sum)
    phi = partial(taylor_features, storage=storage)
    run = partial(linear_attention, method=method, chunk_size=chunk_size, feature_map=phi)
    still = None if reset is None else jnp.where(reset[..., None], -jnp.inf, jnp.zeros(v.shape[:3], wide))
    if log_decay is None:
        y, last = run(q, k, values, still, start)
        return normalized(y, eps), BasedState(last[..., :-1], last[..., -1])
    fading = jnp.broadcast_to(log_decay.astype(wide), v.shape[:3]) + (0 if still is None else still)
    y, memory = run(q, k, v, fading, initial.memory)
    weight, key_sum = run(q, k, values[..., -1:], still, initial.key_sum[..., None])
    return y / (weight + eps), BasedState(memory, key_sum[..., 0])


def based_parallel(
    q: Float[Array, "B T H F"],
    k: Float[Array, "B T H F"],
    v: Float[Array, "B T H V"],
    *,
    log_decay: Float[Array, " H"] | None = None,
    reset: Bool[Array, "B T"] | None = None,
    eps: float = TAYLOR_EPS,
) -> Float[Array, "B T H V"]:
    """``based_attention`` from the start in its parallel form: [T, T] weights as polynomials of q . k, and no features."""
    wide, time = accumulator(q.dtype, k.dtype, v.dtype), q.shape[1]
    seen = jnp.tril(jnp.ones((time, time), bool))[None]
    if reset is not None:
        document = jnp.cumsum(reset, axis=1)
        seen = seen & (document[:, :, None] == document[:, None])
    weights = jnp.where(seen[:, None], taylor_weights(q.astype(wide), k.astype(wide)), 0)
    divisor = jnp.sum(weights, axis=-1)
    if log_decay is not None:
        steps = jnp.arange(time)
        ages = jnp.maximum(steps[:, None] - steps, 0)
        weights = weights * jnp.exp(log_decay.astype(wide)[:, None, None] * ages)
    y = jnp.einsum("bhts,bshv->bthv", weights, v.astype(wide), precision=lax.Precision.HIGHEST)
    return y / (jnp.swapaxes(divisor, 1, 2)[..., None] + eps)


def based(
    params: Mapping[str, Array],
    x: Float[Array, "B T D"],
    state: BasedState | None = None,
    *,
    decay_start: float | None = None,
    eps: float = TAYLOR_EPS,
    storage: str = "full",
    reset: Bool[Array, "B T"] | None = None,
    method: str = "auto",
    chunk_size: int | None = None,
) -> tuple[Float[Array, "B T D"], BasedState]:
    """The layer of the module docstring.

    Args:
      params: ``query``, ``key`` [D, H, F], ``value`` [D, H, V], ``output`` [H, V, D].
      x: inputs; projections run in their dtype.
      state: state before the first token; None for the start.
      decay_start: exponent of the first head's decay, None for no decay.
      eps, storage, method, chunk_size: see ``based_attention``.
      reset: True at the first token of a new document.

    Returns:
      (y, state after the last token); y has x's dtype.
    """
    q, k, v = project_heads(params, x, None, 0.0)
    decays = None if decay_start is None else retention_decays(v.shape[2], decay_start)
    y, state = based_attention(
        q, k, v, state, log_decay=decays, reset=reset, eps=eps, storage=storage, method=method, chunk_size=chunk_size
    )
    return merge_heads(params, y.astype(x.dtype)), state


@register(
    "based",
    variants={
        "default": {"heads": 2, "feature_dim": 3},
        "decay": {"heads": 2, "feature_dim": 2, "decay": True, "storage": "symmetric", "chunk_size": 4},
    },
)
class Based(nn.Module):
    """Based linear attention: weights 1 + s + s^2 / 2 in place of exp(s), so that the past is one matrix.

    Attributes:
      dim: width D of input and output.
      heads: number of heads H; divides ``dim``.
      feature_dim: numbers F of a query or key, before the feature map.
      decay: every head forgets at a fixed rate.
      decay_start: exponent of the first head's rate 1 - 2^decay_start.
      storage: "full" or "symmetric", see ``zoo.layers.taylor_features``.
      eps: added to the denominator.
      chunk_size: steps per chunk; None: chosen from the shape.
      dtype: compute dtype of the projections; the recurrence runs in at least float32.
    """

    dim: int
    heads: int = 16
    feature_dim: int = 16
    decay: bool = False
    decay_start: float = -3.0
    storage: str = "full"
    eps: float = TAYLOR_EPS
    chunk_size: int | None = None
    dtype: str = "float32"

    causal: ClassVar[bool] = True
    paper: ClassVar[str] = "Arora et al. 2024, Simple Linear Attention Language Models (Based)"

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], state: BasedState | None = None, *, reset: Bool[Array, "B T"] | None = None
    ) -> tuple[Float[Array, "B T D"], BasedState]:
        check_sequence(x, self.dim, reset)
        check_choice("storage", self.storage, TAYLOR_STORAGES)
        check_positive("feature_dim", self.feature_dim)
        if self.decay and not self.decay_start < 0:
            raise ValueError(f"decay_start must be negative, got {self.decay_start}")
        initial = self.initial_state(x.shape[0])
        if state is not None:
            check_state(state, initial)
        params = linear_attention_parameters(self, dim=self.dim, heads=self.heads, key_dim=self.feature_dim)
        return based(
            params, x.astype(self.dtype), initial if state is None else state,
            decay_start=self.decay_start if self.decay else None, eps=self.eps, storage=self.storage, reset=reset,
            chunk_size=self.chunk_size,
        )  # fmt: skip

    def initial_state(self, batch_size: int, dtype: str | None = None) -> BasedState:
        """Zeros, at least float32 whatever ``dtype``."""
        values, width = head_sizes(self.dim, self.heads, self.feature_dim)
        return BasedState(*taylor_sums(batch_size, self.heads, width, values, self.storage, accumulator(self.dtype)))
