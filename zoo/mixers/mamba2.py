"""Mamba-2: a state space model with one decay per head, whose state is a matrix (state space duality, SSD).

Dao and Gu (2024), Transformers are SSMs: Generalized Models and Efficient Algorithms Through Structured State Space
Duality, arXiv 2405.21060.

With x_t [D] the (normalised) input, E = H P the inner width of H heads, N the state size, G groups of heads:

    [z_t, u_t, d_t] = W_in x_t                         E, E + 2 G N and H numbers
    [v_t, B_t, C_t] = silu(sum_k K_k * u_{t-k} + b)    causal depthwise convolution; v_t [H, P], B_t and C_t [G, N]
    delta_t = clip(softplus(d_t + b_dt))               [H], between the limits
    S_t = exp(delta_t A) S_{t-1} + B_t (delta_t v_t)^T S_t [N, P] per head, A = -exp(A_log) [H]; head h is in group
                                                       h // (H / G)
    y_t = W_out (rms_norm(w_t) * scale)                w_t = (C_t S_t + skip v_t) * silu(z_t) [E], normed by groups of E / G

The norm comes after the gate. This is linear attention with queries C, keys B, values delta v and a decay:
``zoo.scans.linear_attention`` has its sequential, chunkwise and kernel forms, all with the same numbers.

Long contexts. A state that was made for more than it was trained on is never taught to forget, and past the training
length it can break down (Chen et al. 2024, Stuffed Mamba, arXiv 2410.07145; ``zoo.analysis.state_collapse`` measures it).
Options that change the recurrence of a trained model, with the same parameters, all off by default (see ``ssd``):

    retention_scale, insertion_scale   exp(delta_t A) times s_a, B_t times s_B: forgets more, remembers less
    max_norm                           the state of a head is scaled down to this Frobenius norm after every step
    max_chunk_norm                     ... at ends of chunks only: faster, not the same; see ``zoo.scans.chunked.clipped``
    window                             the state is that of the last r tokens, exactly: ``zoo.scans.chunked.windowed``
    dt_scale                           delta_t times a factor: a baseline, of the kind of MambaExtend (Azizi et al. 2025)
                                       and LongMamba (Ye et al. 2025)

Initialisation: A_log the logarithm of numbers drawn uniformly from ``a_range``; b_dt as in Mamba; skip = 1, scale = 1.
Norm before and residual after are those of ``zoo.models.Block``. Step sizes, decays and states are float32 whatever
``dtype``.

Time O(B T (D E + E N)), parallel over time by chunks (``max_norm``: T dependent steps); state: E N numbers per row, and the
last taps - 1 values of u; with ``window`` r also the last r values of delta v, B and delta A.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from zoo.checks import check_divides, check_positive, check_sequence, check_state
from zoo.dtypes import accumulator
from zoo.layers.attention import document_positions
from zoo.layers.convolution import depthwise_convolution, recent
from zoo.layers.initializers import symmetric_uniform
from zoo.layers.norms import rms_norm
from zoo.layers.projections import linear
from zoo.layers.step_sizes import check_step_sizes, step_size_bias
from zoo.registry import register
from zoo.scans import (
    WindowRing,
    chunk_clipped_linear_attention,
    clipped_linear_attention,
    linear_attention,
    windowed_linear_attention,
)

PerHead = float | tuple[float, ...]


@struct.dataclass
class Mamba2State:
    """Carried state: ``hidden`` [B, H, N, P]; ``history`` [B, taps - 1, E + 2 G N] of u; ``age`` [B], tokens so far;
    ``ring``, the inputs of the last ``window`` tokens, None without a window."""

    hidden: Float[Array, "B H N P"]
    history: Float[Array, "B K C"]
    age: Int[Array, " B"]
    ring: WindowRing | None = None


def ssd(
    x: Float[Array, "B T H P"],
    delta: Float[Array, "B T H"],
    A: Float[Array, " H"],
    B: Float[Array, "B T G N"],
    C: Float[Array, "B T G N"],
    D: Float[Array, " H"],
    hidden: Float[Array, "B H N P"] | None = None,
    ring: WindowRing | None = None,
    *,
    retention_scale: PerHead = 1.0,
    insertion_scale: PerHead = 1.0,
    max_norm: float | None = None,
    max_chunk_norm: float | None = None,
    window: int | None = None,
    reset: Bool[Array, "B T"] | None = None,
    method: str = "auto",
    chunk_size: int | None = None,
) -> tuple[Float[Array, "B T H P"], Float[Array, "B H N P"], WindowRing | None]:
    """The recurrence ``S_t = s_a exp(delta_t A) S_{t-1} + s_B B_t (delta_t x_t)^T``, ``y_t = C_t S_t + D x_t``.

    Args:
      x: values of every head.
      delta: step sizes > 0, in at least float32.
      A: rates < 0.
      B: keys; with G groups of heads.
      C: queries.
      D: skip connection.
      hidden: state before the first token; zeros when None.
      ring: with ``window`` what goes with ``hidden``; both or neither.
      retention_scale: s_a in (0, 1], for all heads or one number per head. It multiplies the decay; as an exponent it
        would make it larger.
      insertion_scale: s_B > 0, likewise.
      max_norm: bound on the norm of a head's state after every step.
      max_chunk_norm: bound at the end of every ``chunk_size`` steps of this call, and at its end.
      window: the state is that of the last ``window`` tokens.
      reset: True at the first token of a new document.
      method: how the scan is computed, see ``zoo.scans.linear_attention``; with ``window`` see
        ``zoo.scans.windowed_linear_attention``.
      chunk_size: steps per chunk, likewise.

    Returns:
      (y in at least float32, state after the last token, the ring after it or None).

    Raises:
      ValueError: a scale or bound that is not positive, a window below 1, or two of ``max_norm``, ``max_chunk_norm`` and
        ``window``.
    """
    check_mitigation(A.shape[0], retention_scale, insertion_scale, max_norm, max_chunk_norm, window, chunk_size)
    wide = accumulator(x.dtype)
    decay = A.astype(wide) * delta
    values = delta[..., None] * x
    if retention_scale != 1:
        decay = decay + jnp.log(jnp.asarray(retention_scale, wide))
    if insertion_scale != 1:
        values = values * jnp.broadcast_to(jnp.asarray(insertion_scale, wide), A.shape)[:, None]
    if reset is not None:
        decay = jnp.where(reset[..., None], -jnp.inf, decay)
    inputs = (C, B, values.astype(x.dtype), decay, hidden)
    if window is not None:
        y, hidden, ring = windowed_linear_attention(*inputs, ring, window=window, method=method)
    elif max_norm is not None:
        y, hidden = clipped_linear_attention(*inputs, max_norm=max_norm)
    elif max_chunk_norm is not None:
        y, hidden = chunk_clipped_linear_attention(*inputs, max_norm=max_chunk_norm, chunk_size=chunk_size)
    else:
        y, hidden = linear_attention(*inputs, method=method, chunk_size=chunk_size)
    return y.astype(wide) + D[:, None] * x, hidden, ring


def check_mitigation(
    heads: int,
    retention_scale: PerHead,
    insertion_scale: PerHead,
    max_norm: float | None,
    max_chunk_norm: float | None,
    window: int | None,
    chunk_size: int | None,
    dt_scale: PerHead = 1.0,
) -> None:
    """Checks the options of ``ssd`` that change the recurrence; ValueError names the one that cannot be."""
    scales = {"retention_scale": retention_scale, "insertion_scale": insertion_scale, "dt_scale": dt_scale}
    for name, scale in scales.items():
        each = scale if isinstance(scale, tuple) else (scale,)
        if isinstance(scale, tuple) and len(scale) != heads:
            raise ValueError(f"{name} must be a number or a tuple of {heads}, one per head, got {len(scale)} numbers")
        if not all(s > 0 and (name != "retention_scale" or s <= 1) for s in each):
            raise ValueError(f"{name} must be {'in (0, 1]' if name == 'retention_scale' else 'positive'}, got {scale}")
    for name, bound in {"max_norm": max_norm, "max_chunk_norm": max_chunk_norm}.items():
        if bound is not None and not bound > 0:
            raise ValueError(f"{name} must be positive or None, got {bound}")
    if window is not None:
        check_positive("window", window)
    if sum(option is not None for option in (max_norm, max_chunk_norm, window)) > 1:
        raise ValueError("only one of max_norm, max_chunk_norm and window can be given")
    if max_chunk_norm is not None and chunk_size is None:
        raise ValueError("max_chunk_norm needs chunk_size: the steps after which the state is scaled down")


class Selection(NamedTuple):
    """What Mamba-2 makes of its inputs before the recurrence.

    Attributes:
      gate: z [B, T, E].
      u: [B, T, E + 2 G N], inputs of the convolution.
      values: v [B, T, H, P].
      keys: B [B, T, G, N].
      queries: C [B, T, G, N].
      delta: [B, T, H], in at least float32.
      age: [B, T], position in the document.
    """

    gate: Float[Array, "B T E"]
    u: Float[Array, "B T F"]
    values: Float[Array, "B T H P"]
    keys: Float[Array, "B T G N"]
    queries: Float[Array, "B T G N"]
    delta: Float[Array, "B T H"]
    age: Int[Array, "B T"]


def select(
    params: Mapping[str, Array],
    x: Float[Array, "B T D"],
    state: Mamba2State,
    *,
    groups: int = 1,
    dt_limits: tuple[float, float] = (0.0, float("inf")),
    dt_scale: PerHead = 1.0,
    reset: Bool[Array, "B T"] | None = None,
) -> Selection:
    """The part of ``mamba2`` before its recurrence; arguments are those of ``mamba2``."""
    inner, heads = params["scale"].shape[0], params["A_log"].shape[0]
    channels = params["kernel"].shape[1]
    wide = accumulator(x.dtype)
    gate, u, rough = jnp.split(linear(x, params, "input"), (inner, inner + channels), axis=-1)
    age = document_positions(reset, state.age, shape=x.shape[:2])
    mixed = depthwise_convolution(u, params["kernel"], age, history=state.history)
    if "bias" in params:
        mixed = mixed + params["bias"].astype(x.dtype)
    v, b, c = jnp.split(jax.nn.silu(mixed), (inner, (inner + channels) // 2), axis=-1)
    v = v.reshape(*v.shape[:2], heads, -1)
    b, c = (a.reshape(*a.shape[:2], groups, -1) for a in (b, c))
    delta = jnp.clip(jax.nn.softplus(rough.astype(wide) + params["dt_bias"]), *dt_limits)
    if dt_scale != 1:
        delta = delta * jnp.asarray(dt_scale, wide)
    return Selection(gate, u, v, b, c, delta, age)


def mamba2(
    params: Mapping[str, Array],
    x: Float[Array, "B T D"],
    state: Mamba2State,
    *,
    groups: int = 1,
    dt_limits: tuple[float, float] = (0.0, float("inf")),
    norm_eps: float = 1e-5,
    reset: Bool[Array, "B T"] | None = None,
    method: str = "auto",
    chunk_size: int | None = None,
    dt_scale: PerHead = 1.0,
    **mitigation: Any,
) -> tuple[Float[Array, "B T D"], Mamba2State]:
    """The layer of the module docstring.

    Args:
      params: ``input`` [D, 2E + 2GN + H], columns z, v, B, C, d; ``kernel`` [taps, E + 2GN], ``bias`` of the convolution;
        ``dt_bias``, ``A_log``, ``skip`` [H]; ``scale`` [E]; ``output`` [E, D]. ``bias`` may be left out, and
        ``input_bias`` and ``output_bias`` added.
      x: inputs; projections run in their dtype.
      state: state before the first token.
      groups: number G of groups of heads that share B and C.
      dt_limits: step sizes are kept between these.
      norm_eps: of the norm.
      reset: True at the first token of a new document.
      method: how the scan is computed, see ``ssd``.
      chunk_size: steps per chunk, likewise.
      dt_scale: multiplies the step sizes, for all heads or one number per head.
      **mitigation: ``retention_scale``, ``insertion_scale``, ``max_norm``, ``max_chunk_norm``, ``window`` of ``ssd``.

    Returns:
      (y, state after the last token); y has x's dtype.
    """
    made = select(params, x, state, groups=groups, dt_limits=dt_limits, dt_scale=dt_scale, reset=reset)
    wide = made.delta.dtype
    A = -jnp.exp(params["A_log"].astype(wide))
    y, hidden, ring = ssd(
        made.values, made.delta, A, made.keys, made.queries, params["skip"], state.hidden, state.ring, reset=reset,
        method=method, chunk_size=chunk_size, **mitigation,
    )  # fmt: skip
    y = y.reshape(*y.shape[:2], groups, -1) * jax.nn.silu(made.gate.astype(wide)).reshape(*y.shape[:2], groups, -1)
    y = rms_norm(y, jnp.ones(y.shape[-1], y.dtype), norm_eps).reshape(made.gate.shape) * params["scale"]
    history = recent(made.u, params["kernel"].shape[0] - 1, state.history)
    state = Mamba2State(hidden, history, made.age[:, -1] + 1, ring)
    return linear(y.astype(x.dtype), params, "output"), state


@register(
    "mamba2",
    variants={
        "default": {"state_dim": 4, "head_dim": 4},
        "grouped": {"state_dim": 3, "head_dim": 2, "groups": 2, "expand": 1, "dt_limits": (0.01, 0.05), "conv_size": 3},
        "window": {
            "state_dim": 3,
            "head_dim": 4,
            "groups": 2,
            "window": 4,
            "retention_scale": 0.9,
            "insertion_scale": (0.5, 0.75, 1.0, 2.0),
            "dt_scale": 0.7,
        },
        "max_norm": {"state_dim": 4, "head_dim": 8, "max_norm": 0.02},
    },
)
class Mamba2(nn.Module):
    """Mamba-2: matrix-state space model with one decay per head, after a short convolution, with a gated norm.

    Attributes:
      dim: width D of input and output.
      state_dim: state size N.
      head_dim: width P of a head; divides ``expand * dim``.
      groups: groups G of heads that share B and C; divides the number of heads.
      expand: inner width E over D.
      conv_size: taps of the convolution.
      dt_min, dt_max: step sizes at initialisation are drawn between these.
      dt_floor: and are at least this.
      dt_limits: step sizes are kept between these.
      a_range: -A at initialisation is drawn uniformly between these.
      norm_eps: of the gated norm.
      use_bias: the first and the last projection have biases.
      conv_bias: the convolution has one.
      chunk_size: steps per chunk; None: chosen from the shape.
      retention_scale, insertion_scale, max_norm, max_chunk_norm, window: change the recurrence, see ``ssd``.
      dt_scale: multiplies the step sizes, for all heads or one number per head.
      dtype: compute dtype of the projections; the recurrence runs in at least float32.
    """

    dim: int
    state_dim: int = 128
    head_dim: int = 64
    groups: int = 1
    expand: int = 2
    conv_size: int = 4
    dt_min: float = 0.001
    dt_max: float = 0.1
    dt_floor: float = 1e-4
    dt_limits: tuple[float, float | None] = (0.0, None)
    a_range: tuple[float, float] = (1.0, 16.0)
    norm_eps: float = 1e-5
    use_bias: bool = False
    conv_bias: bool = True
    chunk_size: int | None = None
    retention_scale: PerHead = 1.0
    insertion_scale: PerHead = 1.0
    max_norm: float | None = None
    max_chunk_norm: float | None = None
    window: int | None = None
    dt_scale: PerHead = 1.0
    dtype: str = "float32"

    causal: ClassVar[bool] = True
    paper: ClassVar[str] = "Dao and Gu 2024, Transformers are SSMs: Structured State Space Duality"

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], state: Mamba2State | None = None, *, reset: Bool[Array, "B T"] | None = None
    ) -> tuple[Float[Array, "B T D"], Mamba2State]:
        check_sequence(x, self.dim, reset)
        for name in ("state_dim", "head_dim", "groups", "expand", "conv_size"):
            check_positive(name, getattr(self, name))
        check_divides("head_dim", self.head_dim, "expand * dim", self.expand * self.dim)
        check_divides("groups", self.groups, "the number of heads", self.expand * self.dim // self.head_dim)
        check_step_sizes(self.dt_min, self.dt_max)
        low, high = self.dt_limits
        if not 0 <= low < (float("inf") if high is None else high):
            raise ValueError(
                f"dt_limits must be two numbers 0 <= low < high (or None for no limit), got {self.dt_limits}"
            )
        if not 0 < self.a_range[0] <= self.a_range[1]:
            raise ValueError(f"a_range must be two numbers 0 < low <= high, got {self.a_range}")
        mitigation = {
            name: getattr(self, name)
            for name in ("retention_scale", "insertion_scale", "max_norm", "max_chunk_norm", "window")
        }
        check_mitigation(self._sizes()[2], **mitigation, chunk_size=self.chunk_size, dt_scale=self.dt_scale)
        initial = self.initial_state(x.shape[0])
        if state is None:
            state = initial
        else:
            check_state(state, initial)
        params, x = self._params(), x.astype(self.dtype)
        options = {
            "groups": self.groups, "dt_limits": (low, float("inf") if high is None else high),
            "dt_scale": self.dt_scale, "reset": reset,
        }  # fmt: skip
        if self.is_mutable_collection("diagnostics") and not self.is_initializing():
            made = select(params, x, state, **options)
            for name, value in {"delta": made.delta, "keys": made.keys, "A": -jnp.exp(params["A_log"])}.items():
                self.sow("diagnostics", name, value)
        return mamba2(
            params, x, state, **options, norm_eps=self.norm_eps, chunk_size=self.chunk_size, **mitigation
        )  # fmt: skip

    def _params(self) -> dict[str, Array]:
        inner, channels, heads = self._sizes()
        dense = nn.initializers.lecun_normal()

        def a_log(key, shape):
            return jnp.log(jax.random.uniform(key, shape, minval=self.a_range[0], maxval=self.a_range[1]))

        declared = {
            "input": (dense, (self.dim, inner + channels + heads)),
            "kernel": (symmetric_uniform(self.conv_size**-0.5), (self.conv_size, channels)),
            "bias": (nn.initializers.zeros, (channels,)),
            "dt_bias": (step_size_bias(self.dt_min, self.dt_max, self.dt_floor), (heads,)),
            "A_log": (a_log, (heads,)),
            "skip": (nn.initializers.ones, (heads,)),
            "scale": (nn.initializers.ones, (inner,)),
            "output": (dense, (inner, self.dim)),
        }
        if not self.conv_bias:
            del declared["bias"]
        if self.use_bias:
            widths = {"input": inner + channels + heads, "output": self.dim}
            declared |= {f"{name}_bias": (nn.initializers.zeros, (width,)) for name, width in widths.items()}
        return {name: self.param(name, *how) for name, how in declared.items()}

    def _sizes(self) -> tuple[int, int, int]:
        """(E, channels of the convolution, heads)."""
        inner = self.expand * self.dim
        return inner, inner + 2 * self.groups * self.state_dim, inner // self.head_dim

    def initial_state(self, batch_size: int, dtype: str | None = None) -> Mamba2State:
        """Zeros; ``dtype`` is the storage dtype of the convolution's history."""
        _, channels, heads = self._sizes()
        ring = None
        if self.window is not None:
            sizes = (self.groups, heads, self.state_dim, self.head_dim)
            ring = WindowRing.empty(batch_size, self.window, *sizes, self.dtype)
        return Mamba2State(
            jnp.zeros((batch_size, heads, self.state_dim, self.head_dim), accumulator(self.dtype)),
            jnp.zeros((batch_size, self.conv_size - 1, channels), dtype or self.dtype),
            jnp.zeros(batch_size, jnp.int32),
            ring,
        )
