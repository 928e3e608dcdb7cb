"""The leading eigenpairs of a large Gram matrix when the cutoff keeps few, with a proof that they are the ones.

Block Lanczos with full reorthogonalisation (Golub & Van Loan 2013, Matrix Computations, section 10.3): products of
the matrix with a few vectors at a time, so that it need not even be formed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np

from ..plan import EIGEN, triage
from . import lapack

BLOCK = 16  # vectors a product
SHARE = 10  # a basis beyond this share of the order is no faster than the whole matrix
RANK_SHARE = 8  # vectors a basis needs for each that is kept, about
SETTLED = 1e-7  # of the largest value dropped, where a number of them is asked for
ORTHONORMAL = 1e-12  # what products of basis vectors may be off by
LEVEL = 0.75  # what no other eigenvalue may exceed, on the way from the largest one dropped to the threshold


class Products(Protocol):
    """A symmetric matrix, positive semidefinite up to rounding, by its products."""

    order: int
    trace: float  # known after the first product
    whole: np.ndarray | None  # the matrix itself, where it is at hand
    sample: Formed | Square  # a matrix much like this one whose products cost next to nothing

    def times(self, Q: np.ndarray) -> np.ndarray:
        """The matrix times the columns of Q (order, k), float64."""


class Formed:
    """A symmetric float64 matrix that is at hand."""

    def __init__(self, G: np.ndarray):
        self.order, self.trace, self.whole, self.sample = len(G), float(np.trace(G)), G, self

    def times(self, Q: np.ndarray) -> np.ndarray:
        """G Q."""
        return self.whole @ Q


class Square:
    """F F^T of a float64 F (order, length)."""

    def __init__(self, F: np.ndarray):
        self._F, self.trace = F, float(np.vdot(F, F))

    def times(self, Q: np.ndarray) -> np.ndarray:
        """F F^T Q."""
        return self._F @ (self._F.T @ Q)


def leading_eigh(G: Products, threshold: Callable[[float], float] | int, blur: float, angle: float):
    """Eigenpairs of G whose value exceeds threshold(largest value), largest first, or None.

    Args:
        G: the matrix.
        threshold: from the largest eigenvalue to the value that eigenvalues must exceed; or how many count.
        blur: uncertainty of G's eigenvalues, relative to the largest; one within it of the threshold is
            left to the caller, who sees all eigenvalues.
        angle: the largest, in radians, between the subspace found and the exact one (Davis & Kahan 1970).

    Returns:
        (values (r + 1,), V (order, r)), the last value being the largest that is dropped, to 7 digits where a
        number is asked for; or None where a basis of a tenth of the order will not do, or the proof fails.

    Ritz values bound eigenvalues from below, so at least r exceed the threshold; that no other exceeds a level below
    it is proved by `_by_trace` or, of a matrix at hand, by `_by_factor`. Residuals against the gap between the values
    kept and that level bound the subspace's angle.
    """
    most = G.order // SHARE
    Q = Z = np.empty((G.order, 0))
    random = np.random.default_rng(G.order)  # the same start for the same problem
    W = G.sample.times(random.normal(size=(G.order, BLOCK)))
    if triage(G.sample.trace, 0.0) != EIGEN:
        return None
    W = _orthonormal(W, Q)
    if G.whole is None and _far(W.T @ G.sample.times(W), G.sample.trace, threshold, most):
        return None
    while Q.shape[1] + W.shape[1] <= most:
        Q, Z = np.hstack([Q, W]), np.hstack([Z, G.times(W)])
        if triage(G.trace, 0.0) != EIGEN:
            return None
        T = Q.T @ Z
        C, (values, S) = Z - Q @ T, np.linalg.eigh(0.5 * (T + T.T))
        values, S = values[::-1], S[:, ::-1]
        limit, noise = _limit(values, threshold), blur * values[0]
        rank = int((values > limit).sum())
        if rank == 0 or (callable(threshold) and rank == len(values)):
            return None
        if rank < len(values):
            below = min(values[rank - 1], limit - noise)
            level = values[rank] + LEVEL * (below - values[rank])
            rests = np.linalg.norm(C @ S[:, : rank + 1], axis=0)
            settled = callable(threshold) or rests[rank] <= SETTLED * values[rank]
            if settled and values[rank] < below and _angle(values[:rank], rests[:rank], level) <= angle:
                V = Q @ S[:, :rank]
                clear = values[rank - 1] > limit + noise and np.abs(V.T @ V - np.eye(rank)).max() <= ORTHONORMAL
                tail = max(G.trace - values.sum(), 0.0) + blur * G.trace
                if clear and (_by_trace(T, C, rank, level, tail) or _by_factor(G.whole, values[:rank], V, level)):
                    return values[: rank + 1], V
                if not clear or G.whole is not None:
                    return None
        if RANK_SHARE * rank > most or (G.whole is None and _far(T, G.trace, threshold, most)):
            return None
        W = _orthonormal(C[:, -W.shape[1] :], Q)
    return None


def _limit(values: np.ndarray, threshold: Callable[[float], float] | int) -> float:
    """What Ritz values, largest first, must exceed: midway between the last of a number and the next."""
    if callable(threshold):
        return threshold(values[0])
    return 0.5 * (values[threshold - 1] + values[threshold]) if threshold < len(values) else -np.inf


def _angle(values: np.ndarray, rests: np.ndarray, level: float) -> float:
    """Bound of the sine between Ritz vectors with these residuals and what G has above `level`, their values beyond."""
    return float(np.linalg.norm(rests / (values - level)))


def _far(T: np.ndarray, trace: float, threshold: Callable[[float], float] | int, most: int) -> bool:
    """Whether a basis with T = Q^T G Q is so far from a proof by the trace that `most` vectors will not do.

    What is not in the basis is taken to fall as 1 / its size, as for a random walk.
    """
    values = np.linalg.eigvalsh(T)[::-1]
    limit = _limit(values, threshold)
    return bool((trace - values.sum()) * len(values) > most * limit > -np.inf)


def _orthonormal(Y: np.ndarray, Q: np.ndarray) -> np.ndarray:
    """An orthonormal basis of Y's columns without their part in the span of Q."""
    for _ in range(2):
        Y = np.linalg.qr(Y - Q @ (Q.T @ Y))[0]
    return Y


def _by_trace(T: np.ndarray, C: np.ndarray, rank: int, level: float, tail: float) -> bool:
    """Whether no more than `rank` eigenvalues of G exceed `level`, by what a basis Q says of it.

    T = Q^T G Q, C = G Q - Q T, and tail is the trace of what G is on the complement of Q, which bounds its
    eigenvalues. Beyond that, G - level I has as many positive eigenvalues as its Schur complement (Haynsworth 1968),
    which is at most T - level I + C^T C / (level - tail).
    """
    return tail < level and int((np.linalg.eigvalsh(T + C.T @ C / (level - tail)) > level).sum()) == rank


def _by_factor(G: np.ndarray | None, values: np.ndarray, V: np.ndarray, level: float) -> bool:
    """The same by a Cholesky factor of level I - (G - V diag(values) V^T), where G is at hand."""
    if G is None:
        return False
    rest = -G
    rest.flat[:: len(G) + 1] += level
    lapack.add_gram((V * np.sqrt(values)).T.copy(), rest)
    return lapack.is_positive(rest)
