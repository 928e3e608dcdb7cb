"""The main job: train, record, then run the optimizer and the Koopman operators side by side.

The procedure is A. Rao's (after Dogra & Redman 2020): t1 epochs of an optimizer; recording until epoch
t2; then, from the same weights, T more epochs of the optimizer and as many Koopman steps.
"""

from __future__ import annotations

import copy
import itertools
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from statistics import median

import numpy as np
import torch
from torch import nn

from .. import checks
from ..cutoff import Rank
from ..files import prepare_out, write_json
from ..machine import describe_machine, peak_memory
from ..observables import Momentum, resolve
from ..operator import fit
from ..torch_adapter import JumpReport, KoopmanPhase
from .baselines import Line, Mean, Moving, Weights, apart, assign, weights_of
from .config import Config, recommended
from .figures import WeightPaths, draw, save
from .problems import datasets, oscillator
from .spectra import spectra
from .training import Classification, make_optimizer, torch_threads

EIGENVALUES = 300  # of a layer that results.json shows
FILES = ("report.html", "accuracy.png", "loss.png", "time.png", "weights.png", "spectra.png")  # beside results.json
WARM_UP_SIZES = ((5, 3), (3, 5), (101, 100), (100, 101))  # (n, m): tall and wide, for the kernels and for LAPACK


@dataclass
class Curve:
    """What one side did over the T phase."""

    iteration: list[int] = field(default_factory=list)
    test_loss: list[float] = field(default_factory=list)
    test_accuracy: list[float | None] = field(default_factory=list)  # None: not a classifier
    step_seconds: list[float] = field(default_factory=list)

    def evaluate(self, iteration: int, loss_and_accuracy: tuple[float, float | None]) -> None:
        """Append one evaluation."""
        self.iteration.append(iteration)
        self.test_loss.append(loss_and_accuracy[0])
        self.test_accuracy.append(loss_and_accuracy[1])


