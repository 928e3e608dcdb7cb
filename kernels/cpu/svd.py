"""Small blocks whose cutoff a Gram matrix cannot resolve, in Numba: QR, then one-sided Jacobi where it must be.

Householder's QR brings a block to a triangle R of order p = min(n, m), whose rows Jacobi rotations make orthogonal
(Hestenes 1958). A tall F = Q R: the rows become s_i v_i^T, and Q^T x_last, a column beside them, U^T x_last. A wide
F^T = Q R: the rows become s_i u_i^T, and Q^T Fp^T beside them V^T Fp^T. Rows that count are then orthonormalized. Where
the triangle is proved to have full rank at the cutoff, a prediction needs no rotations.
"""

from __future__ import annotations

import math

import numpy as np

from ..plan import NON_FINITE, QR, SVD, UNRESOLVED, ZERO
from .algebra import advance, advance_companion
from .dense import EPS, NEGLIGIBLE, axpy, dot, dot4, matvec, place_of_largest, swap
from .gram import apply_snapshots, is_finite, load
from .jit import jit, kernel
from .scratch import integers, matrix, tile_of, vector
from .selection import floor, limit, needs_largest_only, select, squaring_pays
from .simd import LANES, add, clear, copy, inner, lanes, rotate, scale, tail

SWEEPS = 30  # 6 to 10 are usual


@jit
def triangularize(V, rows, extra, length, order, left, v):
    """Householder's QR of `rows` vectors of `length` >= rows numbers, the rows of V, the longest remainder first.

    Afterwards row k of V is the vector that was number order[k], V[j, k] for k <= j < rows is R[k, j], and the first
    `rows` numbers of the `extra` rows below are Q^T times what they were. left (rows,) and v are scratch. Rows of R
    that fall off in length leave the Jacobi rotations less to do (Drmač & Veselić 2008).
    """
    end, count = lanes(length), rows + extra
    for j in range(rows):
        order[j], left[j] = j, dot(V[j], V[j], length)
    negligible = (
        NEGLIGIBLE * NEGLIGIBLE * left[place_of_largest(left, 0, rows)]
    )  # as in `tridiagonalize`: cascades down into underflow
    for k in range(min(rows, length)):
        longest = place_of_largest(left, k, rows)
        if longest != k:
            order[k], order[longest] = order[longest], order[k]
            left[k], left[longest] = left[longest], left[k]
            swap(V[longest], V[k], end)
        first = k // LANES * LANES
        head, size = V[k, k], length - k - 1
        below = tail(V[k], k + 1)
        rest = dot(below, below, size)
        if rest <= negligible:
            clear(V[k], k + 1, end)
        else:
            alpha = -math.copysign(math.sqrt(head * head + rest), head)
            copy(V[k], v, first, end)
            clear(v, first, k)
            v[k] = head - alpha
            b = 2.0 / (v[k] * v[k] + rest)
            V[k, k] = alpha
            clear(V[k], k + 1, end)
            w, j = tail(v, first), k + 1
            while j + 4 <= count:
                x, y, z, u = tail(V[j], first), tail(V[j + 1], first), tail(V[j + 2], first), tail(V[j + 3], first)
                p, q, r, s = dot4(x, y, z, u, w, end - first)
                add(first, end, -b * p, v, V[j])
                add(first, end, -b * q, v, V[j + 1])
                add(first, end, -b * r, v, V[j + 2])
                add(first, end, -b * s, v, V[j + 3])
                j += 4
            for i in range(j, count):
                add(first, end, -b * dot(tail(V[i], first), w, end - first), v, V[i])
        for j in range(k + 1, rows):  # good enough for an order, cancellation or not
            left[j] -= V[j, k] * V[j, k]


