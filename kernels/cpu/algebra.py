"""Numba: the algebra of one block between its Gram matrix and its prediction, in the letters of kernels/__init__.py.

The certificate, the truncated eigenproblem, the reduced operator and its powers; then loops over a range of blocks.
"""

from __future__ import annotations

import math

from ..plan import EIGEN, NON_FINITE, SVD, ZERO
from .dense import (
    EPS,
    axpy,
    cholesky,
    copy_rows,
    copy_upper,
    dot,
    eigh,
    matmul,
    matvec,
    ql,
    reflect,
    solve_lower,
    solve_upper,
    tridiagonalize,
    unrotate,
)  # fmt: skip
from .gram import is_finite
from .jit import jit, kernel
from .scratch import integers, matrix, tile_of, vector
from .selection import (
    companion_squaring_pays,
    limit,
    needs_largest_only,
    resolved,
    select,
    squaring_pays,
    triage,
    unit_of,
)
from .simd import clear, copy, tail


@jit
def trace(S, n):
    """Sum of the diagonal."""
    total = 0.0
    for i in range(n):
        total += S[i, i]
    return total


@jit
def triage_block(size, last, flat, start, time_stride, stride, n, columns):
    """`triage` by the data itself where the sums cannot tell: squares of finite numbers overflow, or vanish."""
    if triage(size, last) == EIGEN:
        return EIGEN
    if not is_finite(flat, start, time_stride, stride, n, columns):
        return NON_FINITE
    for t in range(columns):
        for i in range(n):
            if flat[start + t * time_stride + i * stride] != 0.0:
                return SVD
    return ZERO


@jit
def normalize(S, rows, columns, size):
    """Scale S by a power of 4 so that its trace is near 1; the power of 2 that the data was scaled by."""
    unit = unit_of(size)
    factor = 1.0 / (unit * unit)
    for i in range(rows):
        for j in range(columns):
            S[i, j] *= factor
    return unit


@jit
def certified(S, n, kind, value, digits, scale, resolution, R):
    """Prove from the Gram matrix S that every singular value counts and that the Gram route resolves it.

    That is that its smallest eigenvalue exceeds what is needed, and it does if S minus `needed` times the identity
    has a Cholesky factor, up to (n + 1) eps trace(S) for the factor's own rounding (Rump 2006, lemma 2.4; Demmel
    1989). The largest eigenvalue is at most ||S||_F. Reads the upper triangle; R is scratch. kind must be one that
    only needs the largest singular value.
    """
    if not needs_largest_only(kind):
        return False
    total = 0.0
    copy_upper(S, R, n, n)
    for i in range(n):
        total += 2.0 * dot(tail(S[i], i), tail(S[i], i), n - i) - S[i, i] * S[i, i]
    largest = math.sqrt(total)
    threshold = limit(math.sqrt(largest), kind, value, digits, scale)
    needed = max(threshold * threshold, resolution[2] * largest) + resolution[0] * largest
    needed += (n + 4) * EPS * trace(S, n)
    for i in range(n):
        R[i, i] -= needed
    return cholesky(R, n, n)


@jit
def _judge(squares, n, kind, value, digits, scale, resolution):
    """Rank, whether a Gram matrix with these eigenvalues, largest first, settles it, the threshold and the edge."""
    largest = max(squares[0], 0.0)
    rank, threshold, edge = select(squares, n, kind, value, digits, scale, resolution[0] * largest, 0.0, 0.0)
    return rank, resolved(squares, n, kind, value, rank, threshold, resolution[2] * largest), threshold, edge


@jit
def decompose(G, n, kind, value, digits, scale, resolution, work, sweeps, d, Z):
    """Eigenpairs of G (overwritten), the rank and whether the Gram route may answer.

    Returns (route, rank, threshold, edge): EIGEN, or SVD where the Gram matrix cannot tell.
    """
    if not (eigh(G, n, d, Z, work, sweeps) and math.isfinite(d[0])):
        return SVD, 0, 0.0, False
    rank, clear, threshold, edge = _judge(d, n, kind, value, digits, scale, resolution)
    return EIGEN if clear else SVD, rank, threshold, edge


@jit
def truncated_solve(A, n, x, kind, value, digits, scale, resolution, work, spectrum, rotations, sweeps):
    """x <- A^+ x, truncated, without eigenvectors: the rotations of QL go to x and, undone, back.

    Returns the route EIGEN, or SVD where the Gram matrix A cannot tell; A is overwritten. spectrum is a
    (2, >= n) scratch, for the eigenvalues as QL leaves them and largest first.
    """
    tridiagonalize(A, n, spectrum[0], work[3], work[4], work)
    return reduced_solve(
        A, n, x, work[4], work[3], kind, value, digits, scale, resolution, work[0], spectrum, rotations, sweeps
    )


