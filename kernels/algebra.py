"""Numba: the algebra of one block between its Gram matrix and its prediction, in the letters of blocks.py.

The certificate, the truncated eigenproblem, the reduced operator and its powers; then loops over a range of blocks.
"""

from __future__ import annotations

import math

import numpy as np

from .blocks import is_finite
from .cutoffs import MEDIAN, RELATIVE, SPACING, limit, resolved, select
from .dense import axpy, dot, eigh, inverse_norm2, matmul, solve_upper
from .jit import jit
from .plan import EIGEN, NON_FINITE, SVD, ZERO


@jit
def trace(S, n):
    """Sum of the diagonal."""
    total = 0.0
    for i in range(n):
        total += S[i, i]
    return total


@jit
def triage(size, last, flat, start, time_stride, stride, n, columns):
    """EIGEN if a Gram matrix with this trace is usable beside |x_last|^2, else ZERO, NON_FINITE or SVD.

    SVD: squares, or products of squares, overflow or underflow; the library route scales first.
    """
    if 1e-140 < size < 1e140 and last < 1e140:
        return EIGEN
    if not is_finite(flat, start, time_stride, stride, n, columns):
        return NON_FINITE
    for t in range(columns):
        for i in range(n):
            if flat[start + t * time_stride + i * stride] != 0.0:
                return SVD
    return ZERO


@jit
def keeps_rank_one(kind, value):
    """Whether the rule keeps the one singular value of a constant trajectory, so that K x = x."""
    return kind != MEDIAN and (kind != RELATIVE or value < 1.0)


@jit
def normalize(S, rows, columns, size):
    """Scale S by a power of 4 so that its trace is near 1; the power of 2 that the data was scaled by."""
    half = math.frexp(size)[1] // 2
    factor = math.ldexp(1.0, -2 * half)
    for i in range(rows):
        for j in range(columns):
            S[i, j] *= factor
    return math.ldexp(1.0, half)


@jit
def spectral_norm_bound(G, n):
    """The Frobenius norm of G, an upper bound on its largest eigenvalue."""
    total = 0.0
    for i in range(n):
        total += dot(G[i], G[i], n)
    return math.sqrt(total)


@jit
def certified(L, n, G, kind, value, digits, scale, resolution, W):
    """Prove from G = L L^T that every singular value counts and that the Gram route resolves it.

    The smallest eigenvalue is at least 1 / ||L^-1||_F^2 and the largest at most ||G||_F; a tenth is
    kept for rounding. kind must be one that only needs the largest singular value.
    """
    if kind != RELATIVE and kind != SPACING:
        return False
    largest = spectral_norm_bound(G, n)
    threshold = limit(math.sqrt(largest), kind, value, digits, scale)
    needed = max(threshold * threshold, resolution[2] * largest) + resolution[0] * largest
    return 0.9 > needed * inverse_norm2(L, n, W)


@jit
def decompose(G, n, kind, value, digits, scale, resolution, work, d, Z):
    """Eigenpairs of G (overwritten), the rank and whether the Gram route may answer.

    Returns (status, rank, threshold, edge): EIGEN, or SVD where the Gram matrix cannot tell.
    """
    if not eigh(G, n, d, Z, work):
        return SVD, 0, 0.0, False
    if not math.isfinite(d[0]):
        return SVD, 0, 0.0, False
    largest = max(d[0], 0.0)
    rank, threshold, edge = select(d, n, kind, value, digits, scale, resolution[0] * largest, 0.0, 0.0)
    clear = resolved(d, n, kind, rank, threshold, resolution[2] * largest)
    return EIGEN if clear else SVD, rank, threshold, edge


@jit
def reduce_snapshots(S, m, rank, d, Z, basis, operator, start, work):
    """Tall: U = F basis is orthonormal, operator = U^T K U, start = U^T x_last; lift = Fp basis.

    basis (m, rank) = V Lambda^-1/2, in its first `rank` columns; everything scaled like S.
    """
    for r in range(rank):
        scale = 1.0 / math.sqrt(d[r])
        for i in range(m):
            Z[r, i] *= scale
            basis[i, r] = Z[r, i]
        start[r] = dot(S[m], Z[r], m)
    for r in range(rank):  # row r of basis^T H, then of basis^T H basis; H = S[:m, 1:]
        work[:m] = 0.0
        for i in range(m):
            axpy(Z[r, i], S[i, 1:], work, m)
        for k in range(rank):
            operator[r, k] = dot(work, Z[k], m)


@jit
def reduce_weights(D, last, n, rank, d, Z, basis, lift, operator, start):
    """Wide: U = basis (n, rank) are eigenvectors, lift = D U Lambda^-1, operator = U^T lift, start = U^T x_last."""
    for r in range(rank):
        start[r] = dot(last, Z[r], n)
        scale = 1.0 / d[r]
        for i in range(n):
            basis[i, r] = Z[r, i]
            lift[i, r] = dot(D[i], Z[r], n) * scale
    for r in range(rank):
        operator[r, :rank] = 0.0
        for i in range(n):
            axpy(Z[r, i], lift[i], operator[r], rank)