@jit
def orthogonalize(A, n, width, squares):
    """Rotate the n rows of A, (n, lanes(width)), until their first lanes(n) numbers are orthogonal; largest row first.

    squares: (n,) the rows' squared norms, as they come out. Rows count as orthogonal when their product is below
    rounding, relative to their own norms or to the norm of the matrix. False if SWEEPS do not suffice. (Rounds of
    disjoint pairs, which the processor could overlap, took more of them and were no faster.)
    """
    part, end = lanes(n), lanes(width)
    for _ in range(SWEEPS):
        for i in range(n):
            squares[i] = inner(part, A[i], A[i])
        top = squares[place_of_largest(squares, 0, n)]
        done = True
        for p in range(n):
            large = place_of_largest(squares, p, n)  # the larger first: de Rijk 1989
            if large != p:
                squares[p], squares[large] = squares[large], squares[p]
                swap(A[large], A[p], end)
            for q in range(p + 1, n):
                product = inner(part, A[p], A[q])
                a, b = squares[p], squares[q]
                if product * product <= EPS * EPS * max(a, b) * max(4.0 * n * min(a, b), 0.0025 * top):
                    continue
                done = False
                zeta = (b - a) / (2.0 * product)
                t = math.copysign(1.0, zeta) / (abs(zeta) + math.sqrt(1.0 + zeta * zeta))
                c = 1.0 / math.sqrt(1.0 + t * t)
                rotate(0, end, c, c * t, A[p], A[q])
                squares[p], squares[q] = a - t * product, max(b + t * product, 0.0)
        if done:
            return True
    return False


@jit
def orthonormalize(A, n, rank, squares):
    """The first n numbers of rows 0 .. rank of A, orthogonal and falling in length, made orthonormal.

    `orthogonalize` leaves products below rounding of the longest row, which of short rows is much: a solution would err
    by the square of the condition. Gram and Schmidt's way, longest first, changes F by no more than rounding.
    """
    for k in range(rank):
        size = math.sqrt(squares[k])
        for i in range(n):
            A[k, i] /= size
        for _ in range(2):  # once is enough but for rows that were rounding alone
            for j in range(k):
                axpy(-dot(A[j], A[k], n), A[j], A[k], n)
            size = math.sqrt(dot(A[k], A[k], n))
            if size == 0.0:
                break
            for i in range(n):
                A[k, i] /= size
            if size > 0.5:
                break


@jit
def scale_of(flat, start, time_stride, stride, n, m):
    """The power of two that brings the largest entry of F near 1, 0 if all are zero, NaN if any is not finite."""
    if not is_finite(flat, start, time_stride, stride, n, m + 1):
        return np.nan
    largest = 0.0
    for t in range(m):
        for i in range(n):
            largest = max(largest, abs(np.float64(flat[start + t * time_stride + i * stride])))
    return math.ldexp(1.0, math.frexp(largest)[1] - 1) if largest > 0.0 else 0.0


@jit
def rows_of(flat, start, time_stride, stride, n, m, wide, V, size):
    """The vectors that `triangularize` takes, divided by `size`: snapshots, or weights over F, then over Fp."""
    if wide:
        load(flat, start, stride, time_stride, n, m, -1, V)
        load(flat, start + time_stride, stride, time_stride, n, m, -1, V[n:])
    else:
        load(flat, start, time_stride, stride, m + 1, n, -1, V)
    inverse = 1.0 / size
    for row in V:
        if math.isfinite(inverse):
            for i in range(len(row)):
                row[i] *= inverse
        else:  # of a denormal
            for i in range(len(row)):
                row[i] /= size


@jit
def inverse_norm2(L, n, W):
    """Squared Frobenius norm of L^-1 for a lower triangle L, >= 1 / its smallest singular value squared."""
    total = 0.0
    for i in range(n):
        end = lanes(i + 1)
        clear(W[i], 0, end)
        for k in range(i):
            add(0, lanes(k + 1), -L[i, k], W[k], W[i])
        W[i, i] = 1.0
        scale(0, end, 1.0 / L[i, i], W[i])
        total += dot(W[i], W[i], i + 1)
    return total


