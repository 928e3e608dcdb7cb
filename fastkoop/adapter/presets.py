"""Presets: settings by name, for the kinds of training that they were measured on."""

from __future__ import annotations

from typing import Any, TypedDict

from .. import checks
from ..cutoff import Cutoff, Rank
from ..observables import Affine

PRESETS = ("published", "noisy", "smooth")
SNAPSHOTS = 12  # means in a recording of noisy training


class OptionValues(TypedDict, total=False):
    """Keyword arguments of `fastkoop.options.Options`."""

    cutoff: Cutoff
    observables: Any
    stabilize: Any
    out_of_span: str
    every: int
    window: int


def preset_options(name: str | None, record: int | None = None) -> OptionValues:
    """What a preset sets.

    published: as Dogra & Redman (2020): the weights alone, nothing stabilised. noisy: for mini-batches: one direction
    of the means of `record // 12` iterates. smooth: for full batches: the eight slowest directions, and no growth.

    Args:
        name: None sets nothing.
        record: iterations in a recording, where that is known.

    Raises:
        ValueError: no preset of that name.

    >>> preset_options("noisy", record=240)["window"]
    20
    >>> preset_options("smooth")
    {'observables': Affine(), 'cutoff': Rank(k=8), 'stabilize': 'clip', 'window': 1}
    """
    if name is None:
        return {}
    checks.choice("preset", name, PRESETS)
    if name == "published":
        return {"observables": "identity", "cutoff": "array_api", "stabilize": None}
    if name == "smooth":
        return {"observables": Affine(), "cutoff": Rank(8), "stabilize": "clip", "window": 1}
    window = max(1, record // SNAPSHOTS) if record else 1
    return {"observables": Affine(), "cutoff": Rank(1), "stabilize": 0.875, "window": window, "every": window}


def preset_candidates(name: str | None) -> tuple[str, ...]:
    """Where a guarded jump with a horizon may end, unless it is told: noisy training's mean is hard to beat."""
    return ("koopman", "mean", "line") if name == "noisy" else ("koopman",)