@jit
def companion(a, m, M):
    """M = F^+ Fp of a full-rank tall block: a shift whose last column is a = F^+ x_last."""
    M[:m, :m] = 0.0
    for i in range(m):
        if i:
            M[i, i - 1] = 1.0
        M[i, m - 1] = a[i]


@jit
def advance(M, n, y, steps, spare, P, Q):
    """y <- M^steps y: one product a step, or repeated squaring where that is less work. P, Q are n x n scratch."""
    if steps > 64 and steps > 4.0 * n * math.log2(steps):
        P[:n, :n] = M[:n, :n]
        while steps:
            if steps & 1:
                for i in range(n):
                    spare[i] = dot(P[i], y, n)
                y[:n] = spare[:n]
            steps >>= 1
            if steps:
                matmul(P, P, n, Q)
                P[:n, :n] = Q[:n, :n]
        return
    for _ in range(steps):
        for i in range(n):
            spare[i] = dot(M[i], y, n)
        y[:n] = spare[:n]


@jit
def advance_companion(a, m, steps, c, spare, M, P, Q):
    """c <- (F^+ Fp)^steps c for a full-rank tall block: a scalar recurrence, O(m) a step."""
    if steps > 4.0 * m * m * math.log2(steps + 2.0):
        companion(a, m, M)
        advance(M, m, c, steps, spare, P, Q)
        return
    for _ in range(steps):
        top = c[m - 1]
        for i in range(m - 1, 0, -1):
            c[i] = c[i - 1] + top * a[i]
        c[0] = top * a[0]


@jit
def inverse_apply(L, n, w, spare, y):
    """y = (L L^T)^-1 w."""
    for i in range(n):
        spare[i] = (w[i] - dot(L[i], spare, i)) / L[i, i]
    solve_upper(L, n, spare, y)


@jit
def advance_wide(L, D, n, steps, w, spare, y):
    """w <- (D C^-1)^steps w with C = L L^T."""
    for _ in range(steps):
        inverse_apply(L, n, w, spare, y)
        for i in range(n):
            w[i] = dot(D[i], y, n)


@jit
def solve_range(
    first, last, gram, order, wide, kind, value, digits, resolution, basis, lift, operator, start, rank, reports, edge,
    status,
):  # fmt: skip
    """Reduced operators from Gram matrices. reports[b] = threshold, largest and smallest kept singular value."""
    rows, columns = gram.shape[1], gram.shape[2]
    S = np.empty((rows, columns))
    G, Z = np.empty((order, order)), np.empty((order, order))
    d, work = np.empty(order), np.empty((4, order + 1))
    for b in range(first, last):
        S[:, :] = gram[b]
        size = trace(S, order)
        last2 = dot(S[2 * order], S[2 * order], order) if wide else S[order, order]
        reports[b, :] = 0.0
        if not (1e-140 < size < 1e140 and last2 < 1e140):
            status[b] = SVD if size > 0.0 else ZERO
            if not math.isfinite(size + last2):
                status[b] = NON_FINITE
            continue
        scale = normalize(S, 2 * order if wide else rows, columns, size)
        G[:, :] = S[:order, :order]
        status[b], kept, threshold, edge[b] = decompose(
            G, order, kind, value, digits, scale, resolution, work, d, Z
        )
        rank[b] = kept
        reports[b, 0] = threshold * scale
        if kept:
            reports[b, 1] = math.sqrt(d[0]) * scale
            reports[b, 2] = math.sqrt(max(d[kept - 1], 0.0)) * scale
        if status[b] == SVD:
            if kept and d[kept - 1] <= 0.0:
                continue  # nothing a Gram matrix could say
        if wide:
            reduce_weights(S[order:], S[2 * order], order, kept, d, Z, basis[b], lift[b], operator[b], start[b])
        else:
            reduce_snapshots(S, order, kept, d, Z, basis[b], operator[b], start[b], work[3])
            for i in range(order):
                for r in range(kept):
                    basis[b, i, r] /= scale  # F, unlike S, has not been scaled
            for r in range(kept):
                start[b, r] *= scale


@jit
def evolve_range(first, last, lift, operator, start, rank, steps, out):
    """out[b, k] = lift operator^(steps[k] - 1) start; steps ascend from 1."""
    order = operator.shape[1]
    y, spare = np.empty(order), np.empty(order)
    P, Q = np.empty((order, order)), np.empty((order, order))
    for b in range(first, last):
        r = rank[b]
        y[:] = start[b]
        at = 1
        for k in range(len(steps)):
            advance(operator[b], r, y, steps[k] - at, spare, P, Q)
            at = steps[k]
            for i in range(out.shape[2]):
                out[b, k, i] = dot(lift[b, i], y, r)


@jit
def advance_range(first, last, operator, rank, steps, y):
    """y[b] <- operator^steps y[b], in place."""
    order = operator.shape[1]
    spare, P, Q = np.empty(order), np.empty((order, order)), np.empty((order, order))
    for b in range(first, last):
        advance(operator[b], rank[b], y[b], steps, spare, P, Q)
