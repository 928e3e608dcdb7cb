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
from dataclasses import asdict, dataclass, field, replace
from statistics import median

import numpy as np
import torch
from torch import nn

from .. import checks
from .. import cutoff as rules
from ..files import prepare_out, write_json
from ..koopman import fit
from ..machine import describe_machine, peak_memory
from ..partition import GRANULARITIES
from ..torch_adapter import KoopmanPhase
from . import datasets
from .figures import WeightPaths, draw
from .training import OPTIMIZERS, Batches, Evaluation, make_model, make_optimizer, train_step

# t1, t2, T in epochs where the caller names none: the report's on MNIST
EPOCHS = {"mnist": (3, 5, 1), "digits": (10, 30, 20)}
WARM_UP_SIZES = ((5, 3), (3, 5), (101, 100), (100, 101))  # (n, m): tall and wide, for the kernels and for LAPACK


@dataclass(frozen=True)
class Config:
    """One comparison. Epochs, lr and q may be None: the data set's, the optimizer's, the partition's usual."""

    dataset: str = "digits"
    data_dir: str | None = None
    partition: str = "node"
    q: int | None = None
    t1: int | None = None
    t2: int | None = None
    T: int | None = None
    optimizer: str = "adadelta"
    lr: float | None = None
    batch_size: int = 64
    cutoff: object = "array_api"
    stabilize: object = None
    every: int = 1
    seeds: int = 1
    eval_every: int = 1
    device: str = "cpu"
    out: str = "fastkoop-compare"

    def checked(self) -> Config:
        """The same with usual values filled in.

        Raises:
            ValueError, TypeError: naming the option, what was expected, what was found and the cure.
        """
        checks.choice("dataset", self.dataset, datasets.NAMES)
        checks.choice("partition", self.partition, GRANULARITIES)
        checks.choice("optimizer", self.optimizer, OPTIMIZERS)
        checks.choice("device", self.device, ("cpu",))
        if self.partition == "quasi-node" and self.q is None:
            raise checks.InputError('q: the partition "quasi-node" needs --q, the number of weights in a block')
        if self.partition != "quasi-node" and self.q is not None:
            raise checks.InputError(f'q: only the partition "quasi-node" takes --q, got {self.q}')
        if self.q is not None:
            checks.integer("q", self.q, least=1)
        for name in ("batch_size", "every", "seeds", "eval_every"):
            checks.integer(name, getattr(self, name), least=1)
        usual = dict(zip(("t1", "t2", "T"), EPOCHS[self.dataset], strict=True))
        chosen = {name: usual[name] if (own := getattr(self, name)) is None else own for name in usual}
        for name, epochs in chosen.items():
            checks.integer(name, epochs, least=0)
        if chosen["t2"] <= chosen["t1"]:
            raise checks.InputError(
                f"t2: expected more than t1 = {chosen['t1']} epochs, got {chosen['t2']}; recording runs from t1 to t2"
            )
        lr = OPTIMIZERS[self.optimizer][1] if self.lr is None else self.lr
        if not (isinstance(lr, (int, float)) and math.isfinite(lr) and lr > 0):
            raise checks.InputError(f"lr: expected a number > 0, got {lr}")
        rules.resolve(self.cutoff, 2, 2, np.float32)
        checks.radius(self.stabilize)
        return replace(self, lr=float(lr), **chosen)

    def described(self) -> dict:
        """The config of results.json."""
        config = {**asdict(self), "cutoff": rules.describe(self.cutoff)}
        del config["data_dir"], config["out"]  # places on one machine mean nothing on another
        return config


@dataclass
class Curve:
    """What one side did over the T phase."""

    iteration: list[int] = field(default_factory=list)
    test_loss: list[float] = field(default_factory=list)
    test_accuracy: list[float] = field(default_factory=list)
    step_seconds: list[float] = field(default_factory=list)

    def evaluate(self, iteration: int, loss_and_accuracy: tuple[float, float]) -> None:
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
    for n, m in WARM_UP_SIZES:
        X = random.normal(size=(2, n, m + 1)).astype(np.float32)
        for refine in (False, True):  # the Gram matrix, and what a block that it cannot resolve takes
            op = fit(X, cutoff=config.cutoff, stabilize=config.stabilize, refine=refine)
            walk = op.walk()
            walk.step()
            walk.step()  # the first that advances
            op.predict(2)
            _ = op.residual, op.spectral_radius
    return time.perf_counter() - began


