"""The neural long-term memory of Titans as a brick: projections, gates, descent, persistent tokens before every document.

Behrouz, Zhong and Mirrokni (2025), Titans: Learning to Memorize at Test Time, arXiv 2501.00663. With x_t [D], H memories of
width K = D / H:

    u_t = [W_q x_t, W_k x_t, W_v x_t]                        3 H K numbers
    [q_t, k_t, v_t] = silu(sum_j K_j * u_{t-j})    causal depthwise convolution, K [taps, 3 H K]; q_t, k_t to length 1
    alpha_t = sigmoid(x_t w_a + b_a),  eta_t = sigmoid(x_t w_e + b_e),  theta_t = theta_max sigmoid(x_t w_t + b_t)
    S_t = eta_t S_{t-1} - theta_t grad ||M(k_t) - v_t||^2,  M_t = (1 - alpha_t) M_{t-1} + S_t,  r_t = M_t(q_t)

the last line by ``zoo.scans.memory_descent``, and M a ``zoo.layers.memory_mlp``. Persistent tokens P [N_p, D] are read
before the first token of every document, and count in its chunks; the convolution does not go from them to the document.

The paper does not print the gates: sigmoids, theta_max and the biases at the start (b_a = -4, b_e = b_t = 0) are our choice.
So are the loss as a sum over channels and 0.1 for theta_max.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from zoo.checks import check_choice, check_divides, check_positive
from zoo.dtypes import accumulator
from zoo.layers.attention import document_positions
from zoo.layers.convolution import depthwise_convolution, recent
from zoo.layers.initializers import symmetric_uniform
from zoo.layers.memory_mlp import initial_memory, memory_mlp, memory_shapes
from zoo.layers.norms import rms_norm
from zoo.layers.projections import linear
from zoo.scans import DescentState, memory_descent, start_descent
from zoo.scans.chunked.memory import Memory

LENGTH_EPS = 1e-6
GATES = ("head", "channel")
COMBINES = ("silu", "sigmoid")
PREFIX = "memory_"
Tokens = tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class NeuralMemory:
    """What a memory is and how it learns.

    Attributes:
      heads: memories H; divides D.
      depth: layers L of a memory; 1: a matrix.
      expansion: channels between layers, as a multiple of K.
      activation: between layers.
      residual_norm: M(x) = x + norm(mlp(x)); None: for depth >= 2.
      norm_gain: that norm has a gain 1 + gamma among the weights that are learned at test time.
      chunk_size: tokens b whose gradients share an anchor.
      conv_size: taps of the convolution; 0: none.
      momentum: False: eta = 0.
      decay: False: alpha = 0.
      gates: "head": three numbers per memory; "channel": per output channel of every weight.
      gates_per: "token", or "chunk": those of a chunk's first token.
      theta_max: bound of theta.
      max_gradient_norm: soft bound of a token's gradient, see ``zoo.scans.memory_descent``; None: none.
      truncate: no derivative through the memory from one chunk to the next.
      method: see ``zoo.scans.memory_descent``.
    """

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

    def check(self, dim: int) -> None:
        """Raises ValueError for sizes that do not fit width ``dim``."""
        for name in ("heads", "depth", "expansion", "chunk_size"):
            check_positive(name, getattr(self, name))
        check_divides("heads", self.heads, "dim", dim)
        check_choice("gates", self.gates, GATES)
        if self.conv_size:
            check_positive("conv_size", self.conv_size)
        if not self.theta_max > 0:
            raise ValueError(f"theta_max must be positive, got {self.theta_max}")
        self.memory()

    def memory(self) -> Memory:
        """The memory as a function."""
        residual = self.depth >= 2 if self.residual_norm is None else self.residual_norm
        return memory_mlp(self.depth, activation=self.activation, residual_norm=residual, gain=self.norm_gain)

    def shapes(self, dim: int) -> dict[str, tuple[int, ...]]:
        """Shapes of one memory's weights."""
        width = dim // self.heads
        return memory_shapes(self.depth, width, self.expansion * width, gain=self.norm_gain)

    def options(self) -> dict[str, Any]:
        """Options of ``zoo.scans.memory_descent``."""
        fields = ("chunk_size", "gates_per", "max_gradient_norm", "truncate", "method")
        return {name: getattr(self, name) for name in fields}