@jit
def full_rank(L, n, kind, value, digits, size, resolution, W):
    """Prove that every singular value of the lower triangle L counts: they exceed the cutoff by the SVD's resolution.

    The largest is at most ||L||_F, the smallest at least (1 - rho) / ||W||_F for any W with ||L W - I||_F <= rho < 1,
    and forward substitution leaves rho <= (n + 1) eps / 2 ||L||_F ||W||_F (Higham 2002, theorem 8.5, and a rounding for
    the reciprocal of the pivot); (n + 2) eps covers the norms' own rounding as well, as their product is at least n.
    """
    if not needs_largest_only(kind):
        return False
    largest = 0.0
    for i in range(n):
        if L[i, i] == 0.0:
            return False
        largest += dot(L[i], L[i], i + 1)
    largest = math.sqrt(largest)
    needed = limit(largest, kind, value, digits, size) + (resolution[1] + (n + 2) * EPS) * largest
    return needed * math.sqrt(inverse_norm2(L, n, W)) < 1.0


@jit
def reduce_triangle(
    V, places, x, n, m, kind, value, digits, unit, resolution, A, squares, work, basis, readout, operator, start
):
    """The reduced operator of a block divided by `unit`, from its triangle in V, x = x_last / unit; the last four are
    the block's own results.

    Returns (route, rank, threshold, largest and smallest kept singular value, edge), the values in the units of the
    block itself; route UNRESOLVED where the iteration fails.
    """
    wide = n <= m
    order, length = (n, m) if wide else (m, n)
    beside, extra = lanes(order), n if wide else 1  # where the columns begin that are rotated along; how many
    for i in range(order):
        clear(A[i], 0, A.shape[1])
        for j in range(i, order):
            A[i, places[j]] = V[j, i]
        for j in range(extra):
            A[i, beside + j] = V[order + j, i]
    if not orthogonalize(A, order, beside + extra, squares):
        return UNRESOLVED, 0, 0.0, 0.0, 0.0, False
    largest = math.sqrt(squares[0])
    if largest == 0.0:  # only x_last is not zero: F^+ = 0
        return ZERO, 0, 0.0, 0.0, 0.0, False
    least = floor(kind, length, largest)
    rank, threshold, edge = select(squares, order, kind, value, digits, unit, 0.0, resolution[1] * largest, least)
    orthonormalize(A, order, rank, squares)
    for k in range(rank):
        size = math.sqrt(squares[k])
        if wide:
            start[k] = dot(A[k], x, n)
            matvec(A, tail(A[k], beside), rank, n, work)
            for i in range(rank):
                operator[i, k] = work[i] / size
            for i in range(n):
                basis[i, k], readout[i, k] = A[k, i], A[k, beside + i] / size
        else:
            start[k] = A[k, beside]
            for j in range(m - 1):
                work[j] = A[k, j + 1] * size
            work[m - 1] = A[k, beside]
            matvec(A, work, rank, m, operator[k])
            for i in range(rank):
                operator[k, i] /= math.sqrt(squares[i])
            for i in range(m):
                basis[i, k] = A[k, i] / size
    smallest = math.sqrt(squares[rank - 1]) * unit if rank else 0.0
    return SVD, rank, threshold * unit, largest * unit if rank else 0.0, smallest, edge


@kernel
def svd_range(
    first, last, flat, offsets, time_stride, stride, n, m, kind, value, digits, resolution, basis, readout, operator,
    start, rank, reports, edge, route,
):  # fmt: skip
    """Reduced operators like `solve_range`'s, from the data itself; route UNRESOLVED where the iteration fails."""
    wide = n <= m
    order, length, extra = (n, m, n) if wide else (m, n, 1)
    V, v, A = tile_of(order + extra, length), tile_of(1, length)[0], tile_of(order, lanes(order) + extra)
    squares, left, places, x = vector(order), vector(order), integers(1, order)[0], vector(n)
    work = vector(order)
    for b in range(first, last):
        clear(reports[b], 0, 3)
        unit = scale_of(flat, offsets[b], time_stride, stride, n, m)
        route[b] = NON_FINITE if math.isnan(unit) else ZERO
        if unit > 0.0:
            rows_of(flat, offsets[b], time_stride, stride, n, m, wide, V, unit)
            triangularize(V, order, extra, length, places, left, v)
            for i in range(n):
                x[i] = flat[offsets[b] + m * time_stride + i * stride] / unit
            route[b], rank[b], reports[b, 0], reports[b, 1], reports[b, 2], edge[b] = reduce_triangle(
                V, places, x, n, m, kind, value, digits, unit, resolution, A, squares, work, basis[b], readout[b],
                operator[b], start[b],
            )  # fmt: skip
            for k in range(rank[b]):
                start[b, k] *= unit
                if not wide:
                    for i in range(m):
                        basis[b, i, k] /= unit
                        if not math.isfinite(basis[b, i, k]):  # float64 holds no inverse of a subnormal number
                            route[b], rank[b] = UNRESOLVED, 0


