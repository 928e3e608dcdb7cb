"""Large blocks on a CUDA device: cuBLAS and cuSOLVER through CuPy's array functions, a block at a time.

The device's twin of library.py. Ranks are decided on the host, by the one rule of selection.py, so that these functions
wait for the device; `cuda` is the contract that they work for (cuda.Cuda).
"""

from __future__ import annotations

import math

import numpy as np

from ..contract import Factors, Rule
from ..cutoffs import floor, squaring_pays
from ..factors import Reduced, assemble, empty, ends
from ..plan import EIGEN, NON_FINITE, SVD, ZERO, resolution, triage, unit_of
from ..selection import resolved, select


def blocks(X):
    """Every block of X (columns, ..., n) as (columns, n), in order."""
    for index in np.ndindex(X.shape[1:-1]):
        yield X[(slice(None), *index)]


def gram(cuda, X, wide: bool):
    """Gram matrices (B, m+1, m+1), or (B, 2n+1, n); see cuda.Cuda.gram."""
    m, n, B = len(X) - 1, X.shape[-1], math.prod(X.shape[1:-1])
    out = cuda.xp.empty((B, 2 * n + 1, n) if wide else (B, m + 1, m + 1))
    for S, block in zip(out, blocks(X), strict=True):
        data = block.astype(np.float64)
        if wide:
            S[:n], S[n : 2 * n], S[2 * n] = data[:m].T @ data[:m], data[1:].T @ data[:m], data[m]
        else:
            S[...] = data @ data.T
    return out


def reduce_gram(cuda, S, n: int, m: int, cutoff, dtype) -> Reduced:
    """The operator of one block from its Gram matrix; route SVD where that does not suffice."""
    xp, wide, order = cuda.xp, n <= m, min(n, m)
    G = S[:order, :order]
    size = float(xp.trace(G))
    route = triage(size, float(S[2 * n] @ S[2 * n] if wide else S[m, m]))
    if route != EIGEN:
        return empty(order, route)
    unit = unit_of(size)
    values, vectors = (part[..., ::-1] for part in xp.linalg.eigh(G / unit**2))  # largest first
    squares, bounds = np.asarray(cuda.host(values)).tolist(), resolution(n, m, dtype)
    kind, value, digits = Rule(*cutoff).numbers(dtype)
    top = max(squares[0], 0.0)
    rank, threshold, edge = select(squares, order, kind, value, digits, unit, bounds.gram * top, 0.0, 0.0)
    if not resolved(squares, order, kind, value, rank, threshold, bounds.least * top):
        return empty(order, SVD)._replace(threshold=threshold * unit, edge=edge)
    V, d = vectors[:, :rank], values[:rank]
    if wide:
        readout = (S[n : 2 * n] / unit**2) @ V / d
        parts = V, readout, V.T @ readout, V.T @ S[2 * n]
    else:
        parts = tall_parts(xp, V, xp.sqrt(d), V.T @ (S[m, :m] / unit) / xp.sqrt(d), unit)
    return Reduced(*parts, rank, threshold * unit, *ends(np.sqrt(squares[:rank]), unit), edge, EIGEN)


def tall_parts(xp, V, s, start, unit: float) -> tuple:
    """Basis, readout, operator and start of a tall block from right singular vectors V (m, r), values unit s, and
    start = U^T x_last."""
    shifted = xp.concatenate([(V[1:] * s).T, (start / unit)[:, None]], axis=1)  # U^T Fp / unit
    basis = V / s / unit
    return basis, basis, shifted @ V / s, start


