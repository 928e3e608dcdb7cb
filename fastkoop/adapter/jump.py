"""Jump: the parameters at a predicted state many steps on, tried and kept, or put back as they were."""

from __future__ import annotations

import math
import time
from typing import NamedTuple

import torch

from ..operator import KoopmanOperator
from .fits import Fits
from .jump_options import JumpOptions
from .limits import Limits
from .optimizer_state import Rates
from .parts import Parts
from .report import JumpReport, LayerReport
from .walker import Walker


class Moves(NamedTuple):
    """What became of a group's blocks: its operators, how many were kept or held, the prediction's seconds."""

    operators: list[KoopmanOperator]
    kept: int
    held: dict[str, int]
    seconds: float


class Jump:
    """One jump: `save` what may have to come back, `try_` targets, then `settle` or `undo`; `run` is all of it.

    rates: of the optimizer whose state the jump settles.
    """

    def __init__(self, parts: Parts, fits: Fits, walker: Walker, rates: Rates, options: JumpOptions):
        self._parts, self._fits, self._walker, self._rates, self._options = parts, fits, walker, rates, options
        self._moves: list[Moves] = []
        self.report = JumpReport(0, 0.0, [])

    def run(self, steps: int) -> JumpReport:
        """Jump over `steps` iterations, or over as many of a horizon as the guard likes best."""
        self._fits.ready(self._walker.position)
        self._agree(steps)
        self._parts.parameters.reshard()
        self.save()
        kept = False
        try:
            self.report.before = self._judged()
            if self._options.horizon is None:
                kept = self._single(steps)
            else:
                kept = self._best_of(horizon_steps(steps, self._parts.recorder.every))
            self._same_on_all_ranks()
            if kept:
                self.settle()
        except BaseException:
            kept = False
            self._rates.restore()
            raise
        finally:
            if not kept:
                self.undo()
        self.report.layers = [
            LayerReport.of(recording.group, moved.operators, moved.kept, moved.held, moved.seconds)
            for recording, moved in zip(self._parts.recordings, self._moves, strict=True)
        ]
        return self.report

    def save(self) -> None:
        """Keep what `undo` puts back."""
        self._saved = self._parts.parameters.save(self._options.keeps_buffers)
        self._rates.copies.look()
        self._position, self._departure = self._walker.position, self._walker.departure
        if self._departure is None:
            self._walker.departure = self._saved

    def try_(self, steps: int) -> float | None:
        """Move the parameters `steps` iterations on from where the jump began; the guard's value, if there is one."""
        self.move(steps)
        return self._judged()

    def move(self, steps: int) -> None:
        """Move the parameters without asking the guard."""
        began = time.perf_counter()
        if self._moves:  # blocks that stay keep what they had before the first
            self._parts.parameters.restore(self._saved._replace(buffers=None))
        self._moves = self._moved(self._position + steps)
        self._walker.position = self._position + steps
        self.report.seconds += time.perf_counter() - began  # what reports and the guard cost is not the jump's
        if self._options.update_bn is not None:
            self._parts.parameters.recalibrate(self._options.update_bn)

    def settle(self) -> None:
        """Let the optimizer's state and the schedulers follow."""
        self._rates.copies.follow(self._saved.parameters)
        self._rates.copies.watch(self._saved.parameters, self.report)
        self._rates.settle(self._parts.parameters.all, self._options.optimizer_state, self.report.steps)

    def undo(self) -> None:
        """Put everything back as it was."""
        self.report.rolled_back = True
        self._parts.parameters.restore(self._saved)
        self._walker.position, self._walker.departure = self._position, self._departure

    def _single(self, steps: int) -> bool:
        """Try one target; whether it is to be kept."""
        self.report.after = self.try_(steps)
        kept = self._options.guard is None or better(self.report.after, self.report.before)
        self.report.steps = steps if kept else 0
        return kept

    def _best_of(self, targets: list[int]) -> bool:
        """Try all targets, and move to the one that the guard likes best; False if none is better than now."""
        best = None
        for steps in targets:
            value = self.try_(steps)
            self.report.tried.append((steps, value))
            if better(value, self.report.before) and value < (self.report.before if best is None else best[1]):
                best = steps, value
        self.report.steps, self.report.after = best or (0, self.report.before)
        if best is not None and best[0] != targets[-1]:
            self.move(best[0])
        return best is not None

    def _judged(self) -> float | None:
        """The guard's value, the mean over ranks; what it gathered of a sharded model is let go."""
        guard, ranks = self._options.guard, self._parts.ranks
        if guard is None:
            return None
        if ranks is None:
            return float(guard())
        try:
            value = float(guard())
        except BaseException as error:
            ranks.mean("guard", math.nan, f"{type(error).__name__}: {error}")
            raise
        self._parts.parameters.reshard()
        return ranks.mean("guard", value)

    def _moved(self, target: int) -> list[Moves]:
        """Set the parameters to the states `target` iterations past the newest snapshot, save those held back."""
        predicted, every = [], self._parts.recorder.every
        operators = self._fits.ready(self._position)
        for recording, bound in self._parts.with_operators(operators):
            began = time.perf_counter()
            states = [op.predict(target // every, check_finite=False) for op in bound]
            seconds = time.perf_counter() - began
            rows, kept, held = checked(recording, bound, states, self._options.limits)
            if not recording.direct:  # the report's values, before the snapshots are let go
                _ = [op.residual for op in bound]
                bound = [op.released() for op in bound]
            predicted.append((rows, Moves(bound, kept, held, seconds)))
        for recording, (rows, _) in zip(self._parts.recordings, predicted, strict=True):
            recording.apply(rows)  # nothing has moved before; from here on only copies follow
        return [moved for _, moved in predicted]

    def _agree(self, steps: int) -> None:
        options = self._options
        self._fits.agree("jump", position=self._walker.position, steps=steps, guard=options.guard is not None,
                         horizon=options.horizon, limits=options.limits,
                         optimizer_state=options.optimizer_state)  # fmt: skip

    def _same_on_all_ranks(self) -> None:
        parameters, ranks = self._parts.parameters, self._parts.ranks
        if ranks is not None and not parameters.sharded:
            ranks.same_bits("jump", [parameter.detach() for parameter in parameters.all])


def checked(recording, operators, states, limits: Limits | None) -> tuple[torch.Tensor, int, dict[str, int]]:
    """Rows to set a group's parameters to; how many blocks are not finite, and how many each limit holds."""
    beyond = [{} if limits is None else limits.beyond(op) for op in operators]
    masks = [torch.stack(list(masks.values())).any(dim=0) if masks else None for masks in beyond]
    rows, kept = recording.checked(states, masks)
    counts = {name: sum(int(masks[name].sum()) for masks in beyond) for name in beyond[0]} if beyond else {}
    return rows, kept, {name: count for name, count in counts.items() if count}


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


def better(value: float, than: float) -> bool:
    """Whether a guard's value is finite and no larger than another, which has to be a number."""
    return math.isfinite(value) and value <= than
