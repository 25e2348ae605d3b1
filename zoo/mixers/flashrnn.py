"""Head-wise recurrent networks with fused kernels: Elman, GRU, LSTM, sLSTM and cells of a user's own.

Pöppel, Beck, Hochreiter (2024), FlashRNN: I/O-Aware Optimization of Traditional RNNs on Modern Hardware; the sLSTM is from
Beck et al. (2024), xLSTM: Extended Long Short-Term Memory.

With x_t [D] the input, N heads of size E, and gates g of a cell (``zoo.scans.flashrnn``):

    Wx_t = W x_t                                   [Gw, N, E]      W [D, Gw N E], all steps in one product
    raw_t[g, n] = Wx_t[g, n] + R[g, n] h_{t-1}[n] + b[g, n]        R [Gr, N, E, E]
    h_t[n], ... = cell(raw_t[:, n], h_{t-1}[n], ...)
    y_t = O group_norm(h_t)                        the norm, over each head, and O [N E, D] where N E is not D are options

Heads see each other only through the next projection: E^2 N instead of (E N)^2 operations per gate and step.

``zoo.models.Block`` around it (norm, mixer, norm, MLP, with residuals) is the block of a language model:
``LanguageModel(pattern=({"name": "slstm", "heads": 4},), mlp="gelu", ...)``.

Time O(B T (Gw D N E + Gr N E^2)) in T dependent steps; state: S N E numbers per row.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float

from zoo.checks import check_choice, check_divides, check_positive, check_sequence, check_state
from zoo.dtypes import accumulator
from zoo.layers.initializers import RECURRENT_INITS, symmetric_uniform
from zoo.layers.norms import layer_norm
from zoo.registry import register
from zoo.scans import cell_counts, flashrnn, matmul

FORGETTING = {"lstm": 1, "slstm": 1}  # the gate that ``forget_bias`` is for


@struct.dataclass
class FlashRNNState:
    """Carried state: ``states`` [B, S, N, E], the first of the S being h."""

    states: Float[Array, "B S N E"]


def flashrnn_layer(
    params: Mapping[str, Array],
    x: Float[Array, "B T D"],
    state: FlashRNNState,
    *,
    function: str = "lstm",
    reset: Bool[Array, "B T"] | None = None,
    **options: Any,
) -> tuple[Float[Array, "B T H"], FlashRNNState]:
    """The recurrence of the module docstring, without O.

    Args:
      params: ``input_kernel`` [D, Gw N E], ``recurrent_kernel`` [Gr, N, E, E] (out, in), ``bias`` [Gt, N, E], and for the
        group norm ``norm_scale`` [N, E].
      x: inputs; products run in their dtype.
      state: state before the first token.
      function: the cell.
      reset: True at the first token of a new document.
      **options: of ``zoo.scans.flashrnn``: backend, save, clipping.

    Returns:
      (y [B, T, N E] in x's dtype, state after the last token).
    """
    drive = matmul(x, params["input_kernel"].astype(x.dtype)).astype(x.dtype)
    drive = drive.reshape(*x.shape[:2], -1, *params["bias"].shape[1:])
    carried = jnp.swapaxes(state.states, 0, 1)[:, :, None].astype(accumulator(x.dtype))
    recurrent = params["recurrent_kernel"].astype(x.dtype)
    states, last = flashrnn(drive, recurrent, params["bias"], carried, function=function, reset=reset, **options)
    y = states[0]
    if "norm_scale" in params:
        y = layer_norm(y.astype(accumulator(y.dtype)), jnp.ones(y.shape[-1])) * params["norm_scale"]
    return y.reshape(*x.shape[:2], -1).astype(x.dtype), FlashRNNState(jnp.swapaxes(last[:, :, 0], 0, 1))


@register(
    "flashrnn",
    variants={
        "default": {"heads": 2},
        "gru": {"function": "gru", "backend": "vanilla", "recurrent_init": "orthogonal"},
        "elman": {"function": "elman", "heads": 2, "backend": "alternating", "group_norm": True},
        "slstm": {"function": "slstm", "head_dim": 6, "backend": "vanilla_fwbw", "save": "states"},
        "fused": {"heads": 2, "backend": "fused"},
    },
)
class FlashRNN(nn.Module):
    """Head-wise recurrent network with any cell of FlashRNN.

    Attributes:
      dim: width D of input and output.
      function: "elman", "gru", "lstm", "slstm", or a cell entered with ``zoo.scans.register_cell``.
      heads: number N of heads.
      head_dim: their size E; None takes dim / heads. Where N E is not ``dim`` there is an output projection.
      backend: see ``zoo.scans.flashrnn``.
      save: what the backward pass keeps, see ``zoo.scans.flashrnn``.
      group_norm: normalise every head's output, with a learned scale.
      forget_bias: initial bias of the forget gate (lstm, slstm), spread over each head from the first to the second.
      recurrent_init: "uniform" (U(-1/sqrt(E), 1/sqrt(E))) or "orthogonal", for each gate and head.
      gradient_recurrent_cut, gradient_recurrent_clipval, forward_clipval: see ``zoo.scans.flashrnn``.
      dtype: compute dtype of the products; the state is at least float32.
    """

    dim: int
    function: str = "lstm"
    heads: int = 1
    head_dim: int | None = None
    backend: str = "auto"
    save: str | int = "gates"
    group_norm: bool = False
    forget_bias: tuple[float, float] = (1.0, 4.0)
    recurrent_init: str = "uniform"
    gradient_recurrent_cut: bool = False
    gradient_recurrent_clipval: float | None = None
    forward_clipval: float | None = None
    dtype: str = "float32"

    causal: ClassVar[bool] = True
    paper: ClassVar[str] = "Pöppel et al. 2024, FlashRNN: I/O-Aware Optimization of Traditional RNNs on Modern Hardware"

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], state: FlashRNNState | None = None, *, reset: Bool[Array, "B T"] | None = None
    ) -> tuple[Float[Array, "B T D"], FlashRNNState]:
        names = (
            "function",
            "backend",
            "save",
            "gradient_recurrent_cut",
            "gradient_recurrent_clipval",
            "forward_clipval",
        )
        return _layer(self, x, state, reset, self.group_norm, {name: getattr(self, name) for name in names})

    def initial_state(self, batch_size: int, dtype: str | None = None) -> FlashRNNState:
        """Zeros, at least float32 whatever ``dtype``."""
        return _initial(self, self.function, batch_size)


@register("slstm", variants={"default": {"heads": 2}})
class SLSTM(nn.Module):
    """sLSTM: an LSTM with exponential input gate and normaliser, head-wise memory mixing, and a norm over each head.

    Attributes:
      dim: width D of input and output.
      heads: number N of heads.
      head_dim: their size E; None takes dim / heads. Where N E is not ``dim`` there is an output projection.
      backend: see ``zoo.scans.flashrnn``.
      forget_bias: initial bias of the forget gate, spread over each head from the first to the second.
      recurrent_init: "uniform" (U(-1/sqrt(E), 1/sqrt(E))) or "orthogonal", for each gate and head.
      dtype: compute dtype of the products; the state is at least float32.
    """

    dim: int
    heads: int = 4
    head_dim: int | None = None
    backend: str = "auto"
    forget_bias: tuple[float, float] = (1.0, 4.0)
    recurrent_init: str = "uniform"
    dtype: str = "float32"

    causal: ClassVar[bool] = True
    paper: ClassVar[str] = "Beck et al. 2024, xLSTM: Extended Long Short-Term Memory"

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], state: FlashRNNState | None = None, *, reset: Bool[Array, "B T"] | None = None
    ) -> tuple[Float[Array, "B T D"], FlashRNNState]:
        return _layer(self, x, state, reset, True, {"function": "slstm", "backend": self.backend})

    def initial_state(self, batch_size: int, dtype: str | None = None) -> FlashRNNState:
        """Zeros, at least float32 whatever ``dtype``."""
        return _initial(self, "slstm", batch_size)


def _layer(module, x, state, reset, group_norm, options):
    """Checks, declares the parameters of ``module`` and runs it."""
    check_sequence(x, module.dim, reset)
    initial = module.initial_state(x.shape[0])
    if state is not None:
        check_state(state, initial)
    function, (heads, size) = options["function"], initial.states.shape[2:]
    params = {
        name: module.param(name, *declared)
        for name, declared in _declared(function, module, heads, size, group_norm).items()
    }
    x = x.astype(module.dtype)
    y, state = flashrnn_layer(params, x, initial if state is None else state, reset=reset, **options)
    if heads * size != module.dim:
        y = nn.Dense(module.dim, use_bias=False, dtype=module.dtype, name="output")(y)
    return y, state


def _declared(function, module, heads, size, group_norm):
    """Parameter -> (initialiser, shape)."""
    check_choice("recurrent_init", module.recurrent_init, RECURRENT_INITS)
    gates_r, gates_w, _, gates_t, _ = cell_counts(function)
    uniform = symmetric_uniform(size**-0.5)

    def bias(key, shape):
        del key
        spread = jnp.linspace(*module.forget_bias, size)
        return jnp.zeros(shape).at[FORGETTING[function]].set(spread) if function in FORGETTING else jnp.zeros(shape)

    def recurrent(key, shape):
        if module.recurrent_init == "uniform":
            return uniform(key, shape)
        square = jax.vmap(lambda k: nn.initializers.orthogonal()(k, (size, size)))
        return square(jax.random.split(key, shape[0] * shape[1])).reshape(shape)

    declared = {
        "input_kernel": (symmetric_uniform(module.dim**-0.5), (module.dim, gates_w * heads * size)),
        "recurrent_kernel": (recurrent, (gates_r, heads, size, size)),
        "bias": (bias, (gates_t, heads, size)),
    }
    return {**declared, **({"norm_scale": (nn.initializers.ones, (heads, size))} if group_norm else {})}


def _initial(module, function, batch_size):
    check_positive("heads", module.heads)
    size = module.head_dim
    if size is None:
        check_divides("heads", module.heads, "dim", module.dim)
        size = module.dim // module.heads
    check_positive("head_dim", size)
    shape = (batch_size, cell_counts(function)[-1], module.heads, size)
    return FlashRNNState(jnp.zeros(shape, accumulator(module.dtype)))
