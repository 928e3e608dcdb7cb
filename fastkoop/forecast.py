"""Forecasts: whether operators fitted to a recording's first part predict its end better than cheap guesses do."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from . import checks
from .backends import NON_FINITE
from .interop.traced import in_scope
from .reports import Reports

SPLIT = 2 / 3  # of the snapshots that a forecast is fitted to
GUESSES = ("prediction", "mean", "line", "secant", "staying")
SQUARES = (*GUESSES, "apart", "far")
RECORDINGS = 4  # how many lengths of itself a recording is looked ahead
BELOW = -0.5  # the real part of an eigenvalue that overshoots
CLEAR = 1e3  # a square that is so much larger than its rounding is read off a Gram matrix


@dataclass(frozen=True)
class Rule:
    """When a forecast says that a jump pays.

    Its error is below `share` of the baseline's and below `largest`: the operator describes the recording. And `apart`
    is below a quarter: what describes it also leads somewhere. Any smooth path is predicted a few steps ahead, also one
    whose state is half hidden (momentum, of which the weights alone are recorded) or whose map changes on the way;
    there, operators fitted to a part and to the whole agree on the recording and part ways beyond it.

    It says whether, not how much, and it errs: bench/pages/forecast.md has what it was chosen on, and what it said on
    400 recordings that did not choose it.

    >>> bool(RULE(0.01, 0.5, 0.1)), bool(RULE(0.01, 0.5, 0.8)), bool(RULE(float("nan"), 1.0, 0.0))
    (True, False, False)
    """

    share: float = 0.5
    largest: float = 0.3
    apart: float = 0.25

    def __call__(self, error: Any, baseline: Any, apart: Any) -> Any:
        """Whether numbers, or arrays of one kind, pay; NaN does not."""
        return (error < self.share * baseline) & (error < self.largest) & (apart < self.apart)


RULE = Rule()


class Overall(NamedTuple):
    """A forecast of all blocks together, in plain numbers."""

    error: float
    baseline: float
    pays: bool


@dataclass(frozen=True, eq=False)
class Forecast:
    """How the end of a recording was predicted from its first part, per block, in X's kind.

    Attributes:
        error: ||prediction - last|| / ||last - last of the first part||; 1 is as wrong as staying there.
        baseline: the smallest such error of staying (1), the first part's mean, its least-squares line and its secant.
        pays: whether `Rule` says that a jump pays. NaN, of too few snapshots, blocks that are not finite or do not
            move, says no.
        apart: how far the operators of the first part and of the whole are apart four recordings ahead, relative to
            how far the latter has moved by then.
        overall: error, baseline and pays of all blocks together: the squares summed, relative to the summed movement.
    """

    error: Any
    baseline: Any
    pays: Any
    apart: Any
    overall: Overall
    operator: Any = field(repr=False)

    @property
    def overshoot(self) -> Any:
        """`KoopmanOperator.overshoot`, a warning of its own, computed when it is read."""
        return self.operator.overshoot


def judge(squares: np.ndarray, rule: Rule = RULE) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Errors, baselines, verdicts and `apart` from SQUARES (..., 7); sums of blocks are judged alike.

    >>> error, baseline, pays, apart = judge(np.array([1.0, 400.0, 25.0, 36.0, 100.0, 9.0, 900.0]))
    >>> float(error), float(baseline), bool(pays), float(apart)
    (0.1, 0.5, True, 0.1)
    """
    missed, staying, beyond, far = squares[..., :4], squares[..., 4], squares[..., 5], squares[..., 6]
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        relative = np.sqrt(missed / staying[..., None])
        apart = np.sqrt(beyond / np.maximum(far, staying))  # states on a circle come back
    error, baseline = relative[..., 0], np.minimum(1.0, relative[..., 1:].min(axis=-1))
    return error, baseline, rule(error, baseline, apart), apart


def summed(squares: np.ndarray) -> np.ndarray:
    """The squares (7,) of blocks (..., 7) together."""
    with np.errstate(over="ignore"):
        return squares.reshape(-1, len(SQUARES)).sum(axis=0)


def plain(judged: tuple[np.ndarray, ...], at: Any = ()) -> Overall:
    """One of several verdicts, in plain numbers."""
    error, baseline, pays, _ = judged
    return Overall(float(error[at]), float(baseline[at]), bool(pays[at]))


