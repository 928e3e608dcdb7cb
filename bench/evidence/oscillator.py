"""The paper's first experiment over 25 networks: run every setting, then write the page from the JSON.

    python -m bench oscillator run      # about half an hour on two cores
    python -m bench oscillator table

The networks that share a learning rate are trained as one batched model, a fifth of the time. Each then lives through
its training again, state by state, under `fastkoop compare`'s own procedure, which records, fits and predicts. What a
step of AdaDelta and recording cost is measured apart, on a single network, after every network's phase; all on one
thread, and as medians times the number of iterations, which other work on the machine does not add to.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import median

import numpy as np
import torch
from torch import nn

from bench import RESULTS
from bench.common import origin, pages
from fastkoop.experiments.compare import run_seed
from fastkoop.experiments.config import Config, Setup, prepare
from fastkoop.experiments.problems.movement import BEST, authors_measure
from fastkoop.experiments.problems.oscillator import NAME, Oscillator
from fastkoop.experiments.training import make_optimizer, torch_threads
from fastkoop.files import write_json
from fastkoop.profile.devices import Host
from fastkoop.torch_adapter import KoopmanPhase

FOLDER = RESULTS / "oscillator"
CLOCKED, WARM_UP = 150, 20  # iterations of training that a network's phase is set beside


@dataclass(frozen=True)
class Setting:
    """One row of the table; the rest is the paper's."""

    lr: float = 1.0  # PyTorch's own
    partition: str = "node"
    cutoff: str = "numpy"
    dtype: str = "float32"

    def trained_as(self) -> tuple:
        """What its networks' training depends on."""
        return self.dtype, -self.lr

    @property
    def name(self) -> str:
        """Its file's."""
        return f"lr{self.lr:g}-{self.partition}-{self.cutoff}" + ("" if self.dtype == "float32" else f"-{self.dtype}")


SETTINGS = [
    *(
        Setting(lr, partition, cutoff)
        for lr in (1.0, 1e-3)
        for partition, cutoff in (
            ("node", "numpy"), ("node", "array_api"), ("node", "jax"), ("layer", "numpy"), ("network", "numpy"),
        )
    ),
    *(Setting(lr) for lr in (0.1, 0.01)),
    Setting(dtype="float64"),
    *(Setting(1e-3, "node", cutoff, "float64") for cutoff in ("numpy", "array_api", "jax")),
]  # fmt: skip


def train_together(problem: Oscillator, seeds: int, lr: float, first: int, last: int, tick: Callable[[int], None]):
    """Networks side by side, each by its own AdaDelta: all of it is elementwise but the batched products.

    Returns:
        The states after `first` .. `last` iterations: a tensor (states, seeds, *shape) per parameter.
    """
    models = [tuple(problem.make_model(seed).parameters()) for seed in range(seeds)]
    stack = nn.ParameterList(torch.stack([p.detach() for p in same]) for same in zip(*models, strict=True))
    optimizer = make_optimizer("adadelta", stack, lr)
    states = [torch.empty(last - first + 1, *p.shape, dtype=p.dtype) for p in stack]
    for iteration in range(last + 1):
        if iteration >= first:
            for kept, parameter in zip(states, stack, strict=True):
                kept[iteration - first] = parameter.detach()
        if iteration < last:
            optimizer.zero_grad()
            problem.residual(tuple(stack)).sum().backward()
            optimizer.step()
            tick(iteration + 1)
    return states


class Replay(Oscillator):
    """Trained networks as a problem: a step is the state after it, what it costs is a single network's step."""

    def __init__(self, dtype: torch.dtype, first: int, states: list[torch.Tensor]):
        super().__init__(dtype=dtype)
        self._first, self._states = first, states
        self.setup: Setup | None = None
        self._seed = self._at = 0

    def make_model(self, seed: int) -> nn.Sequential:
        """The network as it began."""
        self._seed, self._at = seed, 0
        return super().make_model(seed)

    @torch.no_grad()
    def train_step(self, model: nn.Module, optimizer: torch.optim.Optimizer, batch: None) -> None:
        """One iteration on: the network's next state; before the first that was kept and past the last, no change."""
        self._at += 1
        if self._at >= self._first:
            for parameter, states in zip(model.parameters(), self._states, strict=True):
                parameter.copy_(states[min(self._at - self._first, len(states) - 1), self._seed])
        optimizer.step()  # moves nothing without gradients, but tells whoever is attached to it

    def measures(self, run: dict, states: dict, **spans) -> dict:
        """The oscillator's, with what training and recording cost where nothing is replayed."""
        problem = Oscillator(dtype=self.dtype)
        step, record = clock(problem, self.setup, lambda *both: train_step(problem, *both))
        twice, _ = clock(problem, self.setup, lambda *both: step_by_double_autograd(problem, *both))
        for side, each in (("optimizer", step), ("koopman", median(run["koopman"]["step_seconds"]))):
            run[side]["step_seconds"] = [each] * len(run[side]["step_seconds"])
        run["koopman"]["record_seconds"] = record * spans["recorded"]
        found = super().measures(run, states, **spans)
        found[NAME]["seconds"]["step_by_double_autograd"] = twice
        return found