@kernel
def reduced_solve(A, n, x, beta, e, kind, value, digits, scale, resolution, y, spectrum, rotations, sweeps):
    """`truncated_solve` of a matrix whose reflectors are in A and beta, its tridiagonal form in spectrum[0] and e."""
    d, ordered = spectrum[0], spectrum[1]
    reflect(A, n, beta, x, True)
    for i in range(n):  # T is last first
        y[i] = x[n - 1 - i]
    converged, swept = ql(d, e, n, False, A, y, rotations, sweeps)
    for i in range(n):  # by insertion: they come nearly in order
        j = i
        while j > 0 and ordered[j - 1] < d[i]:
            ordered[j] = ordered[j - 1]
            j -= 1
        ordered[j] = d[i]
    if not (converged and math.isfinite(ordered[0])):
        return SVD
    rank, clear = _judge(ordered, n, kind, value, digits, scale, resolution)[:2]
    if not clear:
        return SVD
    for i in range(n):
        y[i] = y[i] / d[i] if rank and d[i] >= ordered[rank - 1] else 0.0
    unrotate(y, rotations, sweeps, swept)
    for i in range(n):
        x[i] = y[n - 1 - i]
    reflect(A, n, beta, x, False)
    return EIGEN


@jit
def reduce_snapshots(S, m, rank, d, Z, basis, operator, start, work):
    """Tall: U = F basis is orthonormal, operator = U^T K U, start = U^T x_last; readout = Fp basis.

    basis (m, rank) = V Lambda^-1/2, in its first `rank` columns; everything scaled like S. F^T Fp is F^T F a column
    further on, then h = F^T x_last, so that V^T F^T Fp is Lambda V^T a column further on, then V^T h.
    """
    for r in range(rank):
        start[r] = dot(S[m], Z[r], m)
    for r in range(rank):  # row r of V^T F^T Fp, then of that times V
        for j in range(m - 1):
            work[j] = d[r] * Z[r, j + 1]
        work[m - 1] = start[r]
        matvec(Z, work, rank, m, operator[r])
    for r in range(rank):
        scale = 1.0 / math.sqrt(d[r])
        start[r] *= scale
        for k in range(rank):
            operator[r, k] *= scale / math.sqrt(d[k])
        for i in range(m):
            basis[i, r] = Z[r, i] * scale


@jit
def reduce_weights(D, last, n, rank, d, Z, basis, readout, operator, start):
    """Wide: U = basis (n, rank) are eigenvectors, readout = D U / L, operator = U^T readout, start = U^T x_last."""
    for r in range(rank):
        start[r] = dot(last, Z[r], n)
        scale = 1.0 / d[r]
        for i in range(n):
            basis[i, r] = Z[r, i]
            readout[i, r] = dot(D[i], Z[r], n) * scale
    for r in range(rank):
        clear(operator[r], 0, rank)
        for i in range(n):
            axpy(Z[r, i], readout[i], operator[r], rank)


@jit
def companion(a, m, M):
    """M = F^+ Fp of a full-rank tall block: a shift whose last column is a = F^+ x_last."""
    for i in range(m):
        clear(M[i], 0, m)
        if i:
            M[i, i - 1] = 1.0
        M[i, m - 1] = a[i]


@jit
def advance(M, n, y, steps, spare, P, Q):
    """y <- M^steps y: one product a step, or repeated squaring where that is less work. P, Q are n x n scratch."""
    if squaring_pays(steps, n):
        copy_rows(M, P, n, n)
        while steps:
            if steps & 1:
                matvec(P, y, n, n, spare)
                copy(spare, y, 0, n)
            steps >>= 1
            if steps:
                matmul(P, P, n, Q)
                copy_rows(Q, P, n, n)
        return
    for _ in range(steps):
        matvec(M, y, n, n, spare)
        copy(spare, y, 0, n)


@jit
def follow_companion(a, m, steps, c):
    """`advance_companion` a step at a time."""
    for _ in range(steps):
        top = c[m - 1]
        for i in range(m - 1, 0, -1):
            c[i] = c[i - 1] + top * a[i]
        c[0] = top * a[0]


@jit
def advance_companion(a, m, steps, c, spare, M, P, Q):
    """c <- (F^+ Fp)^steps c for a full-rank tall block: a scalar recurrence, O(m) a step."""
    if companion_squaring_pays(steps, m):
        companion(a, m, M)
        advance(M, m, c, steps, spare, P, Q)
        return
    follow_companion(a, m, steps, c)


