"""fastkoop phases --phases N: a whole training run with N Koopman phases, against the optimizer alone.

One network trains t1 epochs, and then N times records for t2 - t1 epochs, jumps over T and trains on for `rest`; its
twin trains on without jumps, through as many gradients, and then through those that the jumps stood for, or for as
long as the first one took. A third one, if asked for, is the null model: it jumps, too, but just goes on along the
line through its recording. Of all sides the moving average of the iterates is looked at, too, begun anew where a side
jumps, as an average across a jump is of neither stretch. Losses stand against gradients and against seconds.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field

import numpy as np

from .. import checks
from ..files import prepare_out
from ..machine import describe_machine
from ..torch_adapter import KoopmanPhase, KoopmanSchedule
from . import figures
from .averages import Line, Moving, assign, weights_of
from .config import Config, Setup, prepare
from .paired import Paired, paired
from .problems.checked import Evaluation, stop_if_not_finite
from .runs import Judge, Tick, compile_kernels, run_seeds, silent

LOOKS = 8  # at the test set in an epoch
SIDES = ("koopman", "koopman moving", "line", "line moving", "optimizer", "optimizer moving")


@dataclass
class Course:
    """What the test set says of one side over a run."""

    gradients: list[int] = field(default_factory=list)  # optimizer iterations made
    seconds: list[float] = field(default_factory=list)  # of steps, recording, fits, jumps and guards
    test_loss: list[float] = field(default_factory=list)
    test_accuracy: list[float | None] = field(default_factory=list)

    def look(self, gradients: int, seconds: float, evaluation: Evaluation) -> None:
        """Append one evaluation."""
        self.gradients.append(gradients)
        self.seconds.append(seconds)
        self.test_loss.append(evaluation.loss)
        self.test_accuracy.append(evaluation.accuracy)


class Extrapolation:
    """The null model's schedule: jumps where Koopman's does, `ahead` iterations along its recording's line."""

    def __init__(self, model, burn_in: int, record: int, rest: int, ahead: int):
        self._model, self._burn_in, self._record, self._rest, self._ahead = model, burn_in, record, rest, ahead
        self._done, self._line = 0, Line()

    def step(self) -> None:
        """Call after every optimizer step."""
        self._done += 1
        within = (self._done - self._burn_in - 1) % (self._record + self._rest)
        if self._done <= self._burn_in or within >= self._record:
            return
        self._line.add(self._model)
        if within == self._record - 1:
            assign(self._model, self._line.ahead(self._ahead))
            self._line = Line()


