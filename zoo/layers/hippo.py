"""HiPPO-LegS: the state matrix that compresses a history into Legendre coefficients, and its normal part.

Gu, Dao, Ermon, Rudra, Re (2020), HiPPO; Gu, Goel, Re (2021), Efficiently Modeling Long Sequences with Structured State
Spaces (normal plus low rank). With i the row and j the column, from 0, and x' = A x + B u:

    A_ij = -sqrt((2i+1)(2j+1)) for i > j,   -(i+1) for i = j,   0 for i < j        B_i = sqrt(2i+1)
    A = S - P P^T,   P_i = sqrt(i + 1/2),   S = -1/2 I + (a skew-symmetric matrix)

S is normal: a unitary V diagonalises it, with eigenvalues -1/2 + i w in conjugate pairs (and one real one for odd N).
All of it is NumPy float64: it is done once, when parameters are made.
"""

from typing import NamedTuple

import numpy as np

from zoo.checks import check_positive


def legs(size: int) -> tuple[np.ndarray, np.ndarray]:
    """HiPPO-LegS: A [N, N] and B [N] for N = ``size``."""
    check_positive("size", size)
    root = np.sqrt(2 * np.arange(size) + 1.0)
    return -(np.tril(np.outer(root, root), -1) + np.diag(np.arange(size) + 1.0)), root


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
