"""The leading eigenpairs of a large Gram matrix when the cutoff keeps few, with a proof that they are the ones.

Subspace iteration with a degree-2 Chebyshev filter and Rayleigh-Ritz (Saad 2011, Numerical Methods for Large
Eigenvalue Problems, sections 5.1, 7.4): a few products G Y instead of a full eigendecomposition.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from . import lapack

LEAST_ORDER = 1024  # below it the tridiagonal form and the eigenvectors that count are as fast
FIRST_BLOCK = 24
LARGEST_SHARE = 32  # a block beyond this share of the order is no faster either
ROUNDS = 16
ANGLE = 1e-7  # of the kept subspace against the exact one: residual over gap (Davis & Kahan 1970)


def leading_eigh(G: np.ndarray, threshold: Callable[[float], float] | int, blur: float):
    """Eigenpairs of the symmetric G whose value exceeds threshold(largest value), largest first, or None.

    Args:
        G: (order, order) float64, positive semidefinite up to rounding.
        threshold: from the largest eigenvalue to the value that eigenvalues must exceed; or how many count.
        blur: uncertainty of G's eigenvalues, relative to the largest; one within it of the threshold is
            left to the caller, who sees all eigenvalues.

    Returns:
        (values (r + 1,), V (order, r)), the last value being the largest that is dropped, to 7 digits where a
        number is asked for; or None where r is not small, or its proof fails: the r Ritz values above the threshold
        bound r eigenvalues from below, and a Cholesky factor of mu I - (G - V diag(values) V^T) shows that no other
        exceeds mu, a level under the threshold; residuals against the gap between the smallest value kept and mu
        bound the subspace's angle.
    """
    order = len(G)
    random = np.random.default_rng(order)  # the same start for the same problem
    Y = random.normal(size=(order, FIRST_BLOCK))
    for _ in range(ROUNDS):
        Q = _orthonormal(Y)
        Z = G @ Q
        values, S = np.linalg.eigh(Q.T @ Z)
        values, Q, Z = values[::-1], Q @ S[:, ::-1], Z @ S[:, ::-1]
        limit, noise = _limit(values, threshold), blur * values[0]
        rank = int((values > limit).sum())
        if 2 * rank > len(values):
            block = 3 * rank if rank == len(values) else 2 * rank + 8
            if block * LARGEST_SHARE > order:
                return None
            Y = np.hstack([Z, G @ random.normal(size=(order, block - len(values)))])
            continue
        if rank == 0 or values[-1] <= 0.0:
            return None
        below = min(values[rank - 1], limit - noise)
        level = values[rank] + 0.1 * (below - values[rank])
        gap = values[rank - 1] - level
        rests = np.linalg.norm(Z[:, : rank + 1] - Q[:, : rank + 1] * values[: rank + 1], axis=0)
        settled = callable(threshold) or rests[rank] <= ANGLE * values[rank]
        if values[rank] < below and np.linalg.norm(rests[:rank]) <= ANGLE * gap and settled:
            certain = values[rank - 1] > limit + noise and _nothing_above(G, values[:rank], Q[:, :rank], level)
            return (values[: rank + 1], Q[:, :rank]) if certain else None
        # T_2((2/a) G - I), a the smallest Ritz value: damps what lies in 0 .. a, lets the rest grow
        W = (2.0 / values[-1]) * Z - Q
        Y = 2.0 * ((2.0 / values[-1]) * (G @ W) - W) - Q
    return None


def _limit(values: np.ndarray, threshold: Callable[[float], float] | int) -> float:
    """What Ritz values, largest first, must exceed: midway between the last of a number and the next."""
    if callable(threshold):
        return threshold(values[0])
    return 0.5 * (values[threshold - 1] + values[threshold]) if threshold < len(values) else -np.inf


def _orthonormal(Y: np.ndarray) -> np.ndarray:
    """An orthonormal basis of Y's columns by Cholesky factors, twice (Yamamoto et al. 2015); QR where they fail."""
    Q = Y / np.linalg.norm(Y, axis=0)
    for _ in range(2):
        try:
            L = np.linalg.cholesky(Q.T @ Q)
        except np.linalg.LinAlgError:
            return np.linalg.qr(Y)[0]
        Q = Q @ np.linalg.inv(L).T  # a product, where a triangular solve would copy Q twice
    return Q


def _nothing_above(G: np.ndarray, values: np.ndarray, V: np.ndarray, level: float) -> bool:
    """Whether G without its part V diag(values) V^T has no eigenvalue above `level`."""
    rest = -G
    rest.flat[:: len(G) + 1] += level
    lapack.add_gram((V * np.sqrt(values)).T.copy(), rest)
    return lapack.is_positive(rest)