def overall(squares: np.ndarray) -> Overall:
    """The verdict on blocks (..., 7) together."""
    return plain(judge(summed(squares)))


@functools.cache
def guesses(first: int, columns: int) -> np.ndarray:
    """Coefficients (4, columns) of mean, line, secant and staying, less the last snapshot, fitted to the first part.

    >>> guesses(3, 4).tolist()[2]                # the secant, less the last one
    [-0.5, 0.0, 1.5, -1.0]
    """
    rows, ahead, times = np.zeros((4, columns)), columns - first, np.arange(first) - (first - 1) / 2
    rows[0, :first] = 1.0 / first
    rows[1, :first] = 1.0 / first + times * ((first - 1) / 2 + ahead) / (times**2).sum()
    rows[2, first - 1] += 1.0 + ahead / (first - 1)
    rows[2, 0] -= ahead / (first - 1)
    rows[3, first - 1] = 1.0
    rows[:, -1] -= 1.0
    rows.flags.writeable = False  # callers share it
    return rows


def _needed(squares: np.ndarray) -> np.ndarray:
    """How well squares have to be known: what is far below the rule's bound on `apart` as well as that bound."""
    if squares.shape[1] < len(SQUARES):
        return squares
    bound = squares.copy()
    bound[:, 5] = np.maximum(squares[:, 5], RULE.apart**2 * squares[:, 6])
    return bound


