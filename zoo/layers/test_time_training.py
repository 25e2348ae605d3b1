"""What the layers of TTT share: a memory per head that takes gradient steps on its own loss, chunk by chunk.

Sun et al. (2024), Learning to (Learn at Test Time): RNNs with Expressive Hidden States, arXiv 2407.04620. With x_t [D], H
memories f of width K = D / H and weights W:

    q_t = W_q x_t,  k_t = W_k x_t,  v_t = W_v x_t       q and k after a causal convolution where there is one, and rotated to
                                                        their places in the chunk
    f(z) = z + norm(g(z)) * scale + bias                g one linear layer or two with gelu between; norm over K channels
    l(W; x_t) = ||f(k_t) - v_t||^2 / (2 K)
    W_t = W_{t-1} - eta_t grad l(W_a(t); x_t),          eta_t = eta_base sigmoid(x_t w + b), one number per head
    y_t = W_o (layer_norm(f_t(q_t)) * gelu(W_z x_t))    the gate is an option

a(t) is the last token of the chunk before, which is ``zoo.scans.memory_descent`` without momentum and decay: W are the
weights of g, with biases; scale and bias of the norm are learned outside. The factor 1 / (2 K) of the loss is our reading:
the paper writes ||.||^2 and leaves its scale to eta_base.
"""

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from zoo.checks import check_divides, check_positive
from zoo.dtypes import accumulator
from zoo.layers.attention import document_positions, rotary
from zoo.layers.convolution import depthwise_convolution, recent
from zoo.layers.initializers import symmetric_uniform
from zoo.layers.memory_mlp import memory_mlp, memory_shapes
from zoo.layers.neural_memory import document_descent
from zoo.layers.norms import layer_norm
from zoo.layers.projections import linear
from zoo.scans import DescentState

NORM_EPS = 1e-6


@struct.dataclass
class TTTState:
    """Carried state: ``descent`` of the memories, not read where ``age`` is 0; ``history`` [B, taps - 1, 2 D] of the
    convolution's inputs; ``age`` [B] int32, tokens of the document so far."""

    descent: DescentState
    history: Float[Array, "B J C"]
    age: Int[Array, " B"]


def _half_squared_error(prediction: Float[Array, "..."], target: Float[Array, "..."]) -> Float[Array, ""]:
    return 0.5 * jnp.sum((prediction - target) ** 2)


