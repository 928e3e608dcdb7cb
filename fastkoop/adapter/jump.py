"""Jump: the parameters at a predicted state many steps on, tried and kept, or put back as they were."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from . import candidates as ends
from .buffers import GroupBuffer
from .candidates import Target
from .compiling import Clock
from .fits import Fits
from .guard import Guard, better
from .held import FORECAST, Holds, Reasons, any_of, counts, unbounded
from .jump_options import JumpOptions
from .mover import Stays
from .optimizer_state import Rates
from .parts import Parts
from .report import JumpReport, LayerReport
from .walker import Walker


class Moved(NamedTuple):
    """What became of a group's blocks: how many were not finite, those held by reason, the prediction's seconds.

    stayed: bool per block of every batch, for whatever reason.
    """

    operators: list
    kept: int = 0
    held: dict[str, int] = {}  # noqa: RUF012 - never changed
    seconds: float = 0.0
    stayed: list[torch.Tensor] = []  # noqa: RUF012


class Jump:
    """One jump: `save` what may have to come back, `try_` targets, then `settle` or `undo`; `run` is all of it.

    rates: of the optimizer whose state the jump settles.
    """

    def __init__(self, parts: Parts, fits: Fits, walker: Walker, rates: Rates, options: JumpOptions):
        self._parts, self._fits, self._walker, self._rates, self._options = parts, fits, walker, rates, options
        self._guard = None if options.guard is None else Guard(options.guard, parts)
        self._holds = Holds(parts, fits, options)
        self._moved: list[Moved] = []
        self._velocities: dict[str, torch.Tensor] | None = None  # before they followed
        self._fresh = True  # nothing has been moved yet
        self.report = JumpReport(0, 0.0, [], candidate="none")

    def run(self, steps: float) -> JumpReport:
        """Jump over `steps` iterations, or to what the guard likes best of all that may be tried."""
        options, every = self._options, self._parts.recorder.every
        with Clock() as self._clock:
            self._fits.ready(self._walker.position)
            self._agree(steps)
            self._parts.parameters.reshard()
            self.save()
            kept = False
            try:
                if self._guard is not None:
                    self.report.before = self._guard()
                targets = ends.targets(steps, options.horizon, options.candidates, every)
                kept = self._best_of([target for target in targets if self._is_open(target)])
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
            self._tell()
        return self.report

    def save(self) -> None:
        """Keep what `undo` puts back."""
        self._saved = self._parts.parameters.save(self._options.keeps_buffers)
        self._rates.copies.look()
        self._began = self._walker.whereabouts
        if self._walker.departure is None:
            self._walker.depart(self._saved)
        self.report.drifted = any(offset is not None for offset in self._walker.offsets)
        self.report.frozen = self._parts.parameters.frozen

    def try_(self, target: Target) -> float | None:
        """Move the parameters there from where the jump began; the guard's value, if there is one."""
        self.move(target)
        return None if self._guard is None else self._guard()

    def move(self, target: Target) -> None:
        """Move the parameters without asking the guard."""
        began = self._clock.now()
        if not self._fresh:  # blocks that stay keep what they had before the first
            self._parts.parameters.restore(self._saved._replace(buffers=None))
        self._fresh = False
        position = self._began.position + target.steps
        if target.candidate == ends.KOOPMAN:
            self._to_states(position)
        else:
            self._to_trend(target.candidate, position)
        self._walker.arrive(position, target.candidate)
        self.report.seconds += self._clock.now() - began  # what guard and reports take is not the jump's
        if self._options.update_bn is not None:
            self._parts.parameters.recalibrate(self._options.update_bn)

    def settle(self) -> None:
        """Let the optimizer's state and the schedulers follow."""
        self._rates.copies.follow(self._saved.parameters)
        self._rates.copies.watch(self._saved.parameters, self.report)
        self._rates.settle(self._parts.parameters.trained, self._options.optimizer_state, self.report.steps)
        if self._options.predicts:
            self._velocities = self._parts.velocities.saved()
            if self.report.candidate == ends.KOOPMAN:
                self._velocities_follow()
            else:  # no operator says how they move there
                self._rates.stop(self._parts.parameters.trained)
            if self._walker.velocities is None:
                self._walker.velocities = self._velocities

    def undo(self) -> None:
        """Put everything back as it was."""
        self._parts.parameters.restore(self._saved)
        self._walker.whereabouts = self._began
        if self._velocities is not None:
            self._parts.velocities.put_back(self._velocities)

    def _is_open(self, target: Target) -> bool:
        """Whether it is worth trying: not where the gate holds every block."""
        return target.candidate != ends.KOOPMAN or not self._holds.shut(self._began.position)

    def _best_of(self, targets: list[Target]) -> bool:
        """Try all targets and move to the best; False if none is better than now, and there is a guard to say so."""
        best, report = None, self.report
        alone = len(targets) < 2 and self._options.horizon is None
        for target in targets:
            value = self.try_(target)
            self._note(target, value)
            if self._guard is None:
                best = target, None
            elif better(value, report.before) and value < (math.inf if best is None else best[1]):
                best = target, value
            report.after = value if alone else report.before
        if best is not None and not alone and not best[1] < report.before:
            best = None  # of several that are no better than now, none is worth moving for
        report.rolled_back = best is None and bool(targets)
        if best is None:
            return False
        (report.candidate, report.steps), report.after = best
        if best[0] != targets[-1]:
            self.move(best[0])
        return True

    def _note(self, target: Target, value: float | None) -> None:
        if self._guard is None:
            return
        if target.candidate != ends.KOOPMAN:
            self.report.others.append((*target, value))
        elif self._options.horizon is not None:
            self.report.tried.append((target.steps, value))

    def _to_states(self, position: float) -> None:
        """Set the parameters to the states `position` iterations past the newest snapshot, save those held back."""
        steps, predicted = self._steps(position), []
        for i, (recording, bound) in enumerate(self._bound()):
            began = self._clock.now()
            states = [op.predict(steps, check_finite=False) for op in bound]
            seconds = self._clock.now() - began
            reasons = self._holds.of(i, bound)
            if math.isinf(steps):
                states = _within(bound, states, reasons)
            for batch, runs in zip(reasons, self._holds.runaways(i, bound, states, steps), strict=True):
                batch[FORECAST] = batch.get(FORECAST, runs) | runs
            stays = Stays([any_of(batch) for batch in reasons], self._walker.offsets[i])
            states = stays.shifted(states)
            rows, kept = recording.checked(states, stays.held)
            if position == 0:
                rows = stays.unmoved(rows, recording)
            moved = Moved(
                bound, kept, counts(reasons), seconds, [_stayed(*x) for x in zip(states, stays.held, strict=True)]
            )
            predicted.append((rows, self._released(recording, moved)))
        for recording, (rows, _) in zip(self._parts.recordings, predicted, strict=True):
            recording.apply(rows)  # nothing has moved before; from here on only copies follow
        self._moved = [moved for _, moved in predicted]

    def _to_trend(self, candidate: str, position: float) -> None:
        """Set the parameters to the recording's mean, or to its line `position` iterations past the newest snapshot."""
        recorder = self._parts.recorder
        for recording, offset in zip(self._parts.recordings, self._walker.offsets, strict=True):
            if candidate == ends.MEAN:
                rows = ends.mean_of(recording, recorder.snapshots)
            else:
                rows = ends.line_of(recording, recorder.snapshots, position / recorder.every)
                rows = rows if offset is None else rows + offset
            recording.move([rows])

    def _velocities_follow(self) -> None:
        """Set the optimizer's velocities to those of the state that the parameters are at."""
        steps = self._steps(self._walker.position)
        for (recording, bound), moved in zip(self._bound(), self._moved, strict=True):
            velocities = [op.velocities(steps) for op in bound]
            stayed = [
                (~velocity.isfinite().all(dim=-1) | held)[..., None].expand(velocity.shape)
                for velocity, held in zip(velocities, moved.stayed, strict=True)
            ]
            rows, keep = (
                torch.cat([batch.reshape(recording.group.rows, -1) for batch in batches], dim=1)
                for batches in (velocities, stayed)
            )
            self._parts.velocities.set(recording, rows, keep)

    def _steps(self, position: float) -> float:
        """Recorded intervals from the newest snapshot to there."""
        return position if math.isinf(position) else int(position) // self._parts.recorder.every

    def _bound(self):
        """Every recording with its operators, which read weights out of its snapshots."""
        return self._parts.with_operators(self._fits.ready(self._began.position))

    @staticmethod
    def _released(recording: GroupBuffer, moved: Moved) -> Moved:
        """The same without snapshots that had to be brought back; the report's values are read before."""
        if recording.direct:
            return moved
        _ = [op.residual for op in moved.operators]
        return moved._replace(operators=[op.released() for op in moved.operators])

    def _agree(self, steps: float) -> None:
        options = self._options
        self._fits.agree("jump", position=self._walker.position, steps=steps, guard=options.guard is not None,
                         horizon=options.horizon, candidates=options.candidates, gate=options.gate,
                         limits=options.limits, optimizer_state=options.optimizer_state)  # fmt: skip

    def _same_on_all_ranks(self) -> None:
        parameters, ranks = self._parts.parameters, self._parts.ranks
        if ranks is not None and not parameters.sharded:
            ranks.same_bits("jump", [parameter.detach() for parameter in parameters.all])

    def _tell(self) -> None:
        """The layers' reports; of groups that no operator has moved, too."""
        if not self._moved:
            self._moved = [
                self._released(recording, Moved(bound, held=counts(self._holds.of(i, bound))))
                for i, (recording, bound) in enumerate(self._bound())
            ]
        self.report.layers = [
            LayerReport.of(recording.group, moved.operators, moved.kept, moved.held, moved.seconds)
            for recording, moved in zip(self._parts.recordings, self._moved, strict=True)
        ]
        self.report.compile_seconds = self._clock.compiled


def _within(operators: list, states: list[torch.Tensor], reasons: list[Reasons]) -> list[torch.Tensor]:
    """States at the limit, zero in blocks that have none; the reasons say which these are."""
    finite = []
    for op, state, batch in zip(operators, states, reasons, strict=True):
        batch.update(unbounded(op))
        finite.append(torch.where(state.isfinite().all(dim=-1, keepdim=True), state, 0.0))
    return finite


def _stayed(state: torch.Tensor, held: torch.Tensor | None) -> torch.Tensor:
    """Bool per block: held, or not finite."""
    bad = ~state.isfinite().all(dim=-1)
    return bad if held is None else bad | held
