"""What a Koopman phase has to beat: a registry, in the order in which tables show it. Adding one touches this file.

A baseline follows a run: it is made before recording, told of every recorded iterate and of every iterate of the
optimizer in the phase, and asked for its outcome at the end.
"""

from __future__ import annotations

import math
from typing import ClassVar, NamedTuple

import torch
from torch import nn

from ..cutoff import Rank
from ..observables import Momentum
from .averages import Line, Mean, Moving, Weights, assign, weights_of
from .devices import Account

KEPT = 10  # differences of iterates that extrapolations take
SMALLEST = 1e-10  # singular value that Anderson mixing inverts, in units of the largest
RIDGE = 1e-8  # of regularised nonlinear acceleration, in units of the Gram matrix's norm


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


class _OverTheRecording(Baseline):
    """An extrapolation of a few iterates of the recording, evenly apart, the newest among them."""

    def __init__(self, run):
        super().__init__(run)
        self._stride = max(1, (run.iterations - 1) // KEPT)
        self._iterates: list[Weights] = []
        self._done, self._account = 0, Account(run.problem.device)

    def recorded(self, model: nn.Module) -> None:
        self._done += 1
        if (self.run.iterations - self._done) % self._stride == 0:
            with self._account:
                self._iterates = [*self._iterates[-KEPT:], weights_of(model)]

    def outcome(self) -> Outcome | None:
        if len(self._iterates) < 2:
            return None
        with self._account:
            weights = self.extrapolated(self._iterates)
        return Outcome(weights, self.run.at_t2, self._account.seconds)


@register
class Secant(_OverTheRecording):
    """On from the last iterate as the recording went from its first."""

    key, label = "secant", "the secant through the recording, to the end of the phase"

    def extrapolated(self, iterates: list[Weights]) -> Weights:
        first, last = iterates[0], iterates[-1]
        far = self.run.final / (self._stride * (len(iterates) - 1))
        return {name: value + far * (value - first[name]) for name, value in last.items()}


@register
class Rna(_OverTheRecording):
    """Regularised nonlinear acceleration (Scieur, d'Aspremont & Bach 2016, algorithm 2)."""

    key, label = "rna", "regularised nonlinear acceleration of the recorded iterates"

    def extrapolated(self, iterates: list[Weights]) -> Weights:
        return combined(iterates[:-1], shares(iterates, RIDGE))


@register
class Anderson(_OverTheRecording):
    """Anderson mixing (1965) of type II, undamped, over the whole memory."""

    key, label = "anderson", "Anderson mixing of the recorded iterates"

    def extrapolated(self, iterates: list[Weights]) -> Weights:
        return combined(iterates[1:], shares(iterates, 0.0))


def shares(iterates: list[Weights], ridge: float) -> torch.Tensor:
    """Numbers of sum 1 whose combination of the iterates' differences is smallest, (len(iterates) - 1,) float64.

    ridge: added to the differences' Gram matrix, in units of its norm; 0 solves by least squares of minimum norm.
    """
    flat = torch.stack([torch.cat([value.double().flatten() for value in weights.values()]) for weights in iterates])
    differences = flat[1:] - flat[:-1]
    by = torch.zeros(len(differences), dtype=torch.float64, device=flat.device)
    if not ridge:
        by[-1] = 1.0
        steps = torch.linalg.pinv((differences[1:] - differences[:-1]).T, rtol=SMALLEST) @ differences[-1]
        by[1:] -= steps
        by[:-1] += steps
        return by
    gram = differences @ differences.T
    gram = gram / gram.norm().clamp_min(torch.finfo(torch.float64).tiny)
    solved = torch.linalg.solve(gram + ridge * torch.diag(by + 1.0), by + 1.0)
    return solved / solved.sum()


def combined(iterates: list[Weights], by: torch.Tensor) -> Weights:
    """The iterates' combination, in their dtypes."""
    totals = {}
    for name, value in iterates[-1].items():
        stacked = torch.stack([weights[name].double() for weights in iterates])
        totals[name] = torch.einsum("k,k...->...", by, stacked).to(value.dtype)
    return totals


class _FullBatch(Baseline):
    """Another optimizer from t2 on, through as many gradients as the phase, where a batch is the whole training set."""

    def outcome(self) -> Outcome | None:
        if self.run.lengths.per_epoch != 1 or not self.run.final or not self.run.problem.has_gradient:
            return None
        assign(self.run.model, self.run.start)
        batch, account = next(self.run.training.stream), Account(self.run.problem.device)
        with account:
            gradients = self.minimise(self.run.model, batch, self.run.final)
        if gradients is None:
            return None
        return Outcome(weights_of(self.run.model), self.run.at_t2 + gradients, account.seconds)

    def gradient(self, model: nn.Module, batch) -> torch.Tensor:
        """The loss, its gradient in the parameters."""
        model.zero_grad()
        return self.run.problem.gradient(model, batch)


@register
class Nesterov(_FullBatch):
    """Nesterov's method with restarts where the gradient points uphill (O'Donoghue & Candes 2015), of SGD's step."""

    key, label = "nesterov", "Nesterov with restarts, as many gradients"

    def minimise(self, model: nn.Module, batch, gradients: int) -> int | None:
        if self.run.setup.optimizer != "sgd":
            return None
        parameters, rate = [p for p in model.parameters() if p.requires_grad], self.run.setup.lr
        last, momentum = [p.detach().clone() for p in parameters], 1.0
        for _ in range(gradients):
            self.gradient(model, batch)
            with torch.no_grad():
                now = [p - rate * p.grad for p in parameters]
                uphill = sum(
                    float((p.grad * (new - old)).sum()) for p, new, old in zip(parameters, now, last, strict=True)
                )
                following = (1 + math.sqrt(1 + 4 * momentum**2)) / 2
                weight = 0.0 if uphill > 0 else (momentum - 1) / following
                momentum = 1.0 if uphill > 0 else following
                for p, new, old in zip(parameters, now, last, strict=True):
                    p.copy_(new + weight * (new - old))
                last = now
        return gradients


@register
class Lbfgs(_FullBatch):
    """L-BFGS with PyTorch's line search."""

    key, label = "l-bfgs", "L-BFGS, as many gradients"

    def minimise(self, model: nn.Module, batch, gradients: int) -> int | None:
        made = 0

        def closure() -> torch.Tensor:
            nonlocal made
            made += 1
            return self.gradient(model, batch)

        parameters = [p for p in model.parameters() if p.requires_grad]
        limits = {"max_iter": gradients, "max_eval": gradients, "tolerance_grad": 0.0, "tolerance_change": 0.0}
        torch.optim.LBFGS(parameters, history_size=10, line_search_fn="strong_wolfe", **limits).step(closure)
        return made


@register
class RankOne(Baseline):
    """The null model of a projection."""

    key, label = "rank one", "a jump with operators of rank 1"

    def outcome(self) -> Outcome:
        phase, options = self.run.phase, self.run.setup.options
        if phase.position:
            phase.rollback()  # the Koopman steps
        plain = Momentum() if options.observables.momentum else "identity"
        account = Account(self.run.problem.device)
        with account:
            phase.fit(cutoff=Rank(1), observables=plain, stabilize=None, out_of_span="drop")
            phase.jump(self.run.final)
        seconds = phase.record_seconds + account.seconds
        return Outcome(weights_of(self.run.model), self.run.at_t2, seconds)


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
