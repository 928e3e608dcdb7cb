"""fastkoop sweep: many settings of a Koopman phase on the same recorded runs, chosen on validation images.

A seed's network is trained and every iterate of the recording kept once; each setting then records, fits and jumps from
those. The test set is looked at for every setting and used to choose none.
"""

from __future__ import annotations

import itertools
import math
import pathlib
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import torch

from .. import checks
from ..cutoff import Rank
from ..files import plain, prepare_out, read_json
from ..machine import describe_machine
from ..observables import Affine
from ..options import Options
from ..torch_adapter import KoopmanPhase
from .averages import Line, Mean, Moving, Weights, assign, weights_of
from .config import Config, Setup, check_lengths, prepare
from .paired import paired
from .problems.checked import stop_if_not_finite
from .runs import Judge, Tick, compile_kernels, run_seeds, silent

GRID = {
    "partition": ["node", "layer", "network"],
    "cutoff": ["array_api", "jax", 1e-2, Rank(1)],
    "stabilize": [None, "clip", "project"],
    "observables": ["identity", Affine()],
    "window": [1, 10],
    "out_of_span": ["drop"],
}
DECAYS = (0.98, 0.99, 0.995, 0.998)  # of moving averages, of which validation chooses, too
AHEAD = (0.0, 0.125, 0.25)  # past a recording, as a share of it: how far its line is followed
HORIZONS = (1, 2, 5, 10, 20, 50)  # epochs, those up to T and T itself
IMAGES = {"mnist": 60_000, "digits": 1437}  # to train on
SHARE = 6  # one in so many training images is taken out to choose by, unless the caller says how many


def settings(grid: dict) -> Iterator[dict]:
    """Every combination of the grid, in the order in which recordings can be shared."""
    names = ("partition", "window", "observables", "stabilize", "cutoff", "out_of_span")
    for values in itertools.product(*(grid[name] for name in names)):
        yield dict(zip(names, values, strict=True))


def options_of(setting: dict) -> Options:
    """What a KoopmanPhase is asked for in a setting."""
    return Options(**{name: value for name, value in setting.items() if name != "partition"})


def described(setting: dict) -> dict:
    """A setting in words, as sweep.json has it."""
    words = options_of(setting).describe()
    return {name: words.get(name, value) for name, value in setting.items()}


def horizons(T: int) -> list[int]:
    """Epochs at which every setting is looked at.

    >>> horizons(10), horizons(3)
    ([1, 2, 5, 10], [1, 2, 3])
    """
    return sorted({epochs for epochs in HORIZONS if epochs <= T} | {T} - {0})


