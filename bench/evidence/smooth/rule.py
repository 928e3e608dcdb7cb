"""The forecast's rule on recordings that did not choose it: does it say when operators pay?

    python -m bench forecast run --seeds 5     # minutes on two cores; MNIST in FASTKOOP_DATA_DIR
    python -m bench forecast table

Ten settings, eight recordings of twelve pairs along every run, which jumps where the guard likes it. An operator pays
where the best of its ten candidates leaves a gap at least 5% smaller than the best of thirty by line, secant and mean,
and than staying. The forecast is fitted and judged on the recording alone. Beside it `holdout` and `residual`, each
with the threshold that is best in hindsight on these very recordings, which flatters them.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import warnings
from collections.abc import Callable

import numpy as np

from bench import RESULTS
from bench.common import origin, pages
from fastkoop.experiments.problems.mnist_files import DATA_DIR
from fastkoop.experiments.training import torch_threads
from fastkoop.files import write_json
from fastkoop.profile.devices import Host

from . import methods, noise, problems, train
from .train import finite

FILE = RESULTS / "smooth" / "forecast.json"
PAIRS, RECORDINGS, BETWEEN = 12, 8, 0
MARGIN = 0.95  # of the gap that the cheap ones leave: smaller gains count as none


def smooth(make: Callable, seed: int) -> tuple[problems.Problem, Callable, int]:
    """A full-batch problem, its iteration w -> w, and the window of a snapshot."""
    problem = make(seed)
    velocity = np.zeros_like(problem.start)

    def step(w: np.ndarray) -> np.ndarray:
        nonlocal velocity
        w, velocity = train.step(problem, w, velocity)
        return w

    return problem, step, 1


def noisy(batch: int, seed: int) -> tuple[problems.Problem, Callable, int]:
    """Digits by mini-batches, every iterate a snapshot."""
    digits = noise.Digits(seed, batch)
    return digits.problem, digits.iterates(seed), 1


SETTINGS: dict[str, Callable] = {
    **{words: functools.partial(smooth, make) for make, words in problems.PROBLEMS.values()},
    **{f"digits, batch {batch}": functools.partial(noisy, batch) for batch in (300, 30)},
}


def judged(problem: problems.Problem, w: np.ndarray, states: np.ndarray, candidates: np.ndarray) -> dict:
    """One recording: what the forecast, `holdout` and `residual` say of it, and what is so."""
    op = methods.operator(states)
    forecast = op.forecast()
    cheap = min(finite(problem, other) for method in methods.CHEAP.values() for other in method(states))
    ours = min(finite(problem, candidate) for candidate in candidates)
    values = np.asarray(op.eigenvalues)[0]
    cheap = min(cheap, finite(problem, w)) - problem.optimum
    return {
        "says": forecast.overall.pays, "error": forecast.overall.error, "baseline": forecast.overall.baseline,
        "apart": float(forecast.apart[0]), "holdout": float(op.holdout[0]), "residual": float(op.residual[0]),
        "negative": float(np.mean(values.real < -0.5)), "gap": ours - problem.optimum, "cheap": cheap,
        "pays": ours - problem.optimum < MARGIN * cheap,
    }  # fmt: skip


def measure(words: str, seed: int) -> list[dict]:
    """The recordings along one run, which jumps after each where the guard likes it."""
    problem, step, window = SETTINGS[words](seed)
    w, found = problem.start, []
    for _ in range(RECORDINGS):
        for _ in range(BETWEEN):
            w = step(w)
        w, states = noise.recording(step, w, PAIRS, window)
        candidates = methods.operator(states).predict(methods.AHEAD)[0].T
        found.append(judged(problem, w, states, candidates))
        best = min(candidates, key=lambda one: finite(problem, one))
        w = best if finite(problem, best) < finite(problem, w) else w
    return found


def run(options: argparse.Namespace) -> None:
    """Measure and write the JSON."""
    if options.data_dir:
        os.environ[DATA_DIR] = options.data_dir
    settings = {}
    with torch_threads(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        for words in SETTINGS:
            settings[words] = [measure(words, seed) for seed in range(options.seeds)]
            every = [one for run in settings[words] for one in run]
            print(f"{words}: {shares(every)}", flush=True)
    FILE.parent.mkdir(parents=True, exist_ok=True)
    write_json(FILE, {"environment": origin.environment(Host()), "settings": settings})


def shares(recordings: list[dict]) -> dict:
    """Accuracy, P(pays | yes), P(pays | no), and how many of each there are; None of none."""
    says = np.array([one["says"] for one in recordings], bool)
    pays = np.array([one["pays"] for one in recordings], bool)
    return {
        "accuracy": float((says == pays).mean()), "pays": float(pays.mean()), "yes": int(says.sum()),
        "no": int((~says).sum()), "pays given yes": float(pays[says].mean()) if says.any() else None,
        "pays given no": float(pays[~says].mean()) if (~says).any() else None,
    }  # fmt: skip


def in_hindsight(recordings: list[dict], report: str) -> tuple[float, float]:
    """The best accuracy that any threshold on a report reaches on these recordings, and that threshold."""
    values = np.array([np.inf if one[report] is None else one[report] for one in recordings])
    pays = np.array([one["pays"] for one in recordings], bool)
    thresholds = [-np.inf, *np.unique(values[np.isfinite(values)])]
    accuracy = [((values <= threshold) == pays).mean() for threshold in thresholds]
    return float(max(accuracy)), float(thresholds[int(np.argmax(accuracy))])


def percent(value: float | None) -> str:
    """A share in a cell."""
    return "-" if value is None else f"{value:.0%}"


def table_of(results: dict) -> str:
    """The table, in Markdown, and the reports beside it."""
    heads = (
        "setting", "recordings", "pay", "forecast says yes", "right", "pay when it says yes", "pay when it says no",
        "e_K, median", "eigenvalue below -0.5",
    )  # fmt: skip
    groups = {words: [one for run in runs for one in run] for words, runs in results["settings"].items()}
    every = [one for group in groups.values() for one in group]
    rows = []
    for words, group in [*groups.items(), ("**all**", every)]:
        found = shares(group)
        error = np.median([np.inf if one["error"] is None else one["error"] for one in group])
        negative = np.mean([one["negative"] > 0 for one in group])
        rows.append((
            words, len(group), percent(found["pays"]), found["yes"], percent(found["accuracy"]),
            percent(found["pays given yes"]), percent(found["pays given no"]), f"{error:.2g}", percent(negative),
        ))  # fmt: skip
    beside = [f"`{report}` {in_hindsight(every, report)[0]:.0%}" for report in ("holdout", "residual")]
    majority = max(shares(every)["pays"], 1 - shares(every)["pays"])
    said = (
        f"With the best threshold in hindsight: {', '.join(beside)}. Always the more frequent answer: {majority:.0%}."
    )
    return pages.markdown(heads, rows) + "\n\n" + said


def verdict(results: dict) -> str:
    """What came out, and where the rule is wrong most often."""
    groups = {words: shares([one for run in runs for one in run]) for words, runs in results["settings"].items()}
    every = shares([one for runs in results["settings"].values() for run in runs for one in run])
    worst = sorted(groups, key=lambda words: groups[words]["accuracy"])
    wrong = [f"{words} ({groups[words]['accuracy']:.0%})" for words in worst if groups[words]["accuracy"] < 0.9]
    yes, no = percent(every["pays given yes"]), percent(every["pays given no"])
    said = (
        f"**The forecast is right on {every['accuracy']:.0%} of {every['yes'] + every['no']} recordings.** Where it "
        f"says yes, operators pay in {yes}; where it says no, in {no}."
    )
    return said + (f" It is right less often than nine times in ten on: {'; '.join(wrong)}." if wrong else "")


def table(options: argparse.Namespace) -> None:
    """Write the page's parts."""
    results = json.loads(FILE.read_text())
    pages.update("forecast", verdict(results), "verdict")
    pages.update("forecast", table_of(results), "rule")
