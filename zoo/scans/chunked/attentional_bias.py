"""Attentional biases: what a memory M is trained for while it reads, so that M(k) stands for v.

Behrouz, Razaviyayn, Zhong, Mirrokni (2025), It's All Connected, arXiv 2504.13173, whose name for the inner loss l(M(k), v)
it is. With e = M(k) - v, every bias gives the slope u = dl/dM(k), which is then pushed through the Jacobian of the memory:

    DotProduct    l = -<M(k), v>                           u = -v
    L2            l = factor / 2 |e|^2                     u = factor e
    Lp            l = sum |e|^p                            u = p Sign(e) |e|^(p-1)
    L1            l = sum |e|                              u = Sign(e), whatever the size of e ("value-less")
    Huber         l2 up to a threshold delta, l1 beyond it:
      coordinate                                           u_j = e_j if |e_j| <= delta, else delta Sign(e_j)
      norm                                                 u = e if |e| <= delta, else delta e / |e|
      switched    (Yaad)                                   u = factor e if |e| <= delta, else delta Sign(e)
    ValueShift    l = max over |dv| <= D of |M(k) - (v + dv)|^2 / 2     u = e + D e / |e|

|e| without an index is the Euclidean norm over the channels, as sqrt(sum e^2 + 1e-12), which has a derivative at 0. The
outer loss differentiates u, so Sign and the absolute value are smooth: Sign(x) = tanh(sharpness x), |x| = sqrt(x^2 +
1e-6). A sharpness of None is the hard sign, through which no outer gradient flows. The switched form jumps at the
threshold.

The paper's l2 is |e|^2 (factor 2); delta rules are written with |e|^2 / 2 (factor 1). These are functions of one step of
one head: e, v [V]; ``threshold`` a scalar or [V].
"""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from zoo.checks import check_choice

HUBER_FORMS = ("coordinate", "norm", "switched")
_NORM_EPS = 1e-12
_SMOOTHING = 1e-6


def smooth_sign(x: Float[Array, "*B"], sharpness: float | None) -> Float[Array, "*B"]:
    """tanh(sharpness x), or the sign where ``sharpness`` is None."""
    return jnp.sign(x) if sharpness is None else jnp.tanh(sharpness * x)


def _length(e: Float[Array, "*B V"]) -> Float[Array, "*B 1"]:
    return jnp.sqrt(jnp.sum(e * e, axis=-1, keepdims=True) + _NORM_EPS)


def _check_sharpness(sharpness: float | None) -> None:
    if sharpness is not None and not sharpness > 0:
        raise ValueError(f"sharpness must be positive, or None for the hard sign, got {sharpness}")


def _check_factor(factor: float) -> None:
    if not factor > 0:
        raise ValueError(f"factor must be positive, got {factor}")


@dataclasses.dataclass(frozen=True)
class DotProduct:
    """u = -v: Hebbian, the write of linear attention."""

    uses_threshold: ClassVar[bool] = False

    def slope(
        self, e: Float[Array, "*C V"], v: Float[Array, "*C V"], threshold: Array | float | None = None
    ) -> Float[Array, "*C V"]:
        """u, see the module docstring."""
        return -v


@dataclasses.dataclass(frozen=True)
class L2:
    """u = factor e: the delta rule's regression."""

    factor: float = 2.0

    uses_threshold: ClassVar[bool] = False

    def __post_init__(self):
        _check_factor(self.factor)

    def slope(
        self, e: Float[Array, "*C V"], v: Float[Array, "*C V"], threshold: Array | float | None = None
    ) -> Float[Array, "*C V"]:
        """u, see the module docstring."""
        return self.factor * e


@dataclasses.dataclass(frozen=True)
class Lp:
    """u = p Sign(e) |e|^(p-1), p >= 1; Moneta's, with p = 3."""

    p: float = 3.0
    sharpness: float | None = 10.0

    uses_threshold: ClassVar[bool] = False

    def __post_init__(self):
        if not self.p >= 1:
            raise ValueError(f"p must be at least 1, got {self.p}")
        _check_sharpness(self.sharpness)

    def slope(
        self, e: Float[Array, "*C V"], v: Float[Array, "*C V"], threshold: Array | float | None = None
    ) -> Float[Array, "*C V"]:
        """u, see the module docstring."""
        return self.p * smooth_sign(e, self.sharpness) * jnp.sqrt(e * e + _SMOOTHING) ** (self.p - 1)


@dataclasses.dataclass(frozen=True)
class L1:
    """u = Sign(e)."""

    sharpness: float | None = 10.0

    uses_threshold: ClassVar[bool] = False

    def __post_init__(self):
        _check_sharpness(self.sharpness)

    def slope(
        self, e: Float[Array, "*C V"], v: Float[Array, "*C V"], threshold: Array | float | None = None
    ) -> Float[Array, "*C V"]:
        """u, see the module docstring."""
        return smooth_sign(e, self.sharpness)


@dataclasses.dataclass(frozen=True)
class Huber:
    """l2 up to a threshold, l1 beyond it; ``form`` is one of ``HUBER_FORMS``, ``factor`` is the switched form's."""

    form: str = "switched"
    factor: float = 2.0
    sharpness: float | None = 10.0

    uses_threshold: ClassVar[bool] = True

    def __post_init__(self):
        check_choice("form", self.form, HUBER_FORMS)
        _check_factor(self.factor)
        _check_sharpness(self.sharpness)

    def slope(
        self, e: Float[Array, "*C V"], v: Float[Array, "*C V"], threshold: Array | float | None = None
    ) -> Float[Array, "*C V"]:
        """u, see the module docstring."""
        if self.form == "coordinate":
            return jnp.where(jnp.abs(e) <= threshold, e, threshold * smooth_sign(e, self.sharpness))
        length = _length(e)
        if self.form == "norm":
            return jnp.where(length <= threshold, e, threshold * e / length)
        return jnp.where(length <= threshold, self.factor * e, threshold * smooth_sign(e, self.sharpness))


@dataclasses.dataclass(frozen=True)
class ValueShift:
    """u = e + radius e / |e|: robust to values that are off by up to ``radius``."""

    radius: float = 0.1

    uses_threshold: ClassVar[bool] = False

    def __post_init__(self):
        if not self.radius >= 0:
            raise ValueError(f"radius must not be negative, got {self.radius}")

    def slope(
        self, e: Float[Array, "*C V"], v: Float[Array, "*C V"], threshold: Array | float | None = None
    ) -> Float[Array, "*C V"]:
        """u, see the module docstring."""
        return e + self.radius * e / _length(e)


BIASES = {"dot": DotProduct, "l2": L2, "lp": Lp, "l1": L1, "huber": Huber, "value_shift": ValueShift}