class Iterates:
    """A trained network's recording, iterate by iterate, and what its averages and its optimizer come to."""

    def __init__(self, setup: Setup, seed: int, at: list[int], tick: Tick):
        self.setup, self.judge = setup, Judge(setup.problem)
        self.training = setup.training(seed)
        self.model, self.per_epoch = self.training.model, setup.lengths.per_epoch
        lengths = setup.lengths
        self.training.run(lengths.before, lambda *state: self._look("training", tick, *state))
        epochs = lengths.record // self.per_epoch
        self._epochs: deque[Mean] = deque(maxlen=epochs)  # means of the last ones, together of the recording's length
        self._all: list[Weights] = []
        moving, line, every = {decay: Moving(decay) for decay in DECAYS}, Line(), Mean()

        def after(done: int, of: int, loss) -> None:
            self._look("recording", tick, done, of, loss)
            self._all.append(weights_of(self.model))
            for average in (*moving.values(), line, every):
                average.add(self.model)
            self._add(done)

        self.training.run(lengths.record, after)
        candidates = {"start": weights_of(self.model), "mean": every.weights}
        candidates |= {f"moving {decay}": average.weights for decay, average in moving.items()}
        candidates |= {f"line {share}": line.ahead(round(share * lengths.record)) for share in AHEAD}
        self.baselines = {name: self.judge(self.model, weights) for name, weights in candidates.items()}
        self.show(-1)
        for before, epochs in itertools.pairwise((0, *at)):
            self._go_on(before, epochs, tick)

    def _look(self, what: str, tick: Tick, done: int, of: int, loss) -> None:
        stop_if_not_finite(loss, f"while {what}, iteration {done}")
        tick(what, done, of)

    def _add(self, done: int) -> None:
        """One more iterate, into its epoch's mean."""
        if done % self.per_epoch == 1 or self.per_epoch == 1:
            self._epochs.append(Mean())
        self._epochs[-1].add(self.model)

    def _go_on(self, before: int, epochs: int, tick: Tick) -> None:
        """The optimizer alone, to `epochs` after the recording: its last iterate, the mean of as many as recorded."""

        def after(done: int, of: int, loss) -> None:
            self._look(f"{self.setup.optimizer} alone", tick, done, of, loss)
            self._add(done)

        self.training.run((epochs - before) * self.per_epoch, after)
        last, means = weights_of(self.model), [epoch.weights for epoch in self._epochs]
        mean = {name: torch.stack([weights[name] for weights in means]).mean(dim=0) for name in last}
        self.baselines[f"optimizer {epochs}"] = self.judge(self.model, last)
        self.baselines[f"optimizer mean {epochs}"] = self.judge(self.model, mean)
        assign(self.model, last)

    @property
    def count(self) -> int:
        """Recorded iterates."""
        return len(self._all)

    def show(self, at: int) -> None:
        """Put iterate `at` into the model."""
        assign(self.model, self._all[at])

    def phase(self, partition: str, window: int) -> KoopmanPhase:
        """The same recording for another partition, or of means of `window` iterates; ends at the last iterate."""
        q = self.setup.config.q if partition == "quasi-node" else None
        phase = KoopmanPhase(self.model, partition, q=q, window=window, capacity=max(2, self.count // window))
        for at in range(self.count % window, self.count):
            self.show(at)
            phase.record()
        return phase


def tried(iterates: Iterates, phase: KoopmanPhase, setting: dict, at: list[int]) -> dict:
    """What one setting leads to, by epochs of the phase."""
    began = time.perf_counter()
    phase.fit(**options_of(setting).fit_arguments)
    fit_seconds, states = time.perf_counter() - began, []
    for epochs in at:
        steps = epochs * iterates.per_epoch // phase.every * phase.every
        began = time.perf_counter()
        phase.jump(steps)
        states.append((weights_of(iterates.model), time.perf_counter() - began))
        phase.rollback()
    judged = [iterates.judge(iterates.model, weights) for weights, _ in states]
    iterates.show(-1)
    return {
        "record_seconds": phase.record_seconds, "fit_seconds": fit_seconds,
        "jump_seconds": [seconds for _, seconds in states],
        **{key: [entry[key] for entry in judged] for key in judged[0]},
    }  # fmt: skip


def sweep(config: Config, grid: dict | None = None, tick: Callable[[int, str, int, int], None] = silent) -> dict:
    """Try every setting of the grid on every seed, and write sweep.json into `config.out` after each.

    A sweep that was interrupted goes on where it stopped, if it was asked for the same.

    Args:
        config: what to train; its options of a phase are not looked at. Without `validation`, a sixth of the training
            images is taken out.
        grid: lists of partitions, windows, observables, stabilize, cutoffs and out_of_span; `GRID` where not given.
        tick: called with the seed, what is going on, how much of it is done, and of how much.

    Returns:
        As in sweep.json, with inf and nan where a loss diverged.

    Raises:
        ValueError, TypeError: on bad options or data, before anything is trained.
    """
    combinations = list(settings(GRID | (grid or {})))
    _check_settings(config, combinations)
    setup = prepare(with_validation(config))
    at = _horizons_of(setup)
    for setting in combinations:
        check_lengths(setup.lengths, options_of(setting))
    path = prepare_out(config.out) / "sweep.json"
    results = {
        "config": setup.described(), "settings": [described(setting) for setting in combinations], "horizons": at,
        "machine": describe_machine(), "baselines": {}, "runs": [], "complete": False,
    }  # fmt: skip
    _take_up(results, path)
    compile_kernels(setup.options)

    def runs_of(seed: int, tick: Tick) -> Iterator[dict]:
        done = {run["setting"] for run in results["runs"] if run["seed"] == seed}
        if len(done) < len(combinations) or str(seed) not in results["baselines"]:
            yield from _sweep_seed(setup, seed, combinations, done, results, tick)

    run_seeds(setup, results, path, runs_of, tick)
    return results


def _check_settings(config: Config, combinations: list[dict]) -> None:
    """Raise for a setting that cannot be tried."""
    for setting in combinations:
        if setting["partition"] != "quasi-node":
            replace(config, partition=setting["partition"], q=None).checked()
        elif config.q is None:
            raise checks.InputError('q: the partition "quasi-node" needs --q, the number of weights in a block')
        if options_of(setting).observables.momentum:
            raise checks.InputError("grid: a sweep replays weights, which have no velocities; leave Momentum() out")


def _horizons_of(setup: Setup) -> list[int]:
    """Epochs of the phase at which settings are looked at."""
    lengths, config = setup.lengths, setup.config
    if lengths.per_epoch is None or lengths.phase % lengths.per_epoch or lengths.record % lengths.per_epoch:
        raise checks.InputError(
            f"T: a sweep counts whole epochs, got t1 = {config.t1}, t2 = {config.t2}, T = {config.T}"
        )
    at = horizons(lengths.phase // lengths.per_epoch)
    if not at:
        raise checks.InputError("T: a sweep looks at the end of a phase; expected at least 1 epoch")
    return at


def with_validation(config: Config) -> Config:
    """The config, checked, with validation images to choose by."""
    config = config.checked()
    if config.validation or prepare(config).problem.validates:
        return config
    if config.problem not in IMAGES:
        name = config.problem if isinstance(config.problem, str) else type(config.problem).__name__
        raise checks.InputError(f"problem: a sweep chooses by validate(model), and {name} has no such method")
    return replace(config, validation=IMAGES[config.problem] // SHARE)


def _sweep_seed(setup: Setup, seed: int, combinations: list[dict], done: set, results: dict, tick: Tick):
    """The runs of a seed that are not there yet."""
    iterates = Iterates(setup, seed, results["horizons"], tick)
    results["baselines"][str(seed)] = iterates.baselines
    phase, key = None, None
    for i, setting in enumerate(combinations):
        tick("settings", i, len(combinations))
        if i in done:
            continue
        if key != (setting["partition"], setting["window"]):
            key = setting["partition"], setting["window"]
            phase = iterates.phase(*key)
        yield {"seed": seed, "setting": i, **tried(iterates, phase, setting, results["horizons"])}
    tick("settings", len(combinations), len(combinations))


def _take_up(results: dict, path: pathlib.Path) -> None:
    """Go on from a file of the same sweep."""
    if not path.exists():
        return
    try:
        old = read_json(path)
    except checks.InputError as error:
        raise checks.InputError(
            f"out: {error}, so that no sweep goes on there; name another folder with --out"
        ) from None
    if not _well_formed(old):
        raise checks.InputError(f"out: {path} is not a sweep's, or damaged; name another folder with --out")
    wanted = results["config"]["seeds"]
    same = {**old["config"], "seeds": wanted} == plain(results["config"])
    if not (same and all(old[name] == plain(results[name]) for name in ("settings", "horizons"))):
        raise checks.InputError(f"out: {path} holds another sweep; name another folder with --out")
    if len(old["baselines"]) > wanted:
        raise checks.InputError(f"seeds: {path} has {len(old['baselines'])} of them, got {wanted}; ask for as many")
    results["runs"], results["baselines"] = old["runs"], old["baselines"]


RUN_LISTS = ("test_loss", "validation_loss", "jump_seconds")


def _well_formed(old) -> bool:
    """Whether a file has what a sweep goes on from, of the kinds that it writes."""
    kinds = {"config": dict, "settings": list, "horizons": list, "runs": list, "baselines": dict}
    if not (isinstance(old, dict) and all(isinstance(old.get(name), kind) for name, kind in kinds.items())):
        return False
    entries = [entry for baselines in old["baselines"].values() if isinstance(baselines, dict)
               for entry in baselines.values()]  # fmt: skip
    return (
        all(seed.isdecimal() and isinstance(entry, dict) for seed, entry in old["baselines"].items())
        and all(isinstance(entry, dict) and {"test_loss", "validation_loss"} <= set(entry) for entry in entries)
        and all(_run_well_formed(run, len(old["settings"]), len(old["horizons"])) for run in old["runs"])
    )


def _run_well_formed(run, settings: int, horizons: int) -> bool:
    return (
        isinstance(run, dict)
        and all(type(run.get(name)) is int for name in ("seed", "setting"))
        and 0 <= run["setting"] < settings
        and all(isinstance(run.get(name), list) and len(run[name]) == horizons for name in RUN_LISTS)
    )


def ranking(results: dict) -> list[tuple[float, int]]:
    """(mean validation loss at the last horizon, setting), best first; what diverged on any seed is infinite."""
    losses: dict[int, list[float]] = {}
    for run in results["runs"]:
        value = run["validation_loss"][-1]
        losses.setdefault(run["setting"], []).append(math.inf if value is None or math.isnan(value) else value)
    return sorted((float(np.mean(values)), setting) for setting, values in losses.items())


def best_rows(results: dict, count: int = 10) -> list[tuple[str, ...]]:
    """The best settings by validation: setting, validation loss, test loss, against the mean of the recorded."""
    table = []
    mean = baseline(results, "mean", "test_loss")
    for validation, i in ranking(results)[:count]:
        setting = results["settings"][i]
        runs = sorted((run for run in results["runs"] if run["setting"] == i), key=lambda run: run["seed"])
        test = [math.inf if (loss := run["test_loss"][-1]) is None else loss for run in runs]
        words = ", ".join(f"{name} {value}" for name, value in setting.items())
        table.append((words, f"{validation:.4f}", f"{np.mean(test):.4f}", str(paired(test, mean[: len(test)]))))
    return table


def baseline_rows(results: dict) -> list[tuple[str, ...]]:
    """The baselines' validation and test losses, means over seeds."""
    names = next(iter(results["baselines"].values()))
    return [
        (name, f"{np.mean(baseline(results, name, 'validation_loss')):.4f}",
         f"{np.mean(baseline(results, name, 'test_loss')):.4f}", "")
        for name in names
    ]  # fmt: skip


def best_baseline(results: dict, kind: str) -> str:
    """The baseline of a kind, "moving" or "line", that validation likes best."""
    names = (name for name in next(iter(results["baselines"].values())) if name.startswith(f"{kind} "))
    return min(names, key=lambda name: np.mean(baseline(results, name, "validation_loss")))


def baseline(results: dict, name: str, key: str) -> list[float]:
    """A baseline's losses, a seed each."""
    by_seed = sorted(results["baselines"].items(), key=lambda item: int(item[0]))
    return [math.inf if entry[name][key] is None else entry[name][key] for _, entry in by_seed]


def never_diverges(results: dict, setting: int) -> bool:
    """Whether a setting's test losses stay below where the jump set out, at every horizon and on every seed."""
    for run in results["runs"]:
        if run["setting"] == setting:
            start = results["baselines"][str(run["seed"])]["start"]["test_loss"]
            if not all(loss is not None and loss <= start for loss in run["test_loss"]):
                return False
    return True
