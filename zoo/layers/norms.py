"""Normalisation over the last axis, or of every channel over the batch; in at least float32, cast back once."""

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from zoo.checks import check_choice
from zoo.dtypes import accumulator

NORMS = ("rms", "layer", "scale", "batch", "none")


def layer_norm(
    x: Float[Array, "*B D"], scale: Float[Array, " D"], bias: Float[Array, " D"] | None = None, eps: float = 1e-6
) -> Float[Array, "*B D"]:
    """(x - mean) / sqrt(variance + eps) * scale + bias over the last axis (Ba et al. 2016)."""
    x32 = x.astype(accumulator(x.dtype))
    centred = x32 - jnp.mean(x32, axis=-1, keepdims=True)
    y = centred * lax.rsqrt(jnp.mean(centred**2, axis=-1, keepdims=True) + eps) * scale
    return (y if bias is None else y + bias).astype(x.dtype)


def rms_norm(x: Float[Array, "*B D"], scale: Float[Array, " #D"] | float, eps: float = 1e-6) -> Float[Array, "*B D"]:
    """x / sqrt(mean(x^2) + eps) * scale over the last axis (Zhang and Sennrich 2019)."""
    x32 = x.astype(accumulator(x.dtype))
    return (x32 * lax.rsqrt(jnp.mean(x32**2, axis=-1, keepdims=True) + eps) * scale).astype(x.dtype)


class LayerNorm(nn.Module):
    """Layer normalisation with learned scale and bias."""

    eps: float = 1e-6

    @nn.compact
    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        scale = self.param("scale", nn.initializers.ones_init(), (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros_init(), (x.shape[-1],))
        return layer_norm(x, scale, bias, self.eps)


class RMSNorm(nn.Module):
    """Root-mean-square normalisation with learned scale."""

    eps: float = 1e-6

    @nn.compact
    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        return rms_norm(x, self.param("scale", nn.initializers.ones_init(), (x.shape[-1],)), self.eps)


class ScaleNorm(nn.Module):
    """scale * x / sqrt(mean(x^2) + eps) with one learned number: g x / ||x||, g = scale sqrt(D) (Nguyen, Salazar 2019)."""

    eps: float = 1e-6

    @nn.compact
    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        return rms_norm(x, self.param("scale", nn.initializers.ones_init(), (1,)), self.eps)


class BatchNorm(nn.Module):
    """Batch normalisation (Ioffe and Szegedy 2015): every channel over all rows and steps, padding included.

    With ``deterministic`` the running averages of mean and variance are used: they are the collection "batch_stats",
    which the other calls renew and which must then be ``mutable``. Training mode is not causal: every step sees all.

    Attributes:
      deterministic: use the running averages.
      axis_name: mapped axis of devices to average over, such as ``jax.pmap``'s; None: this device's rows alone.
      eps: added to the variance.
      momentum: share of the old running average that stays.
    """

    deterministic: bool = True
    axis_name: str | None = None
    eps: float = 1e-5
    momentum: float = 0.9

    @nn.compact
    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        norm = nn.BatchNorm(
            self.deterministic, momentum=self.momentum, epsilon=self.eps, axis_name=self.axis_name, name="norm",
            dtype=accumulator(x.dtype),
        )  # fmt: skip
        return norm(x).astype(x.dtype)


def make_norm(
    kind: str,
    *,
    eps: float | None = None,
    name: str | None = None,
    deterministic: bool = True,
    axis_name: str | None = None,
):
    """Returns the norm called ``kind`` (one of ``NORMS``) as a function of x; use inside a compact module.

    ``eps`` None is 1e-6, and 1e-5 for "batch"; ``deterministic`` and ``axis_name`` are read by "batch" alone, see
    ``BatchNorm``.
    """
    check_choice("norm", kind, NORMS)
    name = None if kind == "none" else name
    if kind == "none":
        return lambda x: x
    if kind == "batch":
        return BatchNorm(deterministic, axis_name, 1e-5 if eps is None else eps, name=name)
    cls = {"rms": RMSNorm, "layer": LayerNorm, "scale": ScaleNorm}[kind]
    return cls(eps=1e-6 if eps is None else eps, name=name)
