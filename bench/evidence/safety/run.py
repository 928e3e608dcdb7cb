"""Schedules without a guard: does a model ever end worse for them?

    python -m bench safety run                   # minutes on a core; MNIST in FASTKOOP_DATA_DIR
    python -m bench safety run dropout candidates
    python -m bench safety table

Every task is trained without jumps, with a schedule that has neither guard nor options but a cutoff (its gate is then
the forecast), and with the same schedule and gate=None, the method as published. Ends are losses on the training data,
over those of the same seed without jumps. `candidates` is where guarded jumps of noisy training end.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import warnings
from statistics import median

import numpy as np

from bench import RESULTS
from bench.common import origin, pages
from fastkoop.checks import InputError
from fastkoop.experiments.problems.mnist_files import DATA_DIR
from fastkoop.experiments.training import torch_threads
from fastkoop.files import write_json
from fastkoop.profile.devices import Host
from fastkoop.torch_adapter import KoopmanPhase, KoopmanSchedule

from . import candidates
from .tasks import TASKS, Task, final, loss

FILE = RESULTS / "safety" / "safety.json"
CUTOFFS, PARTITIONS = ("jax", "array_api"), ("node", "layer")
PACE = {"burn_in": 50, "record": 40, "jump": 40, "rest": 20}
BOUND = 1.05  # times where training ends without jumps


def trained(task: Task, seed: int, **options) -> dict:
    """Where a run ends, and what its jumps did; options: of the phase, and gate; none is without jumps."""
    model, (inputs, targets) = task.model(seed), task.data(seed)
    optimizer, schedule = task.optimizer(model.parameters()), None
    if options:
        gate = {"gate": options.pop("gate")} if "gate" in options else {}
        schedule = KoopmanSchedule(KoopmanPhase(model, **options), optimizer, **PACE, **gate)
    done = {"jumps": 0, "passed": 0, "blocks": 0, "moved": 0}
    for inputs_of, targets_of in itertools.islice(task.batches(seed, inputs, targets), task.steps):
        optimizer.zero_grad()
        loss(model, inputs_of, targets_of).backward()
        optimizer.step()
        try:
            report = None if schedule is None else schedule.step()
        except InputError:  # weights are not finite: the model is lost
            return {"end": np.inf, **done}
        if report is not None:
            done["jumps"] += 1
            done["passed"] += report.steps > 0
            done["blocks"] += sum(layer.blocks for layer in report.layers)
            done["moved"] += sum(layer.blocks - layer.kept - sum(layer.held.values()) for layer in report.layers)
    return {"end": final(model, inputs, targets), **done}


def measure(task: Task, seeds: int) -> list[dict]:
    """Runs of every cutoff and partition, and those without the gate, over the same seed's without jumps."""
    runs = []
    for seed in range(seeds):
        alone = trained(task, seed)["end"]
        for cutoff, partition, gated in itertools.product(CUTOFFS, PARTITIONS, (True, False)):
            if not gated and partition != "node":
                continue
            gate = {} if gated else {"gate": None}
            run = trained(task, seed, cutoff=cutoff, partition=partition, **gate)
            run |= {"seed": seed, "cutoff": cutoff, "partition": partition, "gated": gated}
            runs.append({**run, "alone": alone, "ratio": run["end"] / alone})
    return runs


def run(options: argparse.Namespace) -> None:
    """Measure and write the JSON; of some tasks by name, others stay as they are there."""
    if options.data_dir:
        os.environ[DATA_DIR] = options.data_dir
    names = pages.select(options.names, (*TASKS, "candidates"), "task")
    results = json.loads(FILE.read_text()) if options.names and FILE.exists() else {"tasks": {}}
    with torch_threads(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        for name in names:
            if name == "candidates":
                results["candidates"] = candidates.measure(options.seeds)
            else:
                results["tasks"][name] = measure(TASKS[name], options.seeds)
                print(f"{name}: {summary(results['tasks'][name])}", flush=True)
            FILE.parent.mkdir(parents=True, exist_ok=True)
            tasks = {name: results["tasks"][name] for name in TASKS if name in results["tasks"]}
            write_json(FILE, {**results, "environment": origin.environment(Host()), "pace": PACE, "tasks": tasks})


def summary(runs: list[dict]) -> dict:
    """Of a task's gated runs: how many, their jumps, what passed, ratios; and the worst one without the gate."""
    gated = [one for one in runs if one["gated"]]
    ratios = [ratio(one) for one in gated]
    return {
        "runs": len(gated), "jumps": sum(one["jumps"] for one in gated), "passed": sum(one["passed"] for one in gated),
        "moved": sum(one["moved"] for one in gated) / sum(one["blocks"] for one in gated), "median": median(ratios),
        "worst": max(ratios), "above": sum(value > BOUND for value in ratios),
        "without": max(ratio(one) for one in runs if not one["gated"]),
    }  # fmt: skip


def ratio(one: dict) -> float:
    """End over end without jumps; infinite where it is no number."""
    return np.inf if one["ratio"] is None else one["ratio"]


def number(value: float) -> str:
    """A ratio in a cell."""
    return "diverges" if np.isinf(value) else f"{value:.3f}" if value < 10 else f"{value:.2g}"


def table_of(results: dict) -> str:
    """The table, in Markdown."""
    heads = ("training", "runs", "jumps", "let pass", "blocks moved", "median", "worst", "above 1.05", "worst, no gate")
    rows = []
    for name, runs in results["tasks"].items():
        found = summary(runs)
        rows.append((
            TASKS[name].words, found["runs"], found["jumps"], found["passed"], f"{found['moved']:.1%}",
            number(found["median"]), number(found["worst"]), found["above"], number(found["without"]),
        ))  # fmt: skip
    return pages.markdown(heads, rows)


def verdict(results: dict) -> str:
    """Whether the bound holds, and by how much it is missed."""
    found = {name: summary(runs) for name, runs in results["tasks"].items()}
    runs, above = sum(one["runs"] for one in found.values()), sum(one["above"] for one in found.values())
    jumps, passed = sum(one["jumps"] for one in found.values()), sum(one["passed"] for one in found.values())
    said = (
        f"**{above or 'None'} of {runs} runs with a schedule and no guard {'ends' if above < 2 else 'end'} above 1.05 "
        f"times where they would be without jumps.** The gate let {passed} of {jumps} jumps pass."
    )
    missed = [f"{TASKS[name].words} ({number(one['worst'])})" for name, one in found.items() if one["above"]]
    return said + (f" Worst: {'; '.join(missed)}." if missed else "")


def table(options: argparse.Namespace) -> None:
    """Write the page's parts."""
    results = json.loads(FILE.read_text())
    pages.update("safety", verdict(results), "verdict")
    pages.update("safety", table_of(results), "schedules")
    pages.update("safety", candidates.table_of(results["candidates"]), "candidates")
