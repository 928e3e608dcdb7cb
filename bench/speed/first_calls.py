"""What the first calls of a new installation take: run it, then write the page.

    python -m bench first-calls run --repeat 3    # about ten minutes on two cores; names are functions
    python -m bench first-calls table

Every public function is called in a fresh process with an empty cache of compiled kernels, again in a fresh process
whose cache that one filled, and once more where only `predict` has been called before. CPU seconds of the process, all
its threads together: other work on the machine adds little to them. JSON goes into bench/results/first-calls/.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
from statistics import median

from bench import RESULTS, ROOT
from bench.common import origin, pages
from fastkoop.checks import InputError
from fastkoop.files import write_json
from fastkoop.profile.devices import Host

FOLDER = RESULTS / "first-calls"
PREDICT, OTHERS = "predict", ("a trivial Numba function", "jax.jit(vmap(pinv))")
FUNCTIONS = {  # as the worker calls them, and the CPU seconds to reach: first of all, or after `predict`
    PREDICT: ("`predict(X, 1)`, float32, 785 x 32", 4.0),
    "fit": ("`fit(X).predict(3)`", 3.0),
    "pinv": ("`pinv(F)`", 1.5),
    "float64": ("`predict(X, 1)`, float64", 3.0),
    "wide": ("`predict(X, 1)`, 21 x 100", 3.0),
    "affine": ('`fit(X, observables=Affine(), stabilize="clip").predict(3)`', 3.0),
    "gram": ("`kernels.gram(X)`", None),
    "solve": ("`kernels.solve(S, ...)`", None),
}
IMPORTS = {"fastkoop": 0.35, "numpy, numba": None, "numpy, numba, scipy.linalg": None}
FILLED = 0.08  # CPU seconds to reach: `predict` in a new process whose cache is filled


def child(*arguments: str, cache: str | pathlib.Path) -> dict:
    """What first_calls_worker prints, from a process of its own."""
    command = [sys.executable, "-m", "bench.speed.first_calls_worker", *arguments]
    env = {**os.environ, "NUMBA_CACHE_DIR": str(cache)}
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)}: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout)


def once(names: list[str]) -> dict:
    """Every function once: with an empty cache, with the cache that this call filled, and after `predict`."""
    times: dict[str, dict] = {name: {} for name in names}
    with tempfile.TemporaryDirectory() as after:
        child("call", PREDICT, cache=after)
        for name in names:
            with tempfile.TemporaryDirectory() as empty:
                times[name]["empty"] = child("call", name, cache=empty)
                times[name]["filled"] = child("call", name, cache=empty)
            if name != PREDICT:
                with tempfile.TemporaryDirectory() as copy:
                    shutil.copytree(after, copy, dirs_exist_ok=True)
                    times[name]["after predict"] = child("call", name, PREDICT, cache=copy)
        for name in OTHERS:
            with tempfile.TemporaryDirectory() as empty:
                times[name] = {"empty": child("other", name, cache=empty)}
        imports = {name: child("import", name, cache=after) for name in IMPORTS}
    return {"calls": times, "imports": imports}


def run(options: argparse.Namespace) -> None:
    """Measure `repeat` times and write now.json, or a file in another folder."""
    if options.repeat < 1:
        raise InputError("--repeat: expected at least 1")
    names = pages.select(options.names, FUNCTIONS, "function")
    repeats, folder, environment = [], options.out or FOLDER, origin.environment(Host())
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(options.repeat):
        print(f"== repeat {number + 1} of {options.repeat}", flush=True)
        repeats.append(once(names))
        write_json(folder / "now.json", {"environment": environment, "repeats": repeats})


def seconds(results: dict, *keys: str, kind: str = "calls") -> list[float]:
    """CPU seconds of a call or an import in every repeat; empty where it was not measured or could not run."""
    found = []
    for repeat in results["repeats"]:
        value = repeat[kind]
        for key in keys:
            value = value.get(key, {})
        if value.get("cpu_seconds") is not None:
            found.append(value["cpu_seconds"])
    return found


def cell(values: list[float], goal: float | None = None) -> str:
    """Median and spread, with the figure to reach.

    >>> cell([0.2, 0.31, 0.3], 0.25), cell([4.0]), cell([])
    ('0.30 (0.20-0.31) ✗ 0.25', '4.0', '')
    """
    if not values:
        return ""
    middle = median(values)
    said = figure(middle)
    if len(values) > 1:
        said += f" ({figure(min(values))}-{figure(max(values))})"
    return said if goal is None else f"{said} {'✓' if middle <= goal else '✗'} {goal:g}"


def figure(value: float) -> str:
    """Seconds, two digits or as many as there are before the point."""
    return f"{value:.0f}" if value >= 10 else f"{value:.1f}" if value >= 1 else f"{value:.2f}"


def table_of(before: dict, now: dict) -> str:
    """Both tables, in Markdown."""
    heads = ("call", "empty cache, before", "empty cache", "after `predict`, before", "after `predict`", "cache filled")
    rows = []
    for name, (words, goal) in FUNCTIONS.items():
        first = name == PREDICT
        rows.append((
            words, cell(seconds(before, name, "empty")), cell(seconds(now, name, "empty"), goal if first else None),
            cell(seconds(before, name, "after predict")),
            cell(seconds(now, name, "after predict"), None if first else goal),
            cell(seconds(now, name, "filled"), FILLED if first else None),
        ))  # fmt: skip
    for name in OTHERS:
        rows.append((name, cell(seconds(before, name, "empty")), cell(seconds(now, name, "empty")), "", "", ""))
    imports = []
    for name, goal in IMPORTS.items():
        earlier, later = (seconds(results, name, kind="imports") for results in (before, now))
        imports.append((f"`import {name}`", cell(earlier), cell(later, goal)))
    said = [f"{label}: {origin_of(results)}" for label, results in (("Before", before), ("Now", now))]
    return "\n\n".join(
        [pages.markdown(heads, rows), pages.markdown(("import", "before", "now"), imports), "\n".join(said)]
    )


def origin_of(results: dict) -> str:
    """What a file of results comes from."""
    env = results["environment"]
    commit = (env["commit"] or "unknown")[:10] + " with changes" * bool(env["dirty"])
    machine = f"{env['processor']}, {env['cores']} cores, numba {env['versions']['numba']}"
    return f"commit {commit}, {env['date']}, {machine}; repeats: {len(results['repeats'])}."


def load() -> tuple[dict, dict]:
    """The committed results: before first calls were made faster, and now."""
    return tuple(json.loads((FOLDER / f"{name}.json").read_text()) for name in ("before", "now"))


def table(options: argparse.Namespace) -> None:
    """Write the page."""
    pages.update("first-calls", table_of(*load()))
