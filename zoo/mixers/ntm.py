"""Neural Turing Machine: a recurrent controller that reads and writes a memory by soft addresses.

Graves, Wayne, Danihelka (2014), Neural Turing Machines; reviewed by Lipton et al. (2015).

The memory M has N slots of width W. At every step the controller (hidden width H) reads x_t and what its R read heads
saw before, and emits for every head a key k [W], strength beta, gate g, shift s [S] and sharpness gamma; a write head
also emits an erase vector e [W] and an add vector a [W]:

    w_c(i) = softmax_i(beta cos(k, M_i))                  content       beta = softplus
    w_g = g w_c + (1 - g) w_{t-1}                         interpolation g = sigmoid
    w_s(i) = sum_j w_g(i - j mod N) s(j)                  shift by j in -S//2 .. S//2, s = softmax
    w(i) = w_s(i)^gamma / sum_l w_s(l)^gamma              sharpening    gamma = 1 + softplus
    r = sum_i w(i) M_i                                    read
    M_i <- M_i (1 - w(i) e) + w(i) a                      write         e = sigmoid

    h_t = tanh(W_x x_t + W_r r_{t-1} + b), or an LSTM cell of the same inputs
    y_t = W_y [h_t; r_t] + b_y

Reading comes before writing: r_t is read from the memory that step t - 1 left. With several heads all addresses are
computed from that same memory, erasures multiply and additions add up. A document starts with every slot at 1e-6, all
attention on slot 0, and zeros elsewhere (constant initialisation: Collier and Beel 2018).

Time O(B T (H (D + R W + H) + R N W)), sequential; state O(N W + R N + R W + H) per row, and T times that in training.
"""

from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float

from zoo.checks import check_choice, check_positive, check_sequence, check_state
from zoo.dtypes import accumulator
from zoo.registry import register

CONTROLLERS = ("lstm", "feedforward")
EMPTY = 1e-6  # initial content of every slot
COSINE_EPSILON = 1e-8  # added to |key| |slot|: an empty slot has cosine 0, not NaN


@struct.dataclass
class NTMState:
    """Carried state.

    Attributes:
      memory: slots [B, N, W].
      read_weights: last addresses of the read heads [B, R, N].
      write_weights: last addresses of the write heads [B, R, N].
      reads: what the read heads saw last [B, R, W].
      hidden: controller output [B, H] (zeros of width 0 for a feed-forward controller).
      cell: LSTM cell [B, H] (width 0 likewise).
    """

    memory: Float[Array, "B N W"]
    read_weights: Float[Array, "B R N"]
    write_weights: Float[Array, "B R N"]
    reads: Float[Array, "B R W"]
    hidden: Float[Array, "B H"]
    cell: Float[Array, "B H"]


class Addresses(NamedTuple):
    """The four stages of an address, each [..., N]; ``final`` is the one that is used."""

    content: Array
    gated: Array
    shifted: Array
    final: Array


def content_address(
    memory: Float[Array, "*B N W"], key: Float[Array, "*B W"], strength: Float[Array, "*B"]
) -> Float[Array, "*B N"]:
    """softmax over slots of ``strength`` times the cosine of ``key`` and slot."""
    similarity = jnp.einsum("...nw,...w->...n", memory, key)
    norms = _norm(memory) * _norm(key)[..., None]
    return jax.nn.softmax(strength[..., None] * similarity / (norms + COSINE_EPSILON), axis=-1)


def _norm(vectors: Float[Array, "*B W"]) -> Float[Array, "*B"]:
    """Euclidean norm with derivative 0, instead of NaN, at the zero vector."""
    square = jnp.sum(vectors**2, axis=-1)
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)


