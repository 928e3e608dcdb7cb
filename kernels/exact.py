"""Operators by the singular vectors of the pairs themselves, of several equal blocks at a time; host memory.

What a Gram matrix cannot settle. Tall blocks come as what stands in for them (`triangles`), whose pairs have the right
singular vectors, the singular values and the products of theirs.
"""

from __future__ import annotations

import math

import numpy as np

from .contract import DIGITS
from .cutoffs import KINDS, floor
from .factors import Factors, ends
from .plan import NON_FINITE, SVD, ZERO, resolution
from .selection import select
from .triangles import StandIns, unit_of_peaks


def by_svd(part: StandIns, n: int, cutoff, observed, dtype, gains: bool) -> tuple:
    """The fields of `observed.Lifted` of blocks of n weights, from what stands in for them, or from themselves.

    Args:
        part: (B, columns, k); k = n of wide blocks.
        n: weights of a block.
        cutoff: pair (kind, value).
        observed: `observed.Observed`.
        dtype: of the data.
        gains: make what `non_expansive` needs.
    """
    rows, unit = part
    bad = ~np.isfinite(rows).all(axis=(1, 2))
    rows = np.where(bad[:, None, None], 0.0, rows) if bad.any() else rows
    pairs = _Pairs(rows, observed)
    shape = observed.shape(n, rows.shape[1])
    U, s, Vt = np.linalg.svd(pairs.before.swapaxes(1, 2), full_matrices=False)
    chosen = _chosen(s, pairs, unit, bad, shape, cutoff, np.dtype(dtype))
    return _lifted(pairs, (U, s, Vt), unit, chosen, shape, observed, gains)


