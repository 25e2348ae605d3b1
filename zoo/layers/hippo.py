"""HiPPO: the state matrices that compress a history into the coefficients of orthogonal polynomials.

Gu, Dao, Ermon, Rudra, Re (2020), HiPPO: Recurrent Memory with Optimal Polynomial Projections; Voelker, Kajic, Eliasmith
(2019), Legendre Memory Units; Gu, Johnson, Goel, Saab, Dao, Rudra, Re (2021), Combining Recurrent, Convolutional, and
Continuous-time Models with Linear State-Space Layers; Gu, Goel, Re (2021), Efficiently Modeling Long Sequences with
Structured State Spaces (normal plus low rank). With i the row and j the column, from 0, and x' = A x + B u:

    legs   the whole past, equally weighted, in Legendre polynomials
           A_ij = -sqrt((2i+1)(2j+1)) for i > j,  -(i+1) for i = j,  0 for i < j              B_i = sqrt(2i+1)
    legt   a sliding window in Legendre polynomials
           A_ij = -sqrt((2i+1)(2j+1)) (1 for i >= j, (-1)^(i-j) for i < j)                    B_i = sqrt(2i+1)
           These are for a window of length 1. ``halved`` divides both by 2: the same system on a window of length 2, which
           is what a step size means in LSSL and S4
    lmu    the same window in another scaling of the polynomials
           A_ij = (2i+1) ((-1)^(i-j+1) for i >= j, -1 for i < j)                              B_i = (2i+1) (-1)^i
    lagt   exponentially fading past in Laguerre polynomials
           A_ij = -1 for i > j,  -1/2 for i = j,  0 for i < j                                 B_i = beta
    tilted_lagt   the same with the measure tilted: -(1 + beta)/2 on the diagonal             B_i = beta
    generalized_lagt   generalised Laguerre polynomials of order alpha, with the same tilt; A as tilted_lagt in the basis
           scaled by L_i = sqrt(Gamma(i+alpha+1) / Gamma(i+1)): A_ij L_j / L_i
           B_i = binom(i+alpha, i) beta^((1-alpha)/2) / (L_i sqrt(Gamma(1-alpha)))
    fourier   a sliding window of length 2 in cosines x_(2k-1) and sines x_2k of k periods, and the mean x_0: rotations of
           these pairs by pi k, minus B B^T for the end of the window          B = (1, r, 0, r, 0, ...), r = sqrt(2)
    random    standard normal numbers, times ``scale`` (1/N), minus ``damping`` times the identity      B_i = 1
    identity  A = -I                                                                         B_i = 1

The normal part of legs:

    A = S - P P^T,   P_i = sqrt(i + 1/2),   S = -1/2 I + (a skew-symmetric matrix)

S is normal: a unitary V diagonalises it, with eigenvalues -1/2 + i w in conjugate pairs (and one real one for odd N).
All of it is NumPy float64: it is done once, when parameters are made.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from zoo.checks import check_choice, check_positive


def legs(size: int) -> tuple[np.ndarray, np.ndarray]:
    """HiPPO-LegS: A [N, N] and B [N] for N = ``size``."""
    check_positive("size", size)
    root = np.sqrt(2 * np.arange(size) + 1.0)
    return -(np.tril(np.outer(root, root), -1) + np.diag(np.arange(size) + 1.0)), root


def legt(size: int, halved: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """HiPPO-LegT: A [N, N] and B [N] for N = ``size``; a window of length 2, or of length 1 unless ``halved``."""
    check_positive("size", size)
    order = np.arange(size)
    root = np.sqrt(2 * order + 1.0)
    factor = 0.5 if halved else 1.0
    return -factor * np.outer(root, root) * np.where(_below(size), 1.0, _alternating(size)), factor * root


def lmu(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Legendre Memory Unit: A [N, N] and B [N] for N = ``size`` and a window of length 1."""
    check_positive("size", size)
    odd = 2 * np.arange(size) + 1.0
    return odd[:, None] * np.where(_below(size), -_alternating(size), -1.0), odd * (-1.0) ** np.arange(size)


