"""Reports: what an operator says of its blocks - rank, threshold, residual, hold-out - and the table of them."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

from . import backends
from . import cutoff as rules
from .backends import NON_FINITE, ROUTES
from .interop.arrays import Array
from .interop.traced import in_scope
from .options import Options


class Reports:
    """The part of `KoopmanOperator` that reports, per block, in the batch's shape and X's kind.

    Every report is a copy: changing it changes no prediction. Those that cost something are computed when they are
    first read.
    """

    options: Options
    backend: Any
    _xp: Any  # the backend's array module
    _source: Array  # X's kind and place
    _pool: Any  # pairs that are no single trajectory; None of one
    _kept: Any  # of tall blocks what forecasts can use again, see `fitting.kept_of`
    _spread: Any  # what has the other parts of the blocks; None of whole ones
    _batch: tuple[int, ...]
    _check_finite: bool
    _n: int  # weights of a block
    _columns: slice  # where weights are among a block's rows
    _pairs: int
    _tall: bool
    _published: Any  # Factors as published, before they are stabilized
    _lifted: Any  # Lifted, stabilized
    _factors: Any  # Factors with the constant, if one is observed or carried
    _eigenvector_condition: Any
    _X: Any  # snapshots (m+1, ..., rows)
    _readout: Any

    def _report(self, values):
        return self._source.wrap(self._xp.array(values, order="C").reshape(self._batch))

    @property
    def rank(self) -> Any:
        """Singular values of F that count, per block: int64."""
        return self._report(self._published.rank)

    @property
    def threshold(self) -> Any:
        """What a singular value must exceed to count, per block: float64, in the units of F."""
        return self._report(self._published.threshold)

    @property
    def condition(self) -> Any:
        """Largest over smallest singular value that counts, per block: float64; NaN at rank 0."""
        return self._report(self._conditions())

    @in_scope
    def _conditions(self):
        with np.errstate(invalid="ignore"):
            return self._published.largest / self._published.smallest

    @property
    def edge(self) -> Any:
        """Whether a singular value lies so near the threshold that rank +- 1 is as right: bool per block."""
        return self._report(self._published.edge)

    @property
    def route(self) -> np.ndarray:
        """How each block was fitted, in words, a NumPy array.

        "eigen": by the eigenvectors of its Gram matrix; "svd": by its own singular vectors, where that matrix cannot
        resolve the cutoff; "zero": all zero, rank 0; "non-finite".

        >>> from fastkoop import fit
        >>> X = np.zeros((3, 2, 4))
        >>> X[1:] = [[1.0, 0.5, 0.25, 0.125], [3.0, 2.0, 1.0, 0.5]]
        >>> X[2, 1] = 3.0000001 * X[2, 0]
        >>> fit(X).route.tolist()
        ['zero', 'eigen', 'svd']
        """
        return np.array(ROUTES)[self._host(self._published.route)].reshape(self._batch)

    @in_scope
    def _host(self, values) -> np.ndarray:
        """Values of all blocks in host memory."""
        return self.backend.host(values)

    @property
    def spectral_radius(self) -> Any:
        """Largest modulus of an eigenvalue of K (after clipping, if any), per block: float64; 0 at rank 0.

        A constant's own eigenvalue, 1, is not counted.
        """
        return self._report(self._radii)

    @functools.cached_property
    @in_scope
    def _radii(self):
        values = self._xp.abs(self._eigenvalues)
        return self._known(values.max(axis=1) if values.shape[1] else self._xp.zeros(len(values)))

    @functools.cached_property
    def _eigenvalues(self):
        """Eigenvalues (B, r) complex, after clipping, zeros past a block's rank; what reads them shares them."""
        return self.backend.eigenvalues(self._lifted.factors)

    def _known(self, values):
        """The same, NaN in blocks that were not finite."""
        values[self._published.route == NON_FINITE] = np.nan
        return values

    @property
    def eigenvector_condition(self) -> Any:
        """Condition number of the eigenvectors that clipping went through, per block; 1 where nothing was."""
        return self._report(self._eigenvector_condition)

    @property
    def residual(self) -> Any:
        """How K misses its own last step, on data it was fitted to: ||K x_(m-1) - x_m|| / ||x_m - x_(m-1)||.

        float64 per block; about 0 for a tall block of full rank, which can explain anything; 1 is as
        wrong as predicting no change. NaN for a block whose last step is zero and met exactly.
        """
        return self._report(self._residuals)

    @functools.cached_property
    @in_scope
    @np.errstate(over="ignore", invalid="ignore")
    def _residuals(self):
        xp, own, observed, rows = self._xp, self._lifted.factors, self.options.observables.observed, self._X.shape[-1]
        carry = self.options.carry
        last, before = self._weights(-1), self._weights(-2)
        if self._tall:
            # the state before is F e, so U^T F e = S V^T e; rows of the basis (V S^-1)^T have norm 1/s
            basis = xp.ascontiguousarray(own.basis.transpose(0, 2, 1))
            size = xp.abs(basis).max(axis=2)
            size[size == 0.0] = 1.0  # past a block's rank
            norm = xp.linalg.norm(basis / size[..., None], axis=2)
            y = basis[..., -1] / size / xp.where(norm == 0.0, 1.0, norm) ** 2 / size
            coefficients = self._sums(own.readout.transpose(2, 0, 1), y)
            if carry or observed.affine:
                at = self._pairs - 1
                constant = backends.observed.constants(self.backend, self._lifted, self._pairs, observed, carry, y, at)
                constant[:, int(carry) :] += coefficients
                coefficients = constant
            coefficients[:, -1] -= 1.0  # x_m is the last row: the miss itself is combined, not its two large terms
            miss = self._sums(self._readout.snapshots, coefficients)
        else:
            state = xp.concatenate([self._X[-2 - k].reshape(-1, rows) for k in range(observed.delay)], axis=1)
            if observed.affine:
                state = state - self._mean(after=False)
            y = self._sums(own.basis.transpose(1, 0, 2), state.astype(np.float64))
            miss = self._sums(own.readout.transpose(2, 0, 1), y)[:, : self._n] - last
            if observed.affine:
                miss += self._lifted.mean[:, : self._n]
            if carry:
                miss += (state - xp.einsum("bnr,br->bn", own.basis, y))[:, : self._n]
        return self._known(relative(xp, miss, before, last, self._spread))

    def _sums(self, rows, coefficients):
        """Sums over rows (q, ..., k) with coefficients (B, q): (B, k), with bits of the block's own."""
        return self.backend.combine(rows, coefficients[:, None])[0]

    @property
    def holdout(self) -> Any:
        """How an operator fitted without the last pair misses it: ||K' x_(m-1) - x_m|| / ||x_m - x_(m-1)||.

        float64 per block: the trust signal, since that pair is new to it; 1 is as wrong as predicting no
        change. NaN with a single pair, and for a block whose last step is zero and met exactly.
        """
        return self._report(self._holdouts)

    @functools.cached_property
    @in_scope
    def _holdouts(self):
        if self._pairs - 1 < 1 + self.options.observables.observed.affine:
            return self._xp.full(len(self._factors.rank), np.nan)
        state = self._without_last()
        last, before = self._weights(-1), self._weights(-2)
        with np.errstate(over="ignore", invalid="ignore"):
            miss = state.astype(np.float64) - last
        return relative(self._xp, miss, before, last, self._spread)

    def _earlier(self, columns: int) -> Reports:
        """The operator of the first snapshots alone."""
        raise NotImplementedError

    def _states(self, counts: np.ndarray) -> Any:
        """States (k, B, n) at the given numbers of steps."""
        raise NotImplementedError

    def _without_last(self):
        """What an operator fitted without the last pair predicts for the last snapshot, (B, n)."""
        raise NotImplementedError

    def _weights(self, t: int):
        """What is read out of snapshot t (B, n)."""
        return self._X[t, ..., self._columns].reshape(math.prod(self._batch), self._n)

    def _mean(self, after: bool):
        """Means over the columns of Fp (if `after`) or of F: (B, delay n) float64."""
        raise NotImplementedError

    def summary(self) -> str:
        """The per-block reports as a table, a line per block."""
        found = self._published
        reports = found.rank, found.threshold, self._conditions(), self._radii, self._residuals, self._holdouts
        columns, edges, routes = [self._host(report) for report in reports], self._host(found.edge), self.route.ravel()
        heads = ("threshold", "condition", "radius", "residual", "hold-out")
        lines = ["block         route       rank  " + "  ".join(f"{head:>9}" for head in heads) + "  edge"]
        for b, index in enumerate(np.ndindex(self._batch)):
            rank, *values = (column[b] for column in columns)
            numbers = "  ".join(f"{value:9.3g}" for value in values)
            edge = "yes" if edges[b] else ""
            lines.append(f"{index!s:12}  {routes[b]:10}  {rank:4d}  {numbers}  {edge}".rstrip())
        return "\n".join(lines)

    def __repr__(self) -> str:
        rank, edge = self._host(self._published.rank), self._host(self._published.edge)
        B = len(rank)
        blocks = f"{B} block{'s' * (B != 1)} of {self._n} weights, {self._pairs} pairs"
        observed = "" if str(self.options.observables) == "identity" else f"{self.options.observables}; "
        span = f"{rank.min()}..{rank.max()}" if B else "-"
        routes = ", ".join(np.unique(self.route)) if B else "-"
        return (
            f"KoopmanOperator({blocks}; {observed}rank {span} by {rules.describe(self.options.cutoff)}; "
            f"route {routes}; {int(edge.sum())} on the edge)"
        )


def relative(xp, miss, x, target, spread):
    """||miss|| / ||target - x|| per block, in float64; NaN where nothing moved and nothing was missed but rounding."""
    eps = np.finfo(target.dtype).eps
    miss, x, target = (array.astype(np.float64) for array in (miss, x, target))
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        if spread is None:
            scale = xp.maximum(xp.abs(target), xp.abs(x)).max(axis=1, keepdims=True)
            scale[scale == 0.0] = 1.0
            miss, moved, size = (xp.linalg.norm(part / scale, axis=1) for part in (miss, target - x, target))
        else:
            own = (part[:, : spread.owned] ** 2 for part in (miss, target - x, target))
            squares = xp.stack([part.sum(axis=1) for part in own])
            miss, moved, size = xp.sqrt(xp.asarray(spread.sum(squares)))
        miss[(moved == 0.0) & (miss <= 8 * eps * size)] = 0.0
        return miss / moved
