"""Position-wise feed-forward layers."""

import flax.linen as nn
import jax
from jaxtyping import Array, Float

from zoo.checks import check_choice

MLPS = ("gelu", "relu", "silu", "swiglu", "none")


class MLP(nn.Module):
    """Two linear maps with a nonlinearity between: W2 act(W1 x), or the gated form W2 (silu(Wg x) * W1 x).

    Attributes:
      dim: width D of input and output.
      hidden_dim: inner width; None takes 4 D (gelu, relu, silu) or 8/3 D rounded up to a multiple of 8 (swiglu).
      kind: "gelu" (exact), "relu", "silu" or "swiglu" (Shazeer 2020).
      dtype: compute dtype.
    """

    dim: int
    hidden_dim: int | None = None
    kind: str = "swiglu"
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        check_choice("mlp", self.kind, MLPS[:-1])
        gated = self.kind == "swiglu"
        hidden = self.hidden_dim or (-(-8 * self.dim // 24) * 8 if gated else 4 * self.dim)
        h = nn.Dense(hidden, use_bias=not gated, dtype=self.dtype, name="up")(x)
        if gated:
            h = jax.nn.silu(nn.Dense(hidden, use_bias=False, dtype=self.dtype, name="gate")(x)) * h
        else:
            act = {"relu": jax.nn.relu, "silu": jax.nn.silu}.get(self.kind, lambda h: jax.nn.gelu(h, approximate=False))
            h = act(h)
        return nn.Dense(self.dim, use_bias=not gated, dtype=self.dtype, name="down")(h)