@dataclass(frozen=True)
class Schedule:
    """A run in iterations."""

    burn_in: int
    record: int
    jump: int
    rest: int
    phases: int
    ahead: int | None  # of the null model's jumps

    @classmethod
    def of(cls, setup: Setup, phases: int, rest: int, ahead: float | None) -> Schedule:
        """From epochs; stretches are whole snapshots."""
        lengths, every = setup.lengths, setup.every
        if lengths.per_epoch is None and (rest or ahead):
            raise checks.InputError(
                "rest: the problem's batches have no length, so that epochs mean nothing; leave it out"
            )
        epoch = lengths.per_epoch or 1
        record, jump = (iterations // every * every for iterations in (lengths.record, lengths.phase))
        return cls(lengths.before, record, jump, rest * epoch, phases, None if ahead is None else round(ahead * epoch))

    @property
    def gradients(self) -> int:
        """Those of a run with jumps."""
        return self.burn_in + self.phases * (self.record + self.rest)

    @property
    def whole(self) -> int:
        """Those, and the ones that jumps stand for."""
        return self.gradients + self.phases * self.jump

    def jumps_after(self, done: int) -> bool:
        """Whether a run with jumps makes one after so many gradients."""
        since, period = done - self.burn_in - self.record, self.record + self.rest
        return since >= 0 and since % period == 0 and since // period < self.phases


def run_seed(setup: Setup, plan: Schedule, seed: int, tick: Tick) -> dict:
    """All sides of one seed: {"seed", "koopman": ..., "line": ..., "optimizer": ..., "jumps": [...]}."""
    run = {"seed": seed, "jumps": []}
    for side in ("koopman", *(["line"] if plan.ahead is not None else []), "optimizer"):
        courses = _run_side(side, setup, plan, seed, run, tick)
        run |= dict(zip((side, f"{side} moving"), map(asdict, courses), strict=True))
    return run


def _run_side(side: str, setup: Setup, plan: Schedule, seed: int, run: dict, tick: Tick):
    """A side's course and that of its moving average; the optimizer's last until the others are caught up with."""
    training, judge = setup.training(seed), Judge(setup.problem)
    model = training.model
    schedule = _schedule(side, setup, plan, judge, training)
    jumps = run["jumps"] if side == "koopman" else []
    last = plan.gradients if schedule else plan.whole
    ends = (0.0, 0.0) if schedule else tuple(run[name]["seconds"][-1] for name in ("koopman", "koopman moving"))
    courses, look_every = (Course(), Course()), max(1, (setup.lengths.per_epoch or plan.record) // LOOKS)
    moving, spent, averaging, clocks = Moving(), 0.0, 0.0, (0.0, 0.0)
    for done, batch in enumerate(training.stream, 1):
        began = time.perf_counter()
        loss = training.step(batch)
        if done <= plan.burn_in + plan.record:  # later it may be a jump that made it diverge, which is an outcome
            stop_if_not_finite(loss, f"at iteration {done}")
        report = _step(schedule, model, jumps, done)
        spent += time.perf_counter() - began
        if report is not None:
            jumps.append({
                "gradients": done, "steps": report.steps, "rolled_back": report.rolled_back,
                "test_loss": judge.moved(model).loss,
            })  # fmt: skip
        if schedule and plan.jumps_after(done):
            averaging, moving = averaging + moving.seconds, Moving()
        moving.add(model)
        earlier, clocks = clocks, (spent, spent + averaging + moving.seconds)
        caught_up = any(then < end <= now for then, end, now in zip(earlier, ends, clocks, strict=True))
        if done % look_every == 0 or done in (plan.gradients, last) or caught_up:
            _look(judge, model, courses, moving, done, *clocks)
        tick(f"{side}, {plan.phases} phases" if schedule else f"{setup.optimizer} alone", min(done, last), last)
        if done >= last and all(now >= end for now, end in zip(clocks, ends, strict=True)):
            return courses


def _step(schedule, model, jumps: list[dict], done: int):
    """The schedule's step; jumps that made training diverge, so that none can be made any more, are noted once."""
    if schedule is None or (jumps and "refused" in jumps[-1]):
        return None
    try:
        return schedule.step()
    except checks.InputError as error:
        if all(parameter.isfinite().all() for parameter in model.parameters()):
            raise
        jumps.append({"gradients": done, "refused": str(error)})
        return None


def _schedule(side: str, setup: Setup, plan: Schedule, judge: Judge, training):
    """What makes a side jump, if anything."""
    model = training.model
    if side == "optimizer":
        return None
    if side == "line":
        return Extrapolation(model, plan.burn_in, plan.record, plan.rest, plan.ahead)
    phase = KoopmanPhase(model, **setup.phase_options, capacity=plan.record // setup.every)
    guard = None if setup.config.horizon is None else lambda: judge.guard(model)
    with warnings.catch_warnings():  # of jumps without guard and gate, which are what is measured
        warnings.simplefilter("ignore", RuntimeWarning)
        return KoopmanSchedule(
            phase, training.optimizer, burn_in=plan.burn_in, record=plan.record, jump=plan.jump, rest=plan.rest,
            repeats=plan.phases, guard=guard, gate=None, horizon=setup.config.horizon,
        )  # fmt: skip


def _look(judge: Judge, model, courses, moving: Moving, gradients: int, seconds: float, averaged: float) -> None:
    """The test set's view of the iterate and of the moving average."""
    courses[0].look(gradients, seconds, judge.problem.evaluate(model))
    kept = weights_of(model)
    assign(model, moving.weights)
    courses[1].look(gradients, averaged, judge.moved(model))
    assign(model, kept)


def run_phases(
    config: Config,
    phases: int,
    rest: int = 0,
    ahead: float | None = None,
    tick: Callable[[int, str, int, int], None] = silent,
) -> dict:
    """Run every seed and write phases.json and phases.png into `config.out`; phases.json after each seed.

    Args:
        config: what to train, record and jump over.
        phases: Koopman phases in a run, at least 1.
        rest: epochs to train on after each jump.
        ahead: epochs that the null model's jumps go past its recording; without, no null model is run.
        tick: called with the seed, what is going on, how much of it is done, and of how much.
    """
    setup = prepare(config)
    if not setup.lengths.phase:
        raise checks.InputError("T: a phase that jumps over 0 epochs does not jump; expected at least 1")
    plan, out = Schedule.of(setup, phases, rest, ahead), prepare_out(config.out)
    compile_kernels(setup.options)
    results = {
        "config": setup.described(), "phases": phases, "rest": rest, "ahead": ahead, "machine": describe_machine(),
        "runs": [], "complete": False, "gradients": plan.gradients, "whole": plan.whole,
    }  # fmt: skip

    def runs_of(seed: int, tick: Tick) -> Iterator[dict]:
        yield run_seed(setup, plan, seed, tick)

    run_seeds(setup, results, out / "phases.json", runs_of, tick)
    figures.save(_figure(results), out / "phases.png")
    return results


def at_gradients(run: dict, side: str, gradients: int) -> float:
    """A side's test loss at the last look up to so many gradients."""
    course = run[side]
    return course["test_loss"][int(np.searchsorted(course["gradients"], gradients, side="right")) - 1]


def seconds_of(run: dict, side: str, gradients: int) -> float:
    """What a side took for so many gradients."""
    course = run[side]
    return course["seconds"][int(np.searchsorted(course["gradients"], gradients, side="right")) - 1]


def at_seconds(run: dict, side: str, seconds: float) -> float:
    """A side's test loss at the first look after so many seconds."""
    course = run[side]
    return course["test_loss"][min(int(np.searchsorted(course["seconds"], seconds)), len(course["seconds"]) - 1)]


def comparisons(results: dict) -> dict[str, Paired]:
    """Koopman's end against the others', by what is held equal; iterates against iterates, averages likewise."""
    runs, comparisons = results["runs"], {}
    for average in ("", " moving"):
        koopman, name = "koopman" + average, "optimizer" + average
        ends = [run[koopman]["test_loss"][-1] for run in runs]
        said = "moving average" if average else "last iterate"
        comparisons[f"{said}, equal gradients"] = paired(
            ends, [at_gradients(run, name, run[koopman]["gradients"][-1]) for run in runs]
        )
        comparisons[f"{said}, equal seconds"] = paired(
            ends, [at_seconds(run, name, run[koopman]["seconds"][-1]) for run in runs]
        )
        comparisons[f"{said}, the optimizer through all that the jumps stood for"] = paired(
            ends, [at_gradients(run, name, results["whole"]) for run in runs]
        )
        if "line" in runs[0]:
            comparisons[f"{said}, jumps along the line"] = paired(
                ends, [run["line" + average]["test_loss"][-1] for run in runs]
            )
    return comparisons


def rows(results: dict) -> list[tuple[str, ...]]:
    """A line per side: who, gradients, seconds, final loss of the iterate and of the moving average."""
    table, runs = [], results["runs"]
    for side in SIDES[::2]:
        if side not in runs[0]:
            continue
        end = results["whole" if side == "optimizer" else "gradients"]
        ends = [(seconds_of(run, side, end), *(at_gradients(run, name, end) for name in (side, f"{side} moving")))
                for run in runs]  # fmt: skip
        seconds, loss, moving = np.median(np.array(ends, float), axis=0)
        table.append((side, str(end), f"{seconds:.3g}", f"{loss:.4f}", f"{moving:.4f}"))
    return table


def _figure(results: dict):
    """Losses against gradients and against seconds, medians over seeds."""
    colours = {"koopman": figures.RED, "line": "0.5", "optimizer": figures.BLUE}
    fig, axes = figures.panels(results, f"{results['phases']} Koopman phases in a training run", 1, 2)
    for ax, key in zip(axes, ("gradients", "seconds"), strict=True):
        for side in SIDES:
            if side not in results["runs"][0]:
                continue
            runs = [run[side] for run in results["runs"]]
            shortest = min(len(run["test_loss"]) for run in runs)
            x = np.median([run[key][:shortest] for run in runs], axis=0)
            y = np.median(np.array([run["test_loss"][:shortest] for run in runs], float), axis=0)
            style = {"ls": "--", "lw": 1.6} if "moving" in side else {"lw": 0.9}
            ax.plot(x, y, color=colours[side.split()[0]], label=side, **style)
        ax.set_yscale("log")
        ax.set_xlabel(key, fontsize=9)
        ax.set_ylabel("test loss", fontsize=9)
        ax.grid(color="0.92", lw=0.5)
    figures.legend(fig, axes[0])
    return fig
