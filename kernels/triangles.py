"""Triangles that stand in for tall blocks: few numbers with the products, singular values and angles of many.

Snapshots D (columns, n) are L Q with L lower triangular and Q of orthonormal rows. Nothing is squared, so that L is as
good as D to a singular value decomposition, whose left factor alone is another; and the first rows and columns of L
are the triangle of the first snapshots. Host memory.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from .cpu.large import over_large
from .cpu.threads import get_num_threads

STRIP = 1 << 15  # numbers that are worked on at a time: they stay in a core's cache
LEAST = 4  # times as many weights as columns in a strip, at least: the triangle so far is worked on again with each
FEW = 2  # times as many weights as columns: up to these a block stands for itself


class StandIns(NamedTuple):
    """Blocks (B, columns, k) float64 in units of `unit` (B,), powers of two; k is n, or `columns` of a triangle."""

    rows: np.ndarray
    unit: np.ndarray


def lower(strips: Iterable[np.ndarray]) -> np.ndarray:
    """L (..., columns, k) of strips (..., columns, weights) side by side, k at most `columns`.

    The triangle of the triangle so far and the next strip, and so on (Demmel, Grigori, Hoemmen and Langou 2012).
    """
    strips = iter(strips)
    L = _triangle(next(strips))
    for strip in strips:
        L = _triangle(np.concatenate([L, strip], axis=-1))
    return L


def _triangle(D: np.ndarray) -> np.ndarray:
    return np.linalg.qr(D.swapaxes(-1, -2), mode="r").swapaxes(-1, -2)


def stand_ins(X: np.ndarray, blocks: np.ndarray, centre: int | None) -> StandIns:
    """What stands in for some blocks of X (columns, B, n), less their snapshot `centre` if that is given.

    float32 or float64, not finite where the data is not. Bits are a block's own: they depend on no other block, and on
    no thread.
    """
    columns, _, n = X.shape
    count = max(1, -(-n // max(LEAST * columns, STRIP // columns)))
    ends = [n * k // count for k in range(count + 1)]
    share = max(1, min(STRIP // max(1, columns * ends[1]), -(-len(blocks) // get_num_threads())))
    together = [blocks[at : at + share] for at in range(0, len(blocks), share)]
    parts = over_large(lambda k: _stand_ins(X, together[k], centre, ends), len(together), columns)
    return StandIns(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def _stand_ins(X: np.ndarray, blocks: np.ndarray, centre: int | None, ends: list[int]) -> StandIns:
    """`stand_ins` of few blocks, in strips of weights that end there."""
    ranges, unit = [slice(*pair) for pair in itertools.pairwise(ends)], None
    if X.dtype == np.float64:  # whose squares may over- or underflow
        peaks = [np.abs(_distances(X[..., part], blocks, centre)).max(axis=(1, 2), initial=0.0) for part in ranges]
        unit = unit_of_peaks(np.max(peaks, axis=0))
    strips = (_distances(X[..., part], blocks, centre, unit) for part in ranges)
    rows = lower(strips) if X.shape[2] > FEW * len(X) else np.concatenate([*strips], axis=-1)
    return StandIns(rows, np.ones(len(blocks)) if unit is None else unit)


def unit_of_peaks(peaks: np.ndarray) -> np.ndarray:
    """Powers of two that bring these moduli near 1; 1 for zero, and for what is not finite."""
    usual = (peaks > 0.0) & np.isfinite(peaks)
    return np.ldexp(1.0, np.frexp(np.where(usual, peaks, 1.0))[1] - 1)


def _distances(X: np.ndarray, blocks: np.ndarray, centre: int | None, unit: np.ndarray | None = None) -> np.ndarray:
    """Some blocks of X (columns, B, weights), less their snapshot `centre`, in these units: (b, columns, weights)."""
    D = X[:, blocks].swapaxes(0, 1).astype(np.float64, order="C")
    if centre is not None:
        D -= D[:, centre : centre + 1].copy()
    return D if unit is None else D / unit[:, None, None]


class Kept:
    """What fits keep of tall blocks for fits of their first snapshots: corners of it are what those would make.

    Attributes:
        gram: Gram matrices (B, m+1, m+1), as the fit takes them.
        lower, unit: `StandIns` of blocks that their Gram matrices do not settle, zeros for others; None where a fit
            takes no triangles.
        known: (B,) which blocks have them.
        centre: the snapshot that triangles are less; None for none.
    """

    def __init__(self, gram, triangles: bool, centre: int | None):
        self.gram, self.centre = gram, centre
        self.known = np.zeros(len(gram), np.bool_)
        self.lower = np.zeros(gram.shape) if triangles else None
        self.unit = np.ones(len(gram))

    def _with(self, gram, lower, unit, known) -> Kept:
        other = object.__new__(Kept)
        other.gram, other.lower, other.unit, other.known, other.centre = gram, lower, unit, known, self.centre
        return other

    def of(self, blocks: slice) -> Kept:
        """That of some blocks, which shares memory with this one."""
        return self._with(*(None if a is None else a[blocks] for a in (self.gram, self.lower, self.unit, self.known)))

    def corner(self, columns: int) -> Kept:
        """That of the first snapshots.

        Triangles less a later snapshot are left out: far from the first ones it would take digits away.
        """
        first = np.s_[:, :columns, :columns]
        lower = None if self.lower is None else self.lower[first].copy()
        other = self._with(self.gram[first], lower, self.unit.copy(), self.known.copy())
        if self.centre is not None and self.centre >= columns:
            other.known[:], other.centre = False, columns // 2
        return other

    def stand_ins(self, X: np.ndarray, blocks: np.ndarray) -> StandIns:
        """Those of some blocks, made of the snapshots X (columns, B, n) where they are not known yet."""
        missing = blocks[~self.known[blocks]]
        if len(missing):
            self.lower[missing], self.unit[missing] = stand_ins(X, missing, self.centre)
            self.known[missing] = True
        return StandIns(self.lower[blocks], self.unit[blocks])
