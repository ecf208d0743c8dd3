"""Matrices of low rank, kept as what they are products of, and never multiplied out.

    Factors(a, b) = aᵀ b                      a: [R, in], b: [R, out]
    Σ w aᵀ b      = Factors(stacked)          exact; ranks add up
    SVD of aᵀ b   = Qa SVD(Ra Rbᵀ) Qbᵀ        aᵀ = Qa Ra, bᵀ = Qb Rb: the matrix that is taken apart is [R, R]

Everything here is on the host and in float64, so that what a float32 result says of its own error is measured and not rounded. A matrix
that is of no low rank is a plain array [in, out], and goes through the same functions.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

EXACT = 5e-7  # of the Frobenius norm: what float32 factors cannot tell from nothing


class Factors(NamedTuple):
    """aᵀ b. a: [R, in]; b: [R, out]; R may be 0."""

    a: np.ndarray
    b: np.ndarray


Matrix = Factors | np.ndarray


class Spectrum(NamedTuple):
    """A matrix as leftᵀ diag(values) right. left: [K, in]; values: [K], largest first; right: [K, out]; rows orthonormal."""

    left: np.ndarray
    values: np.ndarray
    right: np.ndarray


def shape(matrix: Matrix) -> tuple[int, int]:
    """(in, out)."""
    return (matrix.a.shape[1], matrix.b.shape[1]) if isinstance(matrix, Factors) else matrix.shape


def dense(matrix: Matrix) -> np.ndarray:
    """[in, out] float64."""
    return matrix.a.T @ matrix.b if isinstance(matrix, Factors) else matrix


def scaled(matrix: Matrix, weight: float) -> Matrix:
    """weight · matrix. Of factors both take half of it, so that neither outgrows the other; by 1 they stay bit for bit."""
    if not isinstance(matrix, Factors):
        return weight * matrix
    root = abs(weight) ** 0.5
    return Factors(np.sign(weight) * root * matrix.a, root * matrix.b)


def total(matrices: Sequence[Matrix], weights: Sequence[float]) -> Matrix:
    """Σ weight · matrix, exact: factors are stacked where there are only factors.

    Raises:
        ValueError: no matrix, or shapes that differ.
    """
    if len({shape(matrix) for matrix in matrices}) != 1:
        raise ValueError(f"matrices of one shape add up; these are {[shape(matrix) for matrix in matrices]}")
    parts = [scaled(matrix, weight) for matrix, weight in zip(matrices, weights, strict=True)]
    if all(isinstance(part, Factors) for part in parts):
        return Factors(np.concatenate([part.a for part in parts]), np.concatenate([part.b for part in parts]))
    return sum(dense(part) for part in parts)


def inner(one: Matrix, other: Matrix) -> float:
    """Σ one ⊙ other, of factors by two products of [R, R']."""
    if isinstance(one, Factors) and isinstance(other, Factors):
        return float(np.sum((one.a @ other.a.T) * (one.b @ other.b.T)))
    return float(np.sum(dense(one) * dense(other)))


def norm(matrix: Matrix) -> float:
    """The Frobenius norm. Of factors by QR, so that those of a difference do not lose it to cancellation."""
    if not isinstance(matrix, Factors):
        return float(np.linalg.norm(matrix))
    return float(np.linalg.norm(np.linalg.qr(matrix.a.T, mode="r") @ np.linalg.qr(matrix.b.T, mode="r").T))


def distance(one: Matrix, other: Matrix) -> float:
    """The Frobenius norm of one − other."""
    return norm(total([one, other], [1.0, -1.0]))


def spectrum(matrix: Matrix) -> Spectrum:
    """Singular values and directions: at most R of factors, whose product is not formed; else min(in, out)."""
    if not isinstance(matrix, Factors):
        left, values, right = np.linalg.svd(matrix, full_matrices=False)
        return Spectrum(left.T, values, right)
    (qa, ra), (qb, rb) = np.linalg.qr(matrix.a.T), np.linalg.qr(matrix.b.T)
    left, values, right = np.linalg.svd(ra @ rb.T, full_matrices=False)
    return Spectrum((qa @ left).T, values, right @ qb.T)


def values(matrix: Matrix) -> np.ndarray:
    """The singular values alone [K], largest first."""
    return spectrum(matrix).values if isinstance(matrix, Factors) else np.linalg.svd(matrix, compute_uv=False)


def kept(found: Spectrum, rank: int) -> Factors:
    """The nearest matrix of that rank, its values shared out evenly between the factors. Of fewer values, fewer rows."""
    root = np.sqrt(found.values[:rank, None])
    return Factors(root * found.left[:rank], root * found.right[:rank])


def rank_within(values: np.ndarray, tolerance: float) -> int:
    """The smallest rank whose nearest matrix is off by at most `tolerance`, or EXACT, of the Frobenius norm; 0 of nothing."""
    behind = np.sqrt(np.append(np.cumsum(np.square(values[::-1]))[::-1], 0.0))  # behind[r]: what is left past r values
    return int(np.argmax(behind <= max(tolerance, EXACT) * behind[0]))
