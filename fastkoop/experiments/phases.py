"""fastkoop compare --phases N: a whole training run with N Koopman phases, against the optimizer alone.

One network trains t1 epochs, and then N times records for t2 - t1 epochs, jumps over T and trains on for `rest`; its
twin trains on without jumps, through as many gradients, and then through those that the jumps stood for. Of both sides
the moving average of the iterates is looked at, too, begun anew on both where one of them jumps, as an average across
a jump is of neither stretch. Losses stand against gradients and against seconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

import numpy as np

from ..files import prepare_out, write_json
from ..machine import describe_machine, peak_memory
from ..torch_adapter import KoopmanPhase, KoopmanSchedule
from . import figures
from .averages import Moving, assign, weights_of
from .compare import check_lengths, compile_kernels, make_problem
from .config import Config, recommended
from .paired import Paired, paired
from .training import make_optimizer, torch_threads

LOOKS = 8  # at the test set in an epoch
SIDES = ("koopman", "koopman moving", "optimizer", "optimizer moving")


@dataclass
class Course:
    """What the test set says of one side over a run."""

    gradients: list[int] = field(default_factory=list)  # optimizer iterations made
    seconds: list[float] = field(default_factory=list)  # of steps, recording, fits, jumps and guards
    test_loss: list[float] = field(default_factory=list)
    test_accuracy: list[float | None] = field(default_factory=list)

    def look(self, gradients: int, seconds: float, found: tuple[float, float | None]) -> None:
        """Append one evaluation."""
        self.gradients.append(gradients)
        self.seconds.append(seconds)
        self.test_loss.append(found[0])
        self.test_accuracy.append(found[1])


def run_seed(config: Config, phases: int, rest: int, problem, seed: int, tick: Callable[[str, int, int], None]) -> dict:
    """Both sides of one seed: {"seed", "koopman": ..., "optimizer": ..., "jumps": [...]}."""
    per_epoch = problem.batches(seed).per_epoch
    check_lengths(config, per_epoch)
    record = (config.t2 - config.t1) * per_epoch // config.every * config.every
    jump = config.T * per_epoch // config.every * config.every
    gradients = config.t1 * per_epoch + phases * (record + rest * per_epoch)
    jumps: list[dict] = []
    first, period = config.t1 * per_epoch + record, record + rest * per_epoch  # jumps are made at these gradients

    def schedule_for(model, optimizer):
        phase = KoopmanPhase(model, **config.phase_options, capacity=record // config.every)
        guard = None if config.horizon is None else lambda: problem.evaluate(model, "validation")[0]
        return KoopmanSchedule(
            phase, optimizer, burn_in=config.t1 * per_epoch, record=record, jump=jump, rest=rest * per_epoch,
            repeats=phases, guard=guard, horizon=config.horizon,
        )  # fmt: skip

    found = {"seed": seed, "jumps": jumps}
    for side, length in (("koopman", gradients), ("optimizer", gradients + phases * jump)):
        model = problem.make_model(seed)
        optimizer = make_optimizer(config.optimizer, model, config.lr)
        schedule = schedule_for(model, optimizer) if side == "koopman" else None
        courses, moving, spent, averaging = (Course(), Course()), Moving(), 0.0, 0.0
        for done, batch in enumerate(_forever(problem.batches(seed)), 1):
            began = time.perf_counter()
            problem.train_step(model, optimizer, *batch)
            report = None if schedule is None else schedule.step()
            spent += time.perf_counter() - began
            if report is not None:
                jumps.append({
                    "gradients": done, "steps": report.steps, "rolled_back": report.rolled_back,
                    "test_loss": problem.evaluate(model)[0],
                })  # fmt: skip
            if (done - first) % period == 0 and done >= first:
                averaging, moving = averaging + moving.seconds, Moving()
            moving.add(model)
            if done % max(1, per_epoch // LOOKS) == 0 or done == length:
                _look(problem, model, courses, moving, done, spent, averaging + moving.seconds)
            tick(f"{side}, {phases} phases" if schedule else f"{config.optimizer} alone", done, length)
            if done == length:
                break
        found |= {side: asdict(courses[0]), f"{side} moving": asdict(courses[1])}
    return found


def _look(problem, model, courses, moving: Moving, gradients: int, seconds: float, averaging: float) -> None:
    """The test set's view of the iterate and of the moving average."""
    courses[0].look(gradients, seconds, problem.evaluate(model))
    kept = weights_of(model)
    assign(model, moving.weights)
    courses[1].look(gradients, seconds + averaging, problem.evaluate(model))
    assign(model, kept)