def clock(problem: Oscillator, setup: Setup, step: Callable) -> tuple[float, float]:
    """Median seconds of a single network's iterations, and of what recording adds to each."""
    model = problem.make_model(0)
    optimizer = make_optimizer(setup.optimizer, model, setup.lr)
    phase, spent = KoopmanPhase(model, setup.config.partition, capacity=WARM_UP + CLOCKED), []
    for _ in range(WARM_UP + CLOCKED):
        began = time.perf_counter()
        step(model, optimizer)
        between = time.perf_counter()
        phase.record()
        spent.append((between - began, time.perf_counter() - between))
    return tuple(median(seconds) for seconds in zip(*spent[WARM_UP:], strict=True))


def train_step(problem: Oscillator, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """An iteration as the comparison makes it."""
    optimizer.zero_grad()
    problem.loss(model).backward()
    optimizer.step()


def step_by_double_autograd(problem: Oscillator, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """An iteration as the networks' published code has it: z' by autograd, which the loss is differentiated through."""
    optimizer.zero_grad()
    t = problem.times.T.to(problem.dtype).requires_grad_()
    x, p = (torch.tensor(problem.start, dtype=t.dtype) + (1 - torch.exp(-t)) * model(t)).split(1, dim=1)
    dx, dp = (torch.autograd.grad(value, t, torch.ones_like(t), create_graph=True)[0] for value in (x, p))
    ((dx - p).square().mean() + (dp + x + x.pow(3)).square().mean()).backward()
    optimizer.step()


def run_settings(settings: list[Setting], seeds: int = 25, folder: pathlib.Path = FOLDER, **epochs: int) -> None:
    """Run settings and write a file for each; `epochs` are t1, t2 and T if not the paper's."""
    folder.mkdir(parents=True, exist_ok=True)
    kind, replay = None, None
    for setting in sorted(settings, key=Setting.trained_as):
        config = Config.of(
            problem=NAME, lr=setting.lr, partition=setting.partition, cutoff=setting.cutoff, seeds=seeds, eval_every=50,
            **epochs,
        )  # fmt: skip
        setup = prepare(config)
        with torch_threads(1):
            if kind != setting.trained_as():
                kind, replay = setting.trained_as(), trained(setting, setup)
            setup = replay.setup = prepare(replace(config, problem=replay))
            one(setup, 0, setting.name)  # compiles what is timed in the runs that count
            runs = [one(setup, seed, setting.name) for seed in range(seeds)]
            machine = origin.environment(Host())
        found = {"setting": {**setup.described(), "dtype": setting.dtype}, "machine": machine, **condensed(runs)}
        write_json(folder / f"{setting.name}.json", found)
    say("")


def trained(setting: Setting, setup: Setup) -> Replay:
    """All networks, trained to the end of the phase."""
    lengths, seeds, dtype = setup.lengths, setup.config.seeds, getattr(torch, setting.dtype)
    last = lengths.before + lengths.record + lengths.phase

    def tick(done: int) -> None:
        if done % 500 == 0 or done == last:
            say(f"lr {setup.lr:g}: training {seeds} networks together, {done} of {last}")

    states = train_together(Oscillator(dtype=dtype), seeds, setup.lr, lengths.before, last, tick)
    return Replay(dtype, lengths.before, states)


def one(setup: Setup, seed: int, name: str) -> dict:
    """One network's run."""
    say(f"{name}: network {seed + 1} of {setup.config.seeds}")
    return run_seed(setup, seed, lambda *_: None)[0]


def say(words: str) -> None:
    """A line of progress over the last one."""
    print(f"\r{words:78}", end="", file=sys.stderr, flush=True)


def condensed(runs: list[dict]) -> dict:
    """Every measure as a list over networks, and the median losses along the phase."""
    entries = [one[NAME] for one in runs]
    kept = ("loss", "solution_error", "movement", "error", "seconds", "optimizer_steps")
    reports = ("rank", "spectral_radius", "residual", "kept")
    return {
        "replaced": entries[0]["replaced"],
        **{name: columns([entry[name] for entry in entries]) for name in kept},
        **{name: columns([one["koopman"][name] for one in runs]) for name in reports},
        "authors_measure": {"all": authors_measure(entries), "best": authors_measure(entries, BEST)},
        "curve": {
            "iteration": runs[0]["optimizer"]["iteration"],
            **{
                side: np.median([one[side]["test_loss"] for one in runs], axis=0).tolist()
                for side in ("optimizer", "koopman")
            },
        },
    }


def columns(rows: list):
    """Dicts of the same shape as one dict of lists."""
    if isinstance(rows[0], dict):
        return {key: columns([row[key] for row in rows]) for key in rows[0]}
    return rows


def row(found: dict) -> str:
    """A line of the table: medians over networks."""
    setting, loss, seconds = found["setting"], found["loss"], found["seconds"]
    error = {name: {layer: median(v) for layer, v in layers.items()} for name, layers in found["error"].items()}

    def faster(cost) -> str:
        return f"{median(true / own for true, own in zip(seconds['optimizer_phase'], cost, strict=True)):.3g}"

    alone = [fit + jump for fit, jump in zip(seconds["fit"], seconds["jump"], strict=True)]
    below = [
        sum(own < other for own, other in zip(loss["koopman"], loss[end], strict=True))
        for end in ("start", "average", "drift")
    ]
    layers = ", ".join(f"{value:.2g}" for layer, value in error["koopman"].items() if layer != "all")
    middle = {name: f"{median(values):.4g}" for name, values in loss.items()}
    cells = [
        f"{setting['lr']:g}" + ("" if setting["dtype"] == "float32" else f", {setting['dtype']}"),
        setting["partition"],
        setting["cutoff"],
        f"{middle['start']} → {middle['koopman']}",
        middle["optimizer"],
        middle["average"],
        middle["drift"],
        " / ".join(map(str, below)),
        f"{error['koopman']['all']:.2g} ({layers})",
        f"{error['drift']['all']:.2g}",
        f"{found['authors_measure']['all']:.2g} / {found['authors_measure']['best']:.2g}",
        f"{median(seconds['optimizer_step']) * 1e6:.0f} / {median(seconds['koopman_step']) * 1e6:.0f}",
        f"{faster(seconds['walked'])} / {faster(seconds['jumped'])}",
        faster(alone),
    ]
    return "| " + " | ".join(cells) + " |"


def table_of(folder: pathlib.Path = FOLDER) -> str:
    """The table, in Markdown, of the settings that have results."""
    heads = (
        "AdaDelta's lr", "blocks", "cutoff", "loss: start → Koopman", "AdaDelta", "mean of recorded", "drift",
        "of 25 below start / mean / drift", "error (by layer)", "drift's error", f"authors' measure, all / best {BEST}",
        "µs a step, AdaDelta / Koopman", "phase walked / jumped", "fit and jump alone",
    )  # fmt: skip
    found = [json.loads((folder / f"{setting.name}.json").read_text()) for setting in SETTINGS]
    lines = ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads), *map(row, found)]
    return "\n".join([*lines, "", *notes(found)])


