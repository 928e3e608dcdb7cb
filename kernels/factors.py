"""Reduced operators of one block after another, gathered into `Factors`; for the arrays of any backend."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .contract import COORDINATES, Factors


class Reduced(NamedTuple):
    """One block's operator in r <= min(n, m) coordinates; see `Factors` for the letters."""

    basis: Any
    readout: Any
    operator: Any
    start: Any
    rank: int
    threshold: float
    largest: float
    smallest: float
    edge: bool
    route: int


def empty(order: int, route: int) -> Reduced:
    """The operator of a block with nothing to say: rank 0."""
    none = np.zeros((order, 0))
    return Reduced(none, none, np.zeros((0, 0)), np.zeros(0), 0, 0.0, 0.0, 0.0, False, route)


def ends(values, unit: float = 1.0) -> tuple[float, float]:
    """Largest and smallest of the singular values that count; 0 where none does."""
    return (float(values[0]) * unit, float(values[-1]) * unit) if len(values) else (0.0, 0.0)


def assemble(parts: list[Reduced], order: int, xp=np) -> Factors:
    """One Factors of a backend's arrays from blocks that were reduced one at a time."""
    B, r = len(parts), max((part.rank for part in parts), default=0)
    shared = all(part.readout is part.basis for part in parts)
    basis, operator, start = xp.zeros((B, order, r)), xp.zeros((B, r, r)), xp.zeros((B, r))
    readout = basis if shared else xp.zeros((B, order, r))
    for b, part in enumerate(parts):
        k = part.rank
        if not k:
            continue
        basis[b, :, :k], readout[b, :, :k] = part.basis, part.readout
        operator[b, :k, :k], start[b, :k] = part.operator, part.start
    columns = list(zip(*[part[4:] for part in parts], strict=True)) or [()] * 6
    dtypes = (np.int64, np.float64, np.float64, np.float64, np.bool_, np.int8)
    reports = (xp.asarray(np.array(column, dtype)) for column, dtype in zip(columns, dtypes, strict=True))
    return Factors(basis, readout, operator, start, *reports)


def trim(factors: Factors) -> Factors:
    """Coordinates past the largest rank of the batch, dropped; host memory."""
    r = int(factors.rank.max(initial=0))
    if r == factors.operator.shape[1]:
        return factors
    basis = np.ascontiguousarray(factors.basis[:, :, :r])
    readout = basis if factors.readout is factors.basis else np.ascontiguousarray(factors.readout[:, :, :r])
    operator = np.ascontiguousarray(factors.operator[:, :r, :r])
    return factors._replace(
        basis=basis, readout=readout, operator=operator, start=np.ascontiguousarray(factors.start[:, :r])
    )


def merge(factors: Factors, chosen: np.ndarray, exact: Factors) -> Factors:
    """Factors with those of the chosen blocks put in their place; host memory."""
    r = max(factors.operator.shape[1], exact.operator.shape[1])
    merged = {}
    for name in Factors._fields:
        old, new = getattr(factors, name), getattr(exact, name)
        if name == "readout" and factors.readout is factors.basis and exact.readout is exact.basis:
            merged[name] = merged["basis"]
            continue
        merged[name] = _widened(old, COORDINATES.get(name, ()), r)
        merged[name][chosen] = _widened(new, COORDINATES.get(name, ()), r)
    return trim(Factors(**merged))


def _widened(array: np.ndarray, axes: tuple[int, ...], r: int) -> np.ndarray:
    """A copy with zeros appended along some axes, up to r."""
    out = np.zeros([r if axis in axes else size for axis, size in enumerate(array.shape)], array.dtype)
    out[tuple(map(slice, array.shape))] = array
    return out