@jit
def step_wide(V, places, n, c, w):
    """w <- Fp F^+ w of a wide block of full rank; F^T = Q R with its columns in the order of `places`."""
    for j in range(n):
        c[j] = (w[places[j]] - dot(V[j], c, j)) / V[j, j]
    matvec(V[n:], c, n, n, w)


@kernel
def predict_exact(
    first, last, flat, offsets, time_stride, stride, n, m, steps, kind, value, digits, resolution, out, route
):
    """out[b] = K^steps x_last, steps >= 1, from the data itself: by the triangle alone where that has full rank."""
    wide = n <= m
    order, length, extra = (n, m, n) if wide else (m, n, 1)
    V, v, A = tile_of(order + extra, length), tile_of(1, length)[0], tile_of(order, lanes(order) + extra)
    squares, left, places, w = vector(order), vector(order), integers(1, order)[0], vector(n)
    a, c, y, spare, W = vector(order), vector(order), vector(order), vector(order), tile_of(order, order)
    basis, readout, operator = matrix(order, order), matrix(order, order), matrix(order, order)
    P, Q = matrix(order, order), matrix(order, order)
    for b in range(first, last):
        begin = offsets[b]
        unit = scale_of(flat, begin, time_stride, stride, n, m)
        route[b] = NON_FINITE if math.isnan(unit) else ZERO
        w[:] = np.nan if math.isnan(unit) else 0.0
        if unit > 0.0:
            rows_of(flat, begin, time_stride, stride, n, m, wide, V, unit)
            triangularize(V, order, extra, length, places, left, v)
            for i in range(n):
                w[i] = flat[begin + m * time_stride + i * stride] / unit
            if full_rank(V, order, kind, value, digits, unit, resolution, W):
                route[b] = QR
                if wide:
                    if squaring_pays(steps, n):  # K itself, to be squared
                        for i in range(n):
                            clear(y, 0, n)
                            y[i] = 1.0
                            step_wide(V, places, n, c, y)
                            for j in range(n):
                                operator[j, i] = y[j]
                        advance(operator, n, w, steps, spare, P, Q)
                    else:
                        for _ in range(steps):
                            step_wide(V, places, n, c, w)
                    for i in range(n):
                        w[i] *= unit
                else:
                    copy(V[m], spare, 0, m)
                    for k in range(m - 1, -1, -1):
                        y[k] = spare[k] / V[k, k]
                        axpy(-y[k], V[k], spare, k)
                    for k in range(m):
                        a[places[k]] = y[k]
                    copy(a, c, 0, m)
                    advance_companion(a, m, steps - 1, c, spare, operator, P, Q)
            else:
                route[b], r, _, _, _, _ = reduce_triangle(
                    V, places, w, n, m, kind, value, digits, unit, resolution, A, squares, a, basis, readout, operator,
                    y,
                )  # fmt: skip
                advance(operator, r, y, steps - 1, spare, P, Q)
                matvec(readout if wide else basis, y, order, r, w if wide else c)
                if wide:
                    for i in range(n):
                        w[i] *= unit
            if not wide:
                apply_snapshots(flat, begin + time_stride, time_stride, stride, n, m, c, w)
        for i in range(n):
            out[b, i] = w[i]
