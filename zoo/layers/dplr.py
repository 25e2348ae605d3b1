"""Diagonal plus low rank: HiPPO matrices in the basis where S4 computes with them.

Gu, Goel, Re (2021), Efficiently Modeling Long Sequences with Structured State Spaces; Gu, Dao, Ermon, Rudra, Re
(2020), HiPPO (the matrices). A HiPPO matrix is normal plus low rank (NPLR): with real P [N, r] there is a unitary V
such that

    A = V diag(Lambda) V^* - P P^T          A + P P^T is a multiple of the identity plus a skew-symmetric matrix

so that in the basis V it is diagonal plus low rank (DPLR): x -> V^* x turns (A, P, B) into (diag(Lambda) - P~ P~^*,
V^* P, V^* B). Eigenvalues and vectors come in conjugate pairs; one of each pair is kept, the one with Im Lambda < 0.

    legs     scaled Legendre        r = 1, Re Lambda = -1/2
    legt     translated Legendre    r = 2, Re Lambda = 0    A_ij = -R_i R_j (i >= j), -(-1)^(i-j) R_i R_j (i < j), B = R
    fourier  truncated Fourier      r = 2, Re Lambda = 0    cosines at even, sines at odd places: rotation by 2 pi k of
                                                            pair k, minus 1 where i and j are both even or both odd;
                                                            B is 1 at the cosines

with R_i = sqrt(2i + 1). All of it is NumPy float64: it is done once, when parameters are made.
"""

from typing import NamedTuple

import numpy as np

from zoo.checks import check_choice, check_positive
from zoo.layers.hippo import legs

MATRICES = ("legs", "legt", "fourier")


class DPLR(NamedTuple):
    """A HiPPO system in its diagonal basis, one mode of each conjugate pair (M = N/2 of them).

    Attributes:
      eigenvalues: Lambda [M] complex, Im Lambda <= 0.
      low_rank: P~ [r, M] complex.
      into: B~ [M] complex.
      vectors: the columns of V that belong to these modes, [N, M].
    """

    eigenvalues: np.ndarray
    low_rank: np.ndarray
    into: np.ndarray
    vectors: np.ndarray


def dplr(name: str, size: int) -> DPLR:
    """The diagonal plus low rank form of a HiPPO matrix.

    Args:
      name: one of ``MATRICES``.
      size: N, even.

    Raises:
      ValueError: unknown name, or a size that is not even.
    """
    a, b, p = nplr(name, size)
    if size % 2:
        raise ValueError(f"size must be even (half of the modes is kept), got {size}")
    normal = a + p.T @ p
    skew = (normal - normal.T) / 2
    imaginary, vectors = np.linalg.eigh(-1j * skew)
    tiny = 1e-9 * max(1.0, np.max(np.abs(imaginary)))
    below, null = imaginary < -tiny, np.abs(imaginary) <= tiny
    imaginary, halves = imaginary[below], [vectors[:, below]]
    if null.any():
        # Eigenvalue 0 has a real eigenspace of even dimension: two real vectors make one mode and its conjugate.
        space = vectors[:, null]
        real = np.linalg.svd(np.hstack([space.real, space.imag]))[0][:, : space.shape[1]]
        halves.append((real[:, ::2] + 1j * real[:, 1::2]) / np.sqrt(2))
        imaginary = np.append(imaginary, np.zeros(space.shape[1] // 2))
    half = np.hstack(halves)
    eigenvalues = np.mean(np.diag(normal)) + 1j * imaginary
    return DPLR(eigenvalues, p @ half.conj(), b @ half.conj(), half)


def nplr(name: str, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(A [N, N], B [N], P [r, N]) of a HiPPO matrix, A + P^T P being normal."""
    check_choice("hippo", name, MATRICES)
    check_positive("size", size)
    index = np.arange(size)
    even = (index[:, None] + np.arange(2)) % 2  # column 0: odd places, column 1: even places
    if name == "legs":
        a, b = legs(size)
        return a, b, np.sqrt(index + 0.5)[None]
    if name == "legt":
        root = np.sqrt(2 * index + 1.0)
        sign = np.where(index[:, None] < index, (-1.0) ** (index[:, None] - index), 1.0)
        return -np.outer(root, root) * sign, root, (root[:, None] * even).T
    rotation = np.zeros((size, size))
    pairs = np.arange(size // 2)
    rotation[2 * pairs, 2 * pairs + 1] = 2 * np.pi * pairs
    rotation[2 * pairs + 1, 2 * pairs] = -2 * np.pi * pairs
    p = even.T.astype(float)
    return rotation - p.T @ p, p[1], p
