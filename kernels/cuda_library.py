"""Large blocks on a CUDA device: cuBLAS and cuSOLVER through CuPy's array functions, a block at a time.

Ranks are decided on the host, by the one rule of cutoffs.py, so that these functions wait for the device.
"""

from __future__ import annotations

import math

import numpy as np

from .cpu import DIGITS, Factors
from .cutoffs import KINDS, resolved, select
from .plan import EIGEN, LEAST_TRACE, MOST_TRACE, NON_FINITE, SVD, ZERO, resolution

FLOOR_FREE = ("relative", "spacing")  # rules that compare with the largest value alone


def blocks(X):
    """Every block of X (columns, ..., n) as (columns, n), in order."""
    for index in np.ndindex(X.shape[1:-1]):
        yield X[(slice(None), *index)]


def gram(xp, X, wide: bool):
    """Gram matrices (B, m+1, m+1), or (B, 2n+1, n); see cuda.Cuda.gram."""
    m, n, B = len(X) - 1, X.shape[-1], math.prod(X.shape[1:-1])
    out = xp.empty((B, 2 * n + 1, n) if wide else (B, m + 1, m + 1))
    for S, block in zip(out, blocks(X), strict=True):
        data = block.astype(np.float64)
        if wide:
            S[:n], S[n : 2 * n], S[2 * n] = data[:m].T @ data[:m], data[1:].T @ data[:m], data[m]
        else:
            S[...] = data @ data.T
    return out


def chosen(squares: np.ndarray, n: int, m: int, cutoff, dtype, unit: float, exact: bool) -> tuple:
    """(rank, threshold, edge, whether it is settled) from squared singular values / unit^2, largest first."""
    kind, value, digits = KINDS[cutoff[0]], float(cutoff[1]), DIGITS[np.dtype(dtype)]
    bounds = resolution(n, m, dtype)
    top = max(float(squares[0]), 0.0)
    if exact:
        largest = math.sqrt(top)
        floor = 0.0 if cutoff[0] in FLOOR_FREE else max(n, m) * 2.0**-52 * largest
        found = select(squares, len(squares), kind, value, digits, unit, 0.0, bounds.svd * largest, floor)
        return *found, True
    rank, threshold, edge = select(squares, len(squares), kind, value, digits, unit, bounds.gram * top, 0.0, 0.0)
    return rank, threshold, edge, resolved(squares, len(squares), kind, value, rank, threshold, bounds.least * top)


class Reduced:
    """One block's factors, scalars on the host."""

    def __init__(self, order: int, route: int):
        self.parts = None  # basis, lift, operator, start on the device
        self.order, self.route = order, route
        self.rank, self.threshold, self.largest, self.smallest, self.edge = 0, 0.0, 0.0, 0.0, False

    def keep(self, found: tuple, squares: np.ndarray, unit: float) -> int:
        """Take over what `chosen` found; the rank."""
        self.rank, self.threshold, self.edge = found[0], found[1] * unit, found[2]
        if self.rank:
            self.largest = math.sqrt(squares[0]) * unit
            self.smallest = math.sqrt(max(squares[self.rank - 1], 0.0)) * unit
        return self.rank


