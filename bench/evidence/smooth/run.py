"""Gap to the optimum at equal gradients: extrapolations, accelerated gradients and Koopman operators.

    python -m bench smooth run --seeds 5       # a quarter of an hour on two cores; MNIST in FASTKOOP_DATA_DIR
    python -m bench smooth run digits probe    # some problems
    python -m bench smooth clock               # their time again, in turn: two minutes
    python -m bench smooth table

Every method gets the same budget of gradients, ten candidates a jump, and a guard whose evaluations are charged a third
of a gradient each. How long it records and rests, and Nesterov's step, are chosen for each method and problem on a seed
that is not among those shown. One thread. JSON goes into bench/results/smooth/, a file a problem.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
import warnings
from dataclasses import asdict
from statistics import median

from threadpoolctl import threadpool_limits

from bench import RESULTS
from bench.common import origin, pages
from fastkoop.experiments.problems.mnist_files import DATA_DIR
from fastkoop.experiments.training import torch_threads
from fastkoop.files import write_json
from fastkoop.profile.devices import Host

from .problems import PROBLEMS, Problem
from .train import Pace
from .train import run as run_method

FOLDER = RESULTS / "smooth"
SECONDS = FOLDER / "seconds.json"
ROUNDS = 3
TUNING_SEED = 100
ROUNDING = 1e-16  # a gap below this is none
METHODS = ("none", "line", "secant", "RNA", "Anderson", "Nesterov", "Koopman", "L-BFGS")
WHOLE = "Koopman, velocities moved along"
HEADS = {
    "none": "no jumps", "Nesterov": "Nesterov + restart", "Koopman": "Koopman, rank 8", WHOLE: "Koopman, whole state",
}  # fmt: skip


def methods_of(problem: Problem) -> tuple[str, ...]:
    """Those that apply: an iteration with momentum has velocities to move along."""
    return (*METHODS[:-1], WHOLE, METHODS[-1]) if problem.momentum else METHODS


def paces(method: str, problem: Problem) -> list[Pace]:
    """What is tried on the tuning seed."""
    if method in ("none", "L-BFGS"):
        return [Pace()]
    if method == "Nesterov":
        return [Pace(scale=scale) for scale in (0.5, 1.0, 2.0, 4.0)]
    kept = [("predict",) if method == WHOLE else ("keep", "reset") if problem.momentum else ("keep",)][0]
    return [Pace(pairs, rest, velocity) for pairs, rest in ((8, 0), (16, 0), (8, 4)) for velocity in kept]


def measure(name: str, seeds: int, say=print) -> dict:
    """A problem: every method tuned on one seed, then run on the others."""
    make, words = PROBLEMS[name]
    tuning = make(TUNING_SEED)
    chosen = {}
    for method in methods_of(tuning):
        tried = paces(method, tuning)
        ends = [run_method(tuning, method, pace).gap for pace in tried] if len(tried) > 1 else [0.0]
        chosen[method] = tried[ends.index(min(ends))]
    rows = {method: {"pace": asdict(pace), "runs": []} for method, pace in chosen.items()}
    for seed in range(seeds):
        problem = make(seed)
        for method, pace in chosen.items():
            done = run_method(problem, method, pace)
            rows[method]["runs"].append(asdict(done))
        say(f"{name}, seed {seed}: " + ", ".join(f"{m} {row['runs'][-1]['gap']:.1e}" for m, row in rows.items()))
    return {"problem": name, "words": words, "budget": tuning.budget, "optimum_known": tuning.optimum > 0, "rows": rows}


def run(options: argparse.Namespace) -> None:
    """Measure problems and write a file for each."""
    if options.data_dir:
        os.environ[DATA_DIR] = options.data_dir
    FOLDER.mkdir(parents=True, exist_ok=True)
    with torch_threads(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # what overflows is a failure, and stays in the table
        for name in pages.select(options.names, PROBLEMS, "problem"):
            found = {"environment": origin.environment(Host()), **measure(name, options.seeds)}
            write_json(FOLDER / f"{name}.json", found)


def load() -> dict[str, dict]:
    """The results of every problem that has some."""
    files = {name: FOLDER / f"{name}.json" for name in PROBLEMS}
    return {name: json.loads(file.read_text()) for name, file in files.items() if file.exists()}


def timed(name: str, found: dict) -> dict[str, list[float]]:
    """Seconds of every method on seed 0 at its pace, rounds in rotating order.

    CPU seconds of one thread, which are wall-clock seconds where nothing else runs.
    """
    problem, methods = PROBLEMS[name][0](0), list(found["rows"])
    seconds: dict[str, list[float]] = {method: [] for method in methods}
    for turn in range(ROUNDS):
        for method in methods[turn:] + methods[:turn]:
            began = time.process_time()
            run_method(problem, method, Pace(**found["rows"][method]["pace"]))
            seconds[method].append(time.process_time() - began)
    return seconds


def clock(options: argparse.Namespace) -> None:
    """Take the time of all problems that have results."""
    if options.data_dir:
        os.environ[DATA_DIR] = options.data_dir
    with torch_threads(1), threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        seconds = {name: timed(name, found) for name, found in load().items()}
    write_json(SECONDS, {"environment": origin.environment(Host()), "rounds": ROUNDS, "problems": seconds})


def gaps(found: dict, method: str) -> list[float]:
    """Gaps by seed; a run that diverged is infinite."""
    runs = found["rows"][method]["runs"] if method in found["rows"] else []
    return [math.inf if one["gap"] is None else one["gap"] for one in runs]


def gap(value: float) -> str:
    """A gap in a cell.

    >>> gap(0.0123), gap(3e-18), gap(float("inf"))
    ('0.012', '< 1e-16', '∞')
    """
    if math.isinf(value):
        return "∞"
    return "< 1e-16" if value < ROUNDING else f"{value:.2g}" if value >= 1e-3 else f"{value:.0e}"


def clocked(seconds: dict[str, list[float]], method: str) -> str:
    """Time in a cell: of no jumps in seconds, of the others as a multiple of it, round by round.

    >>> clocked({"none": [2.0, 2.0, 2.0], "line": [3.0, 3.2, 2.8]}, "line")
    ' · ×1.5'
    """
    if method == "none":
        return f" · {median(seconds['none']):.2g} s"
    return f" · ×{median(a / b for a, b in zip(seconds[method], seconds['none'], strict=True)):.2g}"


def row(found: dict, seconds: dict[str, list[float]]) -> tuple:
    """A problem's line: median gaps, the range in parentheses, then time; bold is the lowest but L-BFGS's."""
    cells = []
    columns = (*METHODS[:-1], WHOLE, METHODS[-1])
    middles = {method: median(values) for method in columns if (values := gaps(found, method))}
    first = min(middles[method] for method in middles if method != "L-BFGS")
    for method in columns:
        values = gaps(found, method)
        if not values:
            cells.append("")
            continue
        middle = gap(middles[method])
        middle = f"**{middle}**" if middles[method] == first else middle
        low, high = gap(min(values)), gap(max(values))
        cells.append((middle if low == high else f"{middle} ({low} to {high})") + clocked(seconds, method))
    return (f"{found['words']} ({found['budget']})", *cells)


def ahead(found: dict) -> list[str]:
    """Which of Nesterov and L-BFGS end below Koopman's best form, by medians."""
    ours = min(median(values) for method in ("Koopman", WHOLE) if (values := gaps(found, method)))
    return [name for name in ("Nesterov", "L-BFGS") if median(gaps(found, name)) < ours and ours >= ROUNDING]


