"""One loop over seeds, and the recorded network that every side of a comparison sets out from."""

from __future__ import annotations

import contextlib
import pathlib
import time
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
from torch import nn

from ..backends import kernels
from ..checks import InputError
from ..cutoff import Rank
from ..files import write_json
from ..machine import peak_memory
from ..operator import fit
from ..options import Options
from ..torch_adapter import KoopmanPhase
from .averages import Weights, assign, weights_of
from .baselines import BASELINES
from .config import Setup
from .devices import Stopwatch
from .normalization import Statistics
from .paths import WeightWatch
from .problems.checked import SeedStopped, stop_if_not_finite
from .training import torch_threads

Tick = Callable[[str, int, int], None]  # what is going on, how many iterations of the seed are done, of how many
WARM_UP_SIZES = ((5, 3), (3, 5), (101, 100), (100, 101))  # (n, m): tall and wide, for the kernels and for LAPACK
CHECKED_EVERY = 100  # iterations between looks at the training loss on a device, where a look waits for it


def silent(*_) -> None:
    """No progress."""


def run_seeds(
    setup: Setup,
    results: dict,
    path: pathlib.Path | None,
    run_seed: Callable[[int, Tick], Iterator[dict]],
    tick: Callable[[int, str, int, int], None] = silent,
) -> None:
    """Run every seed and write `results` to `path` after every run, so that an interruption loses no finished one.

    A seed whose loss is no longer finite is left out, with its reason under "stopped".

    Args:
        setup: what is run.
        results: gets "runs", "complete", and the peak memory of its "machine".
        path: of the JSON file; None writes none.
        run_seed: called with a seed and a tick; yields the seed's runs.
        tick: called with the seed besides.

    Raises:
        InputError: no seed is left.
    """
    for seed in range(setup.config.seeds):
        with torch_threads(setup.problem.threads), _told_if_interrupted(setup, results, path):
            try:
                for run in run_seed(seed, partial(tick, seed)):
                    results["runs"].append(run)
                    _write(results, path)
            except SeedStopped as error:
                results.setdefault("stopped", []).append({"seed": seed, "reason": str(error)})
    results["complete"] = True
    if not results["runs"]:
        first = results["stopped"][0]
        count = setup.config.seeds
        raise InputError(
            f"{setup.problem.name}: {'the only seed' if count == 1 else f'all {count} seeds'} stopped; "
            f"seed {first['seed']}: {first['reason']}"
        )
    _write(results, path)


@contextlib.contextmanager
def _told_if_interrupted(setup: Setup, results: dict, path: pathlib.Path | None):
    """An interruption that says what there is."""
    try:
        yield
    except KeyboardInterrupt:
        done = len({run["seed"] for run in results["runs"]})
        kept = f"{done} of {setup.config.seeds} seeds in {path}" if done and path else "nothing"
        raise KeyboardInterrupt(f"interrupted; kept {kept}") from None


def _write(results: dict, path: pathlib.Path | None) -> None:
    results["machine"]["peak_memory_bytes"] = peak_memory()
    if path is not None:
        write_json(path, results)


def compile_kernels(options: Options, dtype=np.float32) -> float:
    """Make Numba compile (or load) what a comparison calls, so that no step is timed doing it; seconds."""
    began = time.perf_counter()
    kernels.warm_up(all=True)  # a block may need any way through, and the first that does would be timed compiling it
    random = np.random.default_rng(0)
    observables = options.observables
    halves, (delay, affine) = 1 + observables.momentum, observables.observed
    for n, m in WARM_UP_SIZES:
        X = random.normal(size=(2, n * halves, m + delay + affine)).astype(dtype)
        for refine in (False, True):  # the Gram matrix, and what a block that it cannot resolve takes
            op = fit(X, refine=refine, **options.fit_arguments)
            walk = op.walk()
            walk.step()
            walk.step()  # the first that advances
            op.predict(2)
            _ = op.residual, op.spectral_radius
    fit(X, cutoff=Rank(1)).predict(2)
    return time.perf_counter() - began


class Judge:
    """What weights are worth: loss and accuracy on the test set, and the loss that guards choose by, if any."""

    def __init__(self, problem):
        self.problem, self._statistics = problem, Statistics(problem)

    def __call__(self, model: nn.Module, weights: Weights) -> dict:
        """Of some weights; the model keeps them."""
        assign(model, weights)
        with self._statistics.of(model):
            answer = self.problem.evaluate(model)
            losses = {"test_loss": answer.loss, "test_accuracy": answer.accuracy}
            return losses | ({"validation_loss": self.problem.validate(model)} if self.problem.validates else {})

    def moved(self, model: nn.Module):
        """The evaluation of a model whose weights were set, not trained."""
        with self._statistics.of(model):
            return self.problem.evaluate(model)

    def guard(self, model: nn.Module) -> float:
        """The loss that a jump is chosen by."""
        with self._statistics.of(model):
            return self.problem.validate(model)


class Recorded:
    """A network that has been trained and recorded, where both sides set out from.

    Args:
        setup: what is run.
        seed: of the initial weights and the batches.
        tick: progress, in iterations of the whole seed.
    """

    def __init__(self, setup: Setup, seed: int, tick: Tick):
        self.setup, self.lengths, self.final = setup, setup.lengths, setup.final
        self.iterations, self.at_t2 = self.lengths.record, self.lengths.before + self.lengths.record
        self.back = min(self.final, self.iterations - 1)  # what a prediction that goes on as before looks back on
        self.total, self._tick = self.at_t2 + self.final, tick
        self.training = setup.training(seed)
        self.model, self.problem, self.judge = self.training.model, setup.problem, Judge(setup.problem)
        self.stopwatch = Stopwatch(setup.problem.device)
        self.states: dict[str, Weights] = {}
        self.optimizer_seconds = self.cost = 0.0
        initial = [parameter.detach().clone() for parameter in self.model.parameters()]
        self.training.run(self.lengths.before, self._trained)
        self.watch, self.path = WeightWatch(self.model, initial), []
        self._record()

    def _trained(self, done: int, of: int, loss) -> None:
        self.look(loss, done, f"at iteration {done}")
        self._tick("training", done, self.total)

    def look(self, loss, done: int, where: str) -> None:
        """Stop the seed if the training loss is not finite; on a device only now and then, for a look waits."""
        if self.problem.device.type == "cpu" or done % CHECKED_EVERY == 0:
            stop_if_not_finite(loss, where)

    def _record(self) -> None:
        options = self.setup.options
        skip = self.iterations % options.every  # so that the newest snapshot is the last iterate
        self.phase = KoopmanPhase(self.model, **self.setup.phase_options, capacity=self.iterations // options.every)
        self.baselines = {key: kind(self) for key, kind in BASELINES.items()}
        self.before = weights_of(self.model)
        self.phase.attach(self.training.optimizer, after=lambda: None)  # for velocities; recorded below, in any case

        def after(done: int, of: int, loss) -> None:
            if done > skip:
                self.phase.record()
            self.look(loss, done, f"at iteration {self.lengths.before + done}")
            for baseline in self.baselines.values():
                baseline.recorded(self.model)
            self.path.append(self.watch.read(self.model))
            if done == self.iterations - self.back:
                self.before = weights_of(self.model)
            self._tick("recording", self.lengths.before + done, self.total)

        with contextlib.ExitStack() as stack:
            stack.callback(self.phase.detach)
            self.training.run(self.iterations, after)
        self.start, self.average = weights_of(self.model), self.phase.average()

    def tick(self, what: str, done: int) -> None:
        """Progress in the T phase."""
        self._tick(what, self.at_t2 + done, self.total)
