"""Retentions: how the weights of a memory are kept near what they were while they are moved against a gradient.

Behrouz, Razaviyayn, Zhong, Mirrokni (2025), It's All Connected, arXiv 2504.13173: W_t minimises <W, g_t> plus a term that
keeps W close to W_{t-1} (local, weight 1 / eta_t) and one that keeps it small (global, weight 1 / alpha). Every retention
carries a dual Z of the weights W, entry by entry or column by column ("column": the weights of one output, axis 0):

    Z_0 = dual(W_0),    Z_t = update(Z_{t-1}, change_t, a_t, eta_t),    W_t = primal(Z_t)

where change_t = -eta_t g_t (with momentum: what has gathered), and a_t in [0, 1] is a gate or follows from a number
``alpha``:

    NoRetention   Z = W + change
    L2Retention   Z = a Z + change (weight decay, decoupled); with ``alpha``: a = alpha / (alpha + eta), Z = a (Z + change),
                  the minimum of <W, g> + |W - W'|^2 / 2 eta + |W|^2 / 2 alpha
    LqRetention   Z = a Z + change, W = Z / |Z|_q^(q-2), |.|_q over all entries of one weight matrix. The paper keeps weights
                  by |W|_r^2 / (2 eta (r - 1)) with 1/r + 1/q = 1, whose mirror map has Sign(Z) |Z|^(q-1) for Z:
                  ``exact_mirror``
    KLRetention   columns of W are positive and sum to c: W = exp(Z), Z = log c + log_softmax(a Z + change); with ``alpha``
                  as above
    FDivergence   columns likewise: W = W' h(change - zeta), h the inverse of f', zeta such that the column sums to c
    ElasticNet    "proximal": W = S(a (W' + change)), a = beta / (beta + eta), S the soft threshold of eta a / alpha;
                  "ftrl": Z = Z + change, W = S(Z) with the constant ``threshold``
    Bregman       W = h(Z), Z = f'(W') + change: h the sigmoid keeps weights in (0, 1), tanh in (-1, 1)

``chunk`` says how chunks of steps, whose gradients are all taken at the chunk's first weights, are run: "linear" (Z is a
linear recurrence), "steps" (elementwise, one after another), "lag" (KL: the first step of a chunk is exact, and gradients
are taken after it; then W itself is the linear recurrence a W + change, and at the chunk's end negative entries are cut
off at 1e-6 and columns scaled to c again, which the paper leaves open).

These are functions of one weight array of one head: a matrix [I, O] that is applied as x W, or a vector [N].
"""

import dataclasses
import math
from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from zoo.checks import check_choice

Weight = Float[Array, "..."]
Gate = Array | float
FLOOR = 1e-6
_NORM_EPS = 1e-6
_BISECTIONS = 60


def _rates(alpha: float | None, decay: Gate | None, step: Gate) -> tuple[Array | float, Array | float]:
    """(a, factor of the change): the gate itself, or the global term's share."""
    if alpha is None:
        return (1.0 if decay is None else decay), 1.0
    share = alpha / (alpha + step)
    return share, share


def _check_alpha(alpha: float | None, name: str = "alpha") -> None:
    if alpha is not None and not alpha > 0:
        raise ValueError(f"{name} must be positive, got {alpha}")


def _check_total(c: float) -> None:
    if not c > 0:
        raise ValueError(f"c, the sum of a column, must be positive, got {c}")


def _check_simplex(weight: Weight, name: str, c: float) -> None:
    """Raises ValueError for weights that are not on the simplex, where their values are known."""
    if isinstance(weight, jax.core.Tracer):
        return
    if not bool(jnp.all(weight > 0)):
        raise ValueError(
            f"{name} cannot keep a signed memory: it wants positive initial weights, got some that are not"
        )
    sums = jnp.sum(weight, axis=0)
    if not bool(jnp.all(jnp.abs(sums - c) <= 1e-3 * c)):
        raise ValueError(
            f"{name} keeps columns of weights with a sum of {c}; got initial weights with sums such as {sums.ravel()[0]}"
        )