def shift_address(weights: Float[Array, "*B N"], shift: Float[Array, "*B S"]) -> Float[Array, "*B N"]:
    """Circular convolution: ``shift[j]`` of the weight of slot i moves to slot i + j - S//2."""
    offsets = range(-(shift.shape[-1] // 2), shift.shape[-1] - shift.shape[-1] // 2)
    return sum(jnp.roll(weights, offset, axis=-1) * shift[..., j, None] for j, offset in enumerate(offsets))


def sharpen_address(weights: Float[Array, "*B N"], gamma: Float[Array, "*B"]) -> Float[Array, "*B N"]:
    """weights^gamma / sum, for gamma >= 1 (below 1 the derivative at an empty weight is infinite)."""
    # The largest weight is divided out first: 0.01^30 is zero in float32, and so would be the sum of all.
    largest = jax.lax.stop_gradient(jnp.max(weights, axis=-1, keepdims=True))
    powers = (weights / largest) ** gamma[..., None]
    return powers / jnp.sum(powers, axis=-1, keepdims=True)


def address(
    memory: Float[Array, "*B N W"],
    previous: Float[Array, "*B N"],
    key: Float[Array, "*B W"],
    strength: Float[Array, "*B"],
    gate: Float[Array, "*B"],
    shift: Float[Array, "*B S"],
    gamma: Float[Array, "*B"],
) -> Addresses:
    """The address of a head whose last address was ``previous``: content, interpolation, shift, sharpening.

    Args:
      memory: slots.
      previous: address of the step before.
      key: content to look for.
      strength: beta >= 0.
      gate: in (0, 1); 0 keeps the previous address.
      shift: distribution over offsets -S//2 .. S//2.
      gamma: sharpness >= 1.
    """
    content = content_address(memory, key, strength)
    gated = gate[..., None] * content + (1 - gate[..., None]) * previous
    shifted = shift_address(gated, shift)
    return Addresses(content, gated, shifted, sharpen_address(shifted, gamma))


def read_memory(memory: Float[Array, "B N W"], weights: Float[Array, "B *R N"]) -> Float[Array, "B *R W"]:
    """Weighted sums of the slots."""
    return jnp.einsum("b...n,bnw->b...w", weights, memory)


def write_memory(
    memory: Float[Array, "B N W"],
    weights: Float[Array, "B R N"],
    erase: Float[Array, "B R W"],
    add: Float[Array, "B R W"],
) -> Float[Array, "B N W"]:
    """Every head erases, then every head adds."""
    keep = jnp.prod(1 - weights[..., None] * erase[..., None, :], axis=1)
    return memory * keep + jnp.einsum("brn,brw->bnw", weights, add)


def ntm(
    params: Mapping[str, Array],
    x: Float[Array, "B T D"],
    state: NTMState,
    *,
    reset: Bool[Array, "B T"] | None = None,
) -> tuple[Float[Array, "B T D"], NTMState]:
    """The machine of the module docstring.

    Args:
      params: ``W_x`` [D, G], ``W_r`` [R W, G], ``b`` [G] with G = H, or 4 H (gates g, i, f, o) when there is ``W_h``
        [H, G] and the controller is an LSTM; ``W_read`` [H, R (W + S + 3)], ``W_write`` [H, R (3 W + S + 3)] and their
        biases ``b_read``, ``b_write`` (per head: key, [erase, add,] shift, strength, gate, gamma);
        ``W_y`` [H + R W, D], ``b_y`` [D].
      x: inputs.
      state: state before the first token.
      reset: True at the first token of a new document.

    Returns:
      (y, state after the last token); y has x's dtype.
    """
    dtype = accumulator(x.dtype)
    drive = (x @ params["W_x"].astype(x.dtype)).astype(dtype) + params["b"]
    if reset is None:
        reset = jnp.zeros(x.shape[:2], bool)
    state = jax.tree.map(lambda s: s.astype(dtype), state)
    fresh = _fresh(state)

    def step(state, inputs):
        drive_t, reset_t = inputs
        state = jax.tree.map(lambda new, old: _where(reset_t, new, old), fresh, state)
        hidden, state = _control(params, drive_t, state)
        batch, heads, width = state.reads.shape

        def emit(kind):
            out = (hidden @ params[f"W_{kind}"] + params[f"b_{kind}"]).reshape(batch, heads, -1)
            wide, rest = jnp.split(out, [width if kind == "read" else 3 * width], axis=-1)
            shift, (strength, gate, gamma) = rest[..., :-3], jnp.moveaxis(rest[..., -3:], -1, 0)
            weights = address(
                jnp.broadcast_to(state.memory[:, None], (batch, heads, *state.memory.shape[1:])),
                state.read_weights if kind == "read" else state.write_weights,
                wide[..., :width],
                jax.nn.softplus(strength),
                jax.nn.sigmoid(gate),
                jax.nn.softmax(shift, axis=-1),
                1 + jax.nn.softplus(gamma),
            ).final
            return weights, wide[..., width:]

        read_weights, _ = emit("read")
        write_weights, contents = emit("write")
        erase, add = jnp.split(contents, 2, axis=-1)
        reads = read_memory(state.memory, read_weights)
        memory = write_memory(state.memory, write_weights, jax.nn.sigmoid(erase), add)
        state = state.replace(memory=memory, read_weights=read_weights, write_weights=write_weights, reads=reads)
        return state, jnp.concatenate([hidden, reads.reshape(batch, -1)], axis=-1)

    state, features = jax.lax.scan(step, state, (jnp.moveaxis(drive, 1, 0), reset.T))
    y = jnp.moveaxis(features, 0, 1).astype(x.dtype) @ params["W_y"].astype(x.dtype) + params["b_y"].astype(x.dtype)
    return y, state


def _control(params, drive, state):
    """One controller step: (what the heads and the output see, state with hidden and cell renewed)."""
    gates = drive + state.reads.reshape(drive.shape[0], -1) @ params["W_r"]
    if "W_h" not in params:
        return jnp.tanh(gates), state
    g, i, f, o = jnp.split(gates + state.hidden @ params["W_h"], 4, axis=-1)
    cell = jnp.tanh(g) * jax.nn.sigmoid(i) + state.cell * jax.nn.sigmoid(f)
    hidden = jnp.tanh(cell) * jax.nn.sigmoid(o)
    return hidden, state.replace(hidden=hidden, cell=cell)


def _fresh(like: NTMState) -> NTMState:
    """The state at the start of a document, with the shapes of ``like``."""
    state = jax.tree.map(jnp.zeros_like, like)
    return state.replace(
        memory=jnp.full_like(state.memory, EMPTY),
        read_weights=state.read_weights.at[..., 0].set(1),
        write_weights=state.write_weights.at[..., 0].set(1),
    )


def _where(reset, new, old):
    return jnp.where(reset.reshape(-1, *(1,) * (old.ndim - 1)), new, old)


@register(
    "ntm",
    variants={
        "lstm": {"hidden_dim": 6, "slots": 5, "slot_dim": 3, "heads": 2},
        "feedforward": {"controller": "feedforward", "slots": 6, "slot_dim": 3, "shifts": 5},
    },
)
class NTM(nn.Module):
    """Neural Turing Machine: a controller with an external memory, addressed by content and by location.

    Attributes:
      dim: width D of input and output.
      hidden_dim: width H of the controller, None = dim.
      slots: number N of memory slots.
      slot_dim: width W of a slot.
      heads: number R of read heads, and of write heads.
      shifts: number S of shift offsets, odd: -S//2 .. S//2.
      controller: "lstm" or "feedforward".
      dtype: compute dtype of the input and output projections; controller, addresses and memory run in float32.
    """

    dim: int
    hidden_dim: int | None = None
    slots: int = 32
    slot_dim: int = 16
    heads: int = 1
    shifts: int = 3
    controller: str = "lstm"
    dtype: str = "float32"

    causal: ClassVar[bool] = True
    paper: ClassVar[str] = "Graves et al. 2014, Neural Turing Machines"

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], state: NTMState | None = None, *, reset: Bool[Array, "B T"] | None = None
    ) -> tuple[Float[Array, "B T D"], NTMState]:
        check_sequence(x, self.dim, reset)
        self._check()
        initial = self.initial_state(x.shape[0])
        if state is not None:
            check_state(state, initial)
        return ntm(self._params(), x.astype(self.dtype), initial if state is None else state, reset=reset)

    def initial_state(self, batch_size: int, dtype: str | None = None) -> NTMState:
        """Memory at 1e-6, all attention on slot 0; float32 whatever ``dtype``."""
        hidden = self._hidden() if self.controller == "lstm" else 0
        shapes = {
            "memory": (self.slots, self.slot_dim),
            "read_weights": (self.heads, self.slots),
            "write_weights": (self.heads, self.slots),
            "reads": (self.heads, self.slot_dim),
            "hidden": (hidden,),
            "cell": (hidden,),
        }
        return _fresh(NTMState(**{name: jnp.zeros((batch_size, *shape)) for name, shape in shapes.items()}))

    def _hidden(self) -> int:
        return self.dim if self.hidden_dim is None else self.hidden_dim

    def _check(self) -> None:
        """Raises ValueError for options that make no machine."""
        check_choice("controller", self.controller, CONTROLLERS)
        check_positive("hidden_dim", self._hidden())
        for name in ("slots", "slot_dim", "heads", "shifts"):
            check_positive(name, getattr(self, name))
        if self.shifts % 2 == 0:
            raise ValueError(f"shifts must be odd (offsets -k .. k), got {self.shifts}")

    def _params(self) -> dict[str, Array]:
        hidden = self._hidden()
        reads = self.heads * self.slot_dim
        lstm = self.controller == "lstm"
        gates = 4 * hidden if lstm else hidden
        head = self.slot_dim + self.shifts + 3

        def matrix(name, rows, columns):
            return self.param(name, nn.initializers.lecun_normal(), (rows, columns))

        def bias(name, size):
            return self.param(name, nn.initializers.zeros_init(), (size,))

        params = {"W_x": matrix("W_x", self.dim, gates), "W_r": matrix("W_r", reads, gates)}
        if lstm:
            params["W_h"] = matrix("W_h", hidden, gates)
            # Forget gates start open: bias 1.
            params["b"] = self.param("b", lambda _: jnp.zeros(gates).at[2 * hidden : 3 * hidden].set(1))
        else:
            params["b"] = bias("b", gates)
        for kind, size in (("read", head), ("write", head + 2 * self.slot_dim)):
            params[f"W_{kind}"] = matrix(f"W_{kind}", hidden, self.heads * size)
            # Small random biases tell heads apart that see the same controller.
            params[f"b_{kind}"] = self.param(f"b_{kind}", nn.initializers.normal(0.1), (self.heads * size,))
        params["W_y"], params["b_y"] = matrix("W_y", hidden + reads, self.dim), bias("b_y", self.dim)
        return params
