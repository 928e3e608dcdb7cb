"""The SVD of small blocks in Numba, for cutoffs that a Gram matrix cannot resolve: QR, then one-sided Jacobi.

Householder's QR brings a block to a triangle of order p = min(n, m), whose rows Jacobi rotations make orthogonal
(Hestenes 1958; Drmač & Veselić 2008). A tall F = Q R: the rows of R become s_i v_i^T, and Q^T x_last, a column beside
them, U^T x_last. A wide F^T = Q R: the rows of R^T become s_i v_i^T and the identity beside them U^T; the rows of Fp go
through Q too.
"""

from __future__ import annotations

import math

import numpy as np

from .blocks import is_finite, load
from .cutoffs import RELATIVE, SPACING, select
from .dense import EPS, dot, dot4, matvec
from .jit import jit
from .plan import NON_FINITE, SVD, UNRESOLVED, ZERO
from .simd import LANES, add, lanes, rotate, tile_of

SWEEPS = 30  # 6 to 10 are usual


@jit
def triangularize(V, rows, extra, length, v):
    """Householder's QR of `rows` vectors of `length` >= rows numbers, the rows of V; v is a scratch vector.

    Afterwards V[j, k] for k <= j < rows is R[k, j], and the first `rows` numbers of the `extra` rows below are Q^T
    times what they were.
    """
    end, count = lanes(length), rows + extra
    for k in range(min(rows, length - 1)):
        first = k // LANES * LANES
        head, size = V[k, k], length - k - 1
        tail = dot(V[k, k + 1 :], V[k, k + 1 :], size)
        if tail == 0.0:
            continue
        alpha = -math.copysign(math.sqrt(head * head + tail), head)
        v[first:end] = V[k, first:end]
        v[first:k] = 0.0
        v[k] = head - alpha
        b = 2.0 / (v[k] * v[k] + tail)
        V[k, k] = alpha
        V[k, k + 1 : end] = 0.0
        w, j = v[first:], k + 1
        while j + 4 <= count:
            p, q, r, s = dot4(V[j, first:], V[j + 1, first:], V[j + 2, first:], V[j + 3, first:], w, end - first)
            add(first, end, -b * p, v, V[j])
            add(first, end, -b * q, v, V[j + 1])
            add(first, end, -b * r, v, V[j + 2])
            add(first, end, -b * s, v, V[j + 3])
            j += 4
        for i in range(j, count):
            add(first, end, -b * dot(V[i, first:], w, end - first), v, V[i])


@jit
def orthogonalize(A, n, width, squares):
    """Rotate the n rows of A, (n, lanes(width)), until their first n numbers are orthogonal; largest row first.

    squares: (n,) the rows' squared norms, as they come out. Rows count as orthogonal when their product is below
    rounding, relative to their own norms or to the norm of the matrix. False if SWEEPS do not suffice.
    """
    end = lanes(width)
    for _ in range(SWEEPS):
        for i in range(n):
            squares[i] = dot(A[i], A[i], n)
        top = squares.max()
        done = True
        for p in range(n):
            large = p + np.argmax(squares[p:n])  # the larger first: de Rijk 1989
            if large != p:
                squares[p], squares[large] = squares[large], squares[p]
                rotate(0, end, 0.0, 1.0, A[large], A[p])
            for q in range(p + 1, n):
                product = dot(A[p], A[q], n)
                a, b = squares[p], squares[q]
                size = math.sqrt(max(a, b))
                if abs(product) <= EPS * size * max(2.0 * math.sqrt(min(a, b)), 0.05 * math.sqrt(top)):
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
def scale_of(flat, start, time_stride, stride, n, columns):
    """The power of two that brings the largest entry near 1, 0 if all are zero, NaN if one is not finite."""
    if not is_finite(flat, start, time_stride, stride, n, columns):
        return np.nan
    largest = 0.0
    for t in range(columns):
        for i in range(n):
            largest = max(largest, abs(np.float64(flat[start + t * time_stride + i * stride])))
    return math.ldexp(1.0, math.frexp(largest)[1] - 1) if largest > 0.0 else 0.0


@jit
def rows_of(flat, start, time_stride, stride, n, m, wide, V, scale):
    """The vectors that `triangularize` takes, divided by `scale`: snapshots, or weights over F, then over Fp."""
    if wide:
        load(flat, start, stride, time_stride, n, m, -1, V)
        load(flat, start + time_stride, stride, time_stride, n, m, -1, V[n:])
    else:
        load(flat, start, time_stride, stride, m + 1, n, -1, V)
    inverse = 1.0 / scale
    for row in V:
        if math.isfinite(inverse):
            for i in range(len(row)):
                row[i] *= inverse
        else:  # of a denormal
            for i in range(len(row)):
                row[i] /= scale


@jit
def svd_range(
    first, last, flat, offsets, time_stride, stride, n, m, kind, value, digits, resolution, basis, lift, operator,
    start, rank, reports, edge, status,
):  # fmt: skip
    """Reduced operators like `solve_range`'s, from the data itself; status UNRESOLVED where the iteration fails."""
    wide = n <= m
    order, length = (n, m) if wide else (m, n)
    V, v = tile_of(2 * order if wide else order + 1, length), tile_of(1, length)[0]
    width = 2 * order if wide else order + 1
    A, squares = tile_of(order, width), np.empty(order)
    work, column, last_ = np.empty(order), np.empty(order), np.empty(order)
    floor = 0.0 if kind == RELATIVE or kind == SPACING else length * EPS
    for b in range(first, last):
        reports[b, :] = 0.0
        scale = scale_of(flat, offsets[b], time_stride, stride, n, m + 1)
        status[b] = NON_FINITE if math.isnan(scale) else ZERO
        if not scale > 0.0:
            continue
        rows_of(flat, offsets[b], time_stride, stride, n, m, wide, V, scale)
        triangularize(V, order, order if wide else 1, length, v)
        A[:, :] = 0.0
        for i in range(order):
            if wide:
                A[i, : i + 1] = V[i, : i + 1]
                A[i, order + i] = 1.0
            else:
                for j in range(i, order):
                    A[i, j] = V[j, i]
                A[i, order] = V[order, i]
        if not orthogonalize(A, order, width, squares):
            status[b] = UNRESOLVED
            continue
        largest = math.sqrt(squares[0])
        if largest == 0.0:  # only x_last is not zero: F^+ = 0
            continue
        r, threshold, edge[b] = select(
            squares, order, kind, value, digits, scale, 0.0, resolution[1] * largest, floor * largest
        )
        status[b], rank[b], reports[b, 0] = SVD, r, threshold * scale
        if r:
            reports[b, 1], reports[b, 2] = largest * scale, math.sqrt(squares[r - 1]) * scale
        if wide:
            for i in range(n):
                last_[i] = flat[offsets[b] + m * time_stride + i * stride]
            for k in range(r):
                for j in range(n):
                    work[j] = A[k, j] / squares[k]
                matvec(V[n:], work, n, n, column)
                start[b, k] = dot(A[k, n:], last_, n)
                for i in range(r):
                    operator[b, i, k] = dot(A[i, n:], column, n)
                for i in range(n):
                    lift[b, i, k], basis[b, i, k] = column[i], A[k, n + i]
        else:
            for k in range(r):
                work[: m - 1] = A[k, 1:m]
                work[m - 1] = A[k, m]
                matvec(A, work, r, m, operator[b, k])
                start[b, k] = A[k, m] * scale
                for i in range(r):
                    operator[b, k, i] /= squares[i]
                for i in range(m):
                    basis[b, i, k] = A[k, i] / squares[k] / scale