def notes(found: list[dict]) -> list[str]:
    """What the table has no column for."""
    solved = []
    for setting, one in zip(SETTINGS, found, strict=True):
        if setting == Setting(setting.lr):
            ends = (median(one["solution_error"][end]) for end in ("start", "optimizer", "koopman"))
            solved.append(f"lr {setting.lr:g} {' / '.join(f'{error:.2g}' for error in ends)}")
    once, twice = (
        median(seconds for one in found for seconds in one["seconds"][name])
        for name in ("optimizer_step", "step_by_double_autograd")
    )
    size = np.sqrt(np.square(Oscillator().exact).sum(axis=0).mean())
    machine = found[0]["machine"]
    origins = [f"commit {one['machine']['commit'][:10]}, {one['machine']['date']}" for one in found]
    first, last = origins[0], origins[-1]
    return [
        "Root mean square distance of (x, p) from the exact solution at the start, after AdaDelta and after Koopman "
        f"(node, numpy): {'; '.join(solved)}; of the exact solution from zero {size:.2g}.",
        f"A step that differentiates twice takes {twice * 1e6:.0f} µs, {twice / once:.2g} times as long as the "
        "AdaDelta step of the table.",
        f"Measured on: {machine['processor']}, {machine['cores']} cores, PyTorch on one thread; "
        f"torch {machine['versions']['torch']}; {first}" + (f" to {last}." if last != first else "."),
    ]


def run(options: argparse.Namespace) -> None:
    """Run settings by name."""
    names = {setting.name: setting for setting in SETTINGS}
    run_settings([names[name] for name in pages.select(options.names, names, "setting")])


def table(options: argparse.Namespace) -> None:
    """Write the page."""
    pages.update("oscillator", table_of())