@struct.dataclass
class NeuralMemoryState:
    """Carried state.

    Attributes:
      descent: M, S, the anchor and the place in the chunk; not read where ``age`` is 0.
      history: [B, taps - 1, 3 H K], the last inputs of the convolution.
      age: [B] int32, tokens of the document so far.
    """

    descent: DescentState
    history: Float[Array, "B J C"]
    age: Int[Array, " B"]


def initial_neural_memory(config: NeuralMemory, dim: int, batch: int, dtype: Any) -> NeuralMemoryState:
    """Zeros: M_0 is a parameter, and is put in by the first call; ``dtype`` is that of the convolution's history."""
    carried = accumulator(dtype)
    shapes = config.shapes(dim)
    empty = {name: jnp.zeros((batch, config.heads, *shape), carried) for name, shape in shapes.items()}
    gates = None
    if config.gates_per == "chunk":
        one = jnp.zeros((batch, config.heads), carried)
        if config.gates == "channel":
            one = {name: jnp.zeros((batch, config.heads, shape[-1]), carried) for name, shape in shapes.items()}
        gates = (one, one if config.decay else None, one if config.momentum else None)
    descent = DescentState(empty, empty, empty, jnp.zeros(batch, jnp.int32), gates)
    history = jnp.zeros((batch, max(config.conv_size - 1, 0), 3 * dim), dtype)
    return NeuralMemoryState(descent, history, jnp.zeros(batch, jnp.int32))


def neural_memory_parameters(module: nn.Module, config: NeuralMemory, dim: int) -> dict[str, Float[Array, "..."]]:
    """Declares on ``module``, with "memory_" in front: ``query``, ``key``, ``value`` [D, H K]; ``kernel`` [taps, 3 H K];
    ``theta``, ``alpha``, ``eta`` [D, H G] and their biases; the weights M_0 [H, ...] of the memories."""
    config.check(dim)
    dense = nn.initializers.lecun_normal()
    declared = {name: (dense, (dim, dim)) for name in ("query", "key", "value")}
    if config.conv_size:
        declared["kernel"] = (symmetric_uniform(config.conv_size**-0.5), (config.conv_size, 3 * dim))
    shapes = config.shapes(dim)
    count = config.heads * (sum(shape[-1] for shape in shapes.values()) if config.gates == "channel" else 1)
    for name, on, bias in (("theta", True, 0.0), ("alpha", config.decay, -4.0), ("eta", config.momentum, 0.0)):
        if on:
            declared[name] = (dense, (dim, count))
            declared[f"{name}_bias"] = (nn.initializers.constant(bias), (count,))

    def start(name):
        return lambda key, shape: initial_memory(
            key, config.depth, dim // config.heads, config.expansion * dim // config.heads, heads=config.heads,
            gain=config.norm_gain,
        )[name]  # fmt: skip

    declared |= {name: (start(name), (config.heads, *shape)) for name, shape in shapes.items()}
    return {f"{PREFIX}{name}": module.param(f"{PREFIX}{name}", *how) for name, how in declared.items()}


def unit_length(a: Float[Array, "*B K"]) -> Float[Array, "*B K"]:
    """``a`` scaled to length 1, or less where it is hardly longer than 0."""
    return a * lax.rsqrt(jnp.sum(a**2, axis=-1, keepdims=True) + LENGTH_EPS)


def memory_weights(params: Mapping[str, Array], config: NeuralMemory) -> dict[str, Array]:
    """M_0 by name."""
    return {name: params[f"{PREFIX}{name}"] for name in config.shapes(config.heads)}


