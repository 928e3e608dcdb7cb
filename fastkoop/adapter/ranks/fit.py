"""Fits of blocks that are spread over ranks: from Gram matrices that all ranks sum, or from gathered snapshots."""

from __future__ import annotations

import numpy as np
import torch

from ... import backends
from ...backends import kernels, triangles
from ...operator import KoopmanOperator
from ...options import Options
from .shards import Spread


def exchange(blocks: int, spread: Spread, snapshots: int, options: Options, itemsize: int) -> tuple[str, int]:
    """What a fit of so many blocks exchanges, "gram" or "snapshots", whichever is fewer bytes, and how many."""
    numbers = spread.n * (1 + options.observables.momentum)
    gram, data = 8 * blocks * snapshots**2, itemsize * blocks * snapshots * numbers
    tall = options.observables.observed.tall(numbers, snapshots)
    return ("gram", gram) if tall and gram < data else ("snapshots", data)


def fit_spread(X: torch.Tensor, n: int, spread: Spread, options: Options):
    """Operators of a group's blocks, spread over ranks, from this rank's snapshots X (m+1, rows, numbers).

    n: weights of a row on this rank. Every rank calls this, with as many snapshots.

    Raises:
        ValueError: a block that is not finite, on all ranks.
    """
    data = X.cpu().numpy()
    if exchange(data.shape[1], spread, len(data), options, data.itemsize)[0] == "gram":
        operator = KoopmanOperator.over(X, options, Together(spread, options, n))
    else:
        whole, columns = gathered(data, n, spread, options.observables.momentum)
        whole, columns = torch.from_numpy(whole).to(X.device), torch.tensor(columns, dtype=torch.int64, device=X.device)
        operator = Gathered(KoopmanOperator.over(whole, options, None), columns)
    operator.check()
    return operator


class Together:
    """Operators of blocks that are spread over ranks, from the Gram matrices that all of them sum.

    What `KoopmanOperator` asks for its blocks' other parts: `fitted` and `sum`. Every rank has to call them.
    """

    def __init__(self, spread: Spread, options: Options, n: int):
        self._spread, self._ranks, self._options, self._n = spread, spread.ranks, options, n

    @property
    def owned(self) -> int:
        """Weights of a row that count as this rank's."""
        return self._n - (self._spread.shared if self._ranks.rank else 0)

    def columns(self, X: np.ndarray) -> np.ndarray:
        """The columns of X (m+1, rows, numbers) that count as this rank's, velocities after weights."""
        if not self._options.observables.momentum:
            return X[..., : self.owned]
        return np.concatenate([X[..., : self.owned], X[..., self._n : self._n + self.owned]], axis=-1)

    def sum(self, array: np.ndarray) -> np.ndarray:
        """Over ranks."""
        return self._ranks.sum("residual", array)

    def fitted(self, X: np.ndarray) -> backends.observed.Lifted:
        """Operators of whole blocks from this rank's snapshots X (m+1, rows, numbers) and those of the others."""
        observed, columns = self._options.observables.observed, self.columns(X)
        numbers = self._spread.n * (1 + self._options.observables.momentum)
        rule = self._options.rule(numbers, len(X), X.dtype)
        gains = self._options.project
        S = np.zeros((X.shape[1], len(X), len(X)))
        if columns.shape[-1]:
            S = backends.observed.gram(kernels, columns, observed)
        S = self._ranks.sum("fit", S)
        operators = backends.observed.from_gram(kernels, S, numbers, observed, rule, X.dtype, gains=gains)
        suspects = backends.observed.unsettled(kernels, operators, X.dtype)
        if not len(suspects):
            return operators
        stand_in = self._stand_in(columns[:, suspects], observed.affine)
        exact = backends.observed.fit(kernels, stand_in, rule, observed, refine=True, gains=gains, dtype=X.dtype)
        return backends.observed.replace(kernels, operators, suspects, exact)

    def _stand_in(self, columns: np.ndarray, affine: bool) -> np.ndarray:
        """Snapshots (m+1, blocks, k), fewer numbers than the ranks', with the same distances and angles."""
        rows, unit = triangles.stand_ins(columns, np.arange(columns.shape[1]), len(columns) // 2 if affine else None)
        data = (rows * unit[:, None, None]).swapaxes(0, 1)
        joined = np.concatenate(self._ranks.gather("fit", data), axis=-1)
        pad = max(0, len(columns) + 1 - joined.shape[-1])  # stays tall
        return np.pad(joined, ((0, 0), (0, 0), (0, pad)))


class Gathered:
    """The operator of blocks whose snapshots were fewer bytes than their Gram matrix: gathered, and fitted whole."""

    def __init__(self, operator: KoopmanOperator, columns: torch.Tensor):
        self._operator, self._columns = operator, columns

    def __getattr__(self, name: str):
        if name == "_operator" or name.startswith("__"):  # copies and pickles ask before there is an operator
            raise AttributeError(name)
        return getattr(self._operator, name)

    def released(self) -> Gathered:
        """Itself: what was gathered lies in no recording."""
        return self

    def on(self, X) -> Gathered:
        """Itself, likewise."""
        return self

    def predict(self, steps, *, check_finite=None) -> torch.Tensor:
        """This rank's weights of the states."""
        return self._operator.predict(steps, check_finite=check_finite)[..., self._columns]

    def velocities(self, steps: int) -> torch.Tensor:
        """This rank's velocities."""
        return self._operator.velocities(steps)[..., self._columns]

    def walk(self, *, check_finite=None):
        """A walk along them."""
        return _Walk(self._operator.walk(check_finite=check_finite), self._columns)


class _Walk:
    """A walk of which this rank takes some columns."""

    def __init__(self, walk, columns: torch.Tensor):
        self._walk, self._columns = walk, columns

    def __getattr__(self, name: str):
        if name == "_walk" or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._walk, name)

    def step(self, count: int = 1, ahead: int = 1) -> torch.Tensor:
        return self._walk.step(count, ahead)[..., self._columns]


def gathered(data: np.ndarray, n: int, spread: Spread, momentum: bool) -> tuple[np.ndarray, list[int]]:
    """Whole blocks (m+1, rows, n or 2 n) of every rank's part of them, and where this rank's n columns are.

    Velocities come after all weights, as weights do.
    """
    halves = (data[..., :n], data[..., n : 2 * n]) if momentum else (data[..., :n],)
    whole, columns = [], []
    for half in halves:
        parts = spread.ranks.gather("fit", half)
        ends = [part.shape[-1] - spread.cut - spread.shared for part in parts]
        cut = sum(part[..., end : end + spread.cut] for part, end in zip(parts, ends, strict=True))
        shared = parts[0][..., ends[0] + spread.cut :]
        whole += [*(part[..., :end] for part, end in zip(parts, ends, strict=True)), cut, shared]
        first, behind = sum(ends[: spread.ranks.rank]), sum(ends)
        columns = [*range(first, first + ends[spread.ranks.rank]), *range(behind, behind + spread.cut + spread.shared)]
    return np.ascontiguousarray(np.concatenate(whole, axis=-1)), columns
