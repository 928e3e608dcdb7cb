"""Numba: predict and pinv of a range of blocks, each fused from data to result on one thread.

A block's data is read twice, the second time from cache; nothing of it but the result is written.
"""

from __future__ import annotations

import numpy as np

from ..plan import CHOLESKY, CONSTANT, EIGEN, NON_FINITE, SVD
from .algebra import (
    advance,
    advance_companion,
    advance_wide,
    certified,
    decompose,
    inverse_apply,
    normalize,
    reduce_snapshots,
    reduce_weights,
    trace,
    triage_block,
    truncated_solve,
)
from .dense import QL_ITERATIONS, ROTATIONS, axpy, cholesky, copy_rows, copy_upper, dot, matvec, solve_upper
from .gram import (
    apply_snapshots,
    apply_weights,
    gram_snapshots,
    gram_weights,
    is_constant,
    mirror,
    padded,
    tile_width,
    whole_width,
)
from .jit import jit, jit_sums, kernel
from .scratch import integers, matrix, tile_of, vector
from .selection import keeps_constant, squaring_pays
from .simd import clear, copy

SCALARS = 2048  # blocks of one weight that are taken side by side


@kernel
def predict_tall(
    first, last, flat, offsets, time_stride, stride, n, m, steps, kind, value, digits, resolution, out, route
):
    """out[b] = K^steps x_last, steps >= 1, fused: reads the block twice (the second time from cache)."""
    rows = padded(m + 1)
    tile, S = tile_of(rows, tile_width(n, rows)), matrix(rows, rows)
    R, A, Z = tile_of(m, m + 1), tile_of(m, m), tile_of(m, m)
    basis, operator, W, P = matrix(m, m), matrix(m, m), matrix(m, m), matrix(m, m)
    d, y, spare, work, spectrum = vector(m), vector(m), vector(m), tile_of(5, m), matrix(2, m)
    rotations, sweeps = matrix(2, ROTATIONS * m * m), integers(QL_ITERATIONS * m, 3)
    c, w = vector(m), vector(n)
    for b in range(first, last):
        begin = offsets[b]
        ahead = offsets[b + 1] if b + 1 < last else -1
        gram_snapshots(flat, begin, time_stride, stride, n, m + 1, ahead, tile, S)
        size = trace(S, m)
        route[b] = triage_block(size, S[m, m], flat, begin, time_stride, stride, n, m + 1)
        clear(c, 0, m)
        if route[b] == NON_FINITE:
            c[:] = np.nan
        elif route[b] != EIGEN:
            pass
        elif keeps_constant(kind, value) and is_constant(flat, begin, time_stride, stride, n, m + 1):
            route[b] = CONSTANT
            c[m - 1] = 1.0  # K x = x
        else:
            scale = normalize(S, m + 1, m + 1, size)
            if certified(S, m, kind, value, digits, scale, resolution, R):
                route[b] = CHOLESKY
                copy_upper(S, R, m, m + 1)
                cholesky(R, m, m + 1)
                for i in range(m):
                    y[i] = R[i, m]
                solve_upper(R, m, y, c)
                copy(c, d, 0, m)
                advance_companion(d, m, steps - 1, c, spare, operator, W, P)
            else:
                mirror(S, m + 1)
                copy_rows(S, A, m, m)
                if steps == 1:
                    copy(S[m], c, 0, m)
                    route[b] = truncated_solve(
                        A, m, c, kind, value, digits, scale, resolution, work, spectrum, rotations, sweeps
                    )
                else:
                    route[b], rank, _, _ = decompose(A, m, kind, value, digits, scale, resolution, work, sweeps, d, Z)
                    if route[b] == EIGEN:
                        reduce_snapshots(S, m, rank, d, Z, basis, operator, y, work[0])
                        advance(operator, rank, y, steps - 1, spare, W, P)
                        matvec(basis, y, m, rank, c)
        if route[b] != SVD:
            apply_snapshots(flat, begin + time_stride, time_stride, stride, n, m, c, w)
            for i in range(n):
                out[b, i] = w[i]