def memory_tokens(
    params: Mapping[str, Array],
    x: Float[Array, "B T D"],
    config: NeuralMemory,
    age: Int[Array, "B T"],
    history: Float[Array, "B J C"] | None = None,
) -> tuple[Tokens, Float[Array, "B J C"]]:
    """((q, k, v, theta, alpha, eta) as ``memory_descent`` takes them, the last inputs of the convolution).

    Args:
      params: of ``neural_memory_parameters``.
      x: inputs; projections run in their dtype.
      config: the memory.
      age: place of every token in its document.
      history: inputs of the convolution before x, None: there are none.
    """
    params = {name.removeprefix(PREFIX): p for name, p in params.items() if name.startswith(PREFIX)}
    wide = accumulator(x.dtype)
    u = jnp.concatenate([linear(x, params, name) for name in ("query", "key", "value")], axis=-1)
    mixed = u
    if config.conv_size:
        mixed = depthwise_convolution(u, params["kernel"], age, history=history)
        history = recent(u, config.conv_size - 1, history)
    elif history is None:
        history = u[:, :0]
    mixed = jax.nn.silu(mixed).reshape(*x.shape[:2], 3, config.heads, -1).astype(wide)
    q, k, v = (mixed[:, :, i] for i in range(3))

    def gate(name, scale=1.0):
        if name not in params:
            return None
        rough = (x @ params[name].astype(x.dtype)).astype(wide) + params[f"{name}_bias"]
        g = (scale * jax.nn.sigmoid(rough)).reshape(*x.shape[:2], config.heads, -1)
        if config.gates == "head":
            return g[..., 0]
        widths = {name: shape[-1] for name, shape in config.shapes(q.shape[-1] * config.heads).items()}
        stops = [sum(list(widths.values())[: i + 1]) for i in range(len(widths) - 1)]
        return dict(zip(widths, jnp.split(g, stops, axis=-1)))

    return (unit_length(q), unit_length(k), v, gate("theta", config.theta_max), gate("alpha"), gate("eta")), history


def document_descent(
    memory: Memory,
    weights: Mapping[str, Float[Array, "H ..."]],
    tokens: Tokens,
    state: DescentState | None,
    age: Int[Array, " B"] | None,
    *,
    reset: Bool[Array, "B T"] | None = None,
    prefix: Tokens | None = None,
    prefix_read_until: int = 1,
    **options: Any,
) -> tuple[Float[Array, "B T H V"], Float[Array, "1 N H V"] | None, DescentState]:
    """``memory_descent`` of documents which all begin with the same ``prefix``.

    Args:
      memory, weights: see ``zoo.scans.memory_descent``.
      tokens: (q, k, v, theta, alpha, eta).
      state: state before the first token; None: every row begins a document.
      age: tokens of the document before the call; where it is 0, ``state`` is not read. Goes with ``state``.
      reset: True at the first token of a new document.
      prefix: tokens with batch 1 in front of every document; None: none.
      prefix_read_until: a caller that needs what is read at the prefix for the first n tokens of a document says so.
      **options: of ``zoo.scans.memory_descent``.

    Returns:
      (what is read at the tokens, and at the prefix, the state after the last token). What is read at the prefix is 0 in
      calls in which no row is near the beginning of a document.
    """
    batch = tokens[0].shape[0]
    lead = 0 if prefix is None else prefix[0].shape[1]

    def rows(tree):
        return jax.tree.map(lambda a: jnp.broadcast_to(a, (batch, *a.shape[1:])), tree)

    if state is None and reset is None:
        if lead:
            tokens = jax.tree.map(lambda p, a: jnp.concatenate([p.astype(a.dtype), a], axis=1), rows(prefix), tokens)
        y, state = memory_descent(memory, weights, *tokens, **options)
        return y[:, lead:], y[:1, :lead] if lead else None, state

    def begin(_):
        if lead:
            return memory_descent(memory, weights, *prefix, **options)[::-1]
        fresh = start_descent(weights, 1)
        if options["gates_per"] == "chunk":
            fresh = fresh._replace(gates=jax.tree.map(lambda g: jnp.zeros_like(g[:1, 0]), tokens[3:]))
        return fresh, jnp.zeros((1, 0, *tokens[2].shape[2:]), tokens[2].dtype)

    if state is None or not lead:
        fresh, read = begin(None)
    else:
        wanted = jnp.any(age < prefix_read_until)
        wanted = wanted if reset is None else wanted | jnp.any(reset)
        nothing = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(begin, None))
        fresh, read = lax.cond(wanted, begin, lambda _: nothing, None)
    if state is None:
        state = rows(fresh)
    else:
        begins = age == 0
        state = jax.tree.map(
            lambda f, s: jnp.where(begins.reshape(-1, *(1,) * (s.ndim - 1)), f.astype(s.dtype), s), fresh, state
        )
    y, state = memory_descent(memory, weights, *tokens, state, reset=reset, fresh=fresh, lead=lead, **options)
    return y, read if lead else None, state


