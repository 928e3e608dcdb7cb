"""Small blocks whose cutoff lies beyond a Gram matrix's resolution but within its reach, in Numba: solved by the Gram
matrix, then refined by the data itself, at a fraction of what QR or Jacobi rotations take.

Where every singular value counts: the seminormal equations with a Cholesky factor of the Gram matrix, corrected by
residuals of the data (Björck 1987); each correction divides the error by 100 at least. Where some do not: the data,
turned by the Gram matrix's eigenvectors, has nearly orthogonal rows, whose products, graded like their lengths, tell to
SVD accuracy how far the kept subspace is still to be turned (the Riccati equation of Stewart 1973). Nothing is taken on
trust: ranks are proved, corrections must vanish, and a block of which that is not true is left to `svd`.

Rows are those of F^T (tall: m snapshots of `length` = n numbers) or F (wide: n weights of `length` = m numbers), which
both are written F^.
"""

from __future__ import annotations

import math

import numpy as np

from ..plan import EIGEN, QR, SVD, UNRESOLVED
from .algebra import certified, follow_companion, inverse_apply, normalize, trace, triage_block
from .dense import cholesky, clear_rows, copy_rows, copy_upper, dot, eigh
from .gram import NOTHING, YES, apply_snapshots, load, mirror, padded, products
from .jit import jit, kernel
from .scratch import integers, matrix, tile_of, vector
from .selection import companion_squaring_pays, limit, needs_largest_only
from .simd import add, clear, copy, inner, lanes, subtract4, tail

REACH = 100.0  # times a Gram matrix's resolution: eigenvalues from there on, each refinement divides errors by as much
REFINEMENTS = 6  # 2 or 3 are usual
VANISHED = 1e-8  # a correction of this relative size; what is left is smaller again by what the last one gained


@jit
def combine_rows(V, rows, c, end, u):
    """u = the sum of c[t] V[t] over rows, in its first `end` numbers, a multiple of LANES."""
    clear(u, 0, end)
    t = 0
    while t + 4 <= rows:
        subtract4(0, end, -c[t], -c[t + 1], -c[t + 2], -c[t + 3], V[t], V[t + 1], V[t + 2], V[t + 3], u)
        t += 4
    for k in range(t, rows):
        add(0, end, c[k], V[k], u)


@jit
def refined_solve(V, R, wide, rows, length, x, unscale, z, u, work):
    """z = (F^ F^^T)^-1 x (wide), or (F^ F^^T)^-1 F^ x (tall), with R^T R = unscale F^ F^^T but for rounding.

    False if the corrections do not vanish. work: (3, >= rows).
    """
    q, y, spare = work[0], work[1], work[2]
    end = lanes(length)
    clear(z, 0, rows)
    for correction in range(REFINEMENTS):
        if correction:
            combine_rows(V, rows, z, end, u)
        else:
            clear(u, 0, end)
        if wide:
            clear(u, length, end)
            for i in range(rows):
                q[i] = x[i] - inner(end, V[i], u)
        else:
            for i in range(length):
                u[i] = x[i] - u[i]
            for i in range(rows):
                q[i] = inner(end, V[i], u)
        inverse_apply(R, rows, q, spare, y)
        for i in range(rows):
            z[i] += unscale * y[i]
        moved, size = unscale * math.sqrt(dot(y, y, rows)), math.sqrt(dot(z, z, rows))
        if correction and moved <= VANISHED * size:
            return True
        if not math.isfinite(moved):
            return False
    return False


@jit
def settled_rank(M, p, kind, value, digits, resolution):
    """The rank of a matrix whose p rows have the products M, the longest first, or 0 where M does not prove it.

    The rank-th eigenvalue is at least the least one of the kept rows' products, the next at most the largest one of the
    dropped rows' (Cauchy's interlacing); the former is at least their smallest diagonal less its share of the scaled
    products, the latter at most the largest sum of a row (Gershgorin).
    """
    top = 0.0
    for i in range(p):
        total = 0.0
        for j in range(p):
            total += abs(M[i, j])
        top = max(top, total)
    least, most = limit(math.sqrt(M[0, 0]), kind, value, digits, 1.0), limit(math.sqrt(top), kind, value, digits, 1.0)
    slack = resolution[1] * math.sqrt(top)
    rank = 0
    while rank < p and M[rank, rank] > most * most:
        rank += 1
    smallest, mixed = math.inf, 0.0
    for i in range(rank):
        total = 0.0
        for j in range(rank):
            if j != i:
                total += abs(M[i, j]) / math.sqrt(M[i, i] * M[j, j])
        smallest, mixed = min(smallest, M[i, i]), max(mixed, total)
    if not mixed < 1.0 or not math.sqrt(smallest * (1.0 - mixed)) > most + slack:
        return 0
    for i in range(rank, p):
        total = 0.0
        for j in range(rank, p):
            total += abs(M[i, j])
        if not math.sqrt(total) < least - slack:
            return 0
    return rank


@jit
def turn(M, p, rank, X, P, row):
    """X with the rows (I X^T) of the kept subspace, M (I X^T)^T being in their span, P = M_kk + M_kd X; or False.

    X has p - rank rows of `rank` numbers. Each pass solves M_dk + M_dd X - X P = 0 for the diagonals of M alone.
    """
    end, dropped = lanes(rank), p - rank
    clear_rows(X, dropped)
    for _ in range(REFINEMENTS):
        for i in range(rank):
            copy(M[i], P[i], 0, end)
            for j in range(dropped):
                add(0, end, M[i, rank + j], X[j], P[i])
        moved = 0.0
        for j in range(dropped):
            copy(M[rank + j], row, 0, end)
            for k in range(dropped):
                add(0, end, M[rank + j, rank + k], X[k], row)
            for i in range(rank):
                add(0, end, -X[j, i], P[i], row)
            for i in range(rank):
                change = row[i] / (M[i, i] - M[rank + j, rank + j])
                X[j, i] += change
                moved = max(moved, abs(change))
        if moved <= VANISHED:
            return True
    return False