class _Linear:
    """What the retentions share whose dual is a linear recurrence."""

    signed: ClassVar[bool] = True
    chunk: ClassVar[str] = "linear"

    def update(self, z: Weight, change: Weight | float, decay: Gate | None, step: Gate) -> Weight:
        """a z + change, see the module docstring."""
        a, factor = self.rates(decay, step)
        return a * z + factor * change


@dataclasses.dataclass(frozen=True)
class NoRetention(_Linear):
    """Everything is kept: plain gradient descent."""

    uses_decay: ClassVar[bool] = False

    def rates(self, decay: Gate | None, step: Gate) -> tuple:
        """(a, factor of the change)."""
        return 1.0, 1.0

    def dual(self, weight: Weight) -> Weight:
        """W -> Z."""
        return weight

    def primal(self, z: Weight) -> Weight:
        """Z -> W."""
        return z


@dataclasses.dataclass(frozen=True)
class L2Retention(_Linear):
    """Weight decay: by a gate, or with ``alpha`` as the local and global squares together."""

    alpha: float | None = None

    def __post_init__(self):
        _check_alpha(self.alpha)

    @property
    def uses_decay(self) -> bool:
        """Whether a gate is read."""
        return self.alpha is None

    def rates(self, decay: Gate | None, step: Gate) -> tuple:
        """(a, factor of the change)."""
        return _rates(self.alpha, decay, step)

    def dual(self, weight: Weight) -> Weight:
        """W -> Z."""
        return weight

    def primal(self, z: Weight) -> Weight:
        """Z -> W."""
        return z


def _power_sum(z: Weight, q: float) -> Weight:
    """sum |z|^q, not below that of a norm of 1e-6; the guard has no slope."""
    return jnp.maximum(jnp.sum(jnp.abs(z) ** q), _NORM_EPS**q)


@dataclasses.dataclass(frozen=True)
class LqRetention(_Linear):
    """Moneta's stability by an l_q norm: W = Z / |Z|_q^(q-2), q > 1; q = 2 is the identity.

    For q > 3 a small Z makes large weights: the norm is guarded at 1e-6, and ``dual`` inverts the map. q = 3 forgets the
    scale of Z and has no inverse: there ``dual`` is the identity, and the first weights are W_0 / |W_0|_3.
    """

    q: float = 4.0
    exact_mirror: bool = False

    uses_decay: ClassVar[bool] = True

    def __post_init__(self):
        if not self.q > 1:
            raise ValueError(f"q must be above 1, got {self.q}")

    def rates(self, decay: Gate | None, step: Gate) -> tuple:
        """(a, factor of the change)."""
        return _rates(None, decay, step)

    def dual(self, weight: Weight) -> Weight:
        """W -> Z: W |W|_q^((q-2)/(3-q)); with ``exact_mirror`` Sign(W) |W|^(r-1) / |W|_r^(r-2), r the conjugate of q."""
        if self.q == 2:
            return weight
        if self.exact_mirror:
            return _mirror(weight, self.q / (self.q - 1))
        if self.q == 3:
            return weight
        return weight * _power_sum(weight, self.q) ** ((self.q - 2) / (3 - self.q) / self.q)

    def primal(self, z: Weight) -> Weight:
        """Z -> W."""
        if self.q == 2:
            return z
        if self.exact_mirror:
            return _mirror(z, self.q)
        return z * _power_sum(z, self.q) ** ((2 - self.q) / self.q)


def _mirror(z: Weight, q: float) -> Weight:
    """Sign(z) |z|^(q-1) / |z|_q^(q-2); below q = 2 the power has no slope at 0, which is then taken as 0."""
    size = jnp.abs(z)
    safe = jnp.where(size > 0, size, 1)
    return jnp.where(size > 0, jnp.sign(z) * safe ** (q - 1), 0) * _power_sum(z, q) ** ((2 - q) / q)


