"""Jumps that may also end at the mean or on the line, and jumps that the forecast gates, in the report's setting.

    python -m bench pays run candidates    # minutes on a core; needs FASTKOOP_DATA_DIR

The report's network and AdaDelta on 50 000 MNIST images, batches of 64. Two epochs, then four times two epochs of
recording and a jump over two more, by `preset="noisy"` for the network as one block. Beside a jump the mean of the
same recording, its line and its operator alone, on the guard's 10 000 images and on the test set. The gated run has no
guard.
"""

from __future__ import annotations

import argparse
import json
import math

import torch
from torch import nn

from bench import RESULTS
from bench.common import origin, pages
from bench.evidence.monitor import mlp
from fastkoop.experiments.averages import Moving, assign, weights_of
from fastkoop.experiments.problems.datasets import load, with_validation
from fastkoop.experiments.training import torch_threads
from fastkoop.files import write_json
from fastkoop.profile.devices import Host
from fastkoop.torch_adapter import KoopmanPhase, KoopmanSchedule

FILE = RESULTS / "pays" / "candidates.json"
BATCH, VALIDATION, JUMPS = 64, 10_000, 4
EPOCH = 781  # iterations: what is left of 50 000 images is another batch's
RECORD = 1560  # twelve means of 130
CANDIDATES = ("koopman", "mean", "line")


class Judge:
    """Losses of a model on two sets of images."""

    def __init__(self, model: nn.Module, data):
        self.model, self.data = model, data

    @torch.no_grad()
    def _loss(self, images: torch.Tensor, labels: torch.Tensor) -> float:
        return float(nn.functional.cross_entropy(self.model(images), labels))

    def validation(self) -> float:
        return self._loss(self.data.validation_images, self.data.validation_labels)

    def test(self) -> float:
        return self._loss(self.data.test_images, self.data.test_labels)

    def of(self, weights) -> dict[str, float]:
        """Both losses of other weights."""
        kept = weights_of(self.model)
        assign(self.model, weights)
        losses = {"validation": self.validation(), "test": self.test()}
        assign(self.model, kept)
        return losses


def batches(data, seed: int):
    """Batches without end, epoch after epoch."""
    torch.manual_seed(seed)
    while True:
        for chosen in torch.randperm(len(data.train_images))[: EPOCH * BATCH].view(EPOCH, BATCH):
            yield data.train_images[chosen], data.train_labels[chosen]


def look(report, phase: KoopmanPhase, judge: Judge, moving: Moving) -> dict:
    """A jump: where it ended, and what the recording had to offer."""
    overall = phase.forecast().overall
    tried = [value for _, value in report.tried if value is not None and math.isfinite(value)]
    return {
        "candidate": report.candidate, "steps": report.steps, "held": report.held.get("forecast", 0),
        "taken": {"validation": judge.validation(), "test": judge.test()}, "mean": judge.of(phase.average()),
        "moving": judge.of(moving.weights), "koopman": min(tried, default=None),
        "others": {name: value for name, _, value in report.others},
        "error": overall.error, "baseline": overall.baseline, "pays": bool(overall.pays),
    }  # fmt: skip


def whole_run(data, seed: int, gated: bool) -> dict:
    """A run with four jumps: with a guard and all candidates, or gated by the forecast alone."""
    torch.manual_seed(seed)
    model = mlp(784, 20, 20, 20, 10)
    optimizer = torch.optim.Adadelta(model.parameters(), lr=1.0)
    judge, moving, jumps = Judge(model, data), Moving(), []
    phase = KoopmanPhase(model, "network", preset="noisy", window=RECORD // 12, every=RECORD // 12)
    choice = {"gate": "forecast"} if gated else {
        "guard": judge.validation, "horizon": "auto", "candidates": CANDIDATES
    }  # fmt: skip
    schedule = KoopmanSchedule(
        phase, optimizer, burn_in=2 * EPOCH, record=RECORD, jump=RECORD, repeats=JUMPS, **choice
    )  # fmt: skip
    for x, y in batches(data, seed):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        moving.add(model)
        if (report := schedule.step()) is not None:
            jumps.append(look(report, phase, judge, moving))
            moving = moving if report.candidate == "none" or report.steps == 0 else Moving()
        if schedule.stage == "done":
            break
    schedule.close()
    return {"seed": seed, "jumps": jumps, "test": judge.test()}


def measure(seeds: int, data_dir=None, say=print) -> None:
    """Both runs of every seed, written after each."""
    data = with_validation(load("mnist", data_dir), VALIDATION).on("cpu")
    runs: dict[str, list] = {"candidates": [], "gate": []}
    with torch_threads(1):
        for seed in range(seeds):
            for name, found in runs.items():
                found.append(whole_run(data, seed, name == "gate"))
            write_json(FILE, {"environment": origin.environment(Host()), "runs": runs})
            ends = {name: found[-1]["jumps"][-1] for name, found in runs.items()}
            say(f"seed {seed}: " + ", ".join(f"{name} {end['taken']['test']:.4f}, mean {end['mean']['test']:.4f}"
                                             for name, end in ends.items()), flush=True)  # fmt: skip


def run(options: argparse.Namespace) -> None:
    """Measure and write the JSON."""
    FILE.parent.mkdir(parents=True, exist_ok=True)
    measure(5, options.data_dir)


def all_jumps(found: dict, name: str) -> list[dict]:
    """Of all seeds."""
    return [jump for run in found["runs"][name] for jump in run["jumps"]]


def shown(found: dict) -> str:
    """What jumps ended at, in Markdown, and a sentence on the gate."""
    jumps, gated = all_jumps(found, "candidates"), all_jumps(found, "gate")
    rows = []
    for turn in range(JUMPS):
        here = [run["jumps"][turn] for run in found["runs"]["candidates"]]
        over = {
            kind: [jump["taken"][kind] / jump["mean"][kind] - 1 for jump in here] for kind in ("validation", "test")
        }
        ends = ", ".join(f"{name} {count}" for name in (*CANDIDATES, "none")
                         if (count := sum(jump["candidate"] == name for jump in here)))  # fmt: skip
        cells = (f"{max(values):+.1%}".replace("-", "−") for values in over.values())
        losses = (sum(jump[kind]["test"] for jump in here) / len(here) for kind in ("taken", "mean", "moving"))
        rows.append((turn + 1, *(f"{loss:.4f}" for loss in losses), *cells, ends))
    heads = ("jump", "test loss where it ended", "of the recording's mean", "of its moving average",
             "worst against the mean: guard's images", "test images", "ended at")  # fmt: skip
    no = sum(not jump["pays"] for jump in gated)
    alone = sum(not jump["pays"] for jump in jumps)
    said = (
        f"Gated, without a guard: the forecast says no at {no} of {len(gated)} jumps; at {alone} of {len(jumps)} of "
        "the recordings above."
    )
    return pages.markdown(heads, rows) + "\n\n" + said


def table_of() -> str:
    """The page's part."""
    return shown(json.loads(FILE.read_text()))