@jit
def truncated_coefficients(M, p, rank, t, X, P, R, work):
    """t <- (B B^T)^-1 B's products t with x, for the kept rows B = (I X^T) A of the turned data A, as coefficients of
    all rows of A; t comes as those of A itself. False where the kept subspace is not certain."""
    row, y, spare = work[0], work[1], work[2]
    if not turn(M, p, rank, X, P, row):
        return False
    end, dropped = lanes(rank), p - rank
    for i in range(rank):
        copy(M[i], P[i], 0, end)
        for j in range(dropped):
            add(0, end, M[i, rank + j], X[j], P[i])
    for j in range(dropped):
        copy(M[rank + j], row, 0, end)
        for k in range(dropped):
            add(0, end, M[rank + j, rank + k], X[k], row)
        for i in range(rank):
            add(0, end, X[j, i], row, P[i])
            t[i] += X[j, i] * t[rank + j]
    copy_rows(P, R, rank, rank)
    if not cholesky(R, rank, rank):
        return False
    inverse_apply(R, rank, t, spare, y)
    copy(y, t, 0, rank)
    for j in range(dropped):
        t[rank + j] = dot(X[j], y, rank)
    return True


@kernel
def predict_refined(
    first, last, flat, offsets, time_stride, stride, n, m, steps, kind, value, digits, resolution, out, route
):
    """out[b] = K^steps x_last where that can be proved, else route UNRESOLVED.

    steps is 1, or any for tall blocks of full rank; kind one that needs the largest singular value only.
    """
    wide = n <= m
    p, length = (n, m) if wide else (m, n)
    rows, end = padded(p if wide else p + 1), lanes(length + 1)
    V, A, S, M = tile_of(rows, end), tile_of(rows, end), matrix(rows, rows), matrix(rows, rows)
    R, Z, X, P = tile_of(p, p), tile_of(p, p), tile_of(p, p), tile_of(p, p)
    work, sweeps, d = tile_of(5, p), integers(1, 3), vector(p)
    z, a, u, w = vector(lanes(p)), vector(p), vector(end), vector(n)
    near = resolution[0], resolution[1], REACH * resolution[0]
    for b in range(first, last):
        begin = offsets[b]
        if wide:
            load(flat, begin, stride, time_stride, n, m + 1, -1, V)
        else:
            load(flat, begin, time_stride, stride, m + 1, n, -1, V)
        clear_rows(S, rows)
        products(V, NOTHING, V, rows, length, YES, S, (0, 0, 0, 0))
        size = trace(S, p)
        newest = 0.0
        for i in range(n):
            w[i] = flat[begin + m * time_stride + i * stride]
            newest += w[i] * w[i]
        route[b] = UNRESOLVED
        if triage_block(size, newest, flat, begin, time_stride, stride, n, m + 1) != EIGEN:
            continue
        scale = normalize(S, p, p, size)
        if certified(S, p, kind, value, digits, scale, near, R):
            copy_upper(S, R, p, p)
            cholesky(R, p, p)
            if not refined_solve(V, R, wide, p, length, w, 1.0 / (scale * scale), z, u, work):
                continue
            route[b] = QR
            if wide:
                combine_rows(V, p, z, end, u)
            else:
                copy(z, a, 0, p)
                follow_companion(a, p, steps - 1, z)
        elif steps == 1:
            mirror(S, p)
            copy_rows(S, R, p, p)
            if not eigh(R, p, d, Z, work, sweeps):
                continue
            for i in range(p):
                combine_rows(V, p, Z[i], end, A[i])
            clear_rows(M, rows)
            products(A, NOTHING, A, rows, length, YES, M, (0, 0, 0, 0))
            mirror(M, p)
            for i in range(p):
                z[i] = A[i, m] if wide else dot(A[i], w, n)
            rank = settled_rank(M, p, kind, value, digits, resolution)
            if not rank or not truncated_coefficients(M, p, rank, z, X, P, R, work):
                continue
            route[b] = QR if rank == p else SVD
            if wide:
                combine_rows(A, p, z, end, u)
            else:
                combine_rows(Z, p, z, lanes(p), a)
                copy(a, z, 0, p)
        if route[b] == UNRESOLVED:
            continue
        if wide:
            for i in range(n):
                out[b, i] = dot(tail(V[i], 1), u, m)
        else:
            apply_snapshots(flat, begin + time_stride, time_stride, stride, n, m, z, w)
            for i in range(n):
                out[b, i] = w[i]


def reaches(kind: int, steps: int, n: int, m: int) -> bool:
    """Whether `predict_refined` takes such blocks."""
    if not needs_largest_only(kind):
        return False
    return steps == 1 or (n > m and not companion_squaring_pays(steps - 1, m))


def beyond(kind: int, value: float, digits: int, least: float) -> bool:
    """Whether a block that is not proved to have full rank cannot be answered by its Gram matrix at this cutoff."""
    if not needs_largest_only(kind):
        return False
    relative = value * math.ldexp(1.0, 1 - digits) if kind else value  # the spacing is at most that of a power of two
    return bool(np.square(relative) < least)
