"""What a jump did: JumpReport, and a LayerReport for every group of parameters."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import torch

from ..operator import KoopmanOperator


@dataclass
class LayerReport:
    """What a jump did to one group of parameters; on one rank, where blocks are spread over several.

    Attributes:
        kept: blocks whose prediction was not finite; they keep their weights.
        held: blocks that keep theirs for another reason, by the reason: "rank 0", a limit's name, "forecast".
        rank: smallest, median and largest over the blocks.
        residual: the median, see `KoopmanOperator.residual`.
        seconds: what the prediction took.
        operators: they refer to the recording; use them before it goes on.
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

    @property
    def overshoot(self) -> float:
        """Largest share of eigenvalues with a real part below -0.5 over the blocks, see `KoopmanOperator.overshoot`.

        A warning: steps overshoot, and a jump may land where the learning rate no longer suits.
        """
        return max((float(op.overshoot.max()) for op in self.operators), default=0.0)

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers and words, ready for JSON; None for what is not finite."""
        values = {item.name: getattr(self, item.name) for item in fields(self) if item.name != "operators"}
        spectrum = {"spectral_radius": self.spectral_radius, "overshoot": self.overshoot}
        return _plain({**values, "rank": list(self.rank), **spectrum})


@dataclass
class JumpReport:
    """What `KoopmanPhase.jump` did, per layer, and what the guard said.

    Attributes:
        steps: optimizer iterations that the jump stands for; of a horizon the best; 0 where it was rolled back;
            infinite for the limit.
        seconds: of predicting and moving; what compiling, guard and reports took is not in it.
        compile_seconds: what compiling kernels took, the fit's included; about 0 after the first jump.
        before, after: the guard's values.
        tried: (steps, guard's value) of every number of steps that the operators were tried at.
        candidate: what the parameters were moved to: "koopman", "mean", "line", or "none" where all was put back.
        others: (candidate, steps, guard's value) of means and lines that were tried.
        drifted: whether the parameters were changed after they had been recorded; the jump then began where they were.
        frozen: names of parameters that do not require grad by now; they were not moved.
        undone: whether one of the next optimizer steps took the jump back, as optimizers do that keep weights of their
            own; known a few steps later.
    """

    steps: float
    seconds: float
    layers: list[LayerReport]
    before: float | None = None
    after: float | None = None
    rolled_back: bool = False
    tried: list[tuple[float, float]] = field(default_factory=list)
    candidate: str = "koopman"
    others: list[tuple[str, float, float]] = field(default_factory=list)
    drifted: bool = False
    frozen: list[str] = field(default_factory=list)
    compile_seconds: float = 0.0
    undone: bool = False

    @property
    def held(self) -> dict[str, int]:
        """Blocks of all layers that were held, by the reason."""
        totals: dict[str, int] = {}
        for layer in self.layers:
            for reason, count in layer.held.items():
                totals[reason] = totals.get(reason, 0) + count
        return totals

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers and words, ready for JSON; None for what is not finite, so also for the limit's steps.

        >>> JumpReport(3, 0.5, [], before=1.0, after=float("nan")).as_dict()["after"] is None
        True
        """
        values = {item.name: getattr(self, item.name) for item in fields(self) if item.name != "layers"}
        limit = math.isinf(self.steps)
        return _plain({**values, "limit": limit, "held": self.held, "layers": [x.as_dict() for x in self.layers]})

    def __str__(self) -> str:
        return "\n".join([*self._lines(), *map(_line, self.layers)])

    def _lines(self) -> list[str]:
        lines = [f"jump {_over(self.steps)} in {self.seconds:.3g} s"]
        if self.compile_seconds:
            lines[0] += f", and {self.compile_seconds:.3g} s of compiling"
        if self.drifted:
            lines.append("parameters were changed after they had been recorded: it began where they were")
        if self.frozen:
            lines.append(f"frozen, and not moved: {', '.join(self.frozen)}")
        if self.tried:
            lines.append("tried " + ", ".join(f"{steps}: {value:.6g}" for steps, value in self.tried))
        for name, steps, value in self.others:
            lines.append(f"tried the {name}{_ahead(steps)}: {value:.6g}")
        if self.before is not None and self.after is not None:
            verdict = "worse: rolled back" if self.rolled_back else "kept"
            winner = "" if self.candidate in ("koopman", "none") else f", the {self.candidate}"
            lines.append(f"guard {self.before:.6g} -> {self.after:.6g}, {verdict}{winner}")
        if self.undone:
            lines.append("undone by the optimizer, which keeps weights of its own")
        return lines


def _over(steps: float) -> str:
    return "to the limit" if math.isinf(steps) else f"over {steps} steps"


def _ahead(steps: float) -> str:
    return f" {steps} steps on" if steps else ""


def _line(layer: LayerReport) -> str:
    low, middle, high = layer.rank
    held = "".join(f", held by {name} {count}" for name, count in layer.held.items())
    return (
        f"{layer.name}: {layer.blocks} {layer.granularity} blocks, rank {low}/{middle:g}/{high}, "
        f"spectral radius {layer.spectral_radius:.4g}, residual {layer.residual:.2g}, kept {layer.kept}{held}"
    )


def _plain(value):
    """The same of Python's own numbers, words, lists and dicts."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, (np.generic, torch.Tensor)):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