class Forecasting(Reports):
    """The part of `KoopmanOperator` that judges it by the end of its own recording."""

    def forecast(self, split: float = SPLIT) -> Forecast:
        """Whether an operator with these options, fitted to the first part of the snapshots, predicts the last one.

        And whether it leads where this operator leads, four recordings ahead, see `Rule`. A recording of a smooth map
        with several slow modes says yes, one of noise no. It takes a fit of the first part, of corners of what the fit
        has kept of tall blocks: 0.1 to 1.0 times the fit's time, least where blocks have many weights
        (bench/pages/costs.md). Of blocks with more than a thousand snapshots and weights it may keep nothing.

        Args:
            split: the share of the snapshots in the first part, between 0 and 1.

        Returns:
            Forecast.

        Raises:
            ValueError, TypeError: split is no such share.

        >>> import fastkoop
        >>> t = np.arange(12)
        >>> told = fastkoop.fit(np.array([[0.9**t, 0.5**t]])).forecast()
        >>> bool(told.pays[0]), told.overall.pays
        (True, True)
        """
        squares = self.misses(split)
        error, baseline, pays, apart = map(self._judged, judge(squares))
        return Forecast(error, baseline, pays, apart, overall(squares), self)

    @in_scope
    def _judged(self, values: np.ndarray) -> Any:
        return self._report(self._xp.asarray(values))

    @in_scope
    def misses(self, split: float = SPLIT) -> np.ndarray:
        """Squared distances (B, 7): GUESSES from the last snapshot, and four recordings ahead two operators' states
        from each other and the whole recording's from the last snapshot.

        What `forecast` judges, in host memory, so that blocks of several operators can be judged together. NaN where
        there are too few snapshots. Of blocks that are spread over ranks it is an exchange that every rank calls.
        """
        share = checks.number("split", split, "a share of the snapshots")
        if not 0.0 < share < 1.0:
            raise checks.InputError(f"split: expected a share of the snapshots between 0 and 1, got {split}")
        if self._pool is not None:
            raise checks.InputError("forecast: expected one trajectory, got a pool of pairs; fit the last one alone")
        columns = len(self._X)
        first, observed = round(share * columns), self.options.observables.observed
        if not max(2, observed.delay + 1 + observed.affine) <= first < columns:
            return np.full((len(self._factors.rank), len(SQUARES)), np.nan)
        earlier = self._earlier(first)
        with np.errstate(over="ignore", invalid="ignore"):
            squares = self._misses_of(earlier, first)
        squares[self.backend.host(self._published.route) == NON_FINITE] = np.nan
        return squares

    def _misses_of(self, earlier, first: int) -> np.ndarray:
        columns, B = len(self._X), len(self._factors.rank)
        ahead, far = columns - first, RECORDINGS * (columns - 1)
        if self._tall:
            rows = self._xp.zeros((B, len(SQUARES), columns))
            earlier._put_combinations(np.array([ahead, far + ahead]), rows[:, ::5])
            rows[:, 1:5] = self._xp.asarray(guesses(first, columns))
            self._put_combinations(np.array([far]), rows[:, 6:])
            rows[:, 5] -= rows[:, 6]
            rows[:, ::6, -1] -= 1.0
            return self._squares(rows)
        rows = self._xp.asarray(np.broadcast_to(guesses(first, columns), (B, 4, columns)))
        last = self._weights(-1)
        whole = self._states(np.array([far]))[0].astype(np.float64)
        own, there = earlier._states(np.array([ahead, far + ahead])).astype(np.float64)
        missed, *beyond = (self._summed((state**2)[None]) for state in (own - last, whole - there, whole - last))
        if earlier._tall:  # whose combinations tell more than states that are rounded
            combined = self._xp.zeros((B, 1, columns))
            earlier._put_combinations(np.array([ahead]), combined)
            combined[:, :, -1] -= 1.0
            missed = self._squares(combined)
        return np.concatenate([missed, self._squares(rows), *beyond], axis=1)

    def _put_combinations(self, steps: np.ndarray, out) -> None:
        """States of tall blocks into zeros (B, k, columns): combinations of snapshots, of which there may be later
        ones."""
        coefficients = self.backend.evolve(self._factors, steps)
        out[:, :, len(self._X) - coefficients.shape[2] : len(self._X)] = coefficients

    def _squares(self, rows) -> np.ndarray:
        """||rows X||^2 (B, k) of combinations (B, k, columns) of a block's weights: of what was kept of the block where
        that can tell, of the snapshots where it cannot."""
        if self._kept is None or self.options.observables.momentum:
            return self._squares_of_snapshots(rows, np.arange(len(rows)))
        kept, columns = self._kept, rows.shape[2]
        sizes = np.sqrt(np.einsum("bii->bi", kept.gram))
        squares = ((rows @ kept.gram) * rows).sum(axis=2)
        rounding = 2.0**-52 * (8.0 + math.sqrt(self._n)) * (np.abs(rows) @ sizes[:, :, None])[..., 0] ** 2
        unclear = ~((_needed(squares) > CLEAR * rounding) | ~np.isfinite(rounding))
        if kept.known.any():  # by triangles, of which nothing is squared before it is summed
            at = np.flatnonzero(kept.known)
            squares[at] = ((rows[at] @ kept.lower[at, :columns, :columns]) ** 2).sum(axis=2) * kept.unit[at, None] ** 2
            unclear[at] = False
        at = np.flatnonzero(unclear.any(axis=1))
        if len(at):
            squares[at] = self._squares_of_snapshots(rows[at], at)
        return squares

    def _squares_of_snapshots(self, rows, at: np.ndarray) -> np.ndarray:
        """The same of the blocks `at`, by one pass over them."""
        flat = self._X[..., self._columns].reshape(len(self._X), len(self._factors.rank), self._n)
        part = flat if len(at) == flat.shape[1] else self._xp.ascontiguousarray(flat[:, at])
        sums = self.backend.combine(part, self._xp.ascontiguousarray(rows), products=False)
        return self._summed(sums.astype(np.float64) ** 2)

    def _summed(self, squares) -> np.ndarray:
        """Sums (B, k) over the weights of squares (k, B, n), over those of all ranks."""
        if self._spread is None:
            return self.backend.host(squares.sum(axis=2).T)
        return self._spread.sum(self.backend.host(squares[..., : self._spread.owned].sum(axis=2).T))

    @property
    def overshoot(self) -> Any:
        """The share of the eigenvalues that count whose real part is below -0.5: steps that overshoot, per block.

        A warning of its own: a forecast does not see that a jump may land where the training rate no longer suits.
        float64; 0 at rank 0. A constant's own eigenvalue is not counted.
        """
        return self._report(self._overshoots)

    @functools.cached_property
    @in_scope
    def _overshoots(self):
        counts = self._xp.maximum(self._published.rank, 1)
        return self._known((self._eigenvalues.real < BELOW).sum(axis=1) / counts)
