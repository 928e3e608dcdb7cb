"""fastkoop compare --sweep: many settings of a Koopman phase on the same recorded runs, chosen on validation images.

A seed's network is trained and every iterate of the recording kept once; each setting then records, fits and jumps from
those. The test set is looked at for every setting and used to choose none.
"""

from __future__ import annotations

import itertools
import json
import math
import pathlib
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import torch

from .. import checks
from .. import cutoff as rules
from ..cutoff import Rank
from ..files import plain, prepare_out, write_json
from ..machine import describe_machine
from ..observables import Affine, resolve
from ..torch_adapter import KoopmanPhase
from .baselines import Line, Mean, Moving, assign, weights_of
from .compare import check_lengths, compile_kernels, judged, make_problem, train
from .config import Config
from .paired import paired
from .training import make_optimizer, torch_threads

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


def described(setting: dict) -> dict:
    """A setting in words, as sweep.json has it."""
    words = {"cutoff": rules.describe(setting["cutoff"]), "observables": str(resolve(setting["observables"]))}
    return {**setting, **words}


def horizons(T: int) -> list[int]:
    """Epochs at which every setting is looked at.

    >>> horizons(10), horizons(3)
    ([1, 2, 5, 10], [1, 2, 3])
    """
    return sorted({epochs for epochs in HORIZONS if epochs <= T} | {T} - {0})


