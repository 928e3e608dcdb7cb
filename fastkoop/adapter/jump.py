"""What a jump may do to a block, and what it did: limits, the steps that are tried, reports."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields

import numpy as np
import torch

from ..checks import InputError
from ..operator import KoopmanOperator


@dataclass(frozen=True)
class Limits:
    """Bounds on a block's operator; a block beyond one of them keeps its weights.

    Args:
        residual: largest `KoopmanOperator.residual`, which 1 is as wrong as no change.
        holdout: largest `KoopmanOperator.holdout`, likewise; costs a second fit.
        spectral_radius: largest modulus of an eigenvalue. None, the default of each, is no bound.

    A value that is NaN is within every bound: nothing moved and nothing was missed, or two snapshots leave none out.

    >>> Limits(holdout=1.0)
    Limits(residual=None, holdout=1.0, spectral_radius=None)
    """

    residual: float | None = None
    holdout: float | None = None
    spectral_radius: float | None = None

    def __post_init__(self):
        for each in fields(self):
            value = getattr(self, each.name)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float, np.floating)):
                raise TypeError(f"limits: expected a number for {each.name}, got {value!r}")
            if not value > 0:
                raise InputError(f"limits: expected {each.name} > 0, got {value}")

    def beyond(self, op: KoopmanOperator) -> dict[str, torch.Tensor]:
        """Bool per block and bound that is set."""
        set_ = {each.name: getattr(self, each.name) for each in fields(self) if getattr(self, each.name) is not None}
        return {name: getattr(op, name) > value for name, value in set_.items()}


def horizon_steps(steps: int, every: int) -> list[int]:
    """0, 1, 2, 4, ... intervals of `every` iterations, and `steps` itself.

    >>> horizon_steps(50, 5)
    [0, 5, 10, 20, 40, 50]
    """
    tried, at = [0], every
    while at < steps:
        tried.append(at)
        at *= 2
    return tried if steps == 0 else [*tried, steps]


@dataclass
class LayerReport:
    """What a jump did to one group of parameters; on one rank, where blocks are spread over several.

    kept counts blocks whose prediction was not finite and that therefore kept their value, held those that a limit
    held back, by the limit's name; rank is (smallest, median, largest) over blocks; residual is the median, see
    `KoopmanOperator.residual`; seconds is the prediction's time. The operators refer to the recording: use them
    before it goes on.
    """

    name: str
    granularity: str
    blocks: int
    weights: int
    rank: tuple[int, float, int]
    residual: float
    kept: int
    held: dict[str, int]
    seconds: float
    operators: list[KoopmanOperator] = field(repr=False)

    @classmethod
    def of(cls, group, operators, kept: int, held: dict[str, int], seconds: float) -> LayerReport:
        """From a group's operators."""
        ranks = torch.cat([op.rank.flatten().cpu() for op in operators])
        residuals = torch.cat([op.residual.flatten().cpu() for op in operators])
        span = (int(ranks.min()), float(np.median(ranks.numpy())), int(ranks.max()))
        return cls(
            group.name, group.granularity, len(ranks), group.rows * group.n, span, float(residuals.nanmedian()), kept,
            held, seconds, operators,
        )  # fmt: skip

    @property
    def spectral_radius(self) -> float:
        """Largest modulus of an eigenvalue over the blocks; computed when read."""
        return max((float(op.spectral_radius.max()) for op in self.operators), default=0.0)


@dataclass
class JumpReport:
    """What `KoopmanPhase.jump` did: per layer, and the guard's values if there was one.

    steps: optimizer iterations that the jump stands for, of a horizon the best, and 0 where it was rolled back; tried:
    (steps, guard) of a horizon.
    """

    steps: int
    seconds: float
    layers: list[LayerReport]
    before: float | None = None
    after: float | None = None
    rolled_back: bool = False
    tried: list[tuple[int, float]] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"jump over {self.steps} steps in {self.seconds:.3g} s"]
        if self.tried:
            lines.append("tried " + ", ".join(f"{steps}: {value:.6g}" for steps, value in self.tried))
        if self.before is not None:
            verdict = "worse: rolled back" if self.rolled_back else "kept"
            lines.append(f"guard {self.before:.6g} -> {self.after:.6g}, {verdict}")
        for layer in self.layers:
            low, middle, high = layer.rank
            held = "".join(f", held by {name} {count}" for name, count in layer.held.items())
            lines.append(
                f"{layer.name}: {layer.blocks} {layer.granularity} blocks, rank {low}/{middle:g}/{high}, "
                f"spectral radius {layer.spectral_radius:.4g}, residual {layer.residual:.2g}, kept {layer.kept}{held}"
            )
        return "\n".join(lines)


def better(value: float, than: float) -> bool:
    """Whether a guard's value is finite and no larger than another, which has to be a number."""
    return math.isfinite(value) and value <= than
