"""Numba kernels that read a block: tiles, Gram matrices, combinations of snapshots, and what can be seen at a glance.

Tall blocks (n > m) need S = X^T X, (m+1, m+1): G = F^T F, H = F^T Fp and h = F^T x_last are its sub-blocks.
Wide blocks (n <= m) need C = F F^T and D = Fp F^T, n x n. Data is read through `Blocks` (layout.py) in tiles that
fit the L2 cache, converted to float64 once, products summed in float64.

Every result depends on its own block alone: any range, any thread, any neighbours give the same bits.
"""

from __future__ import annotations

import math

import numpy as np

from .jit import jit, jit_sums

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
def combine_range(first, last, flat, offsets, time_stride, stride, n, rows, coefficients, out):
    """out[k, b] = sum over t of coefficients[b, k, t] snapshot[t]: reads a block once a state, writes once."""
    w = np.empty(n)
    for b in range(first, last):
        for k in range(coefficients.shape[1]):
            used = rows  # up to the block's own rank, whatever its neighbours'
            while used > 0 and coefficients[b, k, used - 1] == 0.0:
                used -= 1
            apply_snapshots(flat, offsets[b], time_stride, stride, n, used, coefficients[b, k], w)
            for i in range(n):
                out[k, b, i] = w[i]


@jit
def finite_range(first, last, flat, offsets, time_stride, stride, n, columns, out):
    """out[b]: whether block b is finite."""
    for b in range(first, last):
        out[b] = is_finite(flat, offsets[b], time_stride, stride, n, columns)