def lagt(size: int, beta: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """HiPPO-LagT: A [N, N] and B [N] for N = ``size``; B is ``beta`` throughout."""
    check_positive("size", size)
    return np.eye(size) / 2 - np.tril(np.ones((size, size))), beta * np.ones(size)


def tilted_lagt(size: int, beta: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Laguerre polynomials under a measure tilted by ``beta`` > 0: A [N, N] and B [N] for N = ``size``."""
    check_positive("size", size)
    if not beta > 0:
        raise ValueError(f"beta must be positive, got {beta}")
    return (1 - beta) / 2 * np.eye(size) - np.tril(np.ones((size, size))), beta * np.ones(size)


def generalized_lagt(size: int, alpha: float = 0.0, beta: float = 0.01) -> tuple[np.ndarray, np.ndarray]:
    """Generalised Laguerre polynomials of order ``alpha`` in (-1, 1), tilted by ``beta`` > 0: A [N, N] and B [N]."""
    if not -1 < alpha < 1:
        raise ValueError(f"alpha must lie between -1 and 1, got {alpha}")
    a, _ = tilted_lagt(size, beta)
    log_gamma = np.array([math.lgamma(i + alpha + 1) - math.lgamma(i + 1) for i in range(size)])
    scale = np.exp(log_gamma / 2)
    binomial = np.exp(log_gamma - math.lgamma(alpha + 1))  # binom(i + alpha, i)
    into = binomial / scale * beta ** ((1 - alpha) / 2) / math.sqrt(math.gamma(1 - alpha))
    return a * scale / scale[:, None], into


def fourier(size: int) -> tuple[np.ndarray, np.ndarray]:
    """HiPPO-FouT, Fourier modes of a window of length 2: A [N, N] and B [N] for N = ``size``."""
    check_positive("size", size)
    into = np.zeros(size)
    into[0], into[1::2] = 1.0, 2**0.5
    turns = np.zeros(max(size - 1, 0))
    turns[1::2] = np.pi * np.arange(1, len(turns[1::2]) + 1)
    return np.diag(turns, -1) - np.diag(turns, 1) - np.outer(into, into), into


def random(size: int, seed: int = 0, scale: float | None = None, damping: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """A = ``scale`` * normal - ``damping`` * I and B = 1 for N = ``size``; ``scale`` is 1/N when None."""
    check_positive("size", size)
    normal = np.random.default_rng(seed).standard_normal((size, size))
    return normal * (1 / size if scale is None else scale) - damping * np.eye(size), np.ones(size)


def identity(size: int) -> tuple[np.ndarray, np.ndarray]:
    """A = -I and B = 1 for N = ``size``: N equal leaky integrators."""
    check_positive("size", size)
    return -np.eye(size), np.ones(size)


MEASURES: dict[str, Callable[..., tuple[np.ndarray, np.ndarray]]] = {
    "legs": legs, "legt": legt, "lmu": lmu, "lagt": lagt, "tilted_lagt": tilted_lagt,
    "generalized_lagt": generalized_lagt, "fourier": fourier, "random": random, "identity": identity,
}  # fmt: skip


def transition(measure: str, size: int, **options: Any) -> tuple[np.ndarray, np.ndarray]:
    """A [N, N] and B [N] of one of ``MEASURES``; ``options`` are those of its function."""
    check_choice("measure", measure, MEASURES)
    return MEASURES[measure](size, **options)


def _below(size: int) -> np.ndarray:
    """True on and below the diagonal."""
    return np.tril(np.ones((size, size), bool))


def _alternating(size: int) -> np.ndarray:
    """(-1)^(i-j)."""
    order = np.arange(size)
    return (-1.0) ** np.abs(order[:, None] - order)


class LegsEigen(NamedTuple):
    """Normal part of HiPPO-LegS in its eigenbasis: S = V diag(eigenvalues) V^*.

    Attributes:
      eigenvalues: [N] complex, real part -1/2, imaginary parts ascending: the first N/2 are the conjugates of the rest.
      vectors: V [N, N], unitary.
      low_rank: V^* P [N].
      into: V^* B [N].
    """

    eigenvalues: np.ndarray
    vectors: np.ndarray
    low_rank: np.ndarray
    into: np.ndarray


def legs_eigen(size: int) -> LegsEigen:
    """Diagonalises the normal part of HiPPO-LegS of N = ``size``."""
    a, b = legs(size)
    p = np.sqrt(np.arange(size) + 0.5)
    normal = a + np.outer(p, p)
    # -i times the skew part is Hermitian: eigh is accurate and gives a unitary basis, which eig does not promise.
    skew = (normal - normal.T) / 2
    imaginary, vectors = np.linalg.eigh(-1j * skew)
    return LegsEigen(np.mean(np.diag(normal)) + 1j * imaginary, vectors, vectors.conj().T @ p, vectors.conj().T @ b)
