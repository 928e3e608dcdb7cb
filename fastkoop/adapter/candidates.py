"""Candidates: where a jump may end - at the operators' states, at the recording's mean, or on its line."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

from .. import checks
from .buffers import GroupBuffer

KOOPMAN, MEAN, LINE = "koopman", "mean", "line"
NAMES = (KOOPMAN, MEAN, LINE)
FURTHEST = 1024  # recorded intervals that "auto" tries before the limit


class Target(NamedTuple):
    """Where to try to move the parameters: a candidate, and iterations from where they are."""

    candidate: str
    steps: float


def checked(candidates) -> tuple[str, ...]:
    """The candidates' names.

    Raises:
        ValueError: none, one that is not known, or one twice.
    """
    names = (candidates,) if isinstance(candidates, str) else tuple(candidates)
    for name in names:
        checks.choice("candidates", name, NAMES)
    if not names or len(set(names)) < len(names):
        raise checks.InputError(f"candidates: expected some of {', '.join(map(repr, NAMES))}, once each, got {names}")
    return names


def targets(steps: float, horizon, candidates: Sequence[str], every: int) -> list[Target]:
    """What to try, in order; a line leads to no limit.

    horizon: None, "auto" or steps that are tried as given.
    """
    if horizon is None:
        distances: list[float] = [steps]
    else:
        distances = horizon_steps(steps, every) if isinstance(horizon, str) else list(horizon)
    tried = [Target(KOOPMAN, distance) for distance in distances if KOOPMAN in candidates]
    if MEAN in candidates:
        tried.append(Target(MEAN, 0))
    if LINE in candidates:
        tried += [Target(LINE, distance) for distance in distances if math.isfinite(distance)]
    return tried


def horizon_steps(steps: float, every: int) -> list[float]:
    """0, 1, 2, 4, ... intervals of `every` iterations, and `steps` itself; 1024 intervals before the limit.

    >>> horizon_steps(50, 5)
    [0, 5, 10, 20, 40, 50]
    >>> len(horizon_steps(math.inf, 1))
    13
    """
    tried: list[float] = [0]
    at, last = every, min(steps, FURTHEST * every + 1) if math.isinf(steps) else steps
    while at < last:
        tried.append(at)
        at *= 2
    return tried if steps == 0 else [*tried, steps]


@torch.no_grad()
def mean_of(recording: GroupBuffer, snapshots: int) -> torch.Tensor:
    """The mean of a recording's snapshots, (rows, n) float64."""
    return recording.snapshots(snapshots)[..., : recording.group.n].mean(dim=0, dtype=torch.float64)


@torch.no_grad()
def line_of(recording: GroupBuffer, snapshots: int, intervals: float) -> torch.Tensor:
    """The least-squares line through every weight's snapshots, so many intervals past the newest: (rows, n) float64."""
    held = recording.snapshots(snapshots)[..., : recording.group.n]
    times = torch.arange(snapshots, dtype=torch.float64, device=held.device) - (snapshots - 1) / 2
    weights = 1.0 / snapshots + times * ((snapshots - 1) / 2 + intervals) / times.square().sum()
    out = torch.zeros(held.shape[1:], dtype=torch.float64, device=held.device)
    for weight, snapshot in zip(weights, held, strict=True):  # in float64, a snapshot at a time
        out.add_(snapshot.double() * weight)  # a product of its own: `double` of float64 is the recording itself
    return out
