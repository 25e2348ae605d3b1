"""Normalisation over the last axis, computed in at least float32 and cast back once."""

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from zoo.checks import check_choice
from zoo.dtypes import accumulator

NORMS = ("rms", "layer", "scale", "none")


def layer_norm(
    x: Float[Array, "*B D"], scale: Float[Array, " D"], bias: Float[Array, " D"] | None = None, eps: float = 1e-6
) -> Float[Array, "*B D"]:
    """(x - mean) / sqrt(variance + eps) * scale + bias over the last axis (Ba et al. 2016)."""
    x32 = x.astype(accumulator(x.dtype))
    centred = x32 - jnp.mean(x32, axis=-1, keepdims=True)
    y = centred * lax.rsqrt(jnp.mean(centred**2, axis=-1, keepdims=True) + eps) * scale
    return (y if bias is None else y + bias).astype(x.dtype)


def rms_norm(x: Float[Array, "*B D"], scale: Float[Array, " #D"], eps: float = 1e-6) -> Float[Array, "*B D"]:
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


def make_norm(kind: str, *, eps: float = 1e-6, name: str | None = None):
    """Returns the norm called ``kind``, one of ``NORMS``, as a function of x; use inside a compact module."""
    check_choice("norm", kind, NORMS)
    if kind == "none":
        return lambda x: x
    return {"rms": RMSNorm, "layer": LayerNorm, "scale": ScaleNorm}[kind](eps=eps, name=name)
