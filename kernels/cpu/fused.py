"""Numba: predict and pinv of a range of blocks, each fused from data to result on one thread.

A block's data is read twice, the second time from cache; nothing of it but the result is written.
"""

from __future__ import annotations

import numpy as np

from ..plan import CHOLESKY, CONSTANT, EIGEN, NON_FINITE, SVD
from .algebra import (
    certified,
    decompose,
    follow_companion,
    inverse_apply,
    normalize,
    trace,
    triage_block,
)
from .dense import axpy, cholesky, copy_rows, copy_upper, dot, solve_rows, solve_upper
from .gram import (
    apply_snapshots,
    apply_weights,
    gram_snapshots,
    gram_weights,
    is_constant,
    load,
    mirror,
    padded,
    tile_width,
    whole_width,
)
from .jit import jit, jit_sums, kernel
from .parts import CERTIFIED, UNCERTIFIED, room, run_part
from .scratch import integers, matrix, tile_of, vector
from .selection import keeps_constant
from .simd import clear, copy, lanes, span

SCALARS = 2048  # blocks of one weight that are taken side by side


@kernel
def predict_tall(
    first, last, flat, offsets, time_stride, stride, n, m, steps, kind, value, digits, resolution, rest, far, out, route
):
    """out[b] = K^steps x_last, steps >= 1, fused: reads the block twice (the second time from cache).

    rest, far: addresses of the parts for blocks that are not certified, and for certified ones so many steps on that
    squaring pays (0: none does); see parts.py.
    """
    rows = padded(m + 1)
    tile, S = tile_of(rows, tile_width(n, rows)), matrix(rows, rows)
    R, memory, c, y, w = tile_of(m, m + 1), vector(room(m) if rest or far else 0), vector(m), vector(m), vector(n)
    for b in range(first, last):
        begin = offsets[b]
        ahead = offsets[b + 1] if b + 1 < last else -1
        gram_snapshots(flat, begin, time_stride, stride, n, m + 1, ahead, tile, S)
        size = trace(S, m)
        route[b] = triage_block(size, S[m, m], flat, begin, time_stride, stride, n, m + 1)
        clear(c, 0, m)
        if route[b] == NON_FINITE:
            for t in range(m):
                c[t] = np.nan
        elif (
            route[b] == EIGEN
            and keeps_constant(kind, value)
            and is_constant(flat, begin, time_stride, stride, n, m + 1)
        ):
            route[b] = CONSTANT
            c[m - 1] = 1.0  # K x = x
        elif route[b] == EIGEN:
            scale = normalize(S, m + 1, m + 1, size)
            if certified(S, m, kind, value, digits, scale, resolution, R):
                route[b] = CHOLESKY
                copy_upper(S, R, m, m + 1)
                cholesky(R, m, m + 1)
                for i in range(m):
                    y[i] = R[i, m]
                solve_upper(R, m, y, c)
                if far:
                    run_part(far, S, S, c, memory, m, steps, kind, value, digits, scale, resolution)
                else:
                    copy(c, y, 0, m)
                    follow_companion(y, m, steps - 1, c)
            elif rest:
                for i in range(m):
                    c[i] = S[i, m]
                route[b] = run_part(rest, S, S, c, memory, m, steps, kind, value, digits, scale, resolution)
            else:
                route[b] = UNCERTIFIED
        if route[b] >= 0 and route[b] != SVD:
            apply_snapshots(flat, begin + time_stride, time_stride, stride, n, m, c, w)
            for i in range(n):
                out[b, i] = w[i]


@kernel
def predict_wide(
    first, last, flat, offsets, time_stride, stride, n, m, steps, kind, value, digits, resolution, rest, far, out, route
):
    """out[b] = K^steps x_last, steps >= 1, of wide blocks; one step needs no Fp F^T: x1 = Fp (F^T (C^+ x)).

    rest, far: addresses of the parts for blocks that are not certified, and for certified ones of several steps.
    """
    rows = padded(n)
    tile = tile_of(rows, whole_width(m + 1, n) + 1)
    C, D, R = matrix(rows, rows), matrix(rows, rows), tile_of(n, n)
    memory, y, spare, w, g = vector(room(n) if rest or far else 0), vector(n), vector(n), vector(n), vector(m)
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
            for i in range(n):
                w[i] = np.nan if route[b] == NON_FINITE else 0.0
        elif keeps_constant(kind, value) and is_constant(flat, begin, time_stride, stride, n, m + 1):
            route[b] = CONSTANT
        else:
            scale = normalize(C, n, n, size)
            if many:
                normalize(D, n, n, size)
            full = certified(C, n, kind, value, digits, scale, resolution, R)
            part = far if full and many else rest
            if full and not many:
                route[b] = CHOLESKY
                copy_upper(C, R, n, n)
                cholesky(R, n, n)
                inverse_apply(R, n, w, spare, y)
            elif part:
                copy(w, y, 0, n)
                route[b] = run_part(part, C, D, y, memory, n, steps, kind, value, digits, scale, resolution)
                if many:
                    copy(y, w, 0, n)
            else:
                route[b] = CERTIFIED if full else UNCERTIFIED
            if not many and route[b] >= 0 and route[b] != SVD:
                unscale = 1.0 / (scale * scale)
                for i in range(n):
                    y[i] *= unscale
                apply_weights(flat, begin, time_stride, stride, n, m, y, tile, g, w)
        if route[b] >= 0 and route[b] != SVD:
            for i in range(n):
                out[b, i] = w[i]