class Iterates:
    """A trained network's recording, iterate by iterate, and what its averages and its optimizer come to."""

    def __init__(self, config: Config, problem, seed: int, tick: Callable[[str, int, int], None]):
        self.problem, self.model = problem, problem.make_model(seed)
        optimizer = make_optimizer(config.optimizer, self.model, config.lr)
        batches = problem.batches(seed)
        self.per_epoch, self._q = batches.per_epoch, config.q
        train(problem, self.model, optimizer, batches, config.t1, lambda *state: tick("training", *state))
        count = (config.t2 - config.t1) * batches.per_epoch
        self._epochs: deque[Mean] = deque(maxlen=config.t2 - config.t1)  # means of the last ones, together of `count`
        self._all = KoopmanPhase(self.model, "network", capacity=count)
        moving, line = {decay: Moving(decay) for decay in DECAYS}, Line()

        def after(done: int, of: int) -> None:
            self._all.record()
            for each in (*moving.values(), line):
                each.add(self.model)
            self._add(done)
            tick("recording", done, of)

        train(problem, self.model, optimizer, batches, config.t2 - config.t1, after)
        found = {"start": weights_of(self.model), "mean": self._all.average()}
        found |= {f"moving {decay}": average.weights for decay, average in moving.items()}
        found |= {f"line {share}": line.ahead(round(share * count)) for share in AHEAD}
        self.baselines = {name: judged(problem, self.model, weights) for name, weights in found.items()}
        self.show(count - 1)
        for epochs in horizons(config.T):
            self._go_on(config, batches, optimizer, epochs, tick)

    def _add(self, done: int) -> None:
        """One more iterate, into its epoch's mean."""
        if done % self.per_epoch == 1 or self.per_epoch == 1:
            self._epochs.append(Mean())
        self._epochs[-1].add(self.model)

    def _go_on(self, config, batches, optimizer, epochs: int, tick) -> None:
        """The optimizer alone, to `epochs` after the recording: its last iterate, the mean of as many as recorded."""
        before = max((at for at in horizons(config.T) if at < epochs), default=0)

        def after(done: int, of: int) -> None:
            self._add(done)
            tick(f"{config.optimizer} alone", done, of)

        train(self.problem, self.model, optimizer, batches, epochs - before, after)
        last, each = weights_of(self.model), [epoch.weights for epoch in self._epochs]
        mean = {name: torch.stack([weights[name] for weights in each]).mean(dim=0) for name in last}
        self.baselines[f"optimizer {epochs}"] = judged(self.problem, self.model, last)
        self.baselines[f"optimizer mean {epochs}"] = judged(self.problem, self.model, mean)
        assign(self.model, last)

    def show(self, at: int) -> None:
        """Put iterate `at` into the model."""
        recording = self._all.parts.recordings[0]
        recording.apply(recording.snapshots(self._all.snapshots)[at, :, : recording.group.n])

    def phase(self, partition: str, window: int) -> KoopmanPhase:
        """The same recording for another partition, or of means of `window` iterates; ends at the last iterate."""
        count = self._all.snapshots
        phase = KoopmanPhase(self.model, partition, q=self._q, window=window, capacity=max(2, count // window))
        for at in range(count % window, count):
            self.show(at)
            phase.record()
        return phase


def tried(made: Iterates, phase: KoopmanPhase, setting: dict, at: list[int]) -> dict:
    """What one setting leads to, by epochs of the phase."""
    began = time.perf_counter()
    options = {name: setting[name] for name in ("cutoff", "observables", "stabilize", "out_of_span")}
    phase.fit(**options)
    fit_seconds, states = time.perf_counter() - began, []
    for epochs in at:
        steps = epochs * made.per_epoch // phase.every * phase.every
        began = time.perf_counter()
        phase.jump(steps)
        states.append((weights_of(made.model), time.perf_counter() - began))
        phase.rollback()
    found = [judged(made.problem, made.model, weights) for weights, _ in states]
    made.show(made._all.snapshots - 1)
    return {
        "record_seconds": phase.record_seconds, "fit_seconds": fit_seconds,
        "jump_seconds": [seconds for _, seconds in states],
        **{key: [each[key] for each in found] for key in found[0]},
    }  # fmt: skip


def sweep(
    config: Config, grid: dict | None = None, tick: Callable[[int, str, int, int], None] = lambda *_: None
) -> dict:
    """Try every setting of the grid on every seed, and write sweep.json into `config.out` after each.

    A sweep that was interrupted goes on where it stopped, if it was asked for the same.

    Args:
        config: what to train; its own settings of a phase are not looked at. Without
            `validation`, a sixth of the training images is taken out.
        grid: lists of partitions, windows, observables, stabilize, cutoffs and out_of_span; `GRID` where not given.
        tick: called with the seed, what is going on, how much of it is done, and of how much.

    Returns:
        As in sweep.json, with inf and nan where a loss diverged.

    Raises:
        ValueError, TypeError: on bad options or data, before anything is trained.
    """
    grid = GRID | (grid or {})
    config = with_validation(config)
    at, every = horizons(config.T), list(settings(grid))
    if not at:
        raise checks.InputError("T: a sweep looks at the end of a phase; expected at least 1 epoch")
    problem = _checked_problem(config, every)
    out = prepare_out(config.out)
    path = out / "sweep.json"
    results = {
        "config": config.described(), "settings": [described(setting) for setting in every], "horizons": at,
        "machine": describe_machine(), "baselines": {}, "runs": [], "complete": False,
    }  # fmt: skip
    _take_up(results, path)
    compile_kernels(config)
    for seed in range(config.seeds):
        done = {run["setting"] for run in results["runs"] if run["seed"] == seed}
        if len(done) == len(every) and str(seed) in results["baselines"]:
            continue
        with torch_threads(problem.threads):
            _sweep_seed(config, problem, seed, every, done, results, path, tick)
    results["complete"] = True
    write_json(path, results)
    return results


def _checked_problem(config: Config, every: list[dict]):
    """What is trained, if every setting can be tried on it."""
    checked = []
    for setting in every:
        if resolve(setting["observables"]).momentum:
            raise checks.InputError("grid: a sweep replays weights, which have no velocities; leave Momentum() out")
        q = config.q if setting["partition"] == "quasi-node" else None
        checked.append(replace(config, **setting, q=q, every=1, horizon=None).checked())
    problem = make_problem(config)
    for each in checked:
        check_lengths(each, problem.batches(0).per_epoch)
    return problem


def with_validation(config: Config) -> Config:
    """The config, checked, with validation images to choose by."""
    config = config.checked()
    if config.validation:
        return config
    if config.dataset not in IMAGES:
        raise checks.InputError(f"dataset: a sweep chooses by validation images, and {config.dataset} has none")
    return replace(config, validation=IMAGES[config.dataset] // SHARE)


def _sweep_seed(config, problem, seed: int, every: list[dict], done: set, results: dict, path, tick) -> None:
    made = Iterates(config, problem, seed, lambda *state: tick(seed, *state))
    results["baselines"][str(seed)] = made.baselines
    phase, key = None, None
    for i, setting in enumerate(every):
        tick(seed, "settings", i, len(every))
        if i in done:
            continue
        if key != (setting["partition"], setting["window"]):
            key = setting["partition"], setting["window"]
            phase = made.phase(*key)
        run = {"seed": seed, "setting": i, **tried(made, phase, setting, results["horizons"])}
        results["runs"].append(run)
        write_json(path, results)
    tick(seed, "settings", len(every), len(every))


def _take_up(results: dict, path: pathlib.Path) -> None:
    """Go on from a file of the same sweep."""
    if not path.exists():
        return
    try:
        old = json.loads(path.read_text())
    except (OSError, ValueError):
        raise checks.InputError(f"out: {path} cannot be gone on with; name another folder with --out") from None
    wanted = results["config"]["seeds"]
    same = isinstance(old, dict) and {"config", "settings", "horizons", "runs", "baselines"} <= set(old)
    same = (
        same
        and {**old["config"], "seeds": wanted} == plain(results["config"])
        and all(old[name] == plain(results[name]) for name in ("settings", "horizons"))
    )
    if not same:
        raise checks.InputError(f"out: {path} holds another sweep; name another folder with --out")
    if len(old["baselines"]) > wanted:
        raise checks.InputError(f"seeds: {path} has {len(old['baselines'])} of them, got {wanted}; ask for as many")
    results["runs"], results["baselines"] = old["runs"], old["baselines"]


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
    return [math.inf if own[name][key] is None else own[name][key] for _, own in by_seed]


def never_diverges(results: dict, setting: int) -> bool:
    """Whether a setting's test losses stay below where the jump set out, at every horizon and on every seed."""
    for run in results["runs"]:
        if run["setting"] == setting:
            start = results["baselines"][str(run["seed"])]["start"]["test_loss"]
            if not all(loss is not None and loss <= start for loss in run["test_loss"]):
                return False
    return True
