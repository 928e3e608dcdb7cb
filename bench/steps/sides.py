"""The two sides of a round: an optimizer that trains on, and a Koopman phase that walks or jumps."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median

import torch
from torch.nn import functional

from fastkoop.experiments.training import train_step
from fastkoop.torch_adapter import KoopmanPhase

from .setting import COMPILED

WARM_UP = 3


class Optimizer:
    """An optimizer that trains a twin of the model, eagerly or compiled."""

    def __init__(self, start: tuple, mode: str, batches: list):
        self._start, self._batches = start, batches
        self.model, self.optimizer = copy.deepcopy(start)
        self.figures = {"reason": None, "step": [], "seconds": {}, "loss": {}}
        self.seconds: list[float] = []
        try:
            self._step = self._compiled(COMPILED[mode])
            for size in {len(labels) for _, labels in batches}:  # the last batch of an epoch is smaller
                images, labels = next(batch for batch in batches if len(batch[1]) == size)
                for _ in range(WARM_UP):
                    self._step(images, labels)
        except Exception as error:  # inductor's own kinds are many; the reason goes into the results
            self.figures["reason"] = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"

    @torch.no_grad()
    def restart(self) -> None:
        """Back to where the T phase begins, in place, so that nothing is compiled anew."""
        model, optimizer = self._start
        for own, first in zip(self.model.parameters(), model.parameters(), strict=True):
            own.copy_(first)
            for name, value in optimizer.state[first].items():
                mine = self.optimizer.state[own]
                mine[name] = mine[name].copy_(value) if isinstance(value, torch.Tensor) else value
        self.seconds = []

    def _compiled(self, parts):
        model, optimizer = self.model, self.optimizer
        if not parts:
            return lambda images, labels: train_step(model, optimizer, images, labels)

        def loss(images, labels):
            return functional.cross_entropy(model(images), labels)

        forward = torch.compile(loss, dynamic=False) if "forward and backward" in parts else loss
        move = torch.compile(lambda: optimizer.step()) if "optimizer" in parts else optimizer.step

        def step(images, labels):
            optimizer.zero_grad()
            forward(images, labels).backward()
            move()

        return step

    def advance(self, upto: int) -> None:
        """Train until iteration `upto` of the T phase; fetching a batch is not timed."""
        for images, labels in self._batches[len(self.seconds) : upto]:
            began = time.perf_counter()
            self._step(images, labels)
            self.seconds.append(time.perf_counter() - began)

    def finish(self, marks: list[int]) -> None:
        """Take note of a T phase that is done: the median step, and seconds until some iterations."""
        self.figures["step"].append(median(self.seconds))
        for upto in marks:
            self.figures["seconds"].setdefault(str(upto), []).append(sum(self.seconds[:upto]))


@dataclass
class Figures:
    """What one Koopman phase cost, a number a round; by T, as text, where it depends on it."""

    record_seconds: float  # over the whole recording, its memory touched for the first time
    fit: list[float] = field(default_factory=list)
    step: list[float] = field(default_factory=list)  # median; without the first, which prepares the walk
    ahead: list[float] = field(default_factory=list)
    walk_phase: dict[str, list[float]] = field(default_factory=dict)
    ahead_phase: dict[str, list[float]] = field(default_factory=dict)
    jump_phase: dict[str, list[float]] = field(default_factory=dict)
    loss: dict[str, dict[str, float]] = field(default_factory=dict)


class Koopman:
    """A recorded phase and its figures."""

    def __init__(self, phase: KoopmanPhase, finals: dict[str, int], evaluate: Callable[[], float]):
        self.phase, self.finals, self._evaluate = phase, finals, evaluate
        self.figures = Figures(phase.record_seconds)
        self.restart()  # compiles and warms up
        self.advance(2 * phase.every)
        self.look_ahead(2)
        self.jump()
        self.figures = Figures(phase.record_seconds)

    def restart(self) -> None:
        """Fit anew, to the same recording."""
        if self.phase.position:
            self.phase.rollback()
        began = time.perf_counter()
        self.phase.fit()
        self.figures.fit.append(time.perf_counter() - began)
        self.seconds: list[float] = []

    def advance(self, upto: int) -> None:
        """Walk, a state at a time, as far as whole steps reach."""
        while self.phase.position + self.phase.every <= upto:
            began = time.perf_counter()
            self.phase.step()
            self.seconds.append(time.perf_counter() - began)
        for T, final in self.finals.items():
            if self.phase.position == final:
                self._note_loss("walk", T)

    def finish_walk(self) -> None:
        """Take note of a walk that is done."""
        self.figures.step.append(median(self.seconds[1:] or self.seconds))
        for T, final in self.finals.items():
            self._note("walk_phase", T, sum(self.seconds[: final // self.phase.every]))

    def look_ahead(self, ahead: int) -> None:
        """The same walk, many states a pass."""
        self.phase.rollback()
        began = time.perf_counter()
        for T, final in self.finals.items():
            while self.phase.position < final:
                self.phase.step(ahead=ahead)
            self._note("ahead_phase", T, time.perf_counter() - began)
        self.figures.ahead.append(self.figures.ahead_phase[T][-1] / (self.phase.position // self.phase.every))

    def jump(self) -> None:
        """Straight to the end of each T."""
        for T, final in self.finals.items():
            self.phase.rollback()
            self._note("jump_phase", T, self.phase.jump(final).seconds)
            self._note_loss("jump", T)

    def _note_loss(self, way: str, T: str) -> None:
        """The test loss of the present parameters, the first time."""
        if way not in self.figures.loss.setdefault(T, {}):
            self.figures.loss[T][way] = self._evaluate()

    def _note(self, what: str, T: str, seconds: float) -> None:
        getattr(self.figures, what).setdefault(T, []).append(seconds)