def verdict(results: dict[str, dict]) -> str:
    """Who is ahead, the alternatives first."""
    lines = []
    for method in ("L-BFGS", "Nesterov"):
        where = [one["words"] for one in results.values() if method in ahead(one)]
        if where:
            name = HEADS.get(method, method)
            lines.append(f"- **{name} ends below Koopman** on {len(where)} of {len(results)}: {'; '.join(where)}.")
    best, cheap = [], []
    for one in results.values():
        middles = {method: median(gaps(one, method)) for method in one["rows"]}
        ours = min(middles[method] for method in ("Koopman", WHOLE) if method in middles)
        others = [value for method, value in middles.items() if not method.startswith("Koopman") and method != "L-BFGS"]
        (best if ours < min(others) else cheap).append(one["words"])
    lines.append(
        f"- Koopman ends lowest of all that use no line search on {len(best)} of {len(results)}: {'; '.join(best)}."
    )
    if cheap:
        lines.append(f"- It does not on: {'; '.join(cheap)}.")
    return "\n".join(lines)


def table_of(results: dict[str, dict]) -> str:
    """The table, in Markdown."""
    seconds = json.loads(SECONDS.read_text())["problems"]
    names = [HEADS.get(method, method) for method in (*METHODS[:-1], WHOLE, METHODS[-1])]
    rows = [row(one, seconds[name]) for name, one in results.items()]
    gaps_table = pages.markdown(("full batch (gradients): gap · time", *names), rows)
    env = [one["environment"] for one in results.values()]
    commits = dict.fromkeys(f"{(e['commit'] or 'unknown')[:10]}{' with changes' * bool(e['dirty'])}" for e in env)
    measured = f"Measured on: {env[0]['processor']}, one thread; commit {', '.join(commits)}; {env[0]['date']}."
    return "\n\n".join([gaps_table, measured])


def table(options: argparse.Namespace) -> None:
    """Write the page."""
    results = load()
    pages.update("smooth", verdict(results), "verdict")
    pages.update("smooth", table_of(results))
