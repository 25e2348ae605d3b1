"""A recurrent cell as a language model uses it: between projections, after a short convolution, with a gated output.

The block around Mamba's selective scan (Gu and Dao 2023), here around any causal mixer, as Danieli et al. (2025), ParaRNN,
put it around ParaGRU and ParaLSTM.

With x_t [D] the (normalised) input:

    [u_t, g_t] = W_in x_t                              W_in [D, 2D]
    v_t = silu(sum_k K_k * u_{t-k} + b)                causal depthwise convolution, K [taps, D], b [D]
    h_t = mixer(v)_t                                   [D]
    y_t = W_out (rms_norm(h_t) * silu(g_t))            W_out [D, D]

Norm before and residual after are those of ``zoo.models.Block``. Time O(B T D^2) and the mixer's; state: the mixer's, and
the last taps - 1 values of u.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from zoo.checks import check_positive, check_sequence, check_state
from zoo.layers.attention import document_positions
from zoo.layers.convolution import depthwise_convolution, recent
from zoo.layers.norms import RMSNorm
from zoo.registry import register, resolve


@struct.dataclass
class GatedRecurrenceState:
    """Carried state: ``mixer``, its own; ``history`` [B, taps - 1, D] of u; ``age`` [B], tokens of the document so far."""

    mixer: Any
    history: Float[Array, "B K D"]
    age: Int[Array, " B"]


def gated_recurrence(
    params: Mapping[str, Array],
    x: Float[Array, "B T D"],
    state: GatedRecurrenceState,
    *,
    reset: Bool[Array, "B T"] | None = None,
) -> tuple[Float[Array, "B T D"], Float[Array, "B T D"], Float[Array, "B K D"], Int[Array, " B"]]:
    """What comes before the mixer.

    Args:
      params: ``input`` [D, 2D], ``kernel`` [taps, D] and ``bias`` [D] of the convolution.
      x: inputs; everything runs in their dtype, the convolution in at least float32.
      state: state before the first token.
      reset: True at the first token of a new document.

    Returns:
      (v, silu(g), history, age): input of the mixer, gate, and the parts of the new state.
    """
    u, gate = jnp.split(x @ params["input"].astype(x.dtype), 2, axis=-1)
    age = document_positions(reset, state.age, shape=x.shape[:2])
    v = depthwise_convolution(u, params["kernel"], age, history=state.history) + params["bias"].astype(x.dtype)
    history = recent(u, params["kernel"].shape[0] - 1, state.history)
    return jax.nn.silu(v), jax.nn.silu(gate), history, age[:, -1] + 1


@register(
    "gated_recurrence",
    variants={"default": {}, "lstm": {"mixer": {"name": "paralstm", "heads": 2}, "conv_size": 3}},
)
class GatedRecurrence(nn.Module):
    """Any causal mixer after a short convolution, with a normalised and gated output.

    Attributes:
      dim: width D of input and output.
      mixer: registered name, or mapping with "name" and options, of a causal mixer.
      conv_size: taps of the convolution.
      dtype: compute dtype, handed to the mixer unless its options say otherwise.
    """

    dim: int
    mixer: str | Mapping[str, Any] = "paragru"
    conv_size: int = 4
    dtype: str = "float32"

    causal: ClassVar[bool] = True
    paper: ClassVar[str] = "Gu and Dao 2023, Mamba: Linear-Time Sequence Modeling with Selective State Spaces"

    @property
    def exactly_causal(self) -> bool:
        """That of the mixer inside."""
        cls, options = self._mixer()
        return getattr(cls(**options, parent=None), "exactly_causal", True)

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        state: GatedRecurrenceState | None = None,
        *,
        reset: Bool[Array, "B T"] | None = None,
    ) -> tuple[Float[Array, "B T D"], GatedRecurrenceState]:
        check_sequence(x, self.dim, reset)
        check_positive("conv_size", self.conv_size)
        initial = self.initial_state(x.shape[0])
        if state is not None:
            check_state(state, initial)
        state = initial if state is None else state
        dense = nn.initializers.normal(self.dim**-0.5)
        params = {
            "input": self.param("input", dense, (self.dim, 2 * self.dim)),
            "kernel": self.param("kernel", nn.initializers.normal(self.conv_size**-0.5), (self.conv_size, self.dim)),
            "bias": self.param("bias", nn.initializers.zeros, (self.dim,)),
        }
        x = x.astype(self.dtype)
        v, gate, history, age = gated_recurrence(params, x, state, reset=reset)
        cls, options = self._mixer()
        h, inner = cls(**options, name="mixer")(v, state.mixer, reset=reset)
        y = RMSNorm(name="norm")(h) * gate
        y = y @ self.param("output", dense, (self.dim, self.dim)).astype(y.dtype)
        return y, GatedRecurrenceState(inner, history, age)

    def initial_state(self, batch_size: int, dtype: str | None = None) -> GatedRecurrenceState:
        """Zeros; ``dtype`` is the storage dtype of the convolution's history."""
        cls, options = self._mixer()
        return GatedRecurrenceState(
            cls(**options, parent=None).initial_state(batch_size, dtype),
            jnp.zeros((batch_size, self.conv_size - 1, self.dim), dtype or self.dtype),
            jnp.zeros(batch_size, jnp.int32),
        )

    def _mixer(self) -> tuple[type, dict[str, Any]]:
        options = {"name": self.mixer} if isinstance(self.mixer, str) else dict(self.mixer)
        cls, options = resolve({"dtype": self.dtype, **options, "dim": self.dim})
        if not cls.causal:
            raise ValueError(f"mixer={self.mixer!r} is not causal; gated_recurrence wraps causal mixers")
        return cls, options
