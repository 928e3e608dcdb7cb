"""Where it stops paying: softmax regression on 1200 digits, from full batches to batches of 30.

    python -m bench noise run --seeds 5     # minutes on two cores
    python -m bench noise table

Snapshots are means of `window` iterations. The unit is an iteration, whatever its batch; a guard's evaluation, on all
images, is charged a third of one. Every method has ten candidates a jump; pairs and window are chosen on another seed.
"""

from __future__ import annotations

import argparse
import json
import warnings
from statistics import median

import numpy as np

from bench import RESULTS
from bench.common import origin, pages
from fastkoop.experiments.training import torch_threads
from fastkoop.files import write_json
from fastkoop.profile.devices import Host

from . import methods, problems
from .train import finite

FILE = RESULTS / "smooth" / "noise.json"
BATCHES = (1200, 600, 300, 100, 30)
BUDGET, RANK, TUNING_SEED = 800, 4, 100
PACES = ((8, 1), (16, 1), (8, 4), (8, 10))  # pairs, window
METHODS = ("none", "line", "secant", "mean", "Koopman")


class Digits:
    """Softmax regression with mini-batches, a permutation of the images at a time."""

    def __init__(self, seed: int, batch: int, l2: float = 1e-4):
        self.problem = problems.digits(seed)
        self.batch, self.l2 = batch, l2
        images, self.labels = problems.images("digits", 1200, seed)
        self.X = problems.with_bias(images)

    def iterates(self, seed: int):
        """A function w -> the next iterate."""
        rng, order = np.random.default_rng(seed), []

        def step(w: np.ndarray) -> np.ndarray:
            if self.batch == len(self.X):
                return w - self.problem.lr * self.problem.value_and_gradient(w)[1]
            if not order:
                order.extend(rng.permutation(len(self.X)).reshape(-1, self.batch))
            chosen = order.pop()
            gradient = problems.softmax(self.X[chosen], self.labels[chosen], self.l2)(w)[1]
            return w - self.problem.lr * gradient

        return step


def recording(step, w: np.ndarray, pairs: int, window: int) -> tuple[np.ndarray, np.ndarray]:
    """The iterate after `(pairs + 1) * window` steps, and means of `window` iterates, oldest first."""
    states = []
    for _ in range(pairs + 1):
        total = 0.0
        for _ in range(window):
            w = step(w)
            total = total + w
        states.append(total / window)
    return w, np.array(states)


def proposals(method: str, states: np.ndarray) -> np.ndarray:
    """A method's ten candidates."""
    return methods.koopman(states, RANK) if method == "Koopman" else methods.CHEAP[method](states)


def run_method(digits: Digits, method: str, pairs: int, window: int, seed: int) -> dict:
    """A run that ends with a jump: what the jumps leave of the budget comes first."""
    step, w, problem = digits.iterates(seed), digits.problem.start, digits.problem
    cost = (pairs + 1) * window + (methods.CANDIDATES + 1) * methods.GUARD
    jumps = 0 if method == "none" else int(BUDGET // cost)
    for _ in range(int(BUDGET - jumps * cost)):
        w = step(w)
    says = []
    for _ in range(jumps):
        w, states = recording(step, w, pairs, window)
        candidates = proposals(method, states)
        losses = [finite(problem, candidate) for candidate in candidates]
        if method == "Koopman":
            cheap = min(finite(problem, other) for name in methods.CHEAP for other in proposals(name, states))
            forecast = methods.forecast(states, RANK)
            says.append({
                "pays": bool(forecast.pays), "error": float(forecast.error), "baseline": float(forecast.baseline),
                "better": min(losses) < min(cheap, finite(problem, w)),
            })  # fmt: skip
        if min(losses) < finite(problem, w):
            w = candidates[int(np.argmin(losses))]
    return {"gap": max(problem.value(w) - problem.optimum, 0.0), "forecasts": says}


def measure(seeds: int, say=print) -> list[dict]:
    """Every batch size: each method at its best pace of the tuning seed."""
    found = []
    for batch in BATCHES:
        tuning, rows = Digits(TUNING_SEED, batch), {}
        for method in METHODS:
            tried = PACES if method != "none" else PACES[:1]
            ends = [run_method(tuning, method, *pace, TUNING_SEED)["gap"] for pace in tried]
            rows[method] = {"pace": list(tried[int(np.argmin(ends))]), "runs": []}
        for seed in range(seeds):
            digits = Digits(seed, batch)
            for method, row in rows.items():
                row["runs"].append(run_method(digits, method, *row["pace"], seed))
        found.append({"batch": batch, "rows": rows})
        say(f"batch {batch}: " + ", ".join(f"{method} {middle(row):.1e}" for method, row in rows.items()))
    return found


def middle(row: dict) -> float:
    """The median gap over seeds."""
    return median(one["gap"] for one in row["runs"])


def run(options: argparse.Namespace) -> None:
    """Measure and write the JSON."""
    with torch_threads(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        found = measure(options.seeds)
    FILE.parent.mkdir(parents=True, exist_ok=True)
    write_json(FILE, {"environment": origin.environment(Host()), "budget": BUDGET, "batches": found})


def verdicts(row: dict) -> tuple[float, float, float]:
    """Of a Koopman row's jumps: the share that the forecast lets pass, that end lowest, and on which both agree."""
    jumps = [jump for one in row["runs"] for jump in one["forecasts"]]
    shares = ([jump["pays"] for jump in jumps], [jump["better"] for jump in jumps],
              [jump["pays"] == jump["better"] for jump in jumps])  # fmt: skip
    return tuple(float(np.mean(share)) for share in shares)


def table_of(results: dict) -> str:
    """The table, in Markdown."""
    heads = (
        "batch of 1200", "no jumps", "line", "secant", "mean", "Koopman, rank 4", "e_K, median", "forecast says yes",
        "Koopman ends lowest of the jump", "forecast right",
    )  # fmt: skip
    rows = []
    for one in results["batches"]:
        koopman = one["rows"]["Koopman"]
        error = median(jump["error"] for each in koopman["runs"] for jump in each["forecasts"])
        gaps = {method: middle(row) for method, row in one["rows"].items()}
        cells = [f"**{gap:.2g}**" if gap == min(gaps.values()) else f"{gap:.2g}" for gap in gaps.values()]
        rows.append((one["batch"], *cells, f"{error:.2g}", *(f"{share:.0%}" for share in verdicts(koopman))))
    return pages.markdown(heads, rows)


def table(options: argparse.Namespace) -> None:
    """Write the page's part."""
    pages.update("forecast", table_of(json.loads(FILE.read_text())), "noise")
