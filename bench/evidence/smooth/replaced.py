"""Phases that replace steps: what gradient descent needs to a loss, with jumps through `KoopmanPhase` and without.

    python -m bench replaced run --seeds 5     # minutes on a core
    python -m bench replaced table

Two small float64 networks by full batches: a physics-informed net for u'' = -pi^2 sin(pi x), and the oscillator. The
target is the loss that plain gradient descent reaches after 2000 gradients from the same start. A run counts gradients,
a third of one for every call of the guard, and CPU seconds, until it is there. Learning rates, pairs and rest are
chosen on another seed.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import time
import warnings
from collections.abc import Callable
from statistics import median

import numpy as np
import torch
from scipy.optimize import minimize
from torch.func import functional_call

import fastkoop
from bench import RESULTS
from bench.common import origin, pages
from fastkoop.experiments.problems.oscillator import Oscillator
from fastkoop.experiments.training import torch_threads
from fastkoop.files import write_json
from fastkoop.profile.devices import Host
from fastkoop.torch_adapter import KoopmanPhase

from . import methods, problems

FILE = RESULTS / "smooth" / "replaced.json"
STEPS, TUNING_SEED = 2000, 100
LONGEST = 2  # times STEPS: a run that is not there by then has failed
PACES = ((8, 0), (16, 0), (16, 16))  # pairs, rest
RATES = (3e-3, 1e-2, 3e-2)
METHODS = {
    "koopman": "gradient descent with Koopman jumps", "nesterov": "Nesterov's method with restarts",
    "adam": "Adam, lr 1e-3", "l-bfgs": "L-BFGS (SciPy)",
}  # fmt: skip


class Poisson(torch.nn.Module):
    """A tanh network u(x) on [-1, 1], 1-20-20-1, and its physics-informed loss."""

    def __init__(self, seed: int, points: int = 64):
        super().__init__()
        torch.manual_seed(seed)
        self.network = problems.layers(1, 20, 20, 1, activation=torch.nn.Tanh)
        self.x = torch.linspace(-1, 1, points, dtype=torch.float64)[:, None]

    def forward(self) -> torch.Tensor:
        """Mean squared residual of u'' + pi^2 sin(pi x), over pi^4, and of u at both ends; derivatives are carried."""
        u, slope, bend = self.x, torch.ones_like(self.x), torch.zeros_like(self.x)
        for layer in self.network:
            if isinstance(layer, torch.nn.Linear):
                u, slope, bend = layer(u), slope @ layer.weight.T, bend @ layer.weight.T
            else:
                u = u.tanh()
                rate = 1 - u * u
                bend, slope = rate * bend - 2 * u * rate * slope * slope, rate * slope
        residual = bend / math.pi**2 + torch.sin(math.pi * self.x)
        return residual.square().mean() + u[0].square().mean() + u[-1].square().mean()


class Orbit(torch.nn.Module):
    """The paper's network for the nonlinear oscillator."""

    def __init__(self, seed: int):
        super().__init__()
        self.problem = Oscillator(dtype=torch.float64)
        self.network = self.problem.make_model(seed)

    def forward(self) -> torch.Tensor:
        """Mean squared residual of Hamilton's equations."""
        return problems.residual(self.problem, tuple(self.network.parameters()))


TASKS: dict[str, tuple[Callable[[int], torch.nn.Module], str]] = {
    "pinn": (Poisson, "physics-informed net, 1-20-20-1"), "oscillator": (Orbit, "oscillator, 1-10-10-2"),
}  # fmt: skip


