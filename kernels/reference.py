"""The slow truth: one block at a time, float64, LAPACK's SVD. Every other backend is held to it.

Blocks are (n, m+1), columns are snapshots, oldest first; a cutoff is a pair (kind, value).
"""

from __future__ import annotations

import numpy as np
import scipy.linalg


def gram(X: np.ndarray) -> np.ndarray:
    """X^T X of a tall block, [F F^T; Fp F^T; x_last^T] of a wide one (n <= m), in float64."""
    X = np.asarray(X, np.float64)
    F, Fp = X[:, :-1], X[:, 1:]
    return X.T @ X if F.shape[0] > F.shape[1] else np.vstack([F @ F.T, Fp @ F.T, X[:, -1]])


def threshold(s: np.ndarray, cutoff: tuple[str, float], dtype) -> float:
    """The value that singular values s (largest first) must exceed to count, where the rule compares."""
    kind, value = cutoff
    if kind == "relative":
        return value * s[0]
    if kind == "spacing":
        return value * float(np.spacing(np.dtype(dtype).type(s[0])))
    if kind == "median":
        return value * float(np.median(s))
    raise ValueError(f"{kind} counts, it has no threshold")


def truncated_svd(F: np.ndarray, cutoff: tuple[str, float], dtype=None):
    """U (n, r), s (r,), V^T (r, m) of the singular values of F that count."""
    dtype = np.asarray(F).dtype if dtype is None else dtype
    F = np.asarray(F, np.float64)
    U, s, Vt = np.linalg.svd(F, full_matrices=False)
    zero = max(F.shape) * np.finfo(np.float64).eps * s[0]
    kind, value = cutoff
    if s[0] == 0:
        count = s > 0
    elif kind == "rank":
        count = (np.arange(len(s)) < value) & (s > zero)
    elif kind == "energy":
        share = np.cumsum(s**2) / np.sum(s**2)
        count = (np.arange(len(s)) <= np.searchsorted(share, value)) & (s > zero)
    else:
        limit = threshold(s, cutoff, dtype)
        count = s > (max(limit, zero) if kind == "median" else limit)
        count[0] |= kind == "median"  # a rule for noise never makes a block vanish
    return U[:, count], s[count], Vt[count]


def pinv(F: np.ndarray, cutoff: tuple[str, float], dtype=None) -> np.ndarray:
    """F^+ (m, n) = V diag(1/s) U^T over the singular values that count."""
    U, s, Vt = truncated_svd(F, cutoff, dtype)
    return (Vt.T / s) @ U.T


def fit(X: np.ndarray, cutoff: tuple[str, float]) -> np.ndarray:
    """K (n, n) = Fp F^+, formed: only for small blocks."""
    X = np.asarray(X)
    return np.asarray(X[:, 1:], np.float64) @ pinv(X[:, :-1], cutoff)


def predict(X: np.ndarray, steps: int, cutoff: tuple[str, float]) -> np.ndarray:
    """K^steps x_last (n,), by `steps` applications of Fp, V, 1/s and U^T in turn; K is not formed."""
    X = np.asarray(X)
    U, s, Vt = truncated_svd(X[:, :-1], cutoff)
    Fp, w = np.asarray(X[:, 1:], np.float64), np.asarray(X[:, -1], np.float64)
    for _ in range(steps):
        w = Fp @ (Vt.T @ ((U.T @ w) / s))
    return w


def observed(X: np.ndarray, delay: int = 1, affine: bool = False):
    """F and Fp of a block's observables, the last of them, and what F and Fp were centred on; float64."""
    X = np.asarray(X, np.float64)
    origin = np.tile(X[:, X.shape[1] // 2], delay) if affine else np.zeros(delay * len(X))  # what stands still is 0
    Z = np.concatenate([X[:, delay - 1 - k : X.shape[1] - k] for k in range(delay)]) - origin[:, None]
    F, Fp = Z[:, :-1], Z[:, 1:]
    before, after = (side.mean(axis=1) if affine else np.zeros(len(Z)) for side in (F, Fp))
    return F - before[:, None], Fp - after[:, None], Z[:, -1] + origin, before + origin, after + origin


def predict_observed(
    X: np.ndarray, steps: int, cutoff, *, delay: int = 1, affine: bool = False, carry: bool = False,
    project: bool = False,
) -> np.ndarray:  # fmt: skip
    """`predict` of a block by an operator on delayed snapshots, affine, non-expansive, with x_last's rest carried."""
    F, Fp, z, before, after = observed(X, delay, affine)
    if affine:  # columns sum to zero; in coordinates of such combinations no singular value is zero for that alone
        Q = scipy.linalg.null_space(np.ones((1, F.shape[1])))
        F, Fp = F @ Q, Fp @ Q
    U, s, Vt = truncated_svd(F, cutoff, X.dtype)
    W = Fp @ (Vt.T / s)
    if project:
        P, gains, Qt = np.linalg.svd(W, full_matrices=False)
        W = (P * np.minimum(gains, 1.0)) @ Qt
    rest = z - before - U @ (U.T @ (z - before)) if carry and steps else 0.0
    for _ in range(steps):
        z = after + W @ (U.T @ (z - before))
    return (z + rest)[: len(X)]
