"""Pools: the pairs of several trajectories, or pairs given as such, with their weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from . import backends, checks
from .checks import InputError
from .interop import arrays
from .linalg import time_major
from .options import Options


class Pool(NamedTuple):
    """Pairs of observables (M, B, rows) without one across a join, and where predictions start."""

    before: Any  # F
    after: Any  # Fp
    start: Any  # (B, rows)
    roots: np.ndarray  # (M,) float64, square roots of the weights

    def without_last(self) -> Pool:
        """All pairs but the last one, starting where that does."""
        return Pool(self.before[:-1], self.after[:-1], self.before[-1], self.roots[:-1])

    def mean(self, after: bool) -> Any:
        """Weighted means (B, rows) of Fp (if `after`) or of F, float64."""
        side = (self.after if after else self.before).astype(np.float64)
        shares = self.roots**2 / (self.roots**2).sum()
        return (side * shares[:, None, None]).sum(axis=0)

    def fitted(self, backend: Any, options: Options, refine: bool) -> Any:
        """Operators of the pairs, as published."""
        observed, (M, _, rows) = options.observables.observed, self.before.shape
        rule = options.rule_of(rows, M - observed.affine, self.before.dtype)
        pairs = self.before, self.after, self.start
        return backends.pooled.fit(
            backend, pairs, self.roots, rule, observed.affine, refine=refine, gains=options.project
        )


def read(X: Any, Y: Any, time_axis: int, options: Options) -> tuple[list[arrays.Array], list[Any]]:
    """Trajectories as arrays and as time-major views (m+1, ..., n), all of one kind, place, dtype, batch and n.

    Of pairs there are two of each: F and Fp.
    """
    if Y is not None and isinstance(X, (list, tuple)):
        raise InputError(
            "Y: expected none with a list of trajectories, got one; pass F and Fp as two arrays, or a list"
        )
    if Y is None and isinstance(X, (list, tuple)) and not len(X):
        raise InputError("X: expected at least one trajectory, got an empty list")
    named = {"X": X, "Y": Y} if Y is not None else {f"X[{i}]": x for i, x in enumerate(_listed(X))}
    sources = [arrays.read(x, name) for name, x in named.items()]
    views = [_view(source.data, time_axis, name, Y is None) for name, source in zip(named, sources, strict=True)]
    first, least = sources[0], options.observables.observed.delay + 1
    for name, source, view in zip(named, sources, views, strict=True):
        expected = first.kind, str(first.place), first.dtype or str(first.data.dtype), tuple(views[0].shape[1:])
        got = source.kind, str(source.place), source.dtype or str(source.data.dtype), tuple(view.shape[1:])
        if got != expected:
            raise InputError(
                "{}: expected, as before it, a {} array on {} of {} with blocks {}, got a {} array on {} of {} with "
                "blocks {}".format(name, *expected, *got)
            )
        if Y is None and len(view) < least:
            raise InputError(
                f"{name}: expected at least {least} snapshots for {options.observables}, got {len(view)}; leave it out"
            )
    if Y is not None and len(views[0]) != len(views[1]):
        raise InputError(f"Y: expected a successor of each of {len(views[0])} columns of X, got {len(views[1])}")
    return sources, views


def _listed(X: Any) -> Sequence[Any]:
    return X if isinstance(X, (list, tuple)) else [X]


def _view(data: Any, time_axis: int, name: str, trajectory: bool) -> Any:
    """Time first; a single column will do for pairs."""
    if trajectory or data.ndim < 2 or 1 not in data.shape:
        try:
            return time_major(data, time_axis)
        except InputError as error:
            raise InputError(f"{name}{str(error)[1:]}" if str(error).startswith("X:") else str(error)) from None
    axis = checks.axis_of(data.ndim, time_axis)
    return data.transpose(axis, *(other for other in range(data.ndim) if other != axis))


def pool_of(views: list[Any], pairs: bool, weights: Any, options: Options, xp: Any) -> Pool:
    """The pool of trajectories, or of F and Fp."""
    observed = options.observables.observed
    if pairs:
        if observed.delay > 1:
            raise InputError(f"observables: {options.observables} needs trajectories, got pairs; pass them as a list")
        F, Fp = (_flat(view) for view in views)
        counts, start = [len(F)], Fp[-1]
    else:
        stacks = [backends.observed.stacked(xp, _flat(view), observed.delay) for view in views]
        counts, start = [len(Z) - 1 for Z in stacks], stacks[-1][-1]
        F, Fp = (xp.concatenate([Z[side] for Z in stacks]) for side in (slice(-1), slice(1, None)))
    if len(F) < 1 + observed.affine:
        raise InputError(f"X: expected at least {1 + observed.affine} pairs for {options.observables}, got {len(F)}")
    return Pool(F, Fp, start, np.sqrt(_weights(weights, counts)))


def _flat(view: Any) -> Any:
    """(columns, B, n) of (columns, ..., n)."""
    return view.reshape(len(view), math.prod(view.shape[1:-1]), view.shape[-1])


def _weights(weights: Any, counts: list[int]) -> np.ndarray:
    """One weight a pair, from one a trajectory or one a pair."""
    total = sum(counts)
    if weights is None:
        return np.ones(total)
    try:
        values = np.asarray(weights.tolist() if hasattr(weights, "tolist") else weights)
    except (ValueError, TypeError, RuntimeError):
        values = np.asarray(None)
    if values.dtype.kind not in "fiu" or values.ndim != 1:
        raise TypeError(f"weights: expected a 1-D sequence of numbers, got {checks.brief(weights)}")
    if len(values) not in (len(counts), total):
        raise InputError(
            f"weights: expected one for each of {len(counts)} trajectories or {total} pairs, got {len(values)}"
        )
    values = values.astype(np.float64)
    if not (np.isfinite(values).all() and (values >= 0).all() and values.any()):
        raise InputError(f"weights: expected finite numbers >= 0, not all 0, got {checks.brief(weights)}")
    return np.repeat(values, counts) if len(values) == len(counts) else values