def unit_of(size: float) -> float:
    """The power of 2 that brings a block with this sum of squares near 1."""
    return math.ldexp(1.0, math.frexp(size)[1] // 2)


def reduce_gram(xp, S, n: int, m: int, cutoff, dtype) -> Reduced:
    """Factors of one block from its Gram matrix; route SVD where that does not suffice."""
    wide, order = n <= m, min(n, m)
    G = S[:order, :order]
    size = float(xp.trace(G))
    if not LEAST_TRACE < size < MOST_TRACE:
        return Reduced(order, SVD if size > 0 else ZERO if size == 0 else NON_FINITE)
    unit = unit_of(size)
    values, vectors = xp.linalg.eigh(G / unit**2)
    squares = np.asarray(values.get() if hasattr(values, "get") else values)[::-1].copy()
    found = chosen(squares, n, m, cutoff, dtype, unit, False)
    one = Reduced(order, EIGEN if found[3] else SVD)
    r = one.keep(found, squares, unit)
    if not found[3]:
        return one
    V, d = vectors[:, ::-1][:, :r], values[::-1][:r]
    if wide:
        lift = (S[n : 2 * n] / unit**2) @ V / d
        one.parts = V, lift, V.T @ lift, V.T @ S[2 * n]
    else:
        start = V.T @ (S[m, :m] / unit) / xp.sqrt(d)
        one.parts = tall_parts(xp, V, xp.sqrt(d), start, unit)
    return one


def tall_parts(xp, V, s, start, unit: float) -> tuple:
    """Factors of a tall block from right singular vectors V (m, r), values unit s, and start = U^T x_last."""
    shifted = xp.concatenate([(V[1:] * s).T, (start / unit)[:, None]], axis=1)  # U^T Fp / unit
    basis = V / s / unit
    return basis, basis, shifted @ V / s, start


def reduce_exactly(xp, block, cutoff) -> Reduced:
    """Factors of one block (m+1, n) from its SVD."""
    m, n = len(block) - 1, block.shape[1]
    order = min(n, m)
    if not bool(xp.isfinite(block).all()):
        return Reduced(order, NON_FINITE)
    top = float(xp.abs(block[:m]).max())
    if top == 0.0:
        return Reduced(order, ZERO)
    unit = math.ldexp(1.0, math.frexp(top)[1] - 1)
    data = block.astype(np.float64) / unit
    U, s, Vt = xp.linalg.svd(data[:m].T, full_matrices=False)
    squares = np.asarray(s.get() if hasattr(s, "get") else s) ** 2
    one = Reduced(order, SVD)
    r = one.keep(chosen(squares, n, m, cutoff, block.dtype, unit, True), squares, unit)
    U, s, V = U[:, :r], s[:r], Vt[:r].T
    start = U.T @ data[m] * unit
    if n <= m:
        lift = data[1:].T @ V / s
        one.parts = U, lift, U.T @ lift, start
    else:
        one.parts = tall_parts(xp, V, s, start, unit)
    return one


def assemble(xp, found: list[Reduced], order: int, wide: bool) -> Factors:
    """One Factors from blocks that were reduced one at a time."""
    B, r = len(found), max((one.rank for one in found), default=0)
    basis, operator, start = xp.zeros((B, order, r)), xp.zeros((B, r, r)), xp.zeros((B, r))
    lift = xp.zeros((B, order, r)) if wide else basis
    for b, one in enumerate(found):
        if one.parts is not None:
            k = one.rank
            basis[b, :, :k], lift[b, :, :k], operator[b, :k, :k], start[b, :k] = one.parts
    names = ("rank", "threshold", "largest", "smallest", "edge", "route")
    dtypes = (np.int64, np.float64, np.float64, np.float64, np.bool_, np.int8)
    columns = ([getattr(one, name) for one in found] for name in names)
    reports = [xp.asarray(np.array(column, dtype)) for column, dtype in zip(columns, dtypes, strict=True)]
    return Factors(basis, lift, operator, start, *reports)


def solve(xp, gram, n: int, m: int, cutoff, dtype) -> Factors:
    """Factors of every block from Gram matrices alone."""
    return assemble(xp, [reduce_gram(xp, S, n, m, cutoff, dtype) for S in gram], min(n, m), n <= m)


def fit(xp, X, cutoff, refine: bool) -> Factors:
    """Factors of every block, by its Gram matrix where that suffices."""
    m, n = len(X) - 1, X.shape[-1]
    found = []
    for block in blocks(X):
        one = None if refine else reduce_gram(xp, gram(xp, block[:, None], n <= m)[0], n, m, cutoff, X.dtype)
        if one is None or one.route != EIGEN:  # of float64 data squares may overflow, or vanish
            one = reduce_exactly(xp, block, cutoff)
        found.append(one)
    return assemble(xp, found, min(n, m), n <= m)


def evolve(xp, factors: Factors, steps: np.ndarray):
    """Coefficients of K^steps x_last, (B, len(steps), q): a product a step, or powers over long gaps."""
    B, q, r = factors.lift.shape
    out, y, at = xp.empty((B, len(steps), q)), factors.start[:, :, None], 1
    for k, step in enumerate(steps.tolist()):
        gap, at = step - at, step
        if gap > 64 and gap > 4.0 * r * math.log2(gap):
            y = xp.linalg.matrix_power(factors.operator, gap) @ y
        else:
            for _ in range(gap):
                y = factors.operator @ y
        out[:, k] = (factors.lift @ y)[:, :, 0]
    out[factors.route == NON_FINITE] = np.nan
    return out


def combine(xp, rows, coefficients, out):
    """out (k, B, n) = sums over rows (q', ..., n) with coefficients (B, k, q <= q'), a matrix product a block."""
    q = coefficients.shape[2]
    for b, block in enumerate(blocks(rows)):
        out[:, b] = coefficients[b] @ block[:q].astype(np.float64)
    return out


def pinv(xp, F, cutoff, out, route) -> tuple:
    """out (B, m, n) = the pseudo-inverse of every block of F (m, ..., n), by its SVD."""
    m, n = len(F), F.shape[-1]
    for b, block in enumerate(blocks(F)):
        if not bool(xp.isfinite(block).all()):
            out[b], route[b] = np.nan, NON_FINITE
            continue
        top = float(xp.abs(block).max())
        route[b] = SVD if top else ZERO
        if not top:
            out[b] = 0.0
            continue
        unit = math.ldexp(1.0, math.frexp(top)[1] - 1)
        U, s, Vt = xp.linalg.svd(block.astype(np.float64).T / unit, full_matrices=False)
        squares = np.asarray(s.get() if hasattr(s, "get") else s) ** 2
        r = chosen(squares, n, m, cutoff, F.dtype, unit, True)[0]
        out[b] = (Vt[:r].T / s[:r]) @ U[:, :r].T / unit
    return out, route
