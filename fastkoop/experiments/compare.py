"""The main job: train, record, then run the optimizer and the Koopman operators side by side.

The procedure is A. Rao's (after Dogra & Redman 2020): t1 epochs of an optimizer; recording until epoch
t2; then, from the same weights, T more epochs of the optimizer and as many Koopman steps.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field

import numpy as np

from ..adapter.presets import preset_candidates
from ..files import prepare_out
from ..machine import describe_machine
from ..torch_adapter import JumpReport
from .averages import apart, assign, weights_of
from .config import Config, Setup, prepare
from .devices import Account
from .estimate import within_budget
from .paths import WeightPaths, path
from .problems.checked import Evaluation, SeedStopped
from .report import FILES, draw_all
from .results import Results
from .runs import Recorded, Tick, compile_kernels, run_seeds, silent

EIGENVALUES = 300  # of a layer that results.json shows


@dataclass
class Curve:
    """What one side did over the T phase."""

    iteration: list[int] = field(default_factory=list)
    test_loss: list[float] = field(default_factory=list)
    test_accuracy: list[float | None] = field(default_factory=list)  # None: not a classifier
    step_seconds: list[float] = field(default_factory=list)

    def evaluate(self, iteration: int, evaluation: Evaluation) -> None:
        """Append one evaluation."""
        self.iteration.append(iteration)
        self.test_loss.append(evaluation.loss)
        self.test_accuracy.append(evaluation.accuracy)


def compare(config: Config, tick: Callable[[int, str, int, int], None] = silent) -> Results:
    """Run a comparison and write results.json, the figures and report.html into `config.out`.

    results.json is rewritten, whole, after every seed, so that an interrupted run keeps the seeds that are
    done; its "complete" tells. `fastkoop report` draws the rest again from it.

    Args:
        config: what to compare; checked here.
        tick: called with the seed, what is going on, how many iterations of it are done, and of how many.

    Returns:
        The results, with inf and nan where a loss diverged.

    Raises:
        ValueError, TypeError: on bad options or data, before anything is trained; or no seed is left.
        KeyboardInterrupt: passed on once what is complete has been written.
    """
    config = config.checked()
    out = None if config.out is None else prepare_out(config.out)
    if config.budget is not None:
        config = within_budget(config)
    setup = prepare(config)
    machine = describe_machine()
    machine["compile_seconds"] = compile_kernels(setup.options, _numpy_dtype(setup.dtype))
    results = {"config": setup.described(), "machine": machine, "runs": [], "complete": False}

    def runs_of(seed: int, tick: Tick) -> Iterator[dict]:
        run, paths = run_seed(setup, seed, tick)
        if paths is not None and "paths" not in results:
            results["paths"] = paths.as_dict()
        for name in FILES if out and not results["runs"] else ():  # an earlier comparison's, stale now
            (out / name).unlink(missing_ok=True)
        yield run

    run_seeds(setup, results, out and out / "results.json", runs_of, tick)
    try:
        if out:
            draw_all(results, out)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"interrupted while the figures were drawn; results.json is complete with {len(results['runs'])} of "
            f"{config.seeds} seeds; fastkoop report {config.out} draws them"
        ) from None
    return Results(results)


def _numpy_dtype(dtype) -> type:
    """What snapshots of parameters are held in."""
    return np.float64 if str(dtype) == "torch.float64" else np.float32


def run_seed(setup: Setup, seed: int, tick: Tick) -> tuple[dict, WeightPaths | None]:
    """One seed: the run of results.json, and the weights' paths.

    Args:
        setup: what is compared.
        seed: of the initial weights and the batches.
        tick: called with what is going on, how many iterations of the seed are done, and of how many.
    """
    recorded = Recorded(setup, seed, tick)
    recorded.phase.fit()
    forecast = recorded.phase.forecast().overall
    jump, jumped = _jumped(recorded)
    recorded.cost = recorded.phase.record_seconds + recorded.phase.fit_seconds + jump.seconds + jumped["guard_seconds"]
    trained, moved, true, predicted = _side_by_side(recorded)
    recorded.states |= {"before": recorded.before, "start": recorded.start, "average": recorded.average}
    run = {
        "seed": seed,
        "optimizer": asdict(trained),
        "koopman": {
            **asdict(moved),
            "record_seconds": recorded.phase.record_seconds,
            "fit_seconds": recorded.phase.fit_seconds,
            "jump_seconds": jump.seconds,
            "jumped": jumped,
            "forecast": {name: _plain(getattr(forecast, name)) for name in ("error", "baseline", "pays")},
            "recording_bytes": recorded.phase.plan().bytes,
            "rank": {layer.name: list(layer.rank) for layer in jump.layers},
            "spectral_radius": {layer.name: layer.spectral_radius for layer in jump.layers},
            "residual": {layer.name: layer.residual for layer in jump.layers},
            "kept": {layer.name: layer.kept for layer in jump.layers},
        },
        "average": recorded.judge(recorded.model, recorded.average),
        "baselines": _judged_baselines(recorded),
    }
    if seed == 0:
        run["koopman"]["eigenvalues"] = {layer.name: _eigenvalues(layer.operators) for layer in jump.layers}
    run |= setup.problem.measures(
        run, recorded.states, recorded=recorded.iterations, back=recorded.back, ahead=recorded.final
    )
    return run, _paths(recorded, true, predicted)


def _plain(value) -> float | bool:
    """A forecast's entry as JSON has it."""
    return bool(value) if isinstance(value, (bool, np.bool_)) else float(value)


