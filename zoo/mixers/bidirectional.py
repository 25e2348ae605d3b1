"""Bidirectional recurrence: one mixer reads the sequence forwards, another backwards.

Schuster and Paliwal (1997), Bidirectional Recurrent Neural Networks; with LSTM, Graves and Schmidhuber (2005).

With F and G two causal mixers of the same kind and their own parameters, and R the reversal of time:

    f = F(x),  g = R G(R x)                  both [B, T, D]
    y = [f, g] W_o, W_o [2D, D]              ``merge="concat"``
    y = f + g                                ``merge="sum"``

Documents. ``reset`` marks first tokens; backwards, a document starts at its last token, the one before a first token, so
both directions are cut at the same boundaries. Right-padded rows are cut by a reset at position ``length``: the padding is
a document of its own, and G starts at the last real token of every row.

Twice the cost of the mixer. The whole sequence must be seen: not causal, no state, no stepwise form.
"""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from zoo.checks import check_choice, check_sequence
from zoo.registry import register, resolve

MERGES = ("concat", "sum")


def bidirectional(
    forward: Callable,
    backward: Callable,
    x: Float[Array, "B T D"],
    reset: Bool[Array, "B T"] | None = None,
) -> tuple[Float[Array, "B T N"], Float[Array, "B T M"]]:
    """Runs ``forward`` over ``x`` and ``backward`` over ``x`` reversed.

    Args:
      forward: causal (x, reset) -> y [B, T, N].
      backward: the same for the other direction; it is called with reversed arrays and knows nothing of it.
      x: inputs.
      reset: True at the first token of a new document.

    Returns:
      (y of ``forward``, y of ``backward``), both in the order of ``x``.
    """
    starts = None
    if reset is not None:
        # The last token of a document is the one before a first token; reversed, it is the first.
        last = jnp.concatenate([reset[:, 1:], jnp.zeros_like(reset[:, :1])], axis=1)
        starts = jnp.flip(last, axis=1)
    return forward(x, reset), jnp.flip(backward(jnp.flip(x, axis=1), starts), axis=1)


@register(
    "bidirectional",
    variants={"default": {}, "sum": {"mixer": {"name": "elman", "activation": "sigmoid"}, "merge": "sum"}},
)
class Bidirectional(nn.Module):
    """Any causal mixer in both directions of time.

    Attributes:
      dim: width D of input and output.
      mixer: registered name, or mapping with "name" and options, of a causal mixer.
      merge: "concat" (concatenate, then project to D) or "sum".
      dtype: compute dtype, handed to the mixer unless its options say otherwise.
    """

    dim: int
    mixer: str | Mapping[str, Any] = "lstm"
    merge: str = "concat"
    dtype: str = "float32"

    causal: ClassVar[bool] = False
    paper: ClassVar[str] = "Schuster and Paliwal 1997, Bidirectional Recurrent Neural Networks"

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], state: Any = None, *, reset: Bool[Array, "B T"] | None = None
    ) -> tuple[Float[Array, "B T D"], None]:
        check_sequence(x, self.dim, reset)
        check_choice("merge", self.merge, MERGES)
        if state is not None:
            raise ValueError("bidirectional keeps no state: it needs the whole sequence, so state must be None")
        options = {"name": self.mixer} if isinstance(self.mixer, str) else dict(self.mixer)
        cls, options = resolve({"dtype": self.dtype, **options, "dim": self.dim})
        if not cls.causal:
            raise ValueError(f"mixer={self.mixer!r} is not causal; bidirectional wraps causal mixers")
        forward, backward = cls(**options, name="forward"), cls(**options, name="backward")
        x = x.astype(self.dtype)
        f, g = bidirectional(lambda x, r: forward(x, reset=r)[0], lambda x, r: backward(x, reset=r)[0], x, reset)
        if self.merge == "sum":
            return f + g, None
        y = jnp.concatenate([f, g], axis=-1)
        return nn.Dense(self.dim, use_bias=False, dtype=self.dtype, name="output")(y), None
