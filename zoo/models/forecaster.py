"""Forecaster: patches of a series as tokens, a causal stack, a linear head that writes the whole horizon.

Instance normalisation (Kim et al. 2022, RevIN, without its affine part): every channel of every window is shifted and
scaled to mean 0 and deviation 1 before the model, and the forecast is scaled back. Patches as tokens and channels as
independent rows follow Nie et al. 2023 (PatchTST).
"""

from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from zoo.checks import check_choice, check_floating, check_positive
from zoo.layers.positions import sinusoidal_positions
from zoo.models.stack import Spec, Stack, freeze_specs
from zoo.registry import register

CHANNELS = ("independent", "joint")
HEADS = ("last", "all")


def instance_statistics(
    x: Float[Array, "B L C"], eps: float = 1e-5
) -> tuple[Float[Array, "B 1 C"], Float[Array, "B 1 C"]]:
    """Mean and standard deviation of every channel of every window; ``eps`` is added to the variance."""
    mean = jnp.mean(x, axis=1, keepdims=True)
    return mean, jnp.sqrt(jnp.var(x, axis=1, keepdims=True) + eps)


@register("forecaster", kind="model", variants={"default": {"horizon": 5, "dim": 8}})
class Forecaster(nn.Module):
    """Forecasts the ``horizon`` steps that follow a window of a series.

    The window [L, C] is normalised, padded on the left with its first step to a multiple of ``patch``, and cut into
    patches; each patch is one token.

    Attributes:
      horizon: steps to forecast.
      dim: width D.
      patch: steps per token.
      channels: "independent" (every channel is a row of its own, weights shared) or "joint" (a token holds all).
      head: "last" reads the last token's features, "all" those of all tokens (then the window's length is fixed).
      positions: "none" or "sinusoidal" signal added to the embedded patches.
      pattern, depth, mlp, mlp_dim, norm, norm_position, final_norm, dropout, remat, dtype: see ``zoo.models.Stack``.
    """

    horizon: int
    dim: int
    patch: int = 4
    channels: str = "independent"
    head: str = "last"
    positions: str = "sinusoidal"
    pattern: tuple[Spec, ...] = ("aaren",)
    depth: int | None = None
    mlp: Spec = "gelu"
    mlp_dim: int | None = None
    norm: str = "layer"
    norm_position: str = "pre"
    final_norm: bool = True
    dropout: float = 0.0
    remat: bool = False
    dtype: str = "float32"

    paper: ClassVar[str] = "Nie et al. 2023, A Time Series is Worth 64 Words (patches, independent channels)"

    def __post_init__(self):
        freeze_specs(self)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Float[Array, "B L C"], *, deterministic: bool = True) -> Float[Array, "B H C"]:
        """Returns the forecast [B, horizon, C] in the units of ``x``."""
        check_positive("horizon", self.horizon)
        check_positive("patch", self.patch)
        check_choice("channels", self.channels, CHANNELS)
        check_choice("head", self.head, HEADS)
        check_choice("positions", self.positions, ("none", "sinusoidal"))
        check_floating("x", x)
        if x.ndim != 3 or x.shape[1] == 0:
            raise ValueError(f"x must have shape [batch, time >= 1, channels], got {list(x.shape)}")
        batch, time, channels = x.shape
        mean, deviation = instance_statistics(x)
        rows = (x - mean) / deviation
        if self.channels == "independent":
            rows = jnp.moveaxis(rows, 2, 1).reshape(batch * channels, time, 1)
        rows = jnp.pad(rows, ((0, 0), (-time % self.patch, 0), (0, 0)), mode="edge")
        tokens = rows.reshape(rows.shape[0], -1, self.patch * rows.shape[2])
        h = nn.Dense(self.dim, dtype=self.dtype, name="input")(tokens)
        if self.positions == "sinusoidal":
            h = h + sinusoidal_positions(jnp.arange(h.shape[1]), self.dim).astype(h.dtype)
        fields = ("dim", "pattern", "depth", "mlp", "mlp_dim", "norm", "norm_position", "final_norm", "dropout",
                  "remat", "dtype")  # fmt: skip
        stack = Stack(**{f: getattr(self, f) for f in fields}, name="stack")
        h, _ = stack(h, deterministic=deterministic)
        h = h[:, -1] if self.head == "last" else h.reshape(h.shape[0], -1)
        y = nn.Dense(self.horizon * rows.shape[2], dtype=self.dtype, name="head")(h).astype(x.dtype)
        if self.channels == "independent":
            y = jnp.moveaxis(y.reshape(batch, channels, self.horizon), 1, 2)
        else:
            y = y.reshape(batch, self.horizon, channels)
        return y * deviation + mean