@jit
def inverse_apply(R, n, w, spare, y):
    """y = (R^T R)^-1 w."""
    copy(w, y, 0, n)
    solve_lower(R, n, y, spare)
    solve_upper(R, n, spare, y)


@jit
def advance_wide(R, D, n, steps, w, spare, y):
    """w <- (D C^-1)^steps w with C = R^T R."""
    for _ in range(steps):
        inverse_apply(R, n, w, spare, y)
        matvec(D, y, n, n, w)


@jit
def reduced(S, order, last2, kind, value, digits, resolution, work, sweeps, d, Z, G, report):
    """Normalize S and take its eigenpairs: route, rank to reduce to, rank, edge, scale; the report of one block."""
    size = trace(S, order)
    clear(report, 0, 3)
    route = triage(size, last2)
    if route != EIGEN:
        return route, 0, 0, False, 1.0
    scale = normalize(S, len(S), S.shape[1], size)
    copy_rows(S, G, order, order)
    route, kept, threshold, edge = decompose(G, order, kind, value, digits, scale, resolution, work, sweeps, d, Z)
    report[0] = threshold * scale
    if kept:
        report[1] = math.sqrt(d[0]) * scale
        report[2] = math.sqrt(max(d[kept - 1], 0.0)) * scale
    usable = route != SVD or not kept or d[kept - 1] > 0.0  # else nothing a Gram matrix could say
    return route, kept if usable else 0, kept, edge, scale


@kernel
def solve_tall(
    first, last, gram, kind, value, digits, resolution, basis, readout, operator, start, rank, reports, edge, route
):
    """Reduced operators from Gram matrices. reports[b] = threshold, largest and smallest kept singular value."""
    order = gram.shape[1] - 1
    S, G, Z = matrix(order + 1, order + 1), tile_of(order, order), tile_of(order, order)
    d, work, sweeps = vector(order), tile_of(5, order), integers(1, 3)
    for b in range(first, last):
        copy_rows(gram[b], S, order + 1, order + 1)
        route[b], kept, rank[b], edge[b], scale = reduced(
            S, order, S[order, order], kind, value, digits, resolution, work, sweeps, d, Z, G, reports[b]
        )
        reduce_snapshots(S, order, kept, d, Z, basis[b], operator[b], start[b], work[3])
        for i in range(order):
            for r in range(kept):
                basis[b, i, r] /= scale  # F, unlike S, has not been scaled
        for r in range(kept):
            start[b, r] *= scale


@kernel
def solve_wide(
    first, last, gram, kind, value, digits, resolution, basis, readout, operator, start, rank, reports, edge, route
):
    """The same of wide blocks."""
    order = gram.shape[2]
    S, G, Z = matrix(2 * order, order), tile_of(order, order), tile_of(order, order)
    d, work, sweeps = vector(order), tile_of(5, order), integers(1, 3)
    for b in range(first, last):
        newest = gram[b, 2 * order]
        copy_rows(gram[b], S, 2 * order, order)
        route[b], kept, rank[b], edge[b], _ = reduced(
            S, order, dot(newest, newest, order), kind, value, digits, resolution, work, sweeps, d, Z, G, reports[b]
        )
        reduce_weights(S[order:], newest, order, kept, d, Z, basis[b], readout[b], operator[b], start[b])


@kernel
def evolve_near(first, last, readout, operator, start, rank, steps, out):
    """out[b, k] = readout operator^(steps[k] - 1) start; steps ascend from 1, with gaps for which no squaring pays."""
    order = operator.shape[1]
    y, spare = vector(order), vector(order)
    for b in range(first, last):
        r = rank[b]
        copy(start[b], y, 0, order)
        at = 1
        for k in range(len(steps)):
            for _ in range(steps[k] - at):
                matvec(operator[b], y, r, r, spare)
                copy(spare, y, 0, r)
            at = steps[k]
            matvec(readout[b], y, out.shape[2], r, out[b, k])


@kernel
def evolve_range(first, last, readout, operator, start, rank, steps, out):
    """The same for any gaps."""
    order = operator.shape[1]
    y, spare = vector(order), vector(order)
    P, Q = matrix(order, order), matrix(order, order)
    for b in range(first, last):
        r = rank[b]
        copy(start[b], y, 0, order)
        at = 1
        for k in range(len(steps)):
            advance(operator[b], r, y, steps[k] - at, spare, P, Q)
            at = steps[k]
            matvec(readout[b], y, out.shape[2], r, out[b, k])


@kernel
def advance_range(first, last, operator, rank, steps, y):
    """y[b] <- operator^steps y[b], in place."""
    order = operator.shape[1]
    spare, P, Q = vector(order), matrix(order, order), matrix(order, order)
    for b in range(first, last):
        advance(operator[b], rank[b], y[b], steps, spare, P, Q)
