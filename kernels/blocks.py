"""The Numba kernels: the algebra of one block, and loops over a range of blocks.

Tall blocks (n > m) work with S = X^T X, (m+1, m+1): G = F^T F, H = F^T Fp and h = F^T x_last are its
sub-blocks. Wide blocks (n <= m) work with S = [F F^T; Fp F^T; x_last^T], (2n+1, n). Data is read through
`Blocks` (layout.py) in tiles that fit the L2 cache, converted to float64 once, products summed in float64.

Every result depends on its own block alone: any range, any thread, any neighbours give the same bits.
"""

from __future__ import annotations

import math

import numpy as np

from .cutoffs import MEDIAN, RELATIVE, SPACING, limit, resolved, select
from .dense import axpy, cholesky, dot, eigh, inverse_norm2, matmul, solve_upper
from .jit import jit, jit_sums
from .plan import CHOLESKY, CONSTANT, EIGEN, NON_FINITE, SVD, ZERO

TILE = 256  # columns of a tile; its rows are the m + 1 snapshots, or the n weights
MICRO = 3  # the register block of the Gram kernel is MICRO x MICRO dot products


@jit
def padded(rows):
    """Rows of a tile: a multiple of the register block."""
    return (rows + MICRO - 1) // MICRO * MICRO


@jit
def load(flat, start, row_stride, stride, rows, width, tile):
    """Tile rows from memory, as float64; columns up to a multiple of 4 are zero-filled."""
    for r in range(rows):
        first = start + r * row_stride
        row = tile[r]
        if stride == 1:
            source = flat[first : first + width]  # a slice needs no check for negative indices in the loop
            for i in range(width):
                row[i] = source[i]
        else:
            for i in range(width):
                row[i] = flat[first + i * stride]
        for i in range(width, min((width + 3) // 4 * 4, TILE)):
            row[i] = 0.0


@jit_sums
def products(T, U, rows, width, lower, S):
    """S += T U^T, MICRO x MICRO entries at a time; only register blocks on or below the diagonal if `lower`."""
    for i in range(0, rows, 3):
        a, b, c = T[i], T[i + 1], T[i + 2]
        for j in range(0, i + 3 if lower else rows, 3):
            x, y, z = U[j], U[j + 1], U[j + 2]
            ax = ay = az = bx = by = bz = cx = cy = cz = 0.0
            for k in range(width):
                ax += a[k] * x[k]
                ay += a[k] * y[k]
                az += a[k] * z[k]
                bx += b[k] * x[k]
                by += b[k] * y[k]
                bz += b[k] * z[k]
                cx += c[k] * x[k]
                cy += c[k] * y[k]
                cz += c[k] * z[k]
            S[i, j] += ax
            S[i, j + 1] += ay
            S[i, j + 2] += az
            S[i + 1, j] += bx
            S[i + 1, j + 1] += by
            S[i + 1, j + 2] += bz
            S[i + 2, j] += cx
            S[i + 2, j + 1] += cy
            S[i + 2, j + 2] += cz


@jit
def mirror(S, n):
    """Copy the lower triangle to the upper one."""
    for i in range(n):
        for j in range(i):
            S[j, i] = S[i, j]


@jit
def gram_snapshots(flat, start, time_stride, stride, n, columns, tile, S):
    """Full S = X^T X over n weights; S and tile have padded(columns) rows."""
    S[:, :] = 0.0
    for i in range(0, n, TILE):
        width = min(TILE, n - i)
        load(flat, start + i * stride, time_stride, stride, columns, width, tile)
        products(tile, tile, padded(columns), min((width + 3) // 4 * 4, TILE), True, S)
    mirror(S, columns)


@jit
def gram_weights(flat, start, time_stride, stride, n, m, cross, tile, after, C, D):
    """C = F F^T over m snapshots, and D = Fp F^T if `cross`; all matrices have padded(n) rows."""
    C[:, :] = 0.0
    D[:, :] = 0.0
    for t in range(0, m, TILE):
        width = min(TILE, m - t)
        load(flat, start + t * time_stride, stride, time_stride, n, width, tile)
        products(tile, tile, padded(n), min((width + 3) // 4 * 4, TILE), True, C)
        if cross:
            load(flat, start + (t + 1) * time_stride, stride, time_stride, n, width, after)
            products(after, tile, padded(n), min((width + 3) // 4 * 4, TILE), False, D)
    mirror(C, n)


@jit
def apply_snapshots(flat, start, time_stride, stride, n, rows, c, w):
    """w = sum over rows t of c[t] snapshot[t], in float64, four rows to a pass over w."""
    w[:n] = 0.0
    t = 0
    while t < rows:
        first = start + t * time_stride
        if c[t] == 0.0:  # past the block's own rank
            t += 1
        elif stride == 1 and t + 4 <= rows:
            a, b = flat[first : first + n], flat[first + time_stride : first + time_stride + n]
            first += 2 * time_stride
            x, y = flat[first : first + n], flat[first + time_stride : first + time_stride + n]
            p, q, r, s = c[t], c[t + 1], c[t + 2], c[t + 3]
            for i in range(n):
                w[i] += (p * a[i] + q * b[i]) + (r * x[i] + s * y[i])
            t += 4
        else:
            for i in range(n):
                w[i] += c[t] * flat[first + i * stride]
            t += 1


@jit_sums
def project_snapshots(flat, start, time_stride, stride, n, rows, v, g):
    """g[t] = snapshot[t] . v for t < rows, in float64."""
    for t in range(rows):
        first = start + t * time_stride
        total = 0.0
        if stride == 1:
            source = flat[first : first + n]
            for i in range(n):
                total += source[i] * v[i]
        else:
            for i in range(n):
                total += flat[first + i * stride] * v[i]
        g[t] = total


@jit
def is_constant(flat, start, time_stride, stride, n, columns):
    """Whether all snapshots equal the last; live blocks leave at the first weight that moved."""
    last = start + (columns - 1) * time_stride
    for t in range(columns - 1):
        first = start + t * time_stride
        for i in range(n):
            if flat[first + i * stride] != flat[last + i * stride]:
                return False
    return True


@jit
def is_finite(flat, start, time_stride, stride, n, columns):
    """Whether every entry of the block is finite."""
    for t in range(columns):
        first = start + t * time_stride
        for i in range(n):
            if not math.isfinite(flat[first + i * stride]):
                return False
    return True


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
def gram_range(first, last, flat, offsets, time_stride, stride, n, columns, wide, out):
    """out[b]: (columns, columns) of a tall block, (2n+1, n) of a wide one."""
    rows = padded(n if wide else columns)
    tile, after = np.zeros((rows, TILE)), np.zeros((rows, TILE))
    S, D = np.empty((rows, rows)), np.empty((rows, rows))
    for b in range(first, last):
        start = offsets[b]
        if wide:
            gram_weights(flat, start, time_stride, stride, n, columns - 1, True, tile, after, S, D)
            for i in range(n):
                for j in range(n):
                    out[b, i, j] = S[i, j]
                    out[b, n + i, j] = D[i, j]
                out[b, 2 * n, i] = flat[start + (columns - 1) * time_stride + i * stride]
        else:
            gram_snapshots(flat, start, time_stride, stride, n, columns, tile, S)
            for i in range(columns):
                for j in range(columns):
                    out[b, i, j] = S[i, j]


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


@jit
def combine_range(first, last, flat, offsets, time_stride, stride, n, rows, coefficients, out):
    """out[k, b] = sum over t of coefficients[b, k, t] snapshot[t]: reads a block once a state, writes once."""
    w = np.empty(n)
    for b in range(first, last):
        for k in range(coefficients.shape[1]):
            apply_snapshots(flat, offsets[b], time_stride, stride, n, rows, coefficients[b, k], w)
            for i in range(n):
                out[k, b, i] = w[i]


@jit
def predict_tall(
    first, last, flat, offsets, time_stride, stride, n, m, steps, kind, value, digits, resolution, out, status
):
    """out[b] = K^steps x_last, steps >= 1, fused: reads the block twice (the second time from cache)."""
    rows = padded(m + 1)
    tile, S = np.zeros((rows, TILE)), np.empty((rows, rows))
    L, W, P = np.empty((m + 1, m + 1)), np.empty((m, m)), np.empty((m, m))
    Z, basis, operator = np.empty((m, m)), np.empty((m, m)), np.empty((m, m))
    d, y, spare, work = np.empty(m), np.empty(m), np.empty(m), np.empty((4, m + 1))
    c, w = np.empty(m), np.empty(n)
    for b in range(first, last):
        begin = offsets[b]
        gram_snapshots(flat, begin, time_stride, stride, n, m + 1, tile, S)
        size = trace(S, m)
        status[b] = triage(size, S[m, m], flat, begin, time_stride, stride, n, m + 1)
        c[:] = 0.0
        if status[b] != EIGEN:
            c[:] = np.nan if status[b] == NON_FINITE else 0.0
        elif keeps_rank_one(kind, value) and is_constant(flat, begin, time_stride, stride, n, m + 1):
            status[b] = CONSTANT
            c[m - 1] = 1.0  # K x = x
        else:
            scale = normalize(S, m + 1, m + 1, size)
            if cholesky(S, m, 1, L) and certified(L, m, S, kind, value, digits, scale, resolution, W):
                status[b] = CHOLESKY
                y[:] = L[m, :m]
                solve_upper(L, m, y, c)
                d[:] = c
                advance_companion(d, m, steps - 1, c, spare, operator, W, P)
            else:
                W[:, :] = S[:m, :m]
                status[b], rank, _, _ = decompose(W, m, kind, value, digits, scale, resolution, work, d, Z)
                if status[b] == EIGEN:
                    reduce_snapshots(S, m, rank, d, Z, basis, operator, y, work[3])
                    advance(operator, rank, y, steps - 1, spare, W, P)
                    for i in range(m):
                        c[i] = dot(basis[i], y, rank)
        if status[b] != SVD:
            apply_snapshots(flat, begin + time_stride, time_stride, stride, n, m, c, w)
            for i in range(n):
                out[b, i] = w[i]


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
def predict_wide(
    first, last, flat, offsets, time_stride, stride, n, m, steps, kind, value, digits, resolution, out, status
):
    """out[b] = K^steps x_last, steps >= 1, of wide blocks; one step needs no Fp F^T: x1 = Fp (F^T (C^+ x))."""
    rows = padded(n)
    tile, after = np.zeros((rows, TILE)), np.zeros((rows, TILE))
    C, D = np.empty((rows, rows)), np.empty((rows, rows))
    L, W, P = np.empty((n + 1, n + 1)), np.empty((n, n)), np.empty((n, n))
    Z, basis, operator, lift = np.empty((n, n)), np.empty((n, n)), np.empty((n, n)), np.empty((n, n))
    d, y, spare, work = np.empty(n), np.empty(n), np.empty(n), np.empty((4, n + 1))
    w, g = np.empty(n), np.empty(m)
    many = steps > 1
    for b in range(first, last):
        begin = offsets[b]
        final = begin + m * time_stride
        gram_weights(flat, begin, time_stride, stride, n, m, many, tile, after, C, D)
        for i in range(n):
            w[i] = flat[final + i * stride]
        size = trace(C, n)
        status[b] = triage(size, dot(w, w, n), flat, begin, time_stride, stride, n, m + 1)
        if status[b] != EIGEN:
            w[:] = np.nan if status[b] == NON_FINITE else 0.0
        elif keeps_rank_one(kind, value) and is_constant(flat, begin, time_stride, stride, n, m + 1):
            status[b] = CONSTANT
        else:
            scale = normalize(C, n, n, size)
            if many:
                normalize(D, n, n, size)
            full = cholesky(C, n, 0, L) and certified(L, n, C, kind, value, digits, scale, resolution, W)
            if full:
                status[b] = CHOLESKY
            else:
                W[:, :] = C[:n, :n]
                status[b], rank, _, _ = decompose(W, n, kind, value, digits, scale, resolution, work, d, Z)
            if full and not many:
                inverse_apply(L, n, w, spare, y)
            elif full and steps > 64 and steps > 4.0 * n * math.log2(steps):
                for i in range(n):
                    inverse_apply(L, n, D[i], spare, operator[i])  # K = D C^-1, to be squared
                advance(operator, n, w, steps, spare, W, P)
            elif full:
                advance_wide(L, D, n, steps, w, spare, y)
            elif status[b] == EIGEN and not many:
                y[:] = 0.0
                for r in range(rank):
                    axpy(dot(w, Z[r], n) / d[r], Z[r], y, n)
            elif status[b] == EIGEN:
                reduce_weights(D, w, n, rank, d, Z, basis, lift, operator, y)
                advance(operator, rank, y, steps - 1, spare, W, P)
                for i in range(n):
                    w[i] = dot(lift[i], y, rank)
            if not many and status[b] != SVD:
                unscale = 1.0 / (scale * scale)
                for i in range(n):
                    y[i] *= unscale
                project_snapshots(flat, begin, time_stride, stride, n, m, y, g)
                apply_snapshots(flat, begin + time_stride, time_stride, stride, n, m, g, w)
        if status[b] != SVD:
            for i in range(n):
                out[b, i] = w[i]


@jit
def pinv_range(
    first, last, flat, offsets, time_stride, stride, n, m, wide, kind, value, digits, resolution, out, status
):
    """out[b] = F^+ (m, n) of blocks whose m columns are all of the data: V (Lambda^-1 (V^T F^T)), factored."""
    order = n if wide else m
    rows = padded(order)
    tile, S, D = np.zeros((rows, TILE)), np.empty((rows, rows)), np.empty((rows, rows))
    W, Z = np.empty((order, order)), np.empty((order, order))
    d, work = np.empty(order), np.empty((4, order + 1))
    x, y = np.empty(order), np.empty(order)
    for b in range(first, last):
        begin = offsets[b]
        # one loop for both: lines of `order` numbers, across the snapshots (tall) or across the weights (wide)
        if wide:
            gram_weights(flat, begin, time_stride, stride, n, m, False, tile, tile, S, D)
            lines, line_stride, inner = m, time_stride, stride
        else:
            gram_snapshots(flat, begin, time_stride, stride, n, m, tile, S)
            lines, line_stride, inner = n, stride, time_stride
        size = trace(S, order)
        status[b] = triage(size, 0.0, flat, begin, time_stride, stride, n, m)
        rank, unscale = 0, 0.0
        if status[b] == EIGEN:
            scale = normalize(S, order, order, size)
            W[:, :] = S[:order, :order]
            status[b], rank, _, _ = decompose(W, order, kind, value, digits, scale, resolution, work, d, Z)
            unscale = 1.0 / (scale * scale)
        if status[b] == SVD:
            continue
        for line in range(lines):
            for i in range(order):
                x[i] = flat[begin + line * line_stride + i * inner]
            y[:] = 0.0 if status[b] != NON_FINITE else np.nan
            for r in range(rank):
                axpy(dot(x, Z[r], order) / d[r] * unscale, Z[r], y, order)
            for i in range(order):
                if wide:
                    out[b, line, i] = y[i]
                else:
                    out[b, i, line] = y[i]


@jit
def finite_range(first, last, flat, offsets, time_stride, stride, n, columns, out):
    """out[b]: whether block b is finite."""
    for b in range(first, last):
        out[b] = is_finite(flat, offsets[b], time_stride, stride, n, columns)
