"""Koopman step against optimizer step, at the report's setting on real MNIST: run it, then write the page.

    python -m bench steps run --repeat 2    # needs FASTKOOP_DATA_DIR or --data-dir; names are optimizers
    python -m bench steps table

Every round is one whole T phase: the optimizers and the Koopman phases move on in turn, a stretch of iterations
each, so that a machine whose speed drifts treats all alike. Compilation and warm-up are not timed. Ratios are taken
within a round.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from statistics import median

import torch
from torch.nn import functional

from bench import RESULTS, ROOT
from bench.common import origin, pages
from fastkoop.experiments.problems import datasets
from fastkoop.experiments.problems.classification import judge
from fastkoop.experiments.training import Batches, make_model, make_optimizer, train_step
from fastkoop.files import write_json
from fastkoop.torch_adapter import KoopmanPhase

FOLDER = RESULTS / "steps"

# times faster than AdaDelta, eager: a step alone, a step among many, the whole phase of 2 epochs by `every`; and the
# share of an AdaDelta step that recording may take
TO_REACH = {"step": 3.0, "ahead": 10.0, "phase": {"1": 2.0, "10": 10.0}, "record": 0.05}

COMPILED = {  # what torch.compile gets
    "eager": (),
    "compiled": ("forward and backward", "optimizer"),
    "optimizer compiled": ("optimizer",),
}


WARM_UP = 3


@dataclass(frozen=True)
class Setting:
    """What is measured; the defaults are the report's setting."""

    dataset: str = "mnist"
    t1: int = 3
    t2: int = 5
    epochs: tuple[int, ...] = (1, 2)  # T
    cutoff: str = "jax"
    batch_size: int = 64
    seed: int = 0
    optimizers: tuple[str, ...] = ("adadelta", "adam", "momentum")
    modes: tuple[str, ...] = tuple(COMPILED)
    partitions: tuple[str, ...] = ("node", "layer")
    every: tuple[int, ...] = (1, 10)
    ahead: int = 64
    rounds: int = 9
    stretch: int = 134
    shared: int = 100  # steps from which recording's share of a step is taken


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


