"""Limits: bounds on a block's operator beyond which a jump leaves the block alone."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import torch

from ..checks import InputError
from ..operator import KoopmanOperator


@dataclass(frozen=True)
class Limits:
    """Bounds on a block's operator; a block beyond one of them keeps its weights.

    Args:
        residual: largest `KoopmanOperator.residual`; 1 is as wrong as predicting no change.
        holdout: largest `KoopmanOperator.holdout`, on the same scale; costs a second fit.
        spectral_radius: largest modulus of an eigenvalue.
        forecast: largest error of the block's forecast, see `KoopmanPhase.forecast`; NaN, of a recording too short to
            split, is beyond it.

    None, the default of each, is no bound. NaN is within every other bound: nothing moved and nothing was missed, or
    two snapshots leave none to hold out.

    >>> Limits(holdout=1.0)
    Limits(residual=None, holdout=1.0, spectral_radius=None, forecast=None)
    """

    residual: float | None = None
    holdout: float | None = None
    spectral_radius: float | None = None
    forecast: float | None = None

    def __post_init__(self):
        for name, value in self.bounds.items():
            if isinstance(value, bool) or not isinstance(value, (int, float, np.floating)):
                raise TypeError(f"limits: expected a number for {name}, got {value!r}")
            if not value > 0:
                raise InputError(f"limits: expected {name} > 0, got {value}")

    @property
    def bounds(self) -> dict[str, float]:
        """The bounds that are set, by name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    def beyond(self, op: KoopmanOperator) -> dict[str, torch.Tensor]:
        """A bool per block for every bound on its operator: whether the block is beyond it."""
        return {name: getattr(op, name) > bound for name, bound in self.bounds.items() if name != "forecast"}