def _forever(batches):
    while True:
        yield from batches.epoch()


def run_phases(
    config: Config, phases: int, rest: int = 0, tick: Callable[[int, str, int, int], None] = lambda *_: None
) -> dict:
    """Run every seed and write phases.json and phases.png into `config.out`; phases.json after each seed.

    Args:
        config: what to train, record and jump over.
        phases: Koopman phases in a run, at least 1.
        rest: epochs to train on after each jump.
        tick: called with the seed, what is going on, how much of it is done, and of how much.
    """
    config = config.checked()
    out = prepare_out(config.out)
    problem, machine = make_problem(config), describe_machine()
    if config.recommended:
        config = recommended(config, problem.batches(0).per_epoch)
    compile_kernels(config)
    results = {
        "config": config.described(), "phases": phases, "rest": rest, "machine": machine, "runs": [], "complete": False,
    }  # fmt: skip
    for seed in range(config.seeds):
        with torch_threads(problem.threads):
            run = run_seed(config, phases, rest, problem, seed, lambda *state, seed=seed: tick(seed, *state))
        results["runs"].append(run)
        results["complete"] = seed + 1 == config.seeds
        machine["peak_memory_bytes"] = peak_memory()
        write_json(out / "phases.json", results)
    figures.save(_figure(results), out / "phases.png")
    return results


def at_gradients(run: dict, side: str, gradients: int) -> float:
    """A side's test loss at the last look up to so many gradients."""
    course = run[side]
    return course["test_loss"][int(np.searchsorted(course["gradients"], gradients, side="right")) - 1]


def at_seconds(run: dict, side: str, seconds: float) -> float:
    """A side's test loss at the last look within so many seconds."""
    course = run[side]
    return course["test_loss"][max(0, int(np.searchsorted(course["seconds"], seconds, side="right")) - 1)]


def comparisons(results: dict) -> dict[str, Paired]:
    """Koopman's end against the optimizer's, by what is held equal; iterates against iterates, averages likewise."""
    runs, found = results["runs"], {}
    for average in ("", " moving"):
        koopman, name = "koopman" + average, "optimizer" + average
        ends = [run[koopman]["test_loss"][-1] for run in runs]
        said = "moving average" if average else "last iterate"
        found[f"{said}, equal gradients"] = paired(
            ends, [at_gradients(run, name, run[koopman]["gradients"][-1]) for run in runs]
        )
        found[f"{said}, equal seconds"] = paired(
            ends, [at_seconds(run, name, run[koopman]["seconds"][-1]) for run in runs]
        )
        found[f"{said}, the optimizer through all that the jumps stood for"] = paired(
            ends, [run[name]["test_loss"][-1] for run in runs]
        )
    return found


def rows(results: dict) -> list[tuple[str, ...]]:
    """A line per side: who, gradients, seconds, final loss of the iterate and of the moving average."""
    table = []
    for side in ("koopman", "optimizer"):
        ends = [(run[side]["gradients"][-1], run[side]["seconds"][-1], run[side]["test_loss"][-1],
                 run[f"{side} moving"]["test_loss"][-1]) for run in results["runs"]]  # fmt: skip
        gradients, seconds, loss, moving = np.median(np.array(ends, float), axis=0)
        table.append((side, f"{gradients:.0f}", f"{seconds:.3g}", f"{loss:.4f}", f"{moving:.4f}"))
    return table


def _figure(results: dict):
    """Losses against gradients and against seconds, medians over seeds."""
    colours = {"koopman": figures.RED, "optimizer": figures.BLUE}
    fig, axes = figures.panels(results, f"{results['phases']} Koopman phases in a training run", 1, 2)
    for ax, key in zip(axes, ("gradients", "seconds"), strict=True):
        for side in SIDES:
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
