"""Pruning by modes, against magnitude and against a line: accuracy on MNIST right after one-shot pruning.

    python -m bench pruning run [mlp conv] [--seeds 3]     # needs FASTKOOP_DATA_DIR or --data-dir
    python -m bench pruning table

Koopman magnitude pruning: Redman et al., ICLR 2022, arXiv 2110.14856. Weights are pruned, biases stay.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from statistics import mean

import torch
from torch import nn

from bench import RESULTS
from bench.common import origin, pages
from fastkoop.experiments.problems.datasets import load
from fastkoop.files import write_json
from fastkoop.profile.devices import Host
from fastkoop.torch_adapter import KoopmanPhase, pruning_masks

FOLDER = RESULTS / "pruning"
KEEP = (0.05, 0.02)
BATCH = 60
METHODS = ("koopman", "magnitude", "line")


def mlp() -> nn.Module:
    """784-100-10, ReLU."""
    return nn.Sequential(nn.Linear(784, 100), nn.ReLU(), nn.Linear(100, 10))


def conv() -> nn.Module:
    """Two convolutions, 8 and 16 channels, each with a maximum over 2 x 2, and a linear layer."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 28, 28)), nn.Conv2d(1, 8, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 5), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(256, 10),
    )  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A network, its learning rate of plain SGD, and the epochs after which it is pruned: the first, and the last."""

    make: object
    lr: float
    looks: tuple[int, ...]


CASES = {"mlp": Case(mlp, 0.1, (1, 6)), "conv": Case(conv, 0.05, (1, 4))}


def magnitude_masks(sizes: dict[str, torch.Tensor], keep: float) -> dict[str, torch.Tensor]:
    """Masks of the largest entries of all tensors together."""
    flat = torch.cat([size.flatten() for size in sizes.values()])
    least = flat.sort(descending=True).values[round(keep * flat.numel()) - 1]
    return {name: (size >= least).float() for name, size in sizes.items()}


@torch.no_grad()
def accuracy(model: nn.Module, masks: dict[str, torch.Tensor], images, labels) -> float:
    """With masks on the weights, which are put back."""
    before = {name: model.get_parameter(name).clone() for name in masks}
    for name, mask in masks.items():
        model.get_parameter(name).mul_(mask)
    batches = zip(images.split(2000), labels.split(2000), strict=True)
    right = sum(int((model(x).argmax(1) == y).sum()) for x, y in batches)
    for name, value in before.items():
        model.get_parameter(name).copy_(value)
    return right / len(labels)


def train(case: Case, seed: int, data) -> list[dict]:
    """One seed: a row for every look and share that is kept."""
    torch.manual_seed(seed)
    model = case.make()
    weights = [name for name, parameter in model.named_parameters() if parameter.ndim > 1]
    optimizer = torch.optim.SGD(model.parameters(), lr=case.lr)
    rows = []
    for epoch in range(1, max(case.looks) + 1):
        start = {name: model.get_parameter(name).detach().clone() for name in weights}
        phase = KoopmanPhase(model, "layer", every=10, cutoff="jax")
        phase.attach(optimizer)
        for batch in torch.randperm(len(data.train_images)).split(BATCH):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(data.train_images[batch]), data.train_labels[batch]).backward()
            optimizer.step()
        phase.detach()
        if epoch in case.looks:
            rows += look(model, phase, start, epoch, data)
    return rows


def look(model: nn.Module, phase: KoopmanPhase, start: dict, epoch: int, data) -> list[dict]:
    """Accuracies by method and share, and how much of Koopman's mask is magnitude's."""
    test = data.test_images, data.test_labels
    now = {name: model.get_parameter(name).detach() for name in start}
    rows = []
    for keep in KEEP:
        masks = {
            "koopman": pruning_masks(phase, keep=keep, include=list(start)),
            "magnitude": magnitude_masks({name: value.abs() for name, value in now.items()}, keep),
            "line": magnitude_masks({name: (2 * now[name] - start[name]).abs() for name in start}, keep),
        }
        kept = sum(float(mask.sum()) for mask in masks["magnitude"].values())
        common = sum(float((masks["koopman"][name] * masks["magnitude"][name]).sum()) for name in start)
        row = {name: accuracy(model, mask, *test) for name, mask in masks.items()}
        rows.append(
            {"epoch": epoch, "keep": keep, "whole": accuracy(model, {}, *test), **row, "overlap": common / kept}
        )
    return rows


def run(options: argparse.Namespace) -> None:
    """Train and prune every network, seeds 0 .. SEEDS - 1."""
    data = load("mnist", options.data_dir).on("cpu")
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in pages.select(options.names, CASES, "network"):
        runs = [{"seed": seed, "rows": train(CASES[name], seed, data)} for seed in range(options.seeds)]
        write_json(FOLDER / f"{name}.json", {"environment": origin.environment(Host()), "runs": runs})


def averaged(name: str) -> list[dict]:
    """Means over seeds of a network's rows."""
    runs = json.loads((FOLDER / f"{name}.json").read_text())["runs"]
    return [
        {key: mean(row[key] for row in rows) for key in rows[0]}
        for rows in zip(*(run["rows"] for run in runs), strict=True)
    ]


def table_of() -> str:
    """The table, in Markdown, of the networks that have results."""
    heads = ("network", "seeds", "epoch", "keep", "not pruned", "Koopman", "magnitude", "line", "masks in common")
    rows = []
    for name in CASES:
        if not (FOLDER / f"{name}.json").exists():
            continue
        seeds = len(json.loads((FOLDER / f"{name}.json").read_text())["runs"])
        for row in averaged(name):
            shares = [f"{100 * row[key]:.1f}%" for key in ("whole", *METHODS)]
            rows.append((name, seeds, row["epoch"], f"{100 * row['keep']:.0f}%", *shares, f"{row['overlap']:.2f}"))
    return pages.markdown(heads, rows)


def table(options: argparse.Namespace) -> None:
    """Write the page."""
    pages.update("pruning", table_of())