def _paths(recorded: Recorded, true: list, predicted: list) -> WeightPaths | None:
    """The watched weights' paths, of a phase that has steps."""
    every = recorded.setup.every
    steps = np.arange(every, recorded.final + 1, every)
    if not len(steps):
        return None
    labels = recorded.watch.labels
    before, after, moved = (path(values, labels) for values in (recorded.path, true, predicted))
    return WeightPaths(labels, np.arange(1 - recorded.iterations, 1), before, steps, after[steps - 1], moved)


def _jumped(recorded: Recorded) -> tuple[JumpReport, dict]:
    """Straight to the end of the phase and back: the report, where it led, and what its guard cost."""
    config, model, account = recorded.setup.config, recorded.model, Account(recorded.problem.device)

    def guard() -> float:
        with account:
            return recorded.judge.guard(model)

    choice = {"guard": guard, "horizon": config.horizon, "candidates": preset_candidates(config.preset)}
    jump = recorded.phase.jump(recorded.final, **(choice if config.horizon else {}))
    there = weights_of(model)
    jumped = {"steps": jump.steps, "rolled_back": jump.rolled_back, "guard_seconds": account.seconds}
    jumped |= recorded.judge(model, there)
    distance = apart(recorded.start, recorded.average)
    jumped["from_mean"] = apart(there, recorded.average) / distance if distance else math.nan
    assign(model, there)
    if recorded.phase.position:
        recorded.phase.rollback()
    assign(model, recorded.start)
    return jump, jumped


def _eigenvalues(operators) -> list[list[float]]:
    """The largest of a layer's eigenvalues, as [real, imaginary]."""
    values = np.concatenate([np.asarray(op.eigenvalues).ravel() for op in operators])
    values = values[np.argsort(-np.abs(values), kind="stable")][:EIGENVALUES]
    return [[float(value.real), float(value.imag)] for value in values[np.abs(values) > 0]]


def _judged_baselines(recorded: Recorded) -> dict:
    """By name: loss, accuracy, "gradients" (optimizer iterations since the first) and "seconds" since t2.

    All outcomes come before any judgement: to be judged, weights are put into the model that a baseline may move.
    """
    outcomes = {key: baseline.outcome() for key, baseline in recorded.baselines.items()}
    return {
        key: {
            **recorded.judge(recorded.model, outcome.weights),
            "gradients": outcome.gradients,
            "seconds": outcome.seconds,
        }
        for key, outcome in outcomes.items()
        if outcome is not None
    }


def _side_by_side(recorded: Recorded) -> tuple[Curve, Curve, list, list]:
    """The T phase: a twin of the model trains on, while Koopman steps move the model, one after the other.

    In turn, so that a machine whose speed drifts treats both alike. Fetching a batch is not timed. Where `every`
    does not divide the phase, both sides stop at the last iteration that a Koopman step reaches.

    Returns:
        The optimizer's and Koopman's curve, and the watched weights' path of each.
    """
    setup, phase, model, final = recorded.setup, recorded.phase, recorded.model, recorded.final
    twin, watch, problem = recorded.training.twin(), recorded.watch, recorded.problem
    trained, moved, true, predicted = Curve(), Curve(), [], []
    start = problem.evaluate(twin.model)
    if not math.isfinite(start.loss):
        raise SeedStopped(f"evaluate says {start.loss} where the phase starts, at iteration {recorded.at_t2}")
    trained.evaluate(0, start)
    moved.evaluate(0, problem.evaluate(model))
    every, stride = setup.every, math.lcm(setup.every, setup.config.eval_every)
    for done, batch in enumerate(itertools.islice(twin.stream, final), 1):
        recorded.optimizer_seconds += _optimizer_step(recorded, twin, batch, done, trained.step_seconds)
        true.append(watch.read(twin.model))
        if done % every == 0:
            _, seconds = recorded.stopwatch.time(phase.step)
            moved.step_seconds.append(seconds)
            predicted.append(watch.read(model))
        if done == final or done % stride == 0:
            trained.evaluate(done, problem.evaluate(twin.model))
            moved.evaluate(done, recorded.judge.moved(model))
        recorded.tick(f"{setup.optimizer} and Koopman", done)
    recorded.states |= {"optimizer": weights_of(twin.model), "koopman": weights_of(model)}
    if final:
        _go_on(recorded, twin)
    return trained, moved, true, predicted


def _optimizer_step(recorded: Recorded, twin, batch, done: int, times: list[float]) -> float:
    """One iteration of the optimizer, which the baselines are told of; its seconds."""
    loss, seconds = recorded.stopwatch.time(lambda: twin.step(batch))
    times.append(seconds)
    recorded.look(loss, done, f"at iteration {recorded.at_t2 + done}")
    for baseline in recorded.baselines.values():
        baseline.trained(twin.model, done, recorded.optimizer_seconds + seconds)
    return seconds


def _go_on(recorded: Recorded, twin) -> None:
    """The optimizer beyond the phase, as long as a baseline waits for it; only time is looked at."""
    waiting = [baseline for baseline in recorded.baselines.values() if baseline.waits]
    seconds = recorded.optimizer_seconds
    for done in itertools.count(recorded.final + 1):
        if not any(baseline.waits for baseline in waiting):
            return
        batch = next(twin.stream)
        _, spent = recorded.stopwatch.time(lambda batch=batch: twin.step(batch))
        seconds += spent
        for baseline in waiting:
            baseline.trained(twin.model, done, seconds)
