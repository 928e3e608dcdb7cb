"""Rounds of T phases: the optimizers and the Koopman phases move on in turn, a stretch of iterations each."""

from __future__ import annotations

import copy
import itertools
import time
from collections.abc import Callable
from dataclasses import asdict
from statistics import mean, median

from fastkoop.experiments.problems import datasets
from fastkoop.experiments.problems.classification import judge
from fastkoop.experiments.training import Batches, make_model, make_optimizer, train_step
from fastkoop.torch_adapter import KoopmanPhase

from .setting import Setting
from .sides import Koopman, Optimizer


def once(setting: Setting, data_dir: str | None) -> dict:
    """All optimizers, in this process."""
    data = datasets.load(setting.dataset, data_dir, progress=True)
    return {name: measure(data, setting, name) for name in setting.optimizers}


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
    shares: dict[str, dict[str, list[float]]] = {p: {str(w): [] for w in setting.windows} for p in setting.partitions}
    for _ in range(setting.rounds):
        _round(optimizers, sides, setting, batches.per_epoch, test_loss)
        for partition, window in itertools.product(setting.partitions, setting.windows):
            shares[partition][str(window)].append(_record_share(start, partition, window, coming[: setting.shared]))
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


def _record_share(start, partition: str, window: int, batches: list) -> float:
    """Recording over training, medians, one after the other; for a window the mean, as its end takes longer."""
    model, optimizer = copy.deepcopy(start)
    phase = KoopmanPhase(model, partition, window=window, capacity=max(2, len(batches) // window))
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
    return (median(recorded) if window == 1 else mean(recorded)) / median(trained)