@dataclasses.dataclass(frozen=True)
class KLRetention:
    """Memora's: columns on the simplex of sum ``c``, near the old ones by the KL divergence; the dual is log W.

    ``alpha``: the weight of a global entropy term in place of the gate.
    """

    c: float = 1.0
    alpha: float | None = None

    signed: ClassVar[bool] = False
    chunk: ClassVar[str] = "lag"

    def __post_init__(self):
        _check_total(self.c)
        _check_alpha(self.alpha)

    @property
    def uses_decay(self) -> bool:
        """Whether a gate is read."""
        return self.alpha is None

    def rates(self, decay: Gate | None, step: Gate) -> tuple:
        """(a, factor of the change)."""
        return _rates(self.alpha, decay, step)

    def dual(self, weight: Weight) -> Weight:
        """W -> log W."""
        _check_simplex(weight, "retention 'kl'", self.c)
        return jnp.log(weight)

    def primal(self, z: Weight) -> Weight:
        """log W -> W."""
        return jnp.exp(z)

    def update(self, z: Weight, change: Weight | float, decay: Gate | None, step: Gate) -> Weight:
        """The exact step, which stays in logarithms."""
        a, factor = self.rates(decay, step)
        return math.log(self.c) + jax.nn.log_softmax(a * z + factor * change, axis=0)

    def renewed(self, weight: Weight) -> Weight:
        """Positive weights with the sum c, of weights that a linear recurrence may have led off the simplex."""
        kept = jnp.maximum(weight, FLOOR)
        return self.c * kept / jnp.sum(kept, axis=0, keepdims=True)


# Inverse h of f', the argument at which h is 1, and the argument from which h is infinite (None: nowhere).
_DIVERGENCES: dict[str, tuple[Callable, float, float | None]] = {
    "kl": (lambda y: jnp.exp(y - 1), 1.0, None),  # f = x log x
    "reverse_kl": (lambda y: -1 / y, -1.0, 0.0),  # f = -log x
    "chi_square": (lambda y: jnp.maximum(1 + y / 2, 0), 0.0, None),  # f = (x - 1)^2
    "hellinger": (lambda y: (1 - y) ** -2.0, 0.0, 1.0),  # f = (sqrt(x) - 1)^2
}
DIVERGENCES = tuple(_DIVERGENCES)


@dataclasses.dataclass(frozen=True)
class FDivergence:
    """Columns on the simplex of sum ``c``, near the old ones by an f-divergence (one of ``DIVERGENCES``).

    zeta is found by bisection, and its derivative from one Newton step, which is that of the implicit function.
    "chi_square" can make weights 0, and what is 0 stays 0.
    """

    f: str = "kl"
    c: float = 1.0

    signed: ClassVar[bool] = False
    chunk: ClassVar[str] = "steps"
    uses_decay: ClassVar[bool] = False

    def __post_init__(self):
        check_choice("f", self.f, DIVERGENCES)
        _check_total(self.c)

    def dual(self, weight: Weight) -> Weight:
        """Z is W."""
        _check_simplex(weight, "retention 'f_divergence'", self.c)
        return weight

    def primal(self, z: Weight) -> Weight:
        """Z is W."""
        return z

    def update(self, z: Weight, change: Weight | float, decay: Gate | None, step: Gate) -> Weight:
        """W' h(change - zeta)."""
        h, one, limit = _DIVERGENCES[self.f]
        known, moved = lax.stop_gradient((z, change))
        high, low = (how(moved, axis=0, keepdims=True) for how in (jnp.max, jnp.min))
        # -zeta lies between these: with the first no factor exceeds 1, with the second none is below 1 (or one is infinite)
        bounds = (one - high, one - low if limit is None else jnp.minimum(one - low, limit - high))

        def halve(_, bounds):
            middle = (bounds[0] + bounds[1]) / 2
            over = jnp.sum(known * h(moved + middle), axis=0, keepdims=True) > self.c
            return jnp.where(over, bounds[0], middle), jnp.where(over, middle, bounds[1])

        offset = lax.fori_loop(0, _BISECTIONS, halve, bounds)[0]
        _, slope = jax.jvp(
            lambda o: jnp.sum(known * h(moved + o), axis=0, keepdims=True), (offset,), (jnp.ones_like(offset),)
        )
        offset = offset + (self.c - jnp.sum(z * h(change + offset), axis=0, keepdims=True)) / lax.stop_gradient(slope)
        return z * h(change + offset)


