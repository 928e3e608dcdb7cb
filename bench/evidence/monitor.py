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
from bench.evidence.smooth import problems
from fastkoop.adapter.window import Window
from fastkoop.experiments.problems.datasets import load
from fastkoop.files import write_json
from fastkoop.profile.devices import Host
from fastkoop.torch_adapter import KoopmanPhase, SpectrumMonitor

FOLDER = RESULTS / "monitor"
STEPS, WINDOW = 1920, 32  # of a round of `cost`: two looks


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


class Beside:
    """A model that trains beside others, step in turn, with what is done after its steps."""

    def __init__(self, kind: str):
        torch.manual_seed(0)
        model = mlp(784, 20, 20, 20, 10)
        optimizer = torch.optim.Adadelta(model.parameters(), lr=1.0)
        self.train = stepper(model, optimizer, (torch.rand(64, 784) * 2 - 1, torch.randint(0, 10, (64,))))
        self._after = {"plain": self._nothing, "monitor": self._nothing, "row": self._rows, "read": self._read}[kind]
        self.spent = 0.0
        if kind == "monitor":
            self.monitor = SpectrumMonitor(model, optimizer, window=WINDOW, log=lambda *_: None)
        elif kind != "plain":
            self._phase = KoopmanPhase(model, "layer", capacity=WINDOW + 1)
            self._phase.attach(optimizer)
            self._windows = [Window(recording) for recording in self._phase.parts.recordings]

    def _nothing(self) -> None:
        pass

    def _rows(self) -> None:
        """A row of every layer's Gram matrix, in float64."""
        recorder = self._phase.parts.recorder
        for window in self._windows:
            window.gram(recorder.taken, recorder.allocated)

    def _read(self) -> None:
        """One read of the ring in its own precision: the least that a row can take."""
        recorder = self._phase.parts.recorder
        for recording in recorder.recordings:
            ring = recording.snapshots(recorder.snapshots).flatten(1)
            ring @ ring[-1]

    def step(self) -> None:
        """A step, its CPU seconds added."""
        began = time.process_time()
        self.train()
        self._after()
        self.spent += time.process_time() - began


def shares(kind: str, steps: int, rounds: int) -> list[float]:
    """CPU seconds of a side over those of a plain one beside it, less 1, round by round.

    The two train step by step in turn, each first every other time, so that caches and whatever else the machine does
    treat both alike.
    """
    sides = [Beside("plain"), Beside(kind)]
    for _ in range(2 * WINDOW):  # compiles, fills the ring
        for side in sides:
            side.step()
    found = []
    for _ in range(rounds):
        for side in sides:
            side.spent = 0.0
        for turn in range(steps):
            for side in sides if turn % 2 else sides[::-1]:
                side.step()
        found.append(sides[1].spent / sides[0].spent - 1)
    return found


def cost(rounds: int = 9) -> dict:
    """What a monitor adds to an AdaDelta step of the report's network.

    The monitor computes rows of the Gram matrix when it looks; beside it a row after every step, and a bare read of the
    ring.
    """
    found = {"monitor": shares("monitor", STEPS, rounds)}
    found |= {kind: shares(kind, STEPS // 8, 3) for kind in ("row", "read")}
    return {"window": WINDOW, "every": 1, "report": STEPS // 2, "shares": found}


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


def images_of(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Training images and labels: all of the digits, or 2000 of MNIST with pixels in [0, 1]."""
    if name == "digits":
        data = load("digits").on("cpu")
        return data.train_images, data.train_labels
    return tuple(torch.from_numpy(part) for part in problems.images("mnist", 2000, 0))


def converges(name: str = "digits", lr: float = 0.03) -> dict:
    """Softmax regression by full batches and by batches of 64: where eigenvalues gather."""
    images, labels = images_of(name)
    images, out = images.double(), {}
    for words, size in (("full batch", len(labels)), ("batches of 64", 64)):
        torch.manual_seed(0)
        model = nn.Linear(images.shape[1], 10).double()
        optimizer = torch.optim.SGD(model.parameters(), lr=lr)

        def step(size=size, model=model, optimizer=optimizer) -> float:
            chosen = slice(None) if size == len(labels) else torch.randint(0, len(labels), (size,))
            return stepper(model, optimizer, (images[chosen], labels[chosen]))()

        out[words] = watched(model, optimizer, step, 3000, report=250)
    return out


def rates(name: str = "digits") -> dict:
    """A small network by full batches, at learning rates up to one that fails."""
    images, labels = images_of(name)
    out = {}
    for lr in (0.05, 0.2, 1.0, 3.0):
        torch.manual_seed(0)
        model = mlp(images.shape[1], 32, 10)
        optimizer = torch.optim.SGD(model.parameters(), lr=lr)
        step = stepper(model, optimizer, (images.float(), labels))
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
         "mnist-converges": lambda: converges("mnist"), "mnist-rates": lambda: rates("mnist"),
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
    return "\n\n".join([cost_line(), converging(), rated("rates", "digits"), rated("mnist-rates", "MNIST"), grokked()])


def cost_line() -> str:
    """What a monitor costs."""
    results = committed("cost")

    def share(kind: str) -> str:
        values = sorted(100 * value for value in results["shares"][kind])
        return f"{median(values):.1f}% ({values[0]:.1f} to {values[-1]:.1f})"

    return (
        f"Of an AdaDelta step of the report's network, window {results['window']}, every = 1, a look every "
        f"{results['report']} steps: **{share('monitor')}**, {len(results['shares']['monitor'])} rounds, CPU seconds, "
        f"models side by side. A row of the Gram matrices after every step instead: {share('row')}; recording and a "
        f"bare read of the ring after every step: {share('read')}."
    )


def converging() -> str:
    """Distances from 1 along training."""
    runs = {f"{words}, {name}": looks for part, words in (("converges", "digits"), ("mnist-converges", "MNIST"))
            for name, looks in committed(part).items()}  # fmt: skip
    steps = [row["step"] for row in next(iter(runs.values()))][::3]
    rows = [
        (name, *(f"{row['from_one']:.3f}" for row in looks if row["step"] in steps)) for name, looks in runs.items()
    ]
    return pages.markdown(("softmax regression, distance from 1 at step", *map(str, steps)), rows)


def rated(part: str, words: str) -> str:
    """The first look at every learning rate, and the loss at the end."""
    rows = []
    for lr, looks in committed(part).items():
        first = looks[0]
        shown = [f"{first[key]:.3g}" if key in first else "-" for key in ("spectral_radius", "from_one", "forecast")]
        rows.append((lr, *shown, f"{looks[0]['loss']:.3g}", f"{looks[-1]['loss']:.3g}"))
    return pages.markdown(
        (
            f"{words}, learning rate",
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
