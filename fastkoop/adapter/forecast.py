"""Forecasts: whether operators fitted to the first part of a recording predict its end."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from .fits import Fits
from .parts import Parts

SPLIT = 2 / 3  # of the snapshots that the operators of a forecast are fitted to
SHARE, LARGEST = 0.5, 0.3  # a forecast pays below this share of the best baseline's error, and below this error


class Overall(NamedTuple):
    """A forecast of all blocks together."""

    error: float
    baseline: float
    pays: bool


class Forecast(NamedTuple):
    """How the end of a recording was predicted, per block.

    Attributes:
        error: ||prediction - last|| / ||last - last of the first part||; 1 is as wrong as staying.
        baseline: the smallest such error of staying, the mean, a line and a secant.
        pays: whether the error is below 0.3 and below half of the baseline's.
        overall: the same of all blocks together, as plain numbers.
    """

    error: np.ndarray
    baseline: np.ndarray
    pays: np.ndarray
    overall: Overall


class Forecasts(dict):
    """Forecasts by layer; `overall` is of all of them together."""

    overall: Overall


def judge(squares: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Errors, baselines and verdicts from squared misses (..., 5): of the prediction, the baselines, and staying."""
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        relative = np.sqrt(squares[..., :-1] / squares[..., -1:])
    error, baseline = relative[..., 0], np.minimum(1.0, np.fmin.reduce(relative[..., 1:], axis=-1))
    return error, baseline, (error < SHARE * baseline) & (error < LARGEST)


def forecasts(parts: Parts, fits: Fits, position: float) -> Forecasts:
    """The forecast of every layer; see `KoopmanPhase.forecast`."""
    fits.ready(position)
    by_layer, total = Forecasts(), np.zeros(5)
    for recording, spread in zip(parts.recordings, parts.spreads, strict=True):
        views = recording.blocks(parts.recorder.snapshots)
        squares = np.concatenate([_squares(fits, recording, spread, view) for view in views])
        by_layer[recording.group.name] = Forecast(*judge(squares), _overall(squares.sum(axis=0)))
        total = total + squares.sum(axis=0)
    by_layer.overall = _overall(total)
    return by_layer


def length(vectors: torch.Tensor, spread) -> torch.Tensor:
    """Norms of vectors (..., n), whose other parts lie on other ranks if they are spread."""
    squares = vectors.double().square().sum(dim=-1)
    if spread is not None:
        squares = torch.from_numpy(spread.ranks.sum("forecast", squares.cpu().numpy())).to(squares.device)
    return squares.sqrt()


def pace(snapshots: torch.Tensor, spread) -> torch.Tensor:
    """How far blocks (m+1, ..., n) came in an interval on average since the first part of the recording ended."""
    ahead = len(snapshots) - _first(len(snapshots))
    return length(snapshots[-1] - snapshots[-1 - ahead], spread) / ahead


def _first(count: int) -> int:
    """Snapshots in the first part of so many."""
    return round(SPLIT * count)


def _overall(squares: np.ndarray) -> Overall:
    error, baseline, pays = judge(squares)
    return Overall(float(error), float(baseline), bool(pays))


def _squares(fits: Fits, recording, spread, view) -> np.ndarray:
    """Squared misses (blocks, 5) of the prediction, the mean, the line, the secant, and of staying."""
    count = len(view)
    first = _first(count)
    least = fits.options.observables.observed.delay + 1 + fits.options.observables.observed.affine
    blocks = int(np.prod(view.shape[1:-1]))
    if first < max(2, least) or first == count:
        return np.tile([np.inf, 1.0, 1.0, 1.0, 1.0], (blocks, 1))  # says no
    [op] = fits.fitted(recording, spread, [view[:first]])
    n = fits.options.observables.weights(view.shape[-1])
    predicted = op.predict(count - first, check_finite=False).reshape(blocks, -1).double().cpu().numpy()
    X = view[..., :n].reshape(count, blocks, n).double().cpu().numpy()
    last, start, ahead = X[-1], X[first - 1], count - first
    times = np.arange(first) - (first - 1) / 2
    mean = X[:first].mean(axis=0)
    slope = np.tensordot(times, X[:first], axes=1) / (times**2).sum()
    line = mean + slope * ((first - 1) / 2 + ahead)
    secant = start + (start - X[0]) * (ahead / (first - 1))
    with np.errstate(over="ignore", invalid="ignore"):
        squares = np.stack([((guess - last) ** 2).sum(axis=-1) for guess in (predicted, mean, line, secant, start)], -1)
    return squares if spread is None else spread.ranks.sum("forecast", squares)
