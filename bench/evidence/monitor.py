"""SpectrumMonitor: what it costs, and what it sees of training that converges, goes wrong, or generalises late.

python -m bench monitor run [cost converges rates grokking]
python -m bench monitor table
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from statistics import median

import numpy as np
import torch
from torch import nn

from bench import RESULTS
from bench.common import origin, pages
from fastkoop.experiments.problems.datasets import load
from fastkoop.files import write_json
from fastkoop.profile.devices import Host
from fastkoop.torch_adapter import SpectrumMonitor

FOLDER = RESULTS / "monitor"
STEPS = 1920  # of a round of `cost`: two looks


def mlp(*sizes: int) -> nn.Sequential:
    """Linear layers with ReLU between."""
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def stepper(model: nn.Module, optimizer, batch):
    """One optimizer step."""
    x, y = batch

    def step() -> float:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


class Timed(SpectrumMonitor):
    """A monitor that adds up its CPU seconds, those of looks and of recording alike."""

    spent = 0.0

    def _after_step(self) -> None:
        began = time.process_time()
        super()._after_step()
        self.spent += time.process_time() - began


def cost(rounds: int = 9) -> dict:
    """CPU seconds in a monitor over those of the AdaDelta steps of the report's network around it, round by round.

    Both in one run: rounds with and without a monitor differ by more than it takes where other work shares the caches.
    """
    torch.manual_seed(0)
    model = mlp(784, 20, 20, 20, 10)
    optimizer = torch.optim.Adadelta(model.parameters(), lr=1.0)
    step = stepper(model, optimizer, (torch.rand(64, 784) * 2 - 1, torch.randint(0, 10, (64,))))
    monitor = Timed(model, optimizer, window=32, log=lambda *_: None)
    for _ in range(40):  # compiles
        step()
    shares = []
    for _ in range(rounds):
        monitor.spent, began = 0.0, time.process_time()
        for _ in range(STEPS):
            step()
        seconds = time.process_time() - began
        shares.append(monitor.spent / (seconds - monitor.spent))
    return {"window": 32, "every": 1, "report": monitor.report, "shares": shares}


def watched(model: nn.Module, optimizer, step, steps: int, judge=None, **options) -> list[dict]:
    """A row for every look: step, loss, the furthest layer's numbers, and what `judge` says of the model."""
    rows: list[dict] = []
    monitor = SpectrumMonitor(model, optimizer, partition="network", **options)
    for _ in range(steps):
        loss = step()
        if monitor.latest is not None and (not rows or rows[-1]["step"] < monitor.latest.step):
            [layer] = monitor.latest.layers.values()
            row = {"step": monitor.latest.step, "loss": loss, **layer.numbers(), "stop": monitor.stop}
            rows.append(row | ({} if judge is None else judge()))
    monitor.close()
    return rows


def converges() -> dict:
    """Digits, softmax regression by full batches and by batches of 64: where eigenvalues gather."""
    data = load("digits").on("cpu")
    out = {}
    for name, size in (("full batch", len(data.train_images)), ("batches of 64", 64)):
        torch.manual_seed(0)
        model = nn.Linear(data.features, 10).double()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.03)
        images, labels = data.train_images.double(), data.train_labels

        def step(size=size, model=model, optimizer=optimizer, images=images, labels=labels) -> float:
            chosen = slice(None) if size == len(labels) else torch.randint(0, len(labels), (size,))
            return stepper(model, optimizer, (images[chosen], labels[chosen]))()

        out[name] = watched(model, optimizer, step, 3000, report=250)
    return out


def rates() -> dict:
    """Digits, a small network by full batches, at learning rates up to one that diverges."""
    data = load("digits").on("cpu")
    out = {}
    for lr in (0.05, 0.2, 1.0, 3.0):
        torch.manual_seed(0)
        model = mlp(data.features, 32, 10)
        optimizer = torch.optim.SGD(model.parameters(), lr=lr)
        step = stepper(model, optimizer, (data.train_images, data.train_labels))
        out[str(lr)] = watched(model, optimizer, step, 300, report=33)
    return out


def grokking(seed: int, p: int = 31, steps: int = 4000) -> list[dict]:
    """Addition modulo p by a two-layer network, six of ten pairs for training, AdamW with weight decay."""
    torch.manual_seed(seed)
    a, b = torch.meshgrid(torch.arange(p), torch.arange(p), indexing="ij")
    x = torch.cat([nn.functional.one_hot(v.flatten(), p) for v in (a, b)], dim=1).float()
    y = ((a + b) % p).flatten()
    order = torch.randperm(p * p)
    train, test = order[: 6 * p * p // 10], order[6 * p * p // 10 :]
    model = mlp(2 * p, 128, p)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=1.0)
    step = stepper(model, optimizer, (x[train], y[train]))

    @torch.no_grad()
    def judge() -> dict:
        return {
            name: float((model(x[part]).argmax(1) == y[part]).float().mean())
            for name, part in (("train", train), ("test", test))
        }

    return watched(model, optimizer, step, steps, judge, report=50)