class Count:
    """Gradients and calls of the guard of a run, and the CPU seconds since it began."""

    def __init__(self, model: torch.nn.Module, target: float = -math.inf):
        self.model, self.target, self.gradients, self.guards = model, target, 0, 0
        self.loss, self.began = math.inf, time.process_time()

    @property
    def spent(self) -> float:
        return self.gradients + methods.GUARD * self.guards

    @property
    def goes_on(self) -> bool:
        return self.loss > self.target and self.spent < LONGEST * STEPS

    def step(self, optimizer) -> None:
        """One optimizer step; the loss is that before it."""
        optimizer.zero_grad()
        loss = self.model()
        loss.backward()
        optimizer.step()
        self.gradients += 1
        self.loss = float(loss.detach())

    @torch.no_grad()
    def guard(self) -> float:
        self.guards += 1
        return float(self.model())

    def outcome(self) -> dict:
        """What it took; None where it did not get there."""
        there = self.loss <= self.target
        return {
            "gradients": self.spent if there else None, "guards": self.guards,
            "seconds": time.process_time() - self.began if there else None, "loss": self.loss,
        }  # fmt: skip


def plain(task: str, seed: int, lr: float) -> dict:
    """Gradient descent through all steps; its last loss is the target."""
    count = Count(TASKS[task][0](seed))
    optimizer = torch.optim.SGD(count.model.parameters(), lr=lr)
    first = count.guard()
    for _ in range(STEPS + 1):
        count.step(optimizer)
    return {"loss": count.loss, "first": first, "gradients": STEPS, "seconds": time.process_time() - count.began}


def jumping(task: str, seed: int, lr: float, target: float, pace: tuple[int, int]) -> dict:
    """Gradient descent with jumps by `KoopmanPhase`."""
    count, (pairs, rest) = Count(TASKS[task][0](seed), target), pace
    optimizer = torch.optim.SGD(count.model.parameters(), lr=lr)
    phase = KoopmanPhase(
        count.model, "network", cutoff=fastkoop.Rank(8), observables=fastkoop.Affine(), stabilize="clip",
        capacity=pairs + 1,
    )  # fmt: skip
    phase.attach(optimizer)
    horizon = [int(steps) for steps in methods.AHEAD]
    while count.goes_on:
        for _ in range(rest + pairs + 1):
            count.step(optimizer)
            if not count.goes_on:
                break
        else:
            phase.jump(horizon[-1], guard=count.guard, horizon=horizon)
            phase.clear()
    phase.detach()
    return count.outcome()


def adam(task: str, seed: int, target: float) -> dict:
    """Adam at its default rate."""
    count = Count(TASKS[task][0](seed), target)
    optimizer = torch.optim.Adam(count.model.parameters(), lr=1e-3)
    while count.goes_on:
        count.step(optimizer)
    return count.outcome()


def flat(task: str, seed: int):
    """The loss and gradient as a function of flat weights, and the weights of the start."""
    model = TASKS[task][0](seed)
    return problems.flat(model, lambda weights: functional_call(model, weights, ()))


class Reached(Exception):
    """The target is there."""


