"""Numba kernels that read a block: tiles, Gram matrices, combinations of snapshots, and what can be seen at a glance.

Tall blocks (n > m) need S = X^T X, (m+1, m+1): G = F^T F, H = F^T Fp and h = F^T x_last are its sub-blocks.
Wide blocks (n <= m) need C = F F^T and D = Fp F^T, n x n. Data is read through `Blocks` (layout.py) in tiles that
fit the L2 cache, converted to float64 once, products summed in float64.

Every result depends on its own block alone: any range, any thread, any neighbours give the same bits.
"""

from __future__ import annotations

import math

import numpy as np

from .dense import axpy, clear_rows, copy_rows, dot, matvec
from .jit import jit, kernel
from .scratch import matrix, tile_of, vector
from .simd import MICRO, MICRO_LANES, add_products, address_of, clear, copy, lanes, prefetch, span, tail, turn4

TILE_ENTRIES = 4096  # of a tile in float64: an L1 cache holds it, and
STRETCH = 14400  # of a wide block's tile that products take at a time: a ninth of a small L2 cache
LEAST_TILE = 400  # columns of either; narrower ones spend their time in the sums' ends
WHOLE = 1 << 16  # entries of a wide block that is kept whole: half a small L2 cache
LINE = 64  # bytes in a cache line
NOTHING, YES = np.int64(0), np.int64(1)  # numbers of which Numba makes no type of their own


@jit
def padded(rows):
    """Rows of a tile: a multiple of the register block."""
    return (rows + MICRO - 1) // MICRO * MICRO


