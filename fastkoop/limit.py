"""Where an operator's states settle: the mean ergodic limit, block by block, in the operator's own coordinates."""

from __future__ import annotations

import numpy as np
import scipy  # loads its linalg when that is used, which takes as long as to import NumPy

AT_ONE = 1e-8  # an eigenvalue so near 1 is 1, one whose modulus is so little above 1 is on the circle
APART = 1e-4  # eigenvalues of a Jordan block at 1 are not looked for further away
REASONS = ("", "diverges", "drifts")
SETTLES, DIVERGES, DRIFTS = range(len(REASONS))


def limit_of(A: np.ndarray, drift: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, int]:
    """The mean of y, A y + drift, A (A y + drift) + drift, ... over ever more steps, and why there is none.

    Components along eigenvalues inside the unit circle vanish or go to their fixed point, those along 1 stay, others
    on the circle average out (von Neumann's mean ergodic theorem; Yosida, Functional Analysis, VIII.3).

    Args:
        A: (r, r) float64.
        drift: (r,), zero of a linear map.
        y: (r,).

    Returns:
        The limit (r,), infinite where there is none, and an index into REASONS: an eigenvalue lies outside the
        circle, or something moves along the eigenvalue 1 at every step.

    >>> y, reason = limit_of(np.diag([1.0, 0.5]), np.array([0.0, 1.0]), np.array([3.0, 7.0]))
    >>> y.tolist(), REASONS[reason]
    ([3.0, 2.0], '')
    >>> limit_of(np.eye(1), np.array([0.1]), np.zeros(1))[1] == DRIFTS
    True
    """
    if not len(y):
        return y.copy(), SETTLES
    values = np.linalg.eigvals(A)
    near = _at_one(A, values)
    away = values[np.abs(values - 1.0) > near]
    if len(away) and not np.abs(away).max() <= 1.0 + AT_ONE:
        return np.full(len(y), np.inf), DIVERGES
    if len(away) == len(values):
        return _fixed_point(A, drift), SETTLES
    T, Q, count = scipy.linalg.schur(A, "complex", sort=lambda value: abs(value - 1.0) <= near)
    return _split(T, Q, count, drift, y, near)


def _at_one(A: np.ndarray, values: np.ndarray) -> float:
    """How near 1 an eigenvalue is 1: AT_ONE, or as far as rounding drives the eigenvalues of a Jordan block apart.

    A straight line's two eigenvalues at 1 are computed at 1 +- sqrt(eps) (Lidskii 1966).
    """
    cluster = np.sort(np.abs(values - 1.0))
    cluster = cluster[cluster <= APART]
    rounding = 100.0 * np.finfo(np.float64).eps * max(1.0, float(np.linalg.norm(A)))
    for distance in cluster[:0:-1]:  # two of them at least
        reach = max(AT_ONE, 8.0 * float(distance))  # Schur's own rounding moves them again
        T, _, k = scipy.linalg.schur(A, "complex", sort=lambda value, reach=reach: abs(value - 1.0) <= reach)
        coupling = float(np.linalg.norm(np.triu(T[:k, :k], 1)))
        if k > 1 and distance**k <= rounding * coupling ** (k - 1):
            return reach
    return AT_ONE


def _fixed_point(A: np.ndarray, drift: np.ndarray) -> np.ndarray:
    """(I - A)^-1 drift, refined once: the residual of a small system costs less than the solution."""
    if not drift.any():
        return np.zeros_like(drift)
    M = np.eye(len(A)) - A
    factors = scipy.linalg.lu_factor(M)
    y = scipy.linalg.lu_solve(factors, drift)
    return y + scipy.linalg.lu_solve(factors, drift - M @ y)


def _split(T: np.ndarray, Q: np.ndarray, k: int, drift: np.ndarray, y: np.ndarray, near: float):
    """`limit_of` from A = Q T Q^H whose first k eigenvalues are 1: what is along these, and the rest, apart."""
    rest = T[k:, k:]
    coupling = scipy.linalg.solve_sylvester(T[:k, :k], -rest, -T[:k, k:]) if len(rest) else np.zeros((k, 0))

    def apart(v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        z = Q.conj().T @ v
        return z[:k] - coupling @ z[k:], z[k:]

    (at_one, _), (push, pull) = apart(y), apart(drift)
    moves = (T[:k, :k] - np.eye(k)) @ at_one + push
    size = np.linalg.norm(at_one) + np.linalg.norm(y) + np.linalg.norm(drift)
    if not np.linalg.norm(moves) <= 2.0 * near * size:
        return np.full(len(y), np.inf), DRIFTS
    settled = _fixed_point(rest, pull)
    return (Q @ np.concatenate([at_one + coupling @ settled, settled])).real, SETTLES


def limits_of(operator: np.ndarray, drift: np.ndarray, start: np.ndarray, rank: np.ndarray):
    """`limit_of` of every block: limits (B, r), zero past a block's rank, and reasons (B,) int8.

    Blocks of one rank are looked at together; one that is not finite has reason 0, and its limit is not looked at.
    """
    limits, reasons = np.zeros(start.shape), np.zeros(len(start), np.int8)
    for r in np.unique(rank[rank > 0]):
        at = np.flatnonzero((rank == r) & np.isfinite(operator).all(axis=(1, 2)))
        values = np.linalg.eigvals(operator[at, :r, :r])
        near = (np.abs(values - 1.0) <= APART).any(axis=1)
        outside = (np.abs(values) > 1.0 + AT_ONE).any(axis=1) & ~near
        limits[at[outside], :r], reasons[at[outside]] = np.inf, DIVERGES
        inside = at[~near & ~outside]
        if drift[inside].any():
            M = np.eye(r) - operator[inside, :r, :r]
            y = np.linalg.solve(M, drift[inside, :r, None])
            limits[inside, :r] = (y + np.linalg.solve(M, drift[inside, :r, None] - M @ y))[:, :, 0]
        for b in at[near]:
            limits[b, :r], reasons[b] = limit_of(operator[b, :r, :r], drift[b, :r], start[b, :r])
    return limits, reasons