def truncated_svd(cuda, block, columns: int, cutoff) -> tuple:
    """Route, unit, U, s, V^T and (rank, threshold, edge) of the first columns of a block, F / unit (n, columns);
    nothing beyond the unit where the route is not SVD."""
    if not bool(cuda.xp.isfinite(block).all()):
        return NON_FINITE, 1.0, None
    top = float(cuda.xp.abs(block[:columns]).max())
    if top == 0.0:
        return ZERO, 1.0, None
    unit = math.ldexp(1.0, math.frexp(top)[1] - 1)
    U, s, Vt = cuda.xp.linalg.svd(block[:columns].astype(np.float64).T / unit, full_matrices=False)
    values, n = cuda.host(s), block.shape[1]
    (kind, value, digits), top = Rule(*cutoff).numbers(block.dtype), float(values[0])
    slack, least = resolution(n, columns, block.dtype).svd * top, floor(kind, max(n, columns), top)
    found = select((values**2).tolist(), len(values), kind, value, digits, unit, 0.0, slack, least)
    rank = found[0]
    return SVD, unit, (U[:, :rank], s[:rank], Vt[:rank], values[:rank], found)


def reduce_exactly(cuda, block, cutoff) -> Reduced:
    """The operator of one block (m+1, n) from the SVD of its F."""
    m, n = len(block) - 1, block.shape[1]
    route, unit, found = truncated_svd(cuda, block, m, cutoff)
    if found is None:
        return empty(min(n, m), route)
    U, s, Vt, values, (rank, threshold, edge) = found
    data = block.astype(np.float64) / unit
    start = U.T @ data[m] * unit
    if n <= m:
        readout = data[1:].T @ Vt.T / s
        parts = U, readout, U.T @ readout, start
    else:
        parts = tall_parts(cuda.xp, Vt.T, s, start, unit)
    return Reduced(*parts, rank, threshold * unit, *ends(values, unit), edge, SVD)


def solve(cuda, gram, n: int, m: int, cutoff, dtype) -> Factors:
    """Factors of every block from Gram matrices alone."""
    return assemble([reduce_gram(cuda, S, n, m, cutoff, dtype) for S in gram], min(n, m), cuda.xp)


def fit(cuda, X, cutoff, refine: bool) -> Factors:
    """Factors of every block, by its Gram matrix where that suffices."""
    m, n = len(X) - 1, X.shape[-1]
    found = []
    for block in blocks(X):
        one = None if refine else reduce_gram(cuda, gram(cuda, block[:, None], n <= m)[0], n, m, cutoff, X.dtype)
        if one is None or one.route != EIGEN:  # of float64 data squares may overflow, or vanish
            one = reduce_exactly(cuda, block, cutoff)
        found.append(one)
    return assemble(found, min(n, m), cuda.xp)


def evolve(cuda, factors: Factors, steps: np.ndarray):
    """Coefficients of K^steps x_last, (B, len(steps), q): a product a step, or powers over long gaps."""
    B, q, r = factors.readout.shape
    out, y, at = cuda.xp.empty((B, len(steps), q)), factors.start[:, :, None], 1
    for k, step in enumerate(steps.tolist()):
        gap, at = step - at, step
        if squaring_pays(gap, r):
            y = cuda.xp.linalg.matrix_power(factors.operator, gap) @ y
        else:
            for _ in range(gap):
                y = factors.operator @ y
        out[:, k] = (factors.readout @ y)[:, :, 0]
    out[factors.route == NON_FINITE] = np.nan
    return out


def combine(rows, coefficients, out):
    """out (k, B, n) = sums over rows (q', ..., n) with coefficients (B, k, q <= q'), a matrix product a block."""
    q = coefficients.shape[2]
    for b, block in enumerate(blocks(rows)):
        out[:, b] = coefficients[b] @ block[:q].astype(np.float64)
    return out


def pinv(cuda, F, cutoff, out, route) -> tuple:
    """out (B, m, n) = the pseudo-inverse of every block of F (m, ..., n), by its SVD."""
    for b, block in enumerate(blocks(F)):
        taken, unit, found = truncated_svd(cuda, block, len(F), cutoff)
        route[b] = taken
        if found is None:
            out[b] = np.nan if taken == NON_FINITE else 0.0
        else:
            U, s, Vt, *_ = found
            out[b] = (Vt.T / s) @ U.T / unit
    return out, route