def counted(task: str, seed: int, target: float, method: Callable) -> dict:
    """A method that asks for losses and gradients of flat weights, until one is at the target."""
    function, start = flat(task, seed)
    count = Count(None, target)

    def value_and_gradient(w: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = function(w)
        count.gradients, count.loss = count.gradients + 1, min(count.loss, value)
        if not count.goes_on:
            raise Reached
        return value, gradient

    try:
        method(value_and_gradient, start)
    except Reached:
        pass
    return count.outcome()


def lbfgs(function: Callable, start: np.ndarray) -> None:
    """SciPy's, ten corrections."""
    limits = {"maxfun": 10 * STEPS, "maxiter": 10 * STEPS, "ftol": 0.0, "gtol": 0.0, "maxcor": 10}
    minimize(function, start, jac=True, method="L-BFGS-B", options=limits)


def nesterov(function: Callable, start: np.ndarray, lr: float) -> None:
    """With restarts where it points uphill."""
    methods.nesterov(problems.Problem(function, start, lr), LONGEST * STEPS)


def one(task: str, method: str, seed: int, lr: float, target: float, setting) -> dict:
    """A run of a method."""
    if method == "koopman":
        return jumping(task, seed, lr, target, setting)
    if method == "nesterov":
        return counted(task, seed, target, functools.partial(nesterov, lr=setting * lr))
    return adam(task, seed, target) if method == "adam" else counted(task, seed, target, lbfgs)


def tried(method: str) -> tuple:
    """Settings to choose from: paces, or Nesterov's step in those of gradient descent."""
    return {"koopman": PACES, "nesterov": (0.5, 1.0, 2.0)}.get(method, (None,))


def chosen(task: str) -> tuple[float, dict]:
    """On the tuning seed: the rate whose loss is least, and every method's setting that is there first."""
    losses = {lr: plain(task, TUNING_SEED, lr)["loss"] for lr in RATES}
    lr = min(losses, key=lambda rate: losses[rate] if math.isfinite(losses[rate]) else math.inf)
    settings = {}
    for method in METHODS:
        settings[method], *others = tried(method)
        if others:
            ends = [one(task, method, TUNING_SEED, lr, losses[lr], setting) for setting in tried(method)]
            gradients = [math.inf if end["gradients"] is None else end["gradients"] for end in ends]
            settings[method] = tried(method)[int(np.argmin(gradients))]
    return lr, settings


def measure(task: str, seeds: int, say=print) -> dict:
    """A task: plain gradient descent for the target, then every method to it."""
    lr, settings = chosen(task)
    runs = []
    for seed in range(seeds):
        base = plain(task, seed, lr)
        run = {method: one(task, method, seed, lr, base["loss"], settings[method]) for method in METHODS}
        runs.append({"plain": base, **run})
        say(
            f"{task}, seed {seed}: {base['loss']:.2e}; "
            + ", ".join(f"{method} {run[method]['gradients'] or math.inf:.0f}" for method in METHODS),
            flush=True,
        )
    return {"words": TASKS[task][1], "lr": lr, "settings": settings, "runs": runs}


def run(options: argparse.Namespace) -> None:
    """Measure and write the JSON."""
    kept = json.loads(FILE.read_text()) if FILE.exists() else {"tasks": {}}
    with torch_threads(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        for task in pages.select(options.names, TASKS, "task"):
            kept["tasks"][task] = measure(task, options.seeds)
            write_json(FILE, {"environment": origin.environment(Host()), "steps": STEPS, "tasks": kept["tasks"]})


def shares(task: dict, method: str, what: str) -> list[float]:
    """Of gradients or seconds of plain gradient descent, by seed; infinite where a run did not get there."""
    return [math.inf if run[method][what] is None else run[method][what] / run["plain"][what] for run in task["runs"]]


def cell(values: list[float]) -> str:
    """Median and range.

    >>> cell([0.1, 0.2, 0.3]), cell([0.5, float("inf"), float("inf")])
    ('0.20 (0.10 to 0.30)', '∞ (0.50 to ∞)')
    """
    middle, low, high = (f"{v:.2f}" if v < math.inf else "∞" for v in (median(values), min(values), max(values)))
    return f"{middle} ({low} to {high})"


def table_of(results: dict) -> str:
    """The table, in Markdown."""
    heads = ("to the loss of 2000 steps of gradient descent", "gradients, of those 2000", "CPU seconds, of theirs")
    rows = []
    for task in results["tasks"].values():
        ends = [run["plain"]["loss"] for run in task["runs"]]
        rows.append((f"**{task['words']}**, lr {task['lr']:g}, to {min(ends):.1e} to {max(ends):.1e}", "1", "1"))
        rows += [
            (words, *(cell(shares(task, method, what)) for what in ("gradients", "seconds")))
            for method, words in METHODS.items()
        ]
    return pages.markdown(heads, rows)


def table(options: argparse.Namespace) -> None:
    """Write the page's part."""
    pages.update("smooth", table_of(json.loads(FILE.read_text())), "replaced")
