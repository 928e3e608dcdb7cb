"""Where guarded jumps of noisy training end: at the operators' state, at the recording's mean, or on its line."""

from __future__ import annotations

import itertools
from statistics import median

import numpy as np
import torch
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from bench.common import pages
from fastkoop.torch_adapter import KoopmanPhase

from .tasks import MNIST, OPTIMIZERS, REPORT, Task, images, loss

HELD_OUT, REST, RECORD, JUMPS = 1000, 80, 120, 3
NAMES = ("koopman", "mean", "line", "none")


def split(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images to train on, and behind them the guard's."""
    return images("mnist", MNIST + HELD_OUT, seed)


TASKS = {name: Task(f"MNIST MLP, {name}", REPORT, split, optimizer) for name, optimizer in OPTIMIZERS.items()}


def measure(seeds: int) -> dict[str, list[dict]]:
    """Jumps of every optimizer and seed: the guard's losses, and those of mean and line computed apart."""
    found = {}
    for name, task in TASKS.items():
        found[name] = [jump for seed in range(seeds) for jump in jumps(task, seed)]
        print(f"candidates, {name}: {summary(found[name])}", flush=True)
    return found


def jumps(task: Task, seed: int) -> list[dict]:
    """A run's jumps, by the preset for noisy training."""
    model, (inputs, targets) = task.model(seed), task.data(seed)
    optimizer = task.optimizer(model.parameters())
    phase = KoopmanPhase(model, "network", preset="noisy", every=RECORD // 12, window=RECORD // 12)
    batches = task.batches(seed, inputs[:MNIST], targets[:MNIST])

    def train(count: int) -> list[torch.Tensor]:
        iterates = []
        for x, y in itertools.islice(batches, count):
            optimizer.zero_grad()
            loss(model, x, y).backward()
            optimizer.step()
            iterates.append(parameters_to_vector(model.parameters()).detach().double())
        return iterates

    @torch.no_grad()
    def guard() -> float:
        return float(loss(model, inputs[MNIST:], targets[MNIST:]))

    found = []
    for _ in range(JUMPS):
        train(REST)
        handle = phase.attach(optimizer)
        iterates = torch.stack(train(RECORD))
        handle.remove()
        report = phase.jump(RECORD, guard=guard, horizon="auto")
        others = beside(model, guard, iterates, [steps for name, steps, _ in report.others if name == "line"])
        found.append({"before": report.before, "after": report.after, "candidate": report.candidate, **others})
        phase.clear()
    return found


def beside(model, guard, iterates: torch.Tensor, distances: list[float]) -> dict:
    """The guard's losses at the recording's mean and at the best point of its line; the model is put back."""
    kept = parameters_to_vector(model.parameters()).detach().clone()
    means = iterates.view(12, -1, iterates.shape[1]).mean(dim=1).numpy()
    slope, offset = np.polyfit(np.arange(12), means, 1)

    def at(weights: np.ndarray) -> float:
        vector_to_parameters(torch.from_numpy(weights).to(kept.dtype), model.parameters())
        return guard()

    line = min(at(offset + slope * (11 + steps / (RECORD // 12))) for steps in distances)
    found = {"mean": at(means.mean(axis=0)), "line": line}
    vector_to_parameters(kept, model.parameters())
    return found


def summary(jumps: list[dict]) -> dict:
    """Where jumps ended, medians of the guard's losses, and by how much the worst is above mean and line."""
    counts = {name: sum(one["candidate"] == name for one in jumps) for name in NAMES}
    medians = {name: median(one[name] for one in jumps) for name in ("before", "mean", "line", "after")}
    return {"counts": counts, **medians, "excess": max(one["after"] / min(one["mean"], one["line"]) for one in jumps)}


def table_of(results: dict[str, list[dict]]) -> str:
    """The table, in Markdown."""
    heads = (
        "training", "jumps", "end at the operators'", "the mean", "the line", "stay", "guard's loss before", "mean",
        "best of line", "after", "after / the lower of mean and line, largest",
    )  # fmt: skip
    rows = []
    for name, jumps in results.items():
        found = summary(jumps)
        losses = [f"{found[key]:.3f}" for key in ("before", "mean", "line", "after")]
        counts = [found["counts"][key] for key in NAMES]
        rows.append((TASKS[name].words, len(jumps), *counts, *losses, f"{found['excess']:.4f}"))
    return pages.markdown(heads, rows)
