"""Blocks for BLAS and LAPACK: those too large for the Numba kernels, and those a Gram matrix cannot resolve.

Functions of one block, a (columns, n) view in; the algebra is that of the kernels, so that both give `Reduced`.
"""

from __future__ import annotations

import math

import numpy as np

from ..cutoffs import KINDS, RANK, floor
from ..factors import Reduced, empty, ends
from ..plan import EIGEN, NON_FINITE, SVD, ZERO, Resolution, iterates, triage, unit_of
from ..selection import limit, resolved, select
from . import lapack
from .algebra import reduced_solve
from .dense import QL_ITERATIONS, ROTATIONS
from .streamed import Streamed, over_strips
from .subspace import Formed, Products, leading_eigh
from .threads import blas

TILE_ENTRIES, TILE_LINES = 1 << 19, 512  # float64 numbers converted at a time: 4 MiB, or these lines if they are more
MIRROR_LINES = 64
ANGLES = {24: 1e-7, 53: 1e-9}  # of the few directions kept against the exact ones, by the data's significand bits


def tiles(length: int, other: int):
    """Slices that cover 0 .. length, each with at most TILE_ENTRIES / other lines, or TILE_LINES."""
    step = max(1, TILE_LINES, TILE_ENTRIES // max(other, 1))
    return (slice(i, min(i + step, length)) for i in range(0, length, step))


def mirrored(G: np.ndarray) -> np.ndarray:
    """G with its lower triangle made the mirror image of the upper one, in place."""
    for i in range(0, len(G), MIRROR_LINES):
        lines = slice(i, i + MIRROR_LINES)
        G[lines, :i] = G[:i, lines].T
        corner = np.triu(G[lines, lines])
        G[lines, lines] = corner + np.triu(corner, 1).T
    return G


def upper_gram(lines: np.ndarray, across: bool = False) -> np.ndarray:
    """The upper triangle of lines^T lines, or of lines lines^T if `across`, float64 sums over tiles; the rest is 0."""
    order, length = lines.shape if across else lines.shape[::-1]
    G = np.zeros((order, order))
    for part in tiles(length, order):
        tile = np.ascontiguousarray(lines[:, part] if across else lines[part], np.float64)
        lapack.add_gram(tile, G, across)
    return G


def gram_snapshots(block: np.ndarray) -> np.ndarray:
    """X^T X of a (columns, n) block, accumulated in float64 over tiles of weights."""
    return mirrored(upper_gram(block, across=True))


def gram_weights(block: np.ndarray) -> np.ndarray:
    """[F F^T; Fp F^T; x_last^T] of a (columns, n) block, accumulated in float64 over tiles of snapshots."""
    columns, n = block.shape
    S = np.zeros((2 * n + 1, n))
    for part in tiles(columns - 1, n):
        tile = np.ascontiguousarray(block[part.start : part.stop + 1], np.float64)
        F, Fp = tile[:-1], tile[1:]
        S[:n] += F.T @ F
        S[n:-1] += Fp.T @ F
    S[-1] = block[-1]
    return S


def scale_of(block: np.ndarray) -> tuple[int, float]:
    """Status and power of two that brings the block's largest entry near 1: EIGEN, ZERO or NON_FINITE."""
    largest = float(np.abs(block).max(initial=0.0))
    if not math.isfinite(largest):
        return NON_FINITE, 1.0
    return (EIGEN, math.ldexp(1.0, math.frexp(largest)[1] - 1)) if largest else (ZERO, 1.0)


def truncated_eigh(G: np.ndarray, cutoff, digits: int, bounds: Resolution):
    """Status, and the eigenpairs of G that count: squares, V, their number, the threshold, the edge flag."""
    return few_pairs(Formed(G), cutoff, digits, bounds) or decomposed(G, cutoff, digits, bounds)


def few_streamed(G: Streamed, cutoff, digits: int, bounds: Resolution):
    """`few_pairs` of a matrix that is never formed."""
    with blas.one_thread():  # threads that BLAS keeps waiting would hold up those of the products
        return few_pairs(G, cutoff, digits, bounds)


def few_of_block(block: np.ndarray, wide: bool, cutoff, digits: int, bounds: Resolution):
    """`few_streamed` of a (columns, n) block of snapshots, and F^T x_last (tall) or x_last (wide); None as there."""
    last = block[-1].astype(np.float64)
    G = Streamed(block[:-1], not wide, None if wide else last)
    few = few_streamed(G, cutoff, digits, bounds) if triage(1.0, float(last @ last)) == EIGEN else None
    return few and (few, last if wide else G.moment)


def few_pairs(G: Products, cutoff, digits: int, bounds: Resolution):
    """`truncated_eigh` of a matrix so large, and a cutoff so coarse, that iterating is quicker; else None."""
    kind, value, order = KINDS[cutoff[0]], float(cutoff[1]), G.order
    if not iterates(order, cutoff):
        return None

    def above(largest: float) -> float:
        return limit(math.sqrt(largest), kind, value, digits, 1.0) ** 2

    few = leading_eigh(G, int(value) if kind == RANK else above, bounds.gram, ANGLES[digits])
    if few is None:
        return None
    squares, V = few
    rank, threshold = V.shape[1], math.sqrt(max(squares[-1], 0.0) if kind == RANK else above(squares[0]))
    clear = resolved(squares, order, kind, value, rank, threshold, bounds.least * squares[0])
    return EIGEN if clear else SVD, squares[:rank], V, rank, threshold, False


def decomposed(G: np.ndarray, cutoff, digits: int, bounds: Resolution):
    """`truncated_eigh` by LAPACK: all eigenvalues from the tridiagonal form, vectors for those that count."""
    kind, value, order = KINDS[cutoff[0]], float(cutoff[1]), len(G)
    scale = unit_of(float(np.trace(G)))
    A = G / scale**2
    d, e, beta = lapack.tridiagonalize(A)
    squares, rank, V = lapack.eigenvalues(d, e), 0, None
    if squares is not None:
        squares *= scale**2
        ordered = squares.tolist()
        rank, threshold, edge = select(ordered, order, kind, value, digits, 1.0, bounds.gram * ordered[0], 0.0, 0.0)
        V = lapack.leading_vectors(d, e, rank) if rank else np.empty((0, order))
    if V is None:  # never seen
        return SVD, np.empty(0), np.empty((order, 0)), 0, 0.0, True
    if rank:
        lapack.rotate_back(A, beta, V)
    clear = resolved(ordered, order, kind, value, rank, threshold, bounds.least * ordered[0])
    return EIGEN if clear else SVD, squares[:rank], V.T, rank, threshold, bool(edge)


def reduce_snapshots(S: np.ndarray, cutoff, digits: int, bounds: Resolution) -> Reduced:
    """A tall block's operator from X^T X; route SVD where the matrix cannot resolve the cutoff."""
    m = len(S) - 1
    G = S[:m, :m]
    route = triage(float(np.trace(G)), float(S[m, m]))
    if route != EIGEN:
        return empty(m, route)
    pairs = truncated_eigh(G, cutoff, digits, bounds)
    return on_snapshots(pairs, lambda basis: basis.T @ S[:m, 1:] @ basis, S[:m, m])


def on_snapshots(pairs, project, x: np.ndarray) -> Reduced:
    """A tall block's operator from pairs of F^T F, project(basis) = U^T Fp basis with U = F basis, and F^T x_last."""
    route, squares, V, rank, threshold, edge = pairs
    if rank and squares[-1] <= 0.0:  # nothing a Gram matrix could say
        return empty(len(V), SVD)
    values = np.sqrt(squares)
    basis = V / values
    return Reduced(basis, basis, project(basis), basis.T @ x, rank, threshold, *ends(values), edge, route)


def reduce_weights(C: np.ndarray, after, last: np.ndarray, cutoff, digits: int, bounds: Resolution) -> Reduced:
    """A wide block's operator from C = F F^T, after(V) = Fp F^T V and x_last; route SVD as above."""
    route = triage(float(np.trace(C)), float(last @ last))
    if route != EIGEN:
        return empty(len(C), route)
    return on_weights(truncated_eigh(C, cutoff, digits, bounds), after, last)


def on_weights(pairs, after, last: np.ndarray) -> Reduced:
    """A wide block's operator from pairs of F F^T, after(V) = Fp F^T V and x_last."""
    route, squares, V, rank, threshold, edge = pairs
    if rank and squares[-1] <= 0.0:
        return empty(len(V), SVD)
    readout = after(V / squares)
    return Reduced(V, readout, V.T @ readout, V.T @ last, rank, threshold, *ends(np.sqrt(squares)), edge, route)


def reduce_gram(S: np.ndarray, wide: bool, cutoff, digits: int, bounds: Resolution) -> Reduced:
    """The operator from a block's Gram matrix, as `gram_snapshots` or `gram_weights` makes it."""
    if not wide:
        return reduce_snapshots(S, cutoff, digits, bounds)
    n = S.shape[1]
    return reduce_weights(S[:n], lambda V: S[n : 2 * n] @ V, S[-1], cutoff, digits, bounds)


def reduce_block(block: np.ndarray, wide: bool, cutoff, digits: int, bounds: Resolution) -> Reduced:
    """The operator of a (columns, n) block by its Gram matrix.

    Of a wide block's Fp F^T only the product with the few vectors that are kept is made, from the data.
    """
    if few := few_of_block(block, wide, cutoff, digits, bounds):
        return reduce_few(block, wide, *few)
    if not wide:
        return reduce_snapshots(gram_snapshots(block), cutoff, digits, bounds)
    last = block[-1].astype(np.float64)
    C = mirrored(upper_gram(block[:-1]))
    return reduce_weights(C, lambda V: advance_past(block, V), last, cutoff, digits, bounds)


def reduce_few(block: np.ndarray, wide: bool, pairs, x: np.ndarray) -> Reduced:
    """The operator of a (columns, n) block from what `few_of_block` found; route SVD where that cannot tell."""
    route, _, V, *_ = pairs
    if route != EIGEN:
        return empty(len(V), route)
    if wide:
        return on_weights(pairs, lambda V: advance_past(block, V), x)
    return on_snapshots(pairs, lambda basis: projected(block, basis), x)


def projected(block: np.ndarray, basis: np.ndarray) -> np.ndarray:
    """U^T Fp basis, U = F basis, of a tall (columns, n) block."""

    def part(strips):
        return sum((X[:-1].T @ basis).T @ (X[1:].T @ basis) for _, X in strips)

    return sum(over_strips(part, block, True))


def advance_past(block: np.ndarray, V: np.ndarray) -> np.ndarray:
    """Fp F^T V of a (columns, n) block, without the n x n product."""
    W = np.zeros_like(V)
    for part in tiles(len(block) - 1, block.shape[1]):
        tile = np.ascontiguousarray(block[part.start : part.stop + 1], np.float64)
        W += tile[1:].T @ (tile[:-1] @ V)
    return W


def truncated_solve(G: np.ndarray, x: np.ndarray, cutoff, digits: int, bounds: Resolution) -> tuple[np.ndarray, int]:
    """G^+ x, truncated, and EIGEN, or SVD where G cannot tell.

    LAPACK's tridiagonal form, then no eigenvectors, unless a few can be had sooner. G is symmetric, and overwritten.
    """
    if few := few_pairs(Formed(G), cutoff, digits, bounds):
        route, squares, V, *_ = few
        return V @ ((V.T @ x) / squares), route
    order, scale = len(G), unit_of(float(np.trace(G)))
    G /= scale**2
    d, e, beta = lapack.tridiagonalize(G)
    G.flat[1 :: order + 1] = 1.0  # row k is reflector k, whose first number is understood to be 1
    spectrum = np.empty((2, order))
    spectrum[0], off = d[::-1], np.append(e[::-1], 0.0)
    y = np.array(x, np.float64)
    room = np.empty((2, ROTATIONS * order * order)), np.empty((QL_ITERATIONS * order, 3), np.int64)
    route = reduced_solve(
        G, order, y, np.append(beta, 0.0), off, KINDS[cutoff[0]], float(cutoff[1]), digits, scale, tuple(bounds),
        np.empty(order), spectrum, *room,
    )  # fmt: skip
    return y / scale**2, route


def step_block(block: np.ndarray, wide: bool, cutoff, digits: int, bounds: Resolution, out: np.ndarray) -> int:
    """out = K x_last of a (columns, n) block by its Gram matrix; the route, SVD where that cannot tell."""
    m, n = block.shape[0] - 1, block.shape[1]
    last = block[-1].astype(np.float64)
    if few := few_of_block(block, wide, cutoff, digits, bounds):
        return step_few(block, wide, *few, out)
    S = mirrored(upper_gram(block[:-1])) if wide else gram_snapshots(block)
    G, x = (S, last) if wide else (np.ascontiguousarray(S[:m, :m]), S[:m, m])
    route = triage(float(np.trace(G)), float(last @ last))
    if route != EIGEN:
        out[:] = np.nan if route == NON_FINITE else 0.0
        return route
    y, route = truncated_solve(G, x, cutoff, digits, bounds)
    if route == EIGEN and wide:
        out[:] = advance_past(block, y[:, None])[:, 0]
    elif route == EIGEN:
        for part in tiles(n, m):
            out[part] = y @ block[1:, part].astype(np.float64)
    return route


def step_few(block: np.ndarray, wide: bool, few, x: np.ndarray, out: np.ndarray) -> int:
    """`step_block` by what `few_of_block` found."""
    route, squares, V, *_ = few
    if route != EIGEN:
        return route
    y = V @ ((V.T @ x) / squares)
    if wide:
        out[:] = advance_past(block, y[:, None])[:, 0]
        return route

    def fill(strips):
        for part, Xp in strips:
            out[part] = y @ Xp

    over_strips(fill, block[1:], True)
    return route


def truncated_svd(F: np.ndarray, cutoff, digits: int, bounds: Resolution, scale: float):
    """U, s, V^T of F (n, m) that count, with their number, the threshold and the edge flag."""
    U, s, Vt = np.linalg.svd(F, full_matrices=False)
    kind, value, top = KINDS[cutoff[0]], float(cutoff[1]), float(s[0])
    least = floor(kind, max(F.shape), top)
    rank, threshold, edge = select((s * s).tolist(), len(s), kind, value, digits, scale, 0.0, bounds.svd * top, least)
    return U[:, :rank], s[:rank], Vt[:rank], rank, threshold, bool(edge)


def reduce_svd(block: np.ndarray, cutoff, digits: int, bounds: Resolution) -> Reduced:
    """The operator from the SVD of a (columns, n) block's own F."""
    X = block.astype(np.float64).T
    return reduce_pairs(X[:, :-1], X[:, 1:], X[:, -1], cutoff, digits, bounds)


def reduce_pairs(F: np.ndarray, Fp: np.ndarray, last: np.ndarray, cutoff, digits: int, bounds: Resolution) -> Reduced:
    """The operator Fp F^+ and its start at x_last from the SVD of F (n, m), all scaled so that nothing overflows."""
    n, m = F.shape
    route, scale = scale_of(np.array([np.abs(part).max() for part in (F, Fp, last)]))
    if route != EIGEN:
        return empty(min(n, m), route)
    F, Fp, last = F / scale, Fp / scale, last / scale
    if not F.any():  # only x_last is not zero: F^+ = 0
        return empty(min(n, m), ZERO)
    U, s, Vt, rank, threshold, edge = truncated_svd(F, cutoff, digits, bounds, scale)
    coordinates, start = Vt.T / s, U.T @ last
    W = Fp @ coordinates
    with np.errstate(over="ignore"):
        basis, readout = (U, W) if n <= m else (coordinates / scale,) * 2
    if np.isfinite(basis).all():
        start *= scale
    else:  # float64 does not hold the inverses of subnormal numbers, but those of coordinates in units of `scale`
        readout = coordinates
    return Reduced(basis, readout, U.T @ W, start, rank, threshold * scale, *ends(s, scale), edge, SVD)


def combine(block: np.ndarray, coefficients: np.ndarray, out: np.ndarray) -> None:
    """out (k, n) = coefficients (k, rows) times the (rows, n) block, float64 sums over tiles of weights."""
    for part in tiles(block.shape[1], block.shape[0]):
        out[:, part] = coefficients @ block[:, part].astype(np.float64)


def pinv_gram(block: np.ndarray, wide: bool, cutoff, digits: int, bounds: Resolution, out: np.ndarray) -> int:
    """out (m, n) = F^+ of an (m, n) block of columns, by its Gram matrix; SVD if that cannot resolve it."""
    lines = block if wide else block.T  # F^+ = (lines G^+) or its transpose, G = lines^T lines
    order = lines.shape[1]
    few = few_streamed(Streamed(block, not wide), cutoff, digits, bounds)
    if few is None:
        G = mirrored(upper_gram(block, across=not wide))
        if triage(float(np.trace(G)), 0.0) != EIGEN:
            return SVD  # which settles zero and non-finite blocks too
        few = truncated_eigh(G, cutoff, digits, bounds)
    route, squares, V, *_ = few
    if route == EIGEN:
        result = out if wide else out.T
        for part in tiles(len(lines), order):
            result[part] = (lines[part].astype(np.float64) @ V / squares) @ V.T
    return route


def pinv_svd(block: np.ndarray, cutoff, digits: int, bounds: Resolution, out: np.ndarray) -> int:
    """out (m, n) = F^+ of an (m, n) block of columns, by the SVD of F; the route."""
    route, scale = scale_of(block)
    if route != EIGEN:
        out[:] = np.nan if route == NON_FINITE else 0.0
        return route
    U, s, Vt, *_ = truncated_svd(block.astype(np.float64).T / scale, cutoff, digits, bounds, scale)
    with np.errstate(over="ignore"):  # the inverse of a denormal block may not be representable
        out[:] = (Vt.T / s) @ U.T / scale
    return SVD
