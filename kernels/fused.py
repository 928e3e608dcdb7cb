"""Numba: predict and pinv of a range of blocks, each fused from data to result on one thread.

A block's data is read twice, the second time from cache; nothing of it but the result is written.
"""

from __future__ import annotations

import math

import numpy as np

from .algebra import (
    advance,
    advance_companion,
    advance_wide,
    certified,
    decompose,
    inverse_apply,
    keeps_rank_one,
    normalize,
    reduce_snapshots,
    reduce_weights,
    trace,
    triage,
)  # fmt: skip
from .blocks import TILE, apply_snapshots, gram_snapshots, gram_weights, is_constant, padded, project_snapshots
from .dense import axpy, cholesky, dot, solve_upper
from .jit import jit
from .plan import CHOLESKY, CONSTANT, EIGEN, NON_FINITE, SVD


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