@kernel
def predict_wide(
    first, last, flat, offsets, time_stride, stride, n, m, steps, kind, value, digits, resolution, out, route
):
    """out[b] = K^steps x_last, steps >= 1, of wide blocks; one step needs no Fp F^T: x1 = Fp (F^T (C^+ x))."""
    rows = padded(n)
    tile = tile_of(rows, whole_width(m + 1, n) + 1)
    C, D = matrix(rows, rows), matrix(rows, rows)
    R, A, Z = tile_of(n, n), tile_of(n, n), tile_of(n, n)
    basis, operator, readout = matrix(n, n), matrix(n, n), matrix(n, n)
    W, P, work, spectrum = matrix(n, n), matrix(n, n), tile_of(5, n), matrix(2, n)
    rotations, sweeps = matrix(2, ROTATIONS * n * n), integers(QL_ITERATIONS * n, 3)
    d, y, spare, w, g = vector(n), vector(n), vector(n), vector(n), vector(m)
    many = steps > 1
    for b in range(first, last):
        begin = offsets[b]
        final = begin + m * time_stride
        ahead = offsets[b + 1] if b + 1 < last else -1
        gram_weights(flat, begin, time_stride, stride, n, m, m + 1, many, ahead, tile, C, D)
        for i in range(n):
            w[i] = flat[final + i * stride]
        size = trace(C, n)
        route[b] = triage_block(size, dot(w, w, n), flat, begin, time_stride, stride, n, m + 1)
        if route[b] != EIGEN:
            w[:] = np.nan if route[b] == NON_FINITE else 0.0
        elif keeps_constant(kind, value) and is_constant(flat, begin, time_stride, stride, n, m + 1):
            route[b] = CONSTANT
        else:
            scale = normalize(C, n, n, size)
            if many:
                normalize(D, n, n, size)
            full = certified(C, n, kind, value, digits, scale, resolution, R)
            if full:
                route[b] = CHOLESKY
                copy_upper(C, R, n, n)
                cholesky(R, n, n)
            else:
                mirror(C, n)
                copy_rows(C, A, n, n)
            if full and not many:
                inverse_apply(R, n, w, spare, y)
            elif full and squaring_pays(steps, n):
                for i in range(n):
                    inverse_apply(R, n, D[i], spare, operator[i])  # K = D C^-1, to be squared
                advance(operator, n, w, steps, spare, W, P)
            elif full:
                advance_wide(R, D, n, steps, w, spare, y)
            elif not many:
                copy(w, y, 0, n)
                route[b] = truncated_solve(
                    A, n, y, kind, value, digits, scale, resolution, work, spectrum, rotations, sweeps
                )
            else:
                route[b], rank, _, _ = decompose(A, n, kind, value, digits, scale, resolution, work, sweeps, d, Z)
                if route[b] == EIGEN:
                    reduce_weights(D, w, n, rank, d, Z, basis, readout, operator, y)
                    advance(operator, rank, y, steps - 1, spare, W, P)
                    matvec(readout, y, n, rank, w)
            if not many and route[b] != SVD:
                unscale = 1.0 / (scale * scale)
                for i in range(n):
                    y[i] *= unscale
                apply_weights(flat, begin, time_stride, stride, n, m, y, tile, g, w)
        if route[b] != SVD:
            for i in range(n):
                out[b, i] = w[i]


@jit_sums
def lagged(flat, start, time_stride, m):
    """Sums of x_t^2 and of x_(t+1) x_t over m pairs of one weight."""
    square = cross = 0.0
    if time_stride == 1:
        x = flat[start : start + m + 1]
        for t in range(m):
            square += np.float64(x[t]) * x[t]
            cross += np.float64(x[t + 1]) * x[t]
    else:
        for t in range(m):
            x = np.float64(flat[start + t * time_stride])
            square += x * x
            cross += flat[start + (t + 1) * time_stride] * x
    return square, cross