class _Pairs:
    """Pairs of blocks, centred if affine, in units of `scale`, powers of two that bring their numbers near 1.

    Attributes:
        before, after: F^T and Fp^T (B, pairs, rows).
        last: (B, rows), x_last less the mean of F.
        mean: (B, rows), that of Fp.
        moved: (B, rows), the mean of Fp less that of F; not in units.
    """

    def __init__(self, rows: np.ndarray, observed):
        origin = np.zeros(rows[:, 0].shape)
        if observed.affine:
            origin = rows[:, rows.shape[1] // 2].copy()
        Z = stacked(np, (rows - origin[:, None]).swapaxes(0, 1), observed.delay)
        Z = np.ascontiguousarray(Z.swapaxes(0, 1))
        self.before, self.after, self.last = Z[:, :-1], Z[:, 1:], Z[:, -1]
        self.mean = self.moved = np.zeros(self.last.shape)
        if observed.affine:
            share = np.full(Z.shape[1] - 1, 1.0 / (Z.shape[1] - 1))
            mean, self.mean = share @ self.before, share @ self.after
            self.last, self.moved = self.last - mean, self.mean - mean
            self.before, self.after = centred(np, self.before), centred(np, self.after)
        self.mean = self.mean + np.tile(origin, (1, observed.delay))
        peaks = [np.abs(part).reshape(len(Z), -1).max(axis=1) for part in (self.before, self.after, self.last)]
        self.scale = unit_of_peaks(np.max(peaks, axis=0))
        self.before, self.after = (side / self.scale[:, None, None] for side in (self.before, self.after))
        self.last = self.last / self.scale[:, None]


def _chosen(s, pairs: _Pairs, unit, bad, shape: tuple[int, int], cutoff, dtype) -> list[tuple]:
    """(rank, threshold, edge, route) of every block from its singular values s (B, p)."""
    kind, value, slack = KINDS[cutoff[0]], float(cutoff[1]), resolution(*shape, dtype).svd
    empty, chosen = ~pairs.before.any(axis=(1, 2)), []
    for b, (values, squares) in enumerate(zip(s.tolist(), (s * s).tolist(), strict=True)):
        if bad[b] or empty[b]:
            chosen.append((0, 0.0, False, NON_FINITE if bad[b] else ZERO))
            continue
        scale, largest = float(pairs.scale[b] * unit[b]), values[0]
        least = floor(kind, max(shape), largest)
        rank, threshold, edge = select(
            squares, len(values), kind, value, DIGITS[dtype], scale, 0.0, slack * largest, least
        )
        chosen.append((rank, threshold * scale, edge, SVD))
    return chosen


def _lifted(pairs: _Pairs, vectors: tuple, unit, chosen: list[tuple], shape, observed, gains: bool) -> tuple:
    """The fields of `Lifted`, from singular vectors and what is chosen of them."""
    (U, s, Vt), wide, scale = vectors, shape[0] <= shape[1], pairs.scale * unit
    ranks, thresholds, edges, routes = (np.array(column) for column in zip(*chosen, strict=True))
    B, r = len(ranks), int(ranks.max(initial=0))
    order = shape[0] if wide else shape[1] + observed.affine
    basis, operator, start, drift = (np.zeros((B, *size)) for size in ((order, r), (r, r), (r,), (r,)))
    readout, roots = np.zeros(basis.shape) if wide else basis, np.zeros(operator.shape) if gains else None
    rest = pairs.last * scale[:, None] if wide else None
    for rank in np.unique(ranks[ranks > 0]).tolist():
        at = np.flatnonzero(ranks == rank)
        Ut, coordinates = U[at, :, :rank].swapaxes(1, 2), Vt[at, :rank].swapaxes(1, 2) / s[at, None, :rank]
        W = pairs.after[at].swapaxes(1, 2) @ coordinates
        along = scale[at]
        if wide:
            basis[at, :, :rank], readout[at, :, :rank] = U[at, :, :rank], W
        else:
            units = coordinates / along[:, None, None]
            lost = ~np.isfinite(units).all(axis=(1, 2))  # float64 does not hold the inverses of subnormal numbers,
            units[lost], along = coordinates[lost], np.where(lost, 1.0, along)  # but coordinates in units of `scale`
            basis[at, :, :rank] = uncentred(np, units) if observed.affine else units
        operator[at, :rank, :rank] = Ut @ W
        inside = (Ut @ pairs.last[at][:, :, None])[..., 0]
        start[at, :rank] = inside * along[:, None]
        drift[at, :rank] = (Ut @ (pairs.moved[at] / pairs.scale[at, None])[:, :, None])[..., 0] * along[:, None]
        if wide:
            inside = (U[at, :, :rank] @ inside[:, :, None])[..., 0]
            rest[at] = (pairs.last[at] - inside) * along[:, None]
        if gains:
            roots[at, :rank, :rank] = _root(W)
    extremes = [ends(values[:rank], size) for values, rank, size in zip(s, ranks, scale, strict=True)]
    largest, smallest = np.array(extremes).reshape(-1, 2).T
    factors = Factors(
        basis, readout, operator, start, ranks.astype(np.int64), thresholds.astype(np.float64), largest.copy(),
        smallest.copy(), edges.astype(np.bool_), routes.astype(np.int8),
    )  # fmt: skip
    return factors, drift, pairs.mean * unit[:, None] if wide else None, rest, roots


def _root(W: np.ndarray) -> np.ndarray:
    """R (B, r, r) with R^T R = W^T W, W (B, rows, r), 0 where that is not finite."""
    _, s, Qt = np.linalg.svd(np.where(np.isfinite(W).all(axis=(1, 2))[:, None, None], W, 0.0), full_matrices=False)
    return s[:, :, None] * Qt


def stacked(xp, X, delay: int):
    """Delayed snapshots (columns - delay + 1, B, delay n) of X (columns, B, n), the newest rows first."""
    if delay == 1:
        return X
    return xp.concatenate([X[delay - 1 - k : len(X) - k] for k in range(delay)], axis=-1)


def centred(xp, A):
    """Q^T A with Q an orthonormal basis of what sums to zero along the axis of A (B, m, k): (B, m-1, k).

    Q is a Householder reflector without its first column.
    """
    v = xp.asarray(_reflector(A.shape[1]))
    return (A - 2.0 * v[:, None] * (v @ A)[:, None])[:, 1:]


def uncentred(xp, A):
    """Q A of A (B, m-1, k): (B, m, k), whose columns sum to zero."""
    v = xp.asarray(_reflector(A.shape[1] + 1))
    sums = -2.0 * v[:, None] * (v[1:] @ A)[:, None]
    sums[:, 1:] += A
    return sums


def _reflector(m: int) -> np.ndarray:
    """The unit vector whose reflection takes 1 / sqrt(m) (1, ..., 1) to minus the first axis."""
    v = np.full(m, 1.0 / math.sqrt(m))
    v[0] += 1.0
    return v / np.linalg.norm(v)