@jit_sums
def lagged(flat, start, time_stride, m):
    """Sums of x_t^2 and of x_(t+1) x_t over m pairs of one weight."""
    square = cross = 0.0
    if time_stride == 1:
        x = span(flat, start, m + 1)
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
    first = span(flat, start, count)
    for i in range(count):
        before[i] = first[i]
    for t in range(1, m + 1):
        row = span(flat, start + t * time_stride, count)
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


@jit
def full_rank_factor(S, order, size, kind, value, digits, resolution, R):
    """R with R^T R = S over a power of four, which is returned, if S is proved to have full rank; 0 if it is not."""
    scale = normalize(S, order, order, size)
    if not certified(S, order, kind, value, digits, scale, resolution, R):
        return 0.0
    copy_upper(S, R, order, order)
    cholesky(R, order, order)
    return scale * scale


@kernel
def pinv_tall(first, last, flat, offsets, time_stride, stride, n, m, kind, value, digits, resolution, out, route):
    """out[b] = F^+ (m, n) of certified tall blocks whose m columns are all of the data: G^-1 F^T by a Cholesky factor.

    Others are left to `pinv_range`, route UNCERTIFIED.
    """
    rows = padded(m)
    tile, S, R = tile_of(rows, tile_width(n, rows)), matrix(rows, rows), tile_of(m, m)
    for b in range(first, last):
        begin = offsets[b]
        gram_snapshots(flat, begin, time_stride, stride, n, m, offsets[b + 1] if b + 1 < last else -1, tile, S)
        size = trace(S, m)
        route[b] = UNCERTIFIED
        if triage_block(size, 0.0, flat, begin, time_stride, stride, n, m) != EIGEN:
            continue
        square = full_rank_factor(S, m, size, kind, value, digits, resolution, R)
        if square > 0.0:
            route[b] = CHOLESKY
            unscale = 1.0 / square
            most = tile_width(n, rows)
            for i in range(0, n, most):
                width = min(most, n - i)
                load(flat, begin + i * stride, time_stride, stride, m, width, -1, tile)
                solve_rows(R, m, tile, lanes(width))
                for t in range(m):
                    row, target = tile[t], span(out[b, t], i, width)
                    for k in range(width):
                        target[k] = row[k] * unscale


@kernel
def pinv_wide(first, last, flat, offsets, time_stride, stride, n, m, kind, value, digits, resolution, out, route):
    """The same of certified wide blocks: F^T C^-1."""
    rows = padded(n)
    tile = tile_of(rows, whole_width(m + 1, n) + 1)
    C, D, R = matrix(rows, rows), matrix(rows, rows), tile_of(n, n)
    for b in range(first, last):
        begin = offsets[b]
        ahead = offsets[b + 1] if b + 1 < last else -1
        gram_weights(flat, begin, time_stride, stride, n, m, m, False, ahead, tile, C, D)
        size = trace(C, n)
        route[b] = UNCERTIFIED
        if triage_block(size, 0.0, flat, begin, time_stride, stride, n, m) != EIGEN:
            continue
        square = full_rank_factor(C, n, size, kind, value, digits, resolution, R)
        if square > 0.0:
            route[b] = CHOLESKY
            unscale = 1.0 / square
            most = whole_width(m + 1, n)
            for t in range(0, m, most):
                width = min(most, m - t)
                load(flat, begin + t * time_stride, stride, time_stride, n, width, -1, tile)
                solve_rows(R, n, tile, lanes(width))
                for k in range(width):
                    target = out[b, t + k]
                    for i in range(n):
                        target[i] = tile[i, k] * unscale


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
