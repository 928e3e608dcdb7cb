"""The same jumps through `KoopmanPhase` and PyTorch's optimizers: partitions, and velocities moved along or not.

    python -m bench phases run --seeds 5     # minutes on two cores
    python -m bench phases table

Gap to the optimum after 800 gradients, every call of the guard charged a third of one. How long it records and rests is
chosen on a seed that is not among those shown.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median

import torch

import fastkoop
from bench import RESULTS
from bench.common import origin, pages
from fastkoop.experiments.problems.oscillator import Oscillator
from fastkoop.experiments.training import torch_threads
from fastkoop.files import write_json
from fastkoop.profile.devices import Host
from fastkoop.torch_adapter import KoopmanPhase

from . import methods, problems

FILE = RESULTS / "smooth" / "phases.json"
BUDGET, TUNING_SEED = 800, 100
PACES = ((8, 0), (16, 0), (16, 8))  # pairs, rest


@dataclass(frozen=True)
class Setting:
    """One row.

    task: "digits" or "oscillator"; optimizer: of the model's parameters; velocities: moved along, see
    `fastkoop.adapter.optimizer_state`, or None without jumps.
    """

    words: str
    task: str
    optimizer: Callable = torch.optim.SGD
    options: dict = field(default_factory=dict)
    partition: str = "network"
    state: str | None = "keep"


MOMENTUM = {"momentum": 0.9}
ADAM = {"lr": 1e-3}
SETTINGS = {
    "network": Setting("digits, GD, one operator for the network", "digits"),
    "node": Setting("digits, GD, an operator a node", "digits", partition="node"),
    "none": Setting("digits, GD, no jumps", "digits", state=None),
    "momentum-predict": Setting("digits, momentum 0.9, velocities moved along", "digits", options=MOMENTUM,
                                state="predict"),
    "momentum-keep": Setting("digits, momentum 0.9, weights alone", "digits", options=MOMENTUM),
    "momentum-none": Setting("digits, momentum 0.9, no jumps", "digits", options=MOMENTUM, state=None),
    "adam-predict": Setting("oscillator, Adam, velocities moved along", "oscillator", torch.optim.Adam, ADAM,
                            state="predict"),
    "adam-keep": Setting("oscillator, Adam, weights alone", "oscillator", torch.optim.Adam, ADAM),
    "adam-none": Setting("oscillator, Adam, no jumps", "oscillator", torch.optim.Adam, ADAM, state=None),
}  # fmt: skip


def made(setting: Setting, seed: int) -> tuple[torch.nn.Module, Callable[[], torch.Tensor], float, float]:
    """A model, its loss, the least loss that is known and the step of gradient descent."""
    if setting.task == "oscillator":
        problem = Oscillator(dtype=torch.float64)
        model = problem.make_model(seed)
        return model, lambda: problems.residual(problem, tuple(model.parameters())), 0.0, ADAM["lr"]
    known = problems.digits(seed)
    images, labels = problems.images("digits", 1200, seed)
    x, y = torch.from_numpy(images).double(), torch.from_numpy(labels)
    model = torch.nn.Linear(64, 10, dtype=torch.float64)
    with torch.no_grad():
        start = torch.from_numpy(known.start).view(65, 10)
        model.weight.copy_(start[:64].T)
        model.bias.copy_(start[64])

    def loss() -> torch.Tensor:
        penalty = sum(p.square().sum() for p in model.parameters())
        return torch.nn.functional.cross_entropy(model(x), y) + 0.5e-4 * penalty

    return model, loss, known.optimum, known.lr


def run_setting(setting: Setting, seed: int, pairs: int, rest: int) -> dict:
    """Train to the end of the budget with jumps; what is left after the last one is plain steps."""
    model, loss, optimum, lr = made(setting, seed)
    optimizer = setting.optimizer(model.parameters(), **{"lr": lr, **setting.options})
    began, calls, taken, jumps, gradients = time.process_time(), 0, 0, 0, 0

    def step() -> None:
        nonlocal gradients
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
        gradients += 1

    @torch.no_grad()
    def guard() -> float:
        nonlocal calls
        calls += 1
        return float(loss())

    if setting.state is not None:
        observables = [fastkoop.Affine()] + [fastkoop.Momentum()] * (setting.state == "predict")
        phase = KoopmanPhase(
            model, setting.partition, cutoff=fastkoop.Rank(8), observables=observables, stabilize="clip",
            capacity=pairs + 1,
        )  # fmt: skip
        phase.attach(optimizer)
        horizon = [int(steps) for steps in methods.AHEAD]
        cost = rest + pairs + 1 + (len(horizon) + 2) * methods.GUARD
        while gradients + calls * methods.GUARD + cost <= BUDGET:
            for _ in range(rest + pairs + 1):
                step()
            before = guard()
            phase.jump(horizon[-1], guard=guard, horizon=horizon, optimizer_state=setting.state)
            taken += float(loss().detach()) < before
            jumps += 1
            phase.clear()
        phase.detach()
    while gradients + calls * methods.GUARD + 1 <= BUDGET:
        step()
    gap = float(loss().detach()) - optimum
    return {"gap": max(gap, 0.0), "jumps": jumps, "taken": taken, "guard_calls": calls, "gradients": gradients,
            "seconds": time.process_time() - began}  # fmt: skip


def run(options: argparse.Namespace) -> None:
    """Measure and write the JSON."""
    found = {}
    with torch_threads(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        for name in pages.select(options.names, SETTINGS, "setting"):
            setting = SETTINGS[name]
            tried = PACES if setting.state is not None else PACES[:1]
            ends = [run_setting(setting, TUNING_SEED, *pace)["gap"] for pace in tried] if len(tried) > 1 else [0.0]
            pace = tried[ends.index(min(ends))]
            runs = [run_setting(setting, seed, *pace) for seed in range(options.seeds)]
            found[name] = {"words": setting.words, "pairs": pace[0], "rest": pace[1], "runs": runs}
            print(f"{name}, {pace}: " + " ".join(f"{one['gap']:.1e}" for one in runs), flush=True)
    FILE.parent.mkdir(parents=True, exist_ok=True)
    write_json(FILE, {"environment": origin.environment(Host()), "budget": BUDGET, "settings": found})


def table_of(results: dict) -> str:
    """The table, in Markdown."""
    rows = []
    for one in results["settings"].values():
        gaps = [each["gap"] for each in one["runs"]]
        jumps = sum(each["jumps"] for each in one["runs"])
        taken = f"{sum(each['taken'] for each in one['runs']) / jumps:.0%}" if jumps else ""
        seconds = median(each["seconds"] for each in one["runs"])
        rows.append((
            one["words"], f"{median(gaps):.1e}", f"{min(gaps):.1e} to {max(gaps):.1e}", taken, f"{seconds:.2g}",
        ))  # fmt: skip
    return pages.markdown(("through `KoopmanPhase`", "gap, median", "range", "jumps taken", "CPU seconds"), rows)


def table(options: argparse.Namespace) -> None:
    """Write the page's part."""
    pages.update("smooth", table_of(json.loads(FILE.read_text())), "phases")