class WeightWatch:
    """The paths of a few weights: of three matrices the weight that moved most and the one that moved as usual."""

    def __init__(self, model: nn.Module, start: list[torch.Tensor]):
        matrices = [(i, *named) for i, named in enumerate(model.named_parameters()) if named[1].ndim > 1]
        self._entries, self.labels = [], []
        for i, name, parameter in (matrices[0], matrices[len(matrices) // 2], matrices[-1]):
            order = (parameter.detach() - start[i]).abs().flatten().argsort(descending=True)
            for entry in (int(order[0]), int(order[len(order) // 2])):
                self._entries.append((i, entry))
                index = ", ".join(map(str, np.unravel_index(entry, parameter.shape)))
                self.labels.append(f"{name}[{index}]")

    def read(self, model: nn.Module) -> list[float]:
        """The weights' present values in a model."""
        parameters = list(model.parameters())
        return [float(parameters[i].detach().flatten()[entry]) for i, entry in self._entries]


def compile_kernels(config: Config) -> float:
    """Make Numba compile (or load) what the comparison calls, so that no step is timed doing it; seconds."""
    began = time.perf_counter()
    random = np.random.default_rng(0)
    options = {name: getattr(config, name) for name in ("cutoff", "observables", "stabilize", "out_of_span")}
    observables = resolve(config.observables)
    halves, (delay, affine) = 1 + observables.momentum, observables.observed
    for n, m in WARM_UP_SIZES:
        X = random.normal(size=(2, n * halves, m + delay + affine)).astype(np.float32)
        for refine in (False, True):  # the Gram matrix, and what a block that it cannot resolve takes
            op = fit(X, refine=refine, **options)
            walk = op.walk()
            walk.step()
            walk.step()  # the first that advances
            op.predict(2)
            _ = op.residual, op.spectral_radius
    fit(X, cutoff=Rank(1)).predict(2)
    return time.perf_counter() - began


def make_problem(config: Config) -> Classification | oscillator.Oscillator:
    """What a checked config trains networks for."""
    if config.dataset == oscillator.NAME:
        return oscillator.Oscillator()
    data = datasets.load(config.dataset, config.data_dir, progress=True)
    return Classification(datasets.with_validation(data, config.validation), config.batch_size)


def check_lengths(config: Config, per_epoch: int) -> None:
    """Raise if a recording would hold no pair, or a phase no step."""
    recorded = (config.t2 - config.t1) * per_epoch
    if recorded // config.every < 2:
        raise checks.InputError(
            f"every: {recorded} recorded iterations hold fewer than 2 snapshots at every={config.every}; lower it, "
            "or record for more epochs (t2 - t1)"
        )
    if 0 < config.T * per_epoch < config.every:
        cure = "record for fewer epochs (t2 - t1)" if config.recommended else "lower it"
        raise checks.InputError(
            f"every: {config.every} iterations are longer than the T phase of {config.T * per_epoch}, in which "
            f"no Koopman step would be made; {cure}, or raise T"
        )
    resolve(config.observables).check(recorded // config.every)


class Recorded:
    """A network that has been trained and recorded, where both sides set out from."""

    def __init__(self, config: Config, problem, seed: int, tick: Callable[[str, int, int], None]):
        self.model = problem.make_model(seed)
        self.optimizer = make_optimizer(config.optimizer, self.model, config.lr)
        self.batches = problem.batches(seed)
        per_epoch = self.batches.per_epoch
        check_lengths(config, per_epoch)
        self.iterations = (config.t2 - config.t1) * per_epoch
        self.final = config.T * per_epoch // config.every * config.every  # what Koopman steps can reach
        self.back = min(self.final, self.iterations - 1)  # what a prediction that goes on as before looks back on
        initial = [parameter.detach().clone() for parameter in self.model.parameters()]
        train(problem, self.model, self.optimizer, self.batches, config.t1, lambda *state: tick("training", *state))

        skip = self.iterations % config.every  # so that the newest snapshot is the last iterate
        self.phase = KoopmanPhase(self.model, **config.phase_options, capacity=self.iterations // config.every)
        self.watch, self.path = WeightWatch(self.model, initial), []
        self.moving, self.line = Moving(), Line()
        self.before: Weights = weights_of(self.model)
        counted = itertools.count(1)
        self.phase.attach(self.optimizer, lambda: next(counted) > skip)

        def after(done: int, of: int) -> None:
            self.moving.add(self.model)
            self.line.add(self.model)
            self.path.append(self.watch.read(self.model))
            if done == self.iterations - self.back:
                self.before = weights_of(self.model)
            tick("recording", done, of)

        train(problem, self.model, self.optimizer, self.batches, config.t2 - config.t1, after)
        self.phase.detach()
        self.start, self.average = weights_of(self.model), self.phase.average()


def run_seed(config: Config, problem, seed: int, tick: Callable[[str, int, int], None]):
    """One seed: the run of results.json, and the weights' paths.

    Args:
        config: checked.
        problem: what the networks are trained for, see `make_problem`.
        seed: of the initial weights and the batches.
        tick: called with what is going on, how many iterations of it are done, and of how many.
    """
    made = Recorded(config, problem, seed, tick)
    made.phase.fit()
    jump, jumped = _jumped(config, problem, made)
    cost = made.phase.record_seconds + made.phase.fit_seconds + jump.seconds + jumped["guard_seconds"]
    trained, moved, true, predicted, ends = _side_by_side(config, problem, made, cost, tick)
    states = {"before": made.before, "start": made.start, "average": made.average, **ends}
    run = {
        "seed": seed,
        "optimizer": asdict(trained),
        "koopman": {
            **asdict(moved),
            "record_seconds": made.phase.record_seconds,
            "fit_seconds": made.phase.fit_seconds,
            "jump_seconds": jump.seconds,
            "jumped": jumped,
            "rank": {layer.name: list(layer.rank) for layer in jump.layers},
            "spectral_radius": {layer.name: layer.spectral_radius for layer in jump.layers},
            "residual": {layer.name: layer.residual for layer in jump.layers},
            "kept": {layer.name: layer.kept for layer in jump.layers},
        },
        "average": judged(problem, made.model, made.average),
        "baselines": _baselines(config, problem, made, states, sum(trained.step_seconds)),
    }
    if seed == 0:
        run["koopman"]["eigenvalues"] = {layer.name: _eigenvalues(layer.operators) for layer in jump.layers}
    run |= problem.measures(run, states, recorded=made.iterations, back=made.back, ahead=made.final)
    steps = np.arange(config.every, made.final + 1, config.every)
    if not len(steps):
        return run, None
    recorded_at = np.arange(1 - made.iterations, 1)
    paths = np.array(made.path), steps, np.array(true)[steps - 1], np.array(predicted)
    return run, WeightPaths(made.watch.labels, recorded_at, *paths)


def judged(problem, model: nn.Module, weights: Weights) -> dict:
    """What some weights are worth: loss and accuracy on the test set, and the loss on validation images, if any."""
    assign(model, weights)
    loss, accuracy = problem.evaluate(model)
    found = {"test_loss": loss, "test_accuracy": accuracy}
    return found | ({"validation_loss": problem.evaluate(model, "validation")[0]} if problem.validates else {})


def _jumped(config: Config, problem, made: Recorded) -> tuple[JumpReport, dict]:
    """Straight to the end of the phase and back: the report, where it led, and what its guard cost."""
    spent = 0.0

    def guard() -> float:
        nonlocal spent
        began = time.perf_counter()
        loss, _ = problem.evaluate(made.model, "validation")
        spent += time.perf_counter() - began
        return loss

    jump = made.phase.jump(made.final, guard if config.horizon else None, config.horizon)
    there = weights_of(made.model)
    found = {"steps": jump.steps, "rolled_back": jump.rolled_back, "guard_seconds": spent}
    found |= judged(problem, made.model, there)
    distance = apart(made.start, made.average)
    found["from_mean"] = apart(there, made.average) / distance if distance else math.nan
    assign(made.model, there)
    if made.phase.position:
        made.phase.rollback()
    assign(made.model, made.start)
    return jump, found


def _eigenvalues(operators) -> list[list[float]]:
    """The largest of a layer's eigenvalues, as [real, imaginary]."""
    values = np.concatenate([np.asarray(op.eigenvalues).ravel() for op in operators])
    values = values[np.argsort(-np.abs(values), kind="stable")][:EIGENVALUES]
    return [[float(value.real), float(value.imag)] for value in values[np.abs(values) > 0]]


def _baselines(config: Config, problem, made: Recorded, states: dict[str, Weights], phase_seconds: float) -> dict:
    """What one would do without an operator, or with an empty one, beside what it takes.

    By name: loss, accuracy, "gradients" (optimizer iterations since the first), and "seconds" since t2, recording
    included. At t2: "start" (no jump), "mean" of the recorded iterates and "moving" average, the "line" through them
    at the last, "rank one" (a jump with every block's operator of rank 1: the null model of a projection). At the end:
    "optimizer", "optimizer mean" over as many of its last iterates as were recorded, those of the phase at most, and
    "optimizer moving"; at "equal time" the optimizer's iterate when it had taken as long as recording, fit and jump.
    """
    at_t2, epochs = config.t2 * made.batches.per_epoch, {}
    count = made.final // config.every
    if made.phase.position:
        made.phase.rollback()  # the Koopman steps
    began = time.perf_counter()
    plain = Momentum() if resolve(config.observables).momentum else "identity"
    made.phase.fit(cutoff=Rank(1), observables=plain, stabilize=None, out_of_span="drop")
    made.phase.jump(count * config.every)
    rank_one, fitting = weights_of(made.model), time.perf_counter() - began
    free, ends = made.phase.record_seconds, at_t2 + made.final
    epochs["start"] = made.start, at_t2, 0.0
    epochs["mean"] = made.average, at_t2, free
    epochs["moving"] = made.moving.weights, at_t2, made.moving.seconds
    epochs["line"] = made.line.ahead(), at_t2, made.line.seconds
    epochs["rank one"] = rank_one, at_t2, free + fitting
    epochs["optimizer"] = states["optimizer"], ends, phase_seconds
    for name in ("optimizer mean", "optimizer moving", "equal time"):
        if name in states:
            weights, gradients, seconds = states[name]
            epochs[name] = weights, at_t2 + gradients, seconds
    return {
        name: {**judged(problem, made.model, weights), "gradients": gradients, "seconds": seconds}
        for name, (weights, gradients, seconds) in epochs.items()
    }


def train(problem, model, optimizer, batches, epochs: int, after: Callable[[int, int], None]) -> None:
    """Train for some epochs; after(done, of) follows every iteration."""
    for done, batch in enumerate(_epochs(batches, epochs), 1):
        problem.train_step(model, optimizer, *batch)
        after(done, epochs * batches.per_epoch)


def _side_by_side(config: Config, problem, made: Recorded, cost: float, tick):
    """The T phase: a twin of the model trains on, while Koopman steps move the model, one after the other.

    In turn, so that a machine whose speed drifts treats both alike. Fetching a batch is not timed. Where `every`
    does not divide the phase, both sides stop at the last iteration that a Koopman step reaches.

    Args:
        cost: seconds of a whole Koopman phase by one jump; the optimizer's iterate when it had taken as long is noted,
            beyond the phase if need be.

    Returns:
        The optimizer's and Koopman's curve, the watched weights' path of each, and weights: where each ended, and as
        (weights, iterations, seconds) the optimizer's averages and its iterate at equal time.
    """
    phase, model, final = made.phase, made.model, made.final
    twin, twin_optimizer = copy.deepcopy((model, made.optimizer))
    trained, moved, true, predicted = Curve(), Curve(), [], []
    mean, moving, taken, equal = Mean(), Moving(), 0.0, None
    for curve in (trained, moved):
        curve.evaluate(0, problem.evaluate(model))
    stride = math.lcm(config.every, config.eval_every)
    for iteration, batch in enumerate(itertools.islice(_epochs(made.batches, config.T), final), 1):
        began = time.perf_counter()
        problem.train_step(twin, twin_optimizer, *batch)
        trained.step_seconds.append(time.perf_counter() - began)
        taken += trained.step_seconds[-1]
        if equal is None and taken >= cost:
            equal = weights_of(twin), iteration, taken
        if iteration > final - made.iterations:
            mean.add(twin)
        moving.add(twin)
        true.append(made.watch.read(twin))
        if iteration % config.every == 0:
            began = time.perf_counter()
            phase.step()
            moved.step_seconds.append(time.perf_counter() - began)
            predicted.append(made.watch.read(model))
        if iteration == final or iteration % stride == 0:
            trained.evaluate(iteration, problem.evaluate(twin))
            moved.evaluate(iteration, problem.evaluate(model))
        tick(f"{config.optimizer} and Koopman", iteration, final)
    ends = {"optimizer": weights_of(twin), "koopman": weights_of(model)}
    if final:
        ends["optimizer mean"] = mean.weights, final, taken + mean.seconds
        ends["optimizer moving"] = moving.weights, final, taken + moving.seconds
        ends["equal time"] = equal or _go_on(problem, twin, twin_optimizer, made.batches, final, taken, cost)
    return trained, moved, true, predicted, ends


def _go_on(problem, model, optimizer, batches, done: int, taken: float, until: float) -> tuple[Weights, int, float]:
    """The optimizer beyond the phase, until it has taken so many seconds: weights, iterations, seconds."""
    for batch in itertools.chain.from_iterable(batches.epoch() for _ in itertools.count()):
        began = time.perf_counter()
        problem.train_step(model, optimizer, *batch)
        taken, done = taken + time.perf_counter() - began, done + 1
        if taken >= until:
            return weights_of(model), done, taken


def _epochs(batches, epochs: int):
    for _ in range(epochs):
        yield from batches.epoch()


def compare(config: Config, tick: Callable[[int, str, int, int], None] = lambda *_: None) -> dict:
    """Run a comparison and write results.json and the figures into `config.out`.

    results.json is rewritten, whole, after every seed, so that an interrupted run keeps the seeds that are
    done; its "complete" tells. Training is on the CPU, with PyTorch's own threads; the oscillator takes one.

    Args:
        config: what to compare; checked here.
        tick: called with the seed, what is going on, how many iterations of it are done, and of how many.

    Returns:
        The results, as in results.json but with inf and nan where a loss diverged.

    Raises:
        ValueError, TypeError: on bad options or data, before anything is trained.
        KeyboardInterrupt: passed on once what is complete has been written.
    """
    config = config.checked()
    out = prepare_out(config.out)
    problem = make_problem(config)
    if config.recommended:
        config = recommended(config, problem.batches(0).per_epoch)
    machine = describe_machine()
    machine["compile_seconds"] = compile_kernels(config)
    results = {"config": config.described(), "machine": machine, "runs": [], "complete": False}
    paths = None
    for seed in range(config.seeds):
        with torch_threads(problem.threads):
            run, run_paths = run_seed(config, problem, seed, lambda *state, seed=seed: tick(seed, *state))
        paths = paths or run_paths
        results["runs"].append(run)
        results["complete"] = seed + 1 == config.seeds
        machine["peak_memory_bytes"] = peak_memory()
        write_json(out / "results.json", results)
        for name in FILES if seed == 0 else ():  # an earlier comparison's; they would not go with these results
            (out / name).unlink(missing_ok=True)
    draw(results, paths, out)
    if (figure := spectra(results)) is not None:
        save(figure, out / "spectra.png")
    return results


def seconds(run: dict, side: str) -> dict[str, float]:
    """What a side's T phase cost in one run: per step (median), step by step, and straight to the end."""
    own = run[side]
    walked = sum(own["step_seconds"])
    if side == "optimizer":
        return {"step": _median(own["step_seconds"]), "phase": walked, "jump": walked}
    overhead = own["record_seconds"] + own["fit_seconds"] + own.get("jumped", {}).get("guard_seconds", 0.0)
    return {
        "step": _median(own["step_seconds"]),
        "phase": overhead + walked,
        "jump": overhead + own["jump_seconds"],
    }


def _median(values: list[float]) -> float:
    return median(values) if values else math.nan