def run_seed(config: Config, data: datasets.Dataset, seed: int, tick: Callable[[str, int, int], None]):
    """One seed: the run of results.json, and the weights' paths.

    Args:
        config: checked.
        data: the data set.
        seed: of the initial weights and the batches.
        tick: called with what is going on, how many iterations of it are done, and of how many.
    """
    model = make_model(data.features, data.classes, seed)
    optimizer = make_optimizer(config.optimizer, model, config.lr)
    batches, evaluate = Batches(data, config.batch_size, seed), Evaluation(data)
    start = [parameter.detach().clone() for parameter in model.parameters()]
    recorded = (config.t2 - config.t1) * batches.per_epoch
    skip = recorded % config.every  # so that the newest snapshot is the last iterate
    if recorded // config.every < 2:
        raise checks.InputError(
            f"every: {recorded} recorded iterations hold fewer than 2 snapshots at every={config.every}; lower it, "
            "or record for more epochs (t2 - t1)"
        )
    if 0 < config.T * batches.per_epoch < config.every:
        raise checks.InputError(
            f"every: {config.every} iterations are longer than the T phase of {config.T * batches.per_epoch}, in which "
            "no Koopman step would be made; lower it, or raise T"
        )
    _train(model, optimizer, batches, config.t1, lambda done, of: tick("training", done, of))

    phase = KoopmanPhase(
        model,
        config.partition,
        config.q,
        cutoff=config.cutoff,
        stabilize=config.stabilize,
        every=config.every,
        capacity=recorded // config.every,
    )
    watch, path = WeightWatch(model, start), []

    def record(done: int, of: int) -> None:
        if done > skip:
            phase.record()
        path.append(watch.read(model))
        tick("recording", done, of)

    _train(model, optimizer, batches, config.t2 - config.t1, record)
    average = phase.average()
    phase.fit()
    trained, moved, true, predicted = _side_by_side(config, model, optimizer, phase, batches, evaluate, watch, tick)
    final = _final(config, batches)
    if phase.position:
        phase.rollback()
    jump = phase.jump(final)
    _assign(model, average)
    loss, accuracy = evaluate(model)
    run = {
        "seed": seed,
        "optimizer": asdict(trained),
        "koopman": {
            **asdict(moved),
            "record_seconds": phase.record_seconds,
            "fit_seconds": phase.fit_seconds,
            "jump_seconds": jump.seconds,
            "rank": {layer.name: list(layer.rank) for layer in jump.layers},
            "spectral_radius": {layer.name: layer.spectral_radius for layer in jump.layers},
            "residual": {layer.name: layer.residual for layer in jump.layers},
            "kept": {layer.name: layer.kept for layer in jump.layers},
        },
        "average": {"test_loss": loss, "test_accuracy": accuracy},
    }
    steps = np.arange(config.every, final + 1, config.every)
    if not len(steps):
        return run, None
    recorded_at = np.arange(1 - recorded, 1)
    return run, WeightPaths(
        watch.labels, recorded_at, np.array(path), steps, np.array(true)[steps - 1], np.array(predicted)
    )


def _train(model, optimizer, batches: Batches, epochs: int, after: Callable[[int, int], None]) -> None:
    """Train for some epochs; after(done, of) follows every iteration."""
    for done, (images, labels) in enumerate(_epochs(batches, epochs), 1):
        train_step(model, optimizer, images, labels)
        after(done, epochs * batches.per_epoch)


def _side_by_side(config, model, optimizer, phase, batches, evaluate, watch, tick):
    """The T phase: a twin of the model trains on, while Koopman steps move the model, one after the other.

    In turn, so that a machine whose speed drifts treats both alike. Fetching a batch is not timed. Where `every`
    does not divide the phase, both sides stop at the last iteration that a Koopman step reaches.

    Returns:
        The optimizer's and Koopman's curve, and the watched weights' path of each.
    """
    twin, twin_optimizer = copy.deepcopy((model, optimizer))
    trained, moved, true, predicted = Curve(), Curve(), [], []
    for curve in (trained, moved):
        curve.evaluate(0, evaluate(model))
    final = _final(config, batches)
    stride = math.lcm(config.every, config.eval_every)
    for iteration, (images, labels) in enumerate(itertools.islice(_epochs(batches, config.T), final), 1):
        began = time.perf_counter()
        train_step(twin, twin_optimizer, images, labels)
        trained.step_seconds.append(time.perf_counter() - began)
        true.append(watch.read(twin))
        if iteration % config.every == 0:
            began = time.perf_counter()
            phase.step()
            moved.step_seconds.append(time.perf_counter() - began)
            predicted.append(watch.read(model))
        if iteration == final or iteration % stride == 0:
            trained.evaluate(iteration, evaluate(twin))
            moved.evaluate(iteration, evaluate(model))
        tick(f"{config.optimizer} and Koopman", iteration, final)
    return trained, moved, true, predicted


def _final(config: Config, batches: Batches) -> int:
    """Iterations of the T phase: what Koopman steps can reach."""
    return config.T * batches.per_epoch // config.every * config.every


def _epochs(batches: Batches, epochs: int):
    for _ in range(epochs):
        yield from batches.epoch()


@torch.no_grad()
def _assign(model: nn.Module, values: dict[str, torch.Tensor]) -> None:
    for name, parameter in model.named_parameters():
        parameter.copy_(values[name])


def compare(config: Config, tick: Callable[[int, str, int, int], None] = lambda *_: None) -> dict:
    """Run a comparison and write results.json and the figures into `config.out`.

    results.json is rewritten, whole, after every seed, so that an interrupted run keeps the seeds that are
    done; its "complete" tells. Training is on the CPU, with PyTorch's own threads.

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
    data = datasets.load(config.dataset, config.data_dir, progress=True)
    machine = describe_machine()
    machine["compile_seconds"] = compile_kernels(config)
    results = {"config": config.described(), "machine": machine, "runs": [], "complete": False}
    paths = None
    for seed in range(config.seeds):
        run, run_paths = run_seed(config, data, seed, lambda *state, seed=seed: tick(seed, *state))
        paths = paths or run_paths
        results["runs"].append(run)
        results["complete"] = seed + 1 == config.seeds
        machine["peak_memory_bytes"] = peak_memory()
        write_json(out / "results.json", results)
    draw(results, paths, out)
    return results


def seconds(run: dict, side: str) -> dict[str, float]:
    """What a side's T phase cost in one run: per step (median), step by step, and straight to the end."""
    own = run[side]
    walked = sum(own["step_seconds"])
    if side == "optimizer":
        return {"step": _median(own["step_seconds"]), "phase": walked, "jump": walked}
    overhead = own["record_seconds"] + own["fit_seconds"]
    return {
        "step": _median(own["step_seconds"]),
        "phase": overhead + walked,
        "jump": overhead + own["jump_seconds"],
    }


def _median(values: list[float]) -> float:
    return median(values) if values else math.nan
