"""What a Koopman phase has to beat: a registry, in the order in which tables show it. Adding one touches this file.

A baseline follows a run: it is made before recording, told of every recorded iterate and of every iterate of the
optimizer in the phase, and asked for its outcome at the end.
"""

from __future__ import annotations

import time
from typing import ClassVar, NamedTuple

from torch import nn

from ..cutoff import Rank
from ..observables import Momentum
from .averages import Line, Mean, Moving, Weights, weights_of


class Outcome(NamedTuple):
    """Where a baseline leads.

    Args:
        weights: to be judged.
        gradients: optimizer iterations since the first.
        seconds: since t2, recording included.
    """

    weights: Weights
    gradients: int
    seconds: float


class Baseline:
    """One of them; subclasses say what they need to be told.

    Args:
        run: a `runs.Recorded`, whose phase is about to be recorded.
    """

    key: ClassVar[str]
    label: ClassVar[str]  # of tables; {name} is the optimizer
    short: ClassVar[str] = ""  # of the short table on a terminal; none if it is not shown there

    def __init__(self, run):
        self.run = run

    def recorded(self, model: nn.Module) -> None:
        """One recorded iterate more."""

    def trained(self, model: nn.Module, done: int, seconds: float) -> None:
        """The optimizer's iterate after `done` iterations of the phase, which have taken so many seconds."""

    @property
    def waits(self) -> bool:
        """Whether the optimizer is to go on beyond the phase for it."""
        return False

    def outcome(self) -> Outcome | None:
        """Where it leads; None where it leads nowhere, as in a phase of no iterations."""
        raise NotImplementedError


BASELINES: dict[str, type[Baseline]] = {}


def register(kind: type[Baseline]) -> type[Baseline]:
    """Class decorator: add a baseline to tables, reports and results.json."""
    BASELINES[kind.key] = kind
    return kind


@register
class Start(Baseline):
    """No jump."""

    key, label, short = "start", "no jump: the last recorded iterate", "no jump"

    def outcome(self) -> Outcome:
        return Outcome(self.run.start, self.run.at_t2, 0.0)


@register
class RecordedMean(Baseline):
    """The mean of the recorded iterates."""

    key, label, short = "mean", "mean of the recorded iterates (SWA)", "mean of the recorded"

    def outcome(self) -> Outcome:
        return Outcome(self.run.average, self.run.at_t2, self.run.phase.record_seconds)


@register
class RecordedMoving(Baseline):
    """The moving average of the recorded iterates."""

    key, label = "moving", "moving average of the recorded iterates"

    def __init__(self, run):
        super().__init__(run)
        self._average = Moving()
        self.recorded = self._average.add

    def outcome(self) -> Outcome:
        return Outcome(self._average.weights, self.run.at_t2, self._average.seconds)


@register
class RecordedLine(Baseline):
    """The least-squares line, read at its last point."""

    key, label = "line", "the line through the recorded iterates, at the last"

    def __init__(self, run):
        super().__init__(run)
        self._line = Line()
        self.recorded = self._line.add

    def outcome(self) -> Outcome:
        return Outcome(self._line.ahead(), self.run.at_t2, self._line.seconds)


@register
class RankOne(Baseline):
    """The null model of a projection."""

    key, label = "rank one", "a jump with operators of rank 1"

    def outcome(self) -> Outcome:
        phase, options = self.run.phase, self.run.setup.options
        if phase.position:
            phase.rollback()  # the Koopman steps
        began = time.perf_counter()
        plain = Momentum() if options.observables.momentum else "identity"
        phase.fit(cutoff=Rank(1), observables=plain, stabilize=None, out_of_span="drop")
        phase.jump(self.run.final)
        return Outcome(weights_of(self.run.model), self.run.at_t2, phase.record_seconds + time.perf_counter() - began)


@register
class Optimizer(Baseline):
    """The optimizer through the phase."""

    key, label = "optimizer", "{name}, to the end of the phase"

    def outcome(self) -> Outcome:
        return Outcome(self.run.states["optimizer"], self.run.at_t2 + self.run.final, self.run.optimizer_seconds)


class _InThePhase(Baseline):
    """An average of the optimizer's iterates in the phase."""

    def __init__(self, run):
        super().__init__(run)
        self._average = self.make()

    def outcome(self) -> Outcome | None:
        if not self.run.final:
            return None
        seconds = self.run.optimizer_seconds + self._average.seconds
        return Outcome(self._average.weights, self.run.at_t2 + self.run.final, seconds)


@register
class OptimizerMean(_InThePhase):
    """The mean of as many of its last iterates as were recorded, those of the phase at most."""

    key, label, short = "optimizer mean", "{name}, mean of its last iterates there", "{name}, mean of its last"
    make = Mean

    def trained(self, model: nn.Module, done: int, seconds: float) -> None:
        if done > self.run.final - self.run.iterations:
            self._average.add(model)


@register
class OptimizerMoving(_InThePhase):
    """The moving average of its iterates."""

    key, label = "optimizer moving", "{name}, moving average there"
    make = Moving

    def trained(self, model: nn.Module, done: int, seconds: float) -> None:
        self._average.add(model)


@register
class EqualTime(Baseline):
    """The optimizer's iterate when it has taken as long as recording, fit and jump; beyond the phase if need be."""

    key, label = "equal time", "{name}, as long as the Koopman phase took"

    def __init__(self, run):
        super().__init__(run)
        self._outcome: Outcome | None = None

    def trained(self, model: nn.Module, done: int, seconds: float) -> None:
        if self._outcome is None and seconds >= self.run.cost:
            self._outcome = Outcome(weights_of(model), self.run.at_t2 + done, seconds)

    @property
    def waits(self) -> bool:
        return self._outcome is None

    def outcome(self) -> Outcome | None:
        return self._outcome
