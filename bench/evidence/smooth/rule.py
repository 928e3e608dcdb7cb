"""The forecast's rule on recordings that did not choose it: does it say when operators pay?

    python -m bench forecast run --seeds 5     # minutes on two cores; MNIST in FASTKOOP_DATA_DIR
    python -m bench forecast table

Ten settings, eight recordings of twelve pairs along every run, which jumps where the guard likes it. An operator pays
where the best of its ten candidates leaves a gap at least 5% smaller than the best of thirty by line, secant and mean,
and than staying. The forecast is fitted and judged on the recording alone, by a rule that was chosen on the recordings
of `python -m bench calibration`. Beside it `holdout` and `residual`, each with the threshold that is best in hindsight
on these very recordings, which flatters them.
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
TARGETS = {"accuracy": 0.9, "pays given yes": 0.9, "pays given no": 0.15}  # the last is not to be exceeded


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
    """The recordings of a setting's run."""
    return along(SETTINGS[words], seed)


def along(setting: Callable, seed: int) -> list[dict]:
    """The recordings along one run, which jumps after each where the guard likes it."""
    problem, step, window = setting(seed)
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
    """Measure and write the JSON; of some settings by name, others stay as they are there."""
    if options.data_dir:
        os.environ[DATA_DIR] = options.data_dir
    names = pages.select(options.names, SETTINGS, "setting")
    settings = json.loads(FILE.read_text())["settings"] if options.names else {}
    with torch_threads(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        for words in names:
            settings[words] = [measure(words, seed) for seed in range(options.seeds)]
            every = [one for run in settings[words] for one in run]
            print(f"{words}: {shares(every)}", flush=True)
    FILE.parent.mkdir(parents=True, exist_ok=True)
    settings = {words: settings[words] for words in SETTINGS if words in settings}
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


def reached(measured: dict) -> dict[str, bool]:
    """Which targets the shares reach; what no recording tells of is not missed."""
    found = {name: measured[name] for name in TARGETS}
    return {
        name: found[name] is None or (found[name] <= bound if name == "pays given no" else found[name] >= bound)
        for name, bound in TARGETS.items()
    }


def in_hindsight(recordings: list[dict], report: str) -> tuple[float, float]:
    """The best accuracy that any threshold on a report reaches on these recordings, and that threshold."""
    values, pays = of(recordings, report), of(recordings, "pays")
    thresholds = [-np.inf, *np.unique(values[np.isfinite(values)])]
    accuracy = [((values <= threshold) == pays).mean() for threshold in thresholds]
    return float(max(accuracy)), float(thresholds[int(np.argmax(accuracy))])


def of(recordings: list[dict], report: str) -> np.ndarray:
    """A report of all recordings; infinite where it is no number."""
    return np.array([np.inf if one[report] is None else one[report] for one in recordings])


def percent(value: float | None) -> str:
    """A share in a cell."""
    return "-" if value is None else f"{value:.0%}"


def groups_of(results: dict) -> dict[str, list[dict]]:
    """Recordings by setting, and all of them."""
    groups = {words: [one for run in runs for one in run] for words, runs in results["settings"].items()}
    return {**groups, "**all**": [one for group in groups.values() for one in group]}


def table_of(results: dict) -> str:
    """The table, in Markdown; a share that misses its target is bold."""
    heads = (
        "setting", "recordings", "pay", "says yes", "right", "pay when it says yes", "pay when it says no",
        "`holdout` right", "`residual` right", "e_K, median", "apart, median", "eigenvalue below -0.5",
    )  # fmt: skip
    groups, rows = groups_of(results), []
    beside = {report: in_hindsight(groups["**all**"], report)[1] for report in ("holdout", "residual")}
    for words, group in groups.items():
        found = shares(group)
        cells = [
            percent(found[name]) if good else f"**{percent(found[name])}**" for name, good in reached(found).items()
        ]
        pays = of(group, "pays")
        others = [percent(float(((of(group, name) <= bound) == pays).mean())) for name, bound in beside.items()]
        medians = [f"{np.median(of(group, name)):.2g}" for name in ("error", "apart")]
        negative = percent(float(np.mean(of(group, "negative") > 0)))
        rows.append((words, len(group), percent(found["pays"]), found["yes"], *cells, *others, *medians, negative))
    majority = max(shares(groups["**all**"])["pays"], 1 - shares(groups["**all**"])["pays"])
    said = (
        "Bold: a target that is missed. `holdout` and `residual` have the threshold that is best in hindsight over all "
        "recordings. "
        f"Always the more frequent answer: {majority:.0%}."
    )
    return pages.markdown(heads, rows) + "\n\n" + said


def verdict(results: dict) -> str:
    """What came out, against the targets, and where the rule is wrong most often."""
    measured = {words: shares(group) for words, group in groups_of(results).items()}
    every = measured.pop("**all**")
    yes, no = percent(every["pays given yes"]), percent(every["pays given no"])
    said = (
        f"**The forecast is right on {every['accuracy']:.0%} of {every['yes'] + every['no']} recordings.** Where it "
        f"says yes, operators pay in {yes}; where it says no, in {no}. The targets are {TARGETS['accuracy']:.0%}, "
        f"{TARGETS['pays given yes']:.0%} and at most {TARGETS['pays given no']:.0%}: over all recordings "
        + ("all three are reached" if all(reached(every).values()) else "they are missed")
    )
    missed = sorted((found["accuracy"], words) for words, found in measured.items() if not all(reached(found).values()))
    if not missed:
        return said + ", and in every setting."
    by_setting = "; ".join(f"{words} ({accuracy:.0%} right)" for accuracy, words in missed)
    return said + f". Setting by setting, at least one is missed on: {by_setting}."


def table(options: argparse.Namespace) -> None:
    """Write the page's parts."""
    results = json.loads(FILE.read_text())
    pages.update("forecast", verdict(results), "verdict")
    pages.update("forecast", table_of(results), "rule")