@jit
def equal_parts(length, most):
    """Columns of the fewest equal parts of `length` with at most `most`, up to a multiple of LANES."""
    parts = max((length + most - 1) // most, 1)
    return lanes((length + parts - 1) // parts)


@jit
def tile_width(length, rows):
    """Columns of a tile of `rows` rows: equal parts of `length`."""
    return equal_parts(length, max(TILE_ENTRIES // rows, LEAST_TILE))


@jit
def whole_width(columns, n):
    """Snapshots of a wide block's tile beside the one after them: all of them if they fit, else equal parts."""
    most = max(WHOLE // n, 2)
    parts = max((columns - 2 + most) // most, 1)
    return (columns - 1 + parts - 1) // parts


@jit
def load(flat, start, row_stride, stride, rows, width, ahead, tile):
    """Tile rows from memory, as float64; columns up to a multiple of LANES are zero-filled.

    Short columns that lie far apart are a page each: the same of the block at `ahead`, unless that is negative, are
    asked for while their pages are at hand.
    """
    if stride == 1:
        for r in range(rows):
            first, row = start + r * row_stride, tile[r]
            source = span(flat, first, width)  # a slice needs no check for negative indices in the loop
            for i in range(width):
                row[i] = source[i]
    else:
        turned = width // 4 * 4 if row_stride == 1 and rows >= 4 else 0
        for i in range(0, turned, 4):
            first = start + i * stride
            for r in range(0, rows - 3, 4):
                turn4(flat, first + r, stride, tile[r], tile[r + 1], tile[r + 2], tile[r + 3], i)
            if rows % 4:  # the last four, some of them once more
                r = rows - 4
                turn4(flat, first + r, stride, tile[r], tile[r + 1], tile[r + 2], tile[r + 3], i)
            if ahead >= 0:
                for k in range(i, i + 4):
                    prefetch(address_of(flat, ahead + k * stride))
                    prefetch(address_of(flat, ahead + k * stride + rows - 1))
        for i in range(turned, width):
            for r in range(rows):
                tile[r, i] = flat[start + i * stride + r * row_stride]
    for r in range(rows):
        for i in range(width, min(lanes(width), tile.shape[1])):
            tile[r, i] = 0.0


@jit
def runs(flat, start, row_stride, stride, rows, width):
    """Where `load` reads: (address, number of runs, their distance, their length in bytes), or no runs if nothing is
    contiguous."""
    size = flat.itemsize
    if start < 0 or not (stride == 1 or row_stride == 1):
        return 0, 0, 0, 0
    if stride == 1:
        return address_of(flat, start), rows, row_stride * size, width * size
    return address_of(flat, start), width, stride * size, rows * size


@jit
def products(T, shift, U, rows, width, upper, S, ahead):
    """S += T[:, shift:] U^T, MICRO x MICRO entries at a time; only register blocks on or above the diagonal if `upper`.

    Meanwhile asks for the memory that `ahead` (see `runs`) describes, evenly over the work: it is then in the L2
    cache when it is read.
    """
    at, count, distance, length = ahead
    strips, part = rows // MICRO, equal_parts(width, max(STRETCH // rows, LEAST_TILE))
    left = count * ((length + LINE - 1) // LINE)
    work = (width + part - 1) // part * (strips * (strips + 1) // 2 if upper else strips * strips)
    share, within = 1 + left // work, 0
    for first in range(0, width, part):
        size = min(part, width - first)
        whole = size // MICRO_LANES * MICRO_LANES
        for i in range(0, rows, MICRO):
            for j in range(i if upper else 0, rows, MICRO):
                if whole:
                    add_products(whole, T, i, shift + first, U, j, first, S)
                for k in range(first + whole, first + size):
                    add_outer(T, i, shift + k, U, j, k, S)
                for _ in range(min(share, left)):
                    prefetch(at + within)
                    within += LINE
                    if within >= length:
                        at, within = at + distance, 0
                left -= share


@jit
def add_outer(T, i, k, U, j, last, S):
    """One number of each row of a register block, of lines `k` and `last`."""
    for r in range(MICRO):
        for s in range(MICRO):
            S[i + r, j + s] += T[i + r, k] * U[j + s, last]


@jit
def mirror(S, n):
    """Copy the upper triangle to the lower one."""
    for i in range(n):
        for j in range(i):
            S[i, j] = S[j, i]


@jit
def gram_snapshots(flat, start, time_stride, stride, n, columns, ahead, tile, S):
    """Upper triangle of S = X^T X over n weights; S and tile have padded(columns) rows.

    While it computes it asks for the next tile, and at the end for the first one of the block at `ahead`.
    """
    clear_rows(S, len(S))
    most = tile_width(n, padded(columns))
    for i in range(0, n, most):
        width, rest = min(most, n - i), n - i - most
        load(flat, start + i * stride, time_stride, stride, columns, width, -1, tile)
        following = start + (i + most) * stride if rest > 0 else ahead
        following = runs(flat, following, time_stride, stride, columns, min(most, rest if rest > 0 else n))
        products(tile, NOTHING, tile, padded(columns), lanes(width), YES, S, following)


@jit
def gram_weights(flat, start, time_stride, stride, n, m, columns, cross, ahead, tile, C, D):
    """Upper triangle of C = F F^T over m of `columns` snapshots, and D = Fp F^T if `cross`.

    C and D have padded(n) rows, and so has tile, of whole_width + 1 columns; it holds all of the block afterwards
    if that is m + 1.
    """
    clear_rows(C, len(C))
    clear_rows(D, len(D))
    most = whole_width(m + 1, n)
    for t in range(0, m, most):
        width = min(most, m - t)
        held = min(width + 1, columns - t)
        load(flat, start + t * time_stride, stride, time_stride, n, held, ahead if most >= m else -1, tile)
        for shift in range(2 if cross else 1):
            products(tile, shift, tile, padded(n), width, 1 - shift, D if shift else C, (0, 0, 0, 0))


@jit
def apply_snapshots(flat, start, time_stride, stride, n, rows, c, w):
    """w = sum over rows t of c[t] snapshot[t], in float64, four rows to a pass over w."""
    clear(w, 0, n)
    t = 0
    while t < rows:
        first = start + t * time_stride
        if c[t] == 0.0:  # past the block's own rank
            t += 1
        elif stride == 1 and t + 4 <= rows:
            a, b = span(flat, first, n), span(flat, first + time_stride, n)
            first += 2 * time_stride
            x, y = span(flat, first, n), span(flat, first + time_stride, n)
            p, q, r, s = c[t], c[t + 1], c[t + 2], c[t + 3]
            for i in range(n):
                w[i] += (p * a[i] + q * b[i]) + (r * x[i] + s * y[i])
            t += 4
        else:
            for i in range(n):
                w[i] += c[t] * flat[first + i * stride]
            t += 1


@jit
def apply_weights(flat, start, time_stride, stride, n, m, y, tile, g, w):
    """w = Fp (F^T y) of a wide block, from the tile of `gram_weights` if that holds all of it; g is scratch."""
    most = whole_width(m + 1, n)
    clear(w, 0, n)
    for t in range(0, m, most):
        width = min(most, m - t)
        if most < m:
            load(flat, start + t * time_stride, stride, time_stride, n, width + 1, -1, tile)
        clear(g, 0, width)
        for i in range(n):
            axpy(y[i], tile[i], g, width)
        for i in range(n):
            w[i] += dot(g, tail(tile[i], 1), width)


@jit
def is_constant(flat, start, time_stride, stride, n, columns):
    """Whether all snapshots equal the last; live blocks leave at the first weight, or snapshot, that moved."""
    last = start + (columns - 1) * time_stride
    for t in range(columns - 1):
        first = start + t * time_stride
        if stride == 1:  # counted, as a loop that may end anywhere takes one weight at a time
            a, b, moved = span(flat, first, n), span(flat, last, n), NOTHING
            for i in range(n):
                moved += a[i] != b[i]
            if moved:
                return False
            continue
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


@kernel
def gram_tall(first, last, flat, offsets, time_stride, stride, n, columns, out):
    """out[b]: (columns, columns), sums over weights."""
    rows = padded(columns)
    tile, S = tile_of(rows, tile_width(n, rows)), matrix(rows, rows)
    for b in range(first, last):
        ahead = offsets[b + 1] if b + 1 < last else -1
        gram_snapshots(flat, offsets[b], time_stride, stride, n, columns, ahead, tile, S)
        mirror(S, columns)
        copy_rows(S, out[b], columns, columns)


@kernel
def gram_wide(first, last, flat, offsets, time_stride, stride, n, columns, out):
    """out[b]: (2n+1, n), sums over snapshots, and the last of them."""
    rows = padded(n)
    tile, S, D = tile_of(rows, whole_width(columns, n) + 1), matrix(rows, rows), matrix(rows, rows)
    for b in range(first, last):
        start = offsets[b]
        ahead = offsets[b + 1] if b + 1 < last else -1
        gram_weights(flat, start, time_stride, stride, n, columns - 1, columns, True, ahead, tile, S, D)
        mirror(S, n)
        copy_rows(S, out[b], n, n)
        copy_rows(D, out[b, n:], n, n)
        for i in range(n):
            out[b, 2 * n, i] = flat[start + (columns - 1) * time_stride + i * stride]


@jit
def used_rows(c, rows):
    """Rows up to the last with a coefficient: a block's own rank, whatever its neighbours'."""
    while rows > 0 and c[rows - 1] == 0.0:
        rows -= 1
    return rows


@jit
def alike(coefficients, first, used):
    """Whether states first .. first + 3 sum the same `used` rows, four at a time, as `apply_snapshots` would."""
    for k in range(first, first + 4):
        if used_rows(coefficients[k], coefficients.shape[1]) != used:
            return False
        for t in range(0, used - used % 4, 4):
            if coefficients[k, t] == 0.0:
                return False
    return True


@jit
def apply_to_four(flat, start, time_stride, n, rows, C, W):
    """W[k] = sum over rows t of C[k, t] snapshot[t] for four states: the sums of `apply_snapshots`, data read once."""
    a0, a1, a2, a3 = W[0], W[1], W[2], W[3]
    for k in range(4):
        clear(W[k], 0, n)
    whole = rows // 4 * 4
    for t in range(0, whole, 4):
        first = start + t * time_stride
        a, b = span(flat, first, n), span(flat, first + time_stride, n)
        first += 2 * time_stride
        x, y = span(flat, first, n), span(flat, first + time_stride, n)
        p0, q0, r0, s0 = C[0, t], C[0, t + 1], C[0, t + 2], C[0, t + 3]
        p1, q1, r1, s1 = C[1, t], C[1, t + 1], C[1, t + 2], C[1, t + 3]
        p2, q2, r2, s2 = C[2, t], C[2, t + 1], C[2, t + 2], C[2, t + 3]
        p3, q3, r3, s3 = C[3, t], C[3, t + 1], C[3, t + 2], C[3, t + 3]
        for i in range(n):
            d, e, f, g = np.float64(a[i]), np.float64(b[i]), np.float64(x[i]), np.float64(y[i])
            a0[i] += (p0 * d + q0 * e) + (r0 * f + s0 * g)
            a1[i] += (p1 * d + q1 * e) + (r1 * f + s1 * g)
            a2[i] += (p2 * d + q2 * e) + (r2 * f + s2 * g)
            a3[i] += (p3 * d + q3 * e) + (r3 * f + s3 * g)
    for t in range(whole, rows):
        source = span(flat, start + t * time_stride, n)
        for k in range(4):
            if C[k, t] != 0.0:
                for i in range(n):
                    W[k, i] += C[k, t] * source[i]


@kernel
def combine_few(first, last, flat, offsets, time_stride, stride, n, rows, coefficients, out):
    """out[k, b] = sum over t of coefficients[b, k, t] snapshot[t], a state at a time."""
    w = vector(n)
    for b in range(first, last):
        for k in range(coefficients.shape[1]):
            used = used_rows(coefficients[b, k], rows)
            apply_snapshots(flat, offsets[b], time_stride, stride, n, used, coefficients[b, k], w)
            for j in range(n):
                out[k, b, j] = w[j]


@kernel
def follow_range(
    first, last, flat, offsets, time_stride, stride, n, rows, operator, rank, largest, steps, y, bounds, out
):
    """y[b] <- operator^steps y[b]; out[b] = the sum of y[b, t] row[t], bounds[b] that of |y[b, t]| largest[b, t], or
    infinity."""
    w, spare = vector(n), vector(rows)
    for b in range(first, last):
        r = rank[b]
        for _ in range(steps):
            matvec(operator[b], y[b], r, r, spare)
            copy(spare, y[b], 0, r)
        apply_snapshots(flat, offsets[b], time_stride, stride, n, used_rows(y[b], rows), y[b], w)
        for i in range(n):
            out[b, i] = w[i]
        bound = 0.0
        for t in range(rows):
            bound += abs(y[b, t]) * largest[b, t]
        bounds[b] = bound if bound >= 0.0 else np.inf  # of NaN


@kernel
def combine_range(first, last, flat, offsets, time_stride, stride, n, rows, coefficients, out):
    """The same: reads a block once for four states, writes once."""
    W = matrix(4, n)
    for b in range(first, last):
        k, states = 0, coefficients.shape[1]
        while k < states:
            used, count = used_rows(coefficients[b, k], rows), 1
            if stride == 1 and k + 4 <= states and alike(coefficients[b], k, used):
                count = 4
                apply_to_four(flat, offsets[b], time_stride, n, used, coefficients[b, k : k + 4], W)
            else:
                apply_snapshots(flat, offsets[b], time_stride, stride, n, used, coefficients[b, k], W[0])
            for i in range(count):
                row, state = out[k + i, b], W[i]
                for j in range(n):
                    row[j] = state[j]
            k += count


@kernel
def finite_range(first, last, flat, offsets, time_stride, stride, n, columns, out):
    """out[b]: whether block b is finite."""
    for b in range(first, last):
        out[b] = is_finite(flat, offsets[b], time_stride, stride, n, columns)