def neural_memory(
    params: Mapping[str, Array],
    x: Float[Array, "B T D"],
    state: NeuralMemoryState | None,
    config: NeuralMemory,
    *,
    reset: Bool[Array, "B T"] | None = None,
    persistent: Float[Array, "N D"] | None = None,
    prefix_read_until: int = 1,
) -> tuple[Float[Array, "B T D"], Float[Array, "1 N D"] | None, NeuralMemoryState]:
    """What the memory of the module docstring reads.

    Args:
      params: of ``neural_memory_parameters``.
      x: inputs.
      state: state before the first token; None: the start.
      config: the memory.
      reset: True at the first token of a new document.
      persistent: P, or None.
      prefix_read_until: see ``document_descent``.

    Returns:
      (r, what is read at P, state after the last token), at least float32.
    """
    before = None if state is None else state.age
    age = document_positions(reset, before, shape=x.shape[:2])
    tokens, history = memory_tokens(params, x, config, age, None if state is None else state.history)
    prefix = None
    if persistent is not None:
        own = persistent[None].astype(x.dtype)
        prefix, _ = memory_tokens(params, own, config, jnp.arange(own.shape[1])[None])
    y, read, descent = document_descent(
        config.memory(), memory_weights(params, config), tokens, None if state is None else state.descent, before,
        reset=reset, prefix=prefix, prefix_read_until=prefix_read_until, **config.options(),
    )  # fmt: skip
    y = y.reshape(*x.shape[:2], -1)
    read = None if read is None else read.reshape(1, read.shape[1], -1)
    return y, read, NeuralMemoryState(descent, history, age[:, -1] + 1)


def persistent_tokens(module: nn.Module, count: int, dim: int) -> Float[Array, "N D"] | None:
    """Declares ``persistent`` [N_p, D] on ``module``; None for 0 of them."""
    if not isinstance(count, int) or count < 0:
        raise ValueError(f"persistent must be a number of tokens >= 0, got {count!r}")
    return module.param("persistent", nn.initializers.normal(1.0), (count, dim)) if count else None


def combine(
    y: Float[Array, "B T D"],
    r: Float[Array, "B T D"],
    scales: tuple[Float[Array, " D"], Float[Array, " D"]],
    kind: str,
    eps: float,
) -> Float[Array, "B T D"]:
    """The gate of two branches: norm(y) * kind(norm(r)), each norm with its own ``scales``, kind "silu" or "sigmoid"."""
    y, r = (rms_norm(a, scale, eps) for a, scale in zip((y, r), scales))
    return y * {"silu": jax.nn.silu, "sigmoid": jax.nn.sigmoid}[kind](r)
