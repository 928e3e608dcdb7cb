"""What a jump did: JumpReport, and a LayerReport for every group of parameters."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from ..operator import KoopmanOperator


@dataclass
class LayerReport:
    """What a jump did to one group of parameters; on one rank, where blocks are spread over several.

    Attributes:
        kept: blocks whose prediction was not finite; they keep their weights.
        held: blocks that a limit held back, by the limit's name.
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


@dataclass
class JumpReport:
    """What `KoopmanPhase.jump` did, per layer, and what the guard said.

    Attributes:
        steps: optimizer iterations that the jump stands for; of a horizon the best; 0 where it was rolled back.
        seconds: of predicting and moving; what guard and reports cost is not in it.
        before, after: the guard's values.
        tried: (steps, guard's value) of a horizon.
        undone: whether one of the next optimizer steps took the jump back, as optimizers do that keep weights of their
            own; known a few steps later.
    """

    steps: int
    seconds: float
    layers: list[LayerReport]
    before: float | None = None
    after: float | None = None
    rolled_back: bool = False
    tried: list[tuple[int, float]] = field(default_factory=list)
    undone: bool = False

    def __str__(self) -> str:
        lines = [f"jump over {self.steps} steps in {self.seconds:.3g} s"]
        if self.tried:
            lines.append("tried " + ", ".join(f"{steps}: {value:.6g}" for steps, value in self.tried))
        if self.before is not None:
            verdict = "worse: rolled back" if self.rolled_back else "kept"
            lines.append(f"guard {self.before:.6g} -> {self.after:.6g}, {verdict}")
        if self.undone:
            lines.append("undone by the optimizer, which keeps weights of its own")
        for layer in self.layers:
            low, middle, high = layer.rank
            held = "".join(f", held by {name} {count}" for name, count in layer.held.items())
            lines.append(
                f"{layer.name}: {layer.blocks} {layer.granularity} blocks, rank {low}/{middle:g}/{high}, "
                f"spectral radius {layer.spectral_radius:.4g}, residual {layer.residual:.2g}, kept {layer.kept}{held}"
            )
        return "\n".join(lines)