def soft_threshold(z: Weight, threshold: Array | float, smooth: bool = False) -> Weight:
    """sign(z) max(0, |z| - threshold); ``smooth``: |z| arctan(z / threshold) 2 / pi."""
    if smooth:
        return jnp.abs(z) * jnp.arctan(z / threshold) * (2 / jnp.pi)
    return jnp.sign(z) * jnp.maximum(jnp.abs(z) - threshold, 0)


@dataclasses.dataclass(frozen=True)
class ElasticNet:
    """Weights that are kept small and sparse, see the module docstring.

    Attributes:
      form: "proximal" or "ftrl".
      alpha: the weight of |W|_1 is 1 / alpha; proximal.
      beta: the weight of |W|^2 / 2 is 1 / beta; proximal.
      threshold: eta / alpha of the form ftrl, one number, since eta is constant there.
      smooth: the soft threshold's smooth form.
    """

    form: str = "proximal"
    alpha: float = 100.0
    beta: float = 100.0
    threshold: float = 0.01
    smooth: bool = False

    signed: ClassVar[bool] = True
    uses_decay: ClassVar[bool] = False

    def __post_init__(self):
        check_choice("form", self.form, ("proximal", "ftrl"))
        for name in ("alpha", "beta", "threshold"):
            _check_alpha(getattr(self, name), name)

    @property
    def chunk(self) -> str:
        """How chunks are run."""
        return "linear" if self.form == "ftrl" else "steps"

    def rates(self, decay: Gate | None, step: Gate) -> tuple:
        """(a, factor of the change) of the form ftrl."""
        return 1.0, 1.0

    def dual(self, weight: Weight) -> Weight:
        """W -> Z. The soft threshold has no inverse at 0; ftrl gives back |W| + threshold, with 0 for 0 (not if smooth)."""
        if self.form == "proximal" or self.smooth:
            return weight
        return weight + jnp.sign(weight) * self.threshold

    def primal(self, z: Weight) -> Weight:
        """Z -> W."""
        return z if self.form == "proximal" else soft_threshold(z, self.threshold, self.smooth)

    def update(self, z: Weight, change: Weight | float, decay: Gate | None, step: Gate) -> Weight:
        """One step."""
        if self.form == "ftrl":
            return z + change
        share = self.beta / (self.beta + step)
        return soft_threshold(share * (z + change), share * step / self.alpha, self.smooth)


_LINKS: dict[str, tuple[Callable, Callable]] = {
    "sigmoid": (jax.nn.sigmoid, lambda w: jnp.log(w) - jnp.log1p(-w)),
    "tanh": (jnp.tanh, jnp.arctanh),
}
LINKS = tuple(_LINKS)


@dataclasses.dataclass(frozen=True)
class Bregman(_Linear):
    """W = h(Z), Z = f'(W') + change, with h = ``link``, one of ``LINKS``."""

    link: str = "sigmoid"

    uses_decay: ClassVar[bool] = False

    def __post_init__(self):
        check_choice("link", self.link, LINKS)

    @property
    def signed(self) -> bool:
        """Whether weights may be negative."""
        return self.link == "tanh"

    def rates(self, decay: Gate | None, step: Gate) -> tuple:
        """(a, factor of the change)."""
        return 1.0, 1.0

    def dual(self, weight: Weight) -> Weight:
        """W -> Z."""
        low = -1 if self.signed else 0
        if not isinstance(weight, jax.core.Tracer) and not bool(jnp.all((weight > low) & (weight < 1))):
            raise ValueError(f"link {self.link!r} keeps weights in ({low}, 1); got initial weights outside")
        return _LINKS[self.link][1](weight)

    def primal(self, z: Weight) -> Weight:
        """Z -> W."""
        return _LINKS[self.link][0](z)


RETENTIONS = {
    "none": NoRetention,
    "l2": L2Retention,
    "lq": LqRetention,
    "kl": KLRetention,
    "f_divergence": FDivergence,
    "elastic_net": ElasticNet,
    "bregman": Bregman,
}