def learn_at_test_time(
    params: Mapping[str, Array],
    x: Float[Array, "B T D"],
    state: TTTState | None,
    *,
    depth: int,
    heads: int,
    chunk_size: int,
    eta_base: float,
    rotated: bool,
    base: float = 10_000.0,
    reset: Bool[Array, "B T"] | None = None,
    method: str = "auto",
) -> tuple[Float[Array, "B T D"], TTTState]:
    """The layer of the module docstring.

    Args:
      params: ``query``, ``key``, ``value``, ``output`` [D, D]; ``kernel`` [taps, 2 D] and ``gate`` [D, D] where there are
        such; ``eta`` [D, H], ``eta_bias`` [H]; ``norm_scale``, ``norm_bias`` [H, K]; ``post_scale``, ``post_bias`` [D];
        ``W0``, ``b0``, ... [H, ...] of the memories at the start.
      x: inputs; projections run in their dtype.
      state: state before the first token; None: the start, which is faster.
      depth: layers of g.
      heads: memories H.
      chunk_size: tokens per chunk.
      eta_base: largest step.
      rotated: queries and keys are rotated.
      base: base of the rotary wavelengths.
      reset: True at the first token of a new document.
      method: see ``zoo.scans.memory_descent``.

    Returns:
      (y, state after the last token); y has x's dtype.
    """
    wide = accumulator(x.dtype)
    age = document_positions(reset, None if state is None else state.age, shape=x.shape[:2])
    u = jnp.concatenate([linear(x, params, name) for name in ("query", "key")], axis=-1)
    history = u[:, :0] if state is None else state.history
    if "kernel" in params:
        before = None if state is None else state.history
        history = recent(u, params["kernel"].shape[0] - 1, before)
        u = depthwise_convolution(u, params["kernel"], age, history=before)
    q, k, v = (
        a.astype(wide).reshape(*x.shape[:2], heads, -1) for a in (*jnp.split(u, 2, -1), linear(x, params, "value"))
    )
    if rotated:
        q, k = (rotary(a, age % chunk_size, base=base) for a in (q, k))
    rough = (x @ params["eta"].astype(x.dtype)).astype(wide) + params["eta_bias"]
    theta = eta_base * jax.nn.sigmoid(rough) / q.shape[-1]
    memory = memory_mlp(
        depth, activation="gelu", residual_norm=True, bias=True, eps=NORM_EPS,
        norm_scale=params["norm_scale"].astype(wide)[:, None], norm_bias=params["norm_bias"].astype(wide)[:, None],
    )  # fmt: skip
    weights = {name: params[name] for name in memory_shapes(depth, 1, 1, bias=True)}
    r, _, descent = document_descent(
        memory, weights, (q, k, v, theta, None, None), None if state is None else state.descent,
        None if state is None else state.age, reset=reset, chunk_size=chunk_size, loss=_half_squared_error,
        gates_per="token", method=method,
    )  # fmt: skip
    y = layer_norm(r.reshape(x.shape), params["post_scale"], params["post_bias"])
    if "gate" in params:
        y = y * jax.nn.gelu(linear(x, params, "gate").astype(wide), approximate=False)
    return linear(y.astype(x.dtype), params, "output"), TTTState(descent, history, age[:, -1] + 1)


def learner_parameters(
    module: nn.Module, *, dim: int, heads: int, depth: int, expansion: int, conv_size: int, gate: bool
) -> dict[str, Float[Array, "..."]]:
    """Checks the sizes and declares the parameters of ``learn_at_test_time`` on ``module``; W start at N(0, 0.02^2)."""
    for name, value in (("heads", heads), ("expansion", expansion)):
        check_positive(name, value)
    check_divides("heads", heads, "dim", dim)
    dense, zeros, ones = nn.initializers.lecun_normal(), nn.initializers.zeros, nn.initializers.ones
    declared = {name: (dense, (dim, dim)) for name in ("query", "key", "value", "output")}
    if gate:
        declared["gate"] = (dense, (dim, dim))
    if conv_size:
        check_positive("conv_size", conv_size)
        declared["kernel"] = (symmetric_uniform(conv_size**-0.5), (conv_size, 2 * dim))
    width = dim // heads
    declared |= {
        "eta": (dense, (dim, heads)),
        "eta_bias": (zeros, (heads,)),
        "norm_scale": (ones, (heads, width)),
        "norm_bias": (zeros, (heads, width)),
        "post_scale": (ones, (dim,)),
        "post_bias": (zeros, (dim,)),
    }
    for name, shape in memory_shapes(depth, width, expansion * width, bias=True).items():
        declared[name] = (nn.initializers.normal(0.02) if len(shape) == 2 else zeros, (heads, *shape))
    return {name: module.param(name, *how) for name, how in declared.items()}


def initial_learner(
    *, dim: int, heads: int, depth: int, expansion: int, conv_size: int, batch: int, dtype: str, compute_dtype: str
) -> TTTState:
    """Zeros: the weights at the start are parameters, and are put in by the first call."""
    carried = accumulator(compute_dtype)
    width = dim // heads
    shapes = memory_shapes(depth, width, expansion * width, bias=True)
    empty = {name: jnp.zeros((batch, heads, *shape), carried) for name, shape in shapes.items()}
    descent = DescentState(empty, empty, empty, jnp.zeros(batch, jnp.int32))
    history = jnp.zeros((batch, max(conv_size - 1, 0), 2 * dim), dtype)
    return TTTState(descent, history, jnp.zeros(batch, jnp.int32))