def measure(data: datasets.Dataset, setting: Setting, name: str) -> dict:
    """One optimizer: train and record once, then `rounds` T phases of everything."""
    model = make_model(data.features, data.classes, setting.seed)
    optimizer = make_optimizer(name, model, None)
    batches = Batches(data, setting.batch_size, setting.seed)
    test = data.on("cpu")

    def test_loss(model) -> float:
        return judge(model, test.test_images, test.test_labels)["loss"]

    for images, labels in _epochs(batches, setting.t1):
        train_step(model, optimizer, images, labels)
    recorded, (*start, batches) = _recorded((model, optimizer, batches), setting)
    start = copy.deepcopy(tuple(start))
    coming = list(_epochs(batches, max(setting.epochs)))
    optimizers = {mode: Optimizer(start, mode, coming) for mode in setting.modes}
    average = recorded[setting.partitions[0], setting.every[0]][1].average()
    sides = {}
    for (partition, every), (model, phase) in recorded.items():
        finals = {str(T): T * batches.per_epoch // every * every for T in setting.epochs}
        sides[partition, every] = Koopman(phase, finals, lambda model=model: test_loss(model))
    shares: dict[str, list[float]] = {partition: [] for partition in setting.partitions}
    for _ in range(setting.rounds):
        _round(optimizers, sides, setting, batches.per_epoch, test_loss)
        for partition, share in shares.items():
            share.append(_record_share(start, partition, coming[: setting.shared]))
    model.load_state_dict(average)
    return {
        "optimizer": {mode: each.figures for mode, each in optimizers.items()},
        "record_share": shares,
        "koopman": {p: {str(e): asdict(sides[p, e].figures) for e in setting.every} for p in setting.partitions},
        "average_loss": test_loss(model),
    }


def _epochs(batches: Batches, epochs: int):
    return itertools.chain.from_iterable(batches.epoch() for _ in range(epochs))


def _recorded(start: tuple, setting: Setting) -> tuple[dict, tuple]:
    """Models and phases by (partition, every), each recorded alone while an optimizer trains from t1 to t2.

    Returns:
        them, and where an optimizer arrives: (model, optimizer, batches).
    """
    found = {}
    for partition, every in itertools.product(setting.partitions, setting.every):
        batches = copy.copy(start[2])  # the images are shared, the order of what comes is not
        batches._random = copy.deepcopy(start[2]._random)
        model, optimizer = copy.deepcopy(start[:2])
        iterations = (setting.t2 - setting.t1) * batches.per_epoch
        phase = KoopmanPhase(model, partition, cutoff=setting.cutoff, every=every, capacity=iterations // every)
        for done, (images, labels) in enumerate(_epochs(batches, setting.t2 - setting.t1)):
            train_step(model, optimizer, images, labels)
            if done >= iterations % every:  # so that the newest snapshot is the last iterate
                phase.record()
        found[partition, every] = model, phase
    return found, (model, optimizer, batches)


def _round(optimizers, sides, setting: Setting, per_epoch: int, test_loss: Callable) -> None:
    """One T phase of everything, in turn."""
    optimizers = [each for each in optimizers.values() if not each.figures["reason"]]
    for side in (*optimizers, *sides.values()):
        side.restart()
    ends = {T * per_epoch: str(T) for T in setting.epochs}
    marks = {final for side in sides.values() for final in side.finals.values()} | set(ends)
    for upto in sorted(marks | set(range(setting.stretch, max(ends), setting.stretch))):
        for side in (*optimizers, *sides.values()):
            side.advance(upto)
        for optimizer in optimizers if upto in ends else ():
            loss = optimizer.figures["loss"]
            loss[ends[upto]] = loss.get(ends[upto]) or test_loss(optimizer.model)
    for optimizer in optimizers:
        optimizer.finish(sorted(marks))
    for side in sides.values():
        side.finish_walk()
        side.look_ahead(setting.ahead)
        side.jump()


def _record_share(start, partition: str, batches: list) -> float:
    """Recording over training, medians, one after the other."""
    model, optimizer = copy.deepcopy(start)
    phase = KoopmanPhase(model, partition, capacity=len(batches))
    trained, recorded = [], []
    for round_ in range(2):  # the first one touches the memory
        for images, labels in batches:
            began = time.perf_counter()
            train_step(model, optimizer, images, labels)
            between = time.perf_counter()
            phase.record()
            if round_:
                trained.append(between - began)
                recorded.append(time.perf_counter() - between)
    return median(recorded) / median(trained)


def environment() -> dict:
    """The machine, what is installed on it, and the commit."""
    commit = origin.commit()
    return {"machine": origin.machine(), "commit": commit["commit"], "uncommitted": commit["dirty"]}


def once(setting: Setting, data_dir: str | None) -> dict:
    """All optimizers, in this process."""
    data = datasets.load(setting.dataset, data_dir, progress=True)
    return {name: measure(data, setting, name) for name in setting.optimizers}


def measure_all(setting: Setting, repeat: int, data_dir: str | None, folder: pathlib.Path = FOLDER) -> pathlib.Path:
    """Measure `repeat` times, each in a process of its own, and write one JSON file."""
    repeats = []
    for number in range(repeat):
        print(f"== repeat {number + 1} of {repeat}", flush=True)
        with tempfile.TemporaryDirectory() as scratch:
            part = pathlib.Path(scratch) / "part.json"
            command = [sys.executable, "-m", "bench.steps.once", json.dumps(asdict(setting)), str(part)]
            subprocess.run([*command, *([data_dir] if data_dir else [])], cwd=ROOT, check=True)
            repeats.append(json.loads(part.read_text()))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{setting.dataset}.json"
    write_json(path, {**environment(), "setting": asdict(setting), "to_reach": TO_REACH, "repeats": repeats})
    return path


def spread(ratios: list[float]) -> str:
    """Median and range."""
    if not ratios:
        return "-"
    low, middle, high = min(ratios), median(ratios), max(ratios)
    return f"{middle:.3g} ({low:.3g}-{high:.3g})"


def _ratios(results: dict, name: str, above, below) -> list[float]:
    """above / below of every round of every repeat."""
    return [
        a / b for one in results["repeats"] for a, b in zip(above(one[name]), below(one[name]), strict=True) if a and b
    ]


def step_rows(results: dict) -> list[str]:
    """The table of single steps: how many times faster than the optimizer's a Koopman step is, an iteration."""
    setting = results["setting"]
    heads = ["optimizer", "ms a step"]
    ways = ("one at a time", f"{setting['ahead']} at a time")
    heads += [f"{partition}, {way}" for partition in setting["partitions"] for way in ways]
    heads += [f"recording {p}, share of a step" for p in setting["partitions"]]
    reach = results["to_reach"]
    goal = [f"≥ {reach['step']:g}", f"≥ {reach['ahead']:g}"] * len(setting["partitions"])
    goal += [f"≤ {reach['record']:.0%}"] * len(setting["partitions"])
    lines = [_line(heads), _line(["---"] * len(heads)), _line(["to reach, against AdaDelta, eager", "", *goal])]
    for name, mode in itertools.product(setting["optimizers"], setting["modes"]):
        mine = [one[name]["optimizer"][mode] for one in results["repeats"]]
        if any(one["reason"] for one in mine):
            lines.append(_line([f"{name}, {mode}", "torch.compile fails here", *[""] * (len(heads) - 2)]))
            continue
        cells = [f"{1e3 * median(s for one in mine for s in one['step']):.3f}"]
        for partition, what in itertools.product(setting["partitions"], ("step", "ahead")):
            cells.append(spread(_ratios(
                results, name, lambda one, mode=mode: one["optimizer"][mode]["step"],
                lambda one, p=partition, w=what: one["koopman"][p]["1"][w],
            )))  # fmt: skip
        for partition in setting["partitions"]:
            shares = [share for one in results["repeats"] for share in one[name]["record_share"][partition]]
            cells.append(f"{median(shares):.1%}" if mode == "eager" else "")
        lines.append(_line([f"{name}, {mode}", *cells]))
    return lines


def phase_rows(results: dict, batches: int) -> list[str]:
    """The table of whole phases: how many times faster than the optimizer, recording and fit included."""
    setting = results["setting"]
    heads = [
        "optimizer, eager", "partition", "every", "T", "optimizer s", "record s", "fit s", "one at a time",
        f"{setting['ahead']} at a time", "one jump", "to reach", "jump against the fastest mode", "optimizer's loss",
        "Koopman's, walked / jumped", "mean of recorded",
    ]  # fmt: skip
    lines = [_line(heads), _line(["---"] * len(heads))]
    for name, partition, every, T in itertools.product(
        setting["optimizers"], setting["partitions"], setting["every"], setting["epochs"]
    ):
        at = str(T * batches // every * every)
        mine = [one[name]["koopman"][partition][str(every)] for one in results["repeats"]]

        def cost(one, way, partition=partition, every=every, T=T):
            k = one["koopman"][partition][str(every)]
            return [k["record_seconds"] + fit + moved for fit, moved in zip(k["fit"], k[way][str(T)], strict=True)]

        def spent(one, mode="eager", at=at):
            return one["optimizer"][mode]["seconds"][at]

        def fastest(one, at=at):
            modes = [mode["seconds"][at] for mode in one["optimizer"].values() if not mode["reason"]]
            return [min(each) for each in zip(*modes, strict=True)]

        ways = ("walk_phase", "ahead_phase", "jump_phase")
        goal = results["to_reach"]["phase"].get(str(every)) if name == "adadelta" and T == 2 else None
        first = results["repeats"][0][name]
        losses = mine[0]["loss"][str(T)]
        lines.append(_line([
            name, partition, str(every), str(T),
            f"{median(s for one in results['repeats'] for s in spent(one[name])):.3f}",
            f"{median(one['record_seconds'] for one in mine):.3f}",
            f"{median(fit for one in mine for fit in one['fit']):.3f}",
            *(spread(_ratios(results, name, spent, lambda one, way=way: cost(one, way))) for way in ways),
            f"≥ {goal:g}" if goal else "",
            spread(_ratios(results, name, fastest, lambda one: cost(one, "jump_phase"))),
            _loss(first["optimizer"]["eager"]["loss"][str(T)]),
            f"{_loss(losses['walk'])} / {_loss(losses['jump'])}",
            _loss(first["average_loss"]),
        ]))  # fmt: skip
    return lines


def _loss(value: float | None) -> str:
    return "∞" if value is None else f"{value:.3f}"


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def table_of(path: pathlib.Path = FOLDER / "mnist.json") -> str:
    """Both tables, in Markdown."""
    results = json.loads(path.read_text())
    setting = results["setting"]
    ends = results["repeats"][0][setting["optimizers"][0]]["optimizer"]["eager"]["seconds"]
    batches = max(map(int, ends)) // max(setting["epochs"])
    return "\n".join([*step_rows(results), "", *phase_rows(results, batches)])


def run(options: argparse.Namespace) -> None:
    """Measure, and print the tables."""
    optimizers = tuple(pages.select(options.names, Setting.optimizers, "optimizer"))
    measure_all(Setting(rounds=options.rounds, optimizers=optimizers), options.repeat, options.data_dir)
    print(table_of())


def table(options: argparse.Namespace) -> None:
    """Write the page."""
    pages.update("steps", table_of())