def auroc(scores, positive) -> float | None:
    """Area under the ROC curve: the probability that a positive look scores above another; ties count half."""
    scores, positive = np.asarray(scores, float), np.asarray(positive, bool)
    if positive.all() or not positive.any():
        return None
    above, below = scores[positive][:, None], scores[~positive][None]
    return float(((above > below) + 0.5 * (above == below)).mean())


def transition(rows: list[dict]) -> dict:
    """When a run fits and when it generalises, and how well a number tells looks at the transition from others.

    At the transition the accuracy on unseen pairs lies between 10% and 90%. `before`: against looks before it alone;
    `all`: against all others, those after it, too.
    """
    fitted = next((row["step"] for row in rows if row["train"] >= 0.99), None)
    general = next((row["step"] for row in rows if row["test"] >= 0.9), None)
    rows = [row for row in rows if "residual" in row and "forecast" in row]
    during = [0.1 < row["test"] < 0.9 and (general is None or row["step"] < general) for row in rows]
    early = [general is None or row["step"] < general for row in rows]
    scores = {}
    for name in SCORES:
        values = [row[name] for row in rows]
        pairs = [(value, at) for value, at, kept in zip(values, during, early, strict=True) if kept]
        scores[name] = {"before": auroc(*zip(*pairs, strict=True)), "all": auroc(values, during)}
    return {"fitted": fitted, "general": general, "scores": scores}


SCORES = ("residual", "forecast", "from_one")
PARTS = {"cost": cost, "converges": converges, "rates": rates,
         "grokking": lambda: {str(seed): grokking(seed) for seed in range(3)}}  # fmt: skip


def run(options: argparse.Namespace) -> None:
    """Measure each part and write its JSON."""
    for name in pages.select(options.names, PARTS, "part"):
        results = PARTS[name]()
        FOLDER.mkdir(parents=True, exist_ok=True)
        write_json(FOLDER / f"{name}.json", {"environment": origin.environment(Host()), "results": results})


def committed(name: str):
    """Results of a part."""
    return json.loads((FOLDER / f"{name}.json").read_text())["results"]


def table(options: argparse.Namespace) -> None:
    """Write the page."""
    pages.update("monitor", table_of())


def table_of() -> str:
    """All tables, in Markdown."""
    return "\n\n".join([cost_line(), converging(), rated(), grokked()])


def cost_line() -> str:
    """What a monitor costs."""
    results = committed("cost")
    shares = sorted(results["shares"])
    low, high = 100 * shares[0], 100 * shares[-1]
    return (
        f"Of an AdaDelta step of the report's network, window 32, every = 1, a look every {results['report']} steps: "
        f"**{100 * median(shares):.1f}%** ({low:.1f} to {high:.1f} in {len(shares)} rounds, CPU seconds)."
    )


def converging() -> str:
    """Distances from 1 along training."""
    runs = committed("converges")
    steps = [row["step"] for row in next(iter(runs.values()))][::3]
    rows = [
        (name, *(f"{row['from_one']:.3f}" for row in looks if row["step"] in steps)) for name, looks in runs.items()
    ]
    return pages.markdown(("softmax regression, distance from 1 at step", *map(str, steps)), rows)


def rated() -> str:
    """The first look at every learning rate, and the loss at the end."""
    rows = []
    for lr, looks in committed("rates").items():
        first = looks[0]
        shown = [f"{first[key]:.3g}" if key in first else "-" for key in ("spectral_radius", "from_one", "forecast")]
        rows.append((lr, *shown, f"{looks[0]['loss']:.3g}", f"{looks[-1]['loss']:.3g}"))
    return pages.markdown(
        (
            "learning rate",
            "spectral radius, step 33",
            "distance from 1",
            "forecast error",
            "loss, step 33",
            "at the end",
        ),
        rows,
    )


def grokked() -> str:
    """The transition of every seed."""
    rows = []
    for seed, looks in committed("grokking").items():
        seen = transition(looks)
        areas = [
            " / ".join("-" if area is None else f"{area:.2f}" for area in seen["scores"][name].values())
            for name in SCORES
        ]
        rows.append((seed, seen["fitted"], seen["general"] or "-", *areas))
    heads = ("seed", "fits at step", "generalises at", "AUROC before / all: residual", "forecast", "distance from 1")
    return pages.markdown(heads, rows)
