"""State matrices with an inverse tridiagonal part: products and solves in O(N), all of the HiPPO matrices among them.

Gu, Johnson, Goel, Saab, Dao, Rudra, Re (2021), Combining Recurrent, Convolutional, and Continuous-time Models with Linear
State-Space Layers. With T [N, N] tridiagonal,

    A = -diag(pl) (T^{-1} + diag(c)) diag(pr)          B = pl * b

is 3-quasiseparable: above and below its diagonal every block has rank 1. Both operations of a discretisation are one
tridiagonal solve and a few elementwise products, O(N):

    (I + a A) x = x - a pl * (T^{-1} (pr * x) + c * pr * x)
    (I - a A) x = v  <=>  (T diag(g) + I) w = T (v / (a pl)),  x = w / pr,  g = 1 / (a pl pr) + c

the second after dividing by a pl and multiplying by T; neither pl, pr nor a may have zeros. Nothing is said about stability:
that is where the initial values put it.

    initial values   pl = pr      T: below    diagonal              above    c            b
    legs             sqrt(2n+1)      -1       1                     0        -n/(2n+1)    1
    legt             sqrt(2n+1)      -1/2     0, first, last 1/2    1/2      0            1     not halved
    lagt             1               -1       1                     0        -1/2         1
    jacobi           sqrt(2n+2)      -1       1                     0        0            2     Jacobi polynomials (0, 1)
    chebyshev1       1               -1/2*    0                     1/2*     0            1     * the first times sqrt(2)
    chebyshev2       1               -1/2     0                     1/2      0            1

legs, lagt and jacobi have the T of a running sum, whose inverse is the lower triangle of ones. The zeros on a diagonal come
with a little noise, 1e-2 (legt) or 1e-3: T of the Chebyshev kinds is singular for odd N without it.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from zoo.checks import check_choice, check_positive
from zoo.layers.discretization import check_weight


class Quasiseparable(NamedTuple):
    """The vectors of the module docstring, with any leading axes.

    Attributes:
      dl: [..., N-1], ``dl[i] = T[i+1, i]``.
      d: [..., N], ``d[i] = T[i, i]``.
      du: [..., N-1], ``du[i] = T[i, i+1]``.
      pl, pr, c: [..., N].
    """

    dl: Float[Array, "... M"]
    d: Float[Array, "... N"]
    du: Float[Array, "... M"]
    pl: Float[Array, "... N"]
    pr: Float[Array, "... N"]
    c: Float[Array, "... N"]


STRUCTURED = ("legs", "legt", "lagt", "jacobi", "chebyshev1", "chebyshev2")
NOISE = {"legt": 1e-2, "chebyshev1": 1e-3, "chebyshev2": 1e-3}


def structured_transition(measure: str, size: int, *, halved: bool = True) -> tuple[Quasiseparable, np.ndarray]:
    """Initial values of the table, in NumPy float64 and without the noise.

    Args:
      measure: one of ``STRUCTURED``.
      size: N.
      halved: divide pl of legt by 2, and with it A and B, as ``zoo.layers.hippo.legt`` does.

    Returns:
      (the vectors of A, b [N]); B = pl * b.
    """
    check_choice("measure", measure, STRUCTURED)
    check_positive("size", size)
    order = np.arange(size)
    ones, zeros = np.ones(size), np.zeros(size)
    dl, d, du = -np.ones(size - 1), ones, np.zeros(size - 1)
    p, c, b = ones, zeros, ones
    if measure == "legs":
        p, c = np.sqrt(2 * order + 1), -order / (2 * order + 1)
    elif measure == "lagt":
        c = -ones / 2
    elif measure == "jacobi":
        p, b = np.sqrt(2 * order + 2), 2 * ones
    else:
        dl, d, du = dl / 2, np.zeros(size), np.ones(size - 1) / 2
        if measure == "legt":
            p = np.sqrt(2 * order + 1)
            d[0] += 0.5
            d[-1] += 0.5
        elif measure == "chebyshev1":
            dl[:1] *= 2**0.5
            du[:1] *= 2**0.5
    left = p / 2 if measure == "legt" and halved else p
    return Quasiseparable(dl, d, du, left, p, c), b


def matvec(q: Quasiseparable, x: Float[Array, "... N K"]) -> Float[Array, "... N K"]:
    """A x for columns x [..., N, K], O(N) each; leading axes broadcast."""
    x = q.pr[..., None] * x
    return -q.pl[..., None] * (_tridiagonal_solve(q.dl, q.d, q.du, x) + q.c[..., None] * x)


def shifted_matvec(q: Quasiseparable, a: Float[Array, "..."], x: Float[Array, "... N K"]) -> Float[Array, "... N K"]:
    """(I + a A) x for columns x [..., N, K], O(N) each; ``a`` has the leading axes."""
    return x + a[..., None, None] * matvec(q, x)


def shifted_solve(q: Quasiseparable, a: Float[Array, "..."], v: Float[Array, "... N K"]) -> Float[Array, "... N K"]:
    """(I - a A)^{-1} v for columns v [..., N, K] and a > 0, O(N) each; ``a`` has the leading axes."""
    scale = a[..., None] * q.pl
    v = v / scale[..., None]
    g = 1 / (scale * q.pr) + q.c
    right = q.d[..., None] * v
    right = right.at[..., 1:, :].add(q.dl[..., None] * v[..., :-1, :])
    right = right.at[..., :-1, :].add(q.du[..., None] * v[..., 1:, :])
    w = _tridiagonal_solve(q.dl * g[..., :-1], q.d * g + 1, q.du * g[..., 1:], right)
    return w / q.pr[..., None]


def dense(q: Quasiseparable) -> Float[Array, "... N N"]:
    """A as a matrix, in O(N^2)."""
    return matvec(q, jnp.eye(q.d.shape[-1], dtype=q.d.dtype))


def discretize_structured(
    q: Quasiseparable, into: Float[Array, "... N"], step: Float[Array, "..."], alpha: float = 0.5
) -> tuple[Float[Array, "... N N"], Float[Array, "... N"]]:
    """The generalised bilinear transform of (A, B) in O(N^2): N + 1 products and solves side by side.

    Args:
      q: the vectors of A; leading axes broadcast with those of ``step``.
      into: B [..., N].
      step: dt > 0 [...].
      alpha: weight of the implicit end, as in ``zoo.layers.discretization.generalized_bilinear``.

    Returns:
      (Abar [..., N, N], Bbar [..., N]).

    Raises:
      ValueError: alpha outside of [0, 1].
    """
    check_weight(alpha)
    size = q.d.shape[-1]
    right = shifted_matvec(q, (1 - alpha) * step, jnp.eye(size, dtype=q.d.dtype))
    drive = jnp.broadcast_to(step[..., None] * into, right.shape[:-1])
    right = jnp.concatenate([right, drive[..., None]], axis=-1)
    if alpha > 0:
        right = shifted_solve(q, alpha * step, right)
    return right[..., :size], right[..., size]


def _tridiagonal_solve(dl: Array, d: Array, du: Array, right: Array) -> Array:
    """Solves for columns right [..., N, K]; leading axes broadcast, ``dl`` and ``du`` lack the zeros at their ends."""
    leading = jnp.broadcast_shapes(d.shape[:-1], right.shape[:-2])
    edge = [(0, 0)] * (d.ndim - 1)
    diagonals = (jnp.pad(dl, [*edge, (1, 0)]), d, jnp.pad(du, [*edge, (0, 1)]))
    diagonals = (jnp.broadcast_to(v, (*leading, v.shape[-1])) for v in diagonals)
    return lax.linalg.tridiagonal_solve(*diagonals, jnp.broadcast_to(right, (*leading, *right.shape[-2:])))