@jit
def lagged_beside(flat, start, time_stride, m, count, before, squares, crosses):
    """`lagged` of `count` weights that lie side by side in memory: one pass over all of them."""
    clear(squares, 0, count)
    clear(crosses, 0, count)
    first = flat[start : start + count]
    for i in range(count):
        before[i] = first[i]
    for t in range(1, m + 1):
        row = flat[start + t * time_stride : start + t * time_stride + count]
        for i in range(count):
            x = np.float64(row[i])
            squares[i] += before[i] * before[i]
            crosses[i] += x * before[i]
            before[i] = x


@kernel
def predict_scalars(first, last, flat, offsets, time_stride, beside, m, steps, out, route):
    """out[b] = K^steps x_last of blocks of one weight, steps >= 1, K = sum of x_(t+1) x_t / sum of x_t^2.

    For rules that keep a block's only singular value. beside: blocks lie side by side, and are taken so.
    """
    squares, crosses, before = vector(SCALARS), vector(SCALARS), vector(SCALARS)
    for begin in range(first, last, SCALARS):
        count = min(SCALARS, last - begin)
        if beside:
            lagged_beside(flat, offsets[begin], time_stride, m, count, before, squares, crosses)
        else:
            for i in range(count):
                squares[i], crosses[i] = lagged(flat, offsets[begin + i], time_stride, m)
        for i in range(count):
            b, start = begin + i, offsets[begin + i]
            x = np.float64(flat[start + m * time_stride])
            route[b] = triage_block(squares[i], x * x, flat, start, time_stride, 1, 1, m + 1)
            if route[b] == SVD:
                continue
            if route[b] != EIGEN:
                x = np.nan if route[b] == NON_FINITE else 0.0
            elif crosses[i] == squares[i] and is_constant(flat, start, time_stride, 1, 1, m + 1):
                route[b] = CONSTANT
            else:
                route[b] = CHOLESKY
                x *= (crosses[i] / squares[i]) ** steps
            out[b, 0] = x


@kernel
def pinv_range(
    first, last, flat, offsets, time_stride, stride, n, m, wide, kind, value, digits, resolution, out, route
):
    """out[b] = F^+ (m, n) of blocks whose m columns are all of the data: V (Lambda^-1 (V^T F^T)), factored."""
    order = n if wide else m
    rows = padded(order)
    tile = tile_of(rows, whole_width(m + 1, n) + 1 if wide else tile_width(n, rows))
    S, D = matrix(rows, rows), matrix(rows, rows)
    A, Z = tile_of(order, order), tile_of(order, order)
    d, work, sweeps = vector(order), tile_of(5, order), integers(1, 3)
    x, y = vector(order), vector(order)
    for b in range(first, last):
        begin = offsets[b]
        ahead = offsets[b + 1] if b + 1 < last else -1
        # one loop for both: lines of `order` numbers, across the snapshots (tall) or across the weights (wide)
        if wide:
            gram_weights(flat, begin, time_stride, stride, n, m, m, False, ahead, tile, S, D)
            lines, line_stride, inner = m, time_stride, stride
        else:
            gram_snapshots(flat, begin, time_stride, stride, n, m, ahead, tile, S)
            lines, line_stride, inner = n, stride, time_stride
        size = trace(S, order)
        route[b] = triage_block(size, 0.0, flat, begin, time_stride, stride, n, m)
        rank, unscale = 0, 0.0
        if route[b] == EIGEN:
            scale = normalize(S, order, order, size)
            mirror(S, order)
            copy_rows(S, A, order, order)
            route[b], rank, _, _ = decompose(A, order, kind, value, digits, scale, resolution, work, sweeps, d, Z)
            unscale = 1.0 / (scale * scale)
        if route[b] == SVD:
            continue
        for line in range(lines):
            for i in range(order):
                x[i] = flat[begin + line * line_stride + i * inner]
            y[:] = 0.0 if route[b] != NON_FINITE else np.nan
            for r in range(rank):
                axpy(dot(x, Z[r], order) / d[r] * unscale, Z[r], y, order)
            for i in range(order):
                if wide:
                    out[b, line, i] = y[i]
                else:
                    out[b, i, line] = y[i]
