"""Koopman step against optimizer step, at the report's setting on real MNIST: run it, then write the page.

    python -m bench steps run --repeat 2    # needs FASTKOOP_DATA_DIR or --data-dir; names are optimizers
    python -m bench steps table

Every round is one whole T phase: the optimizers and the Koopman phases move on in turn, a stretch of iterations
each, so that a machine whose speed drifts treats all alike. Compilation and warm-up are not timed. Ratios are taken
within a round.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
from dataclasses import asdict

from bench import RESULTS, ROOT
from bench.common import origin, pages
from fastkoop.files import write_json

from .setting import Setting
from .tables import table_of

FOLDER = RESULTS / "steps"

# times faster than AdaDelta, eager: a step alone, a step among many, the whole phase of 2 epochs by `every`; and the
# share of an AdaDelta step that recording may take
TO_REACH = {"step": 3.0, "ahead": 10.0, "phase": {"1": 2.0, "10": 10.0}, "record": 0.05}


def environment() -> dict:
    """The machine, what is installed on it, and the commit."""
    commit = origin.commit()
    return {"machine": origin.machine(), "commit": commit["commit"], "uncommitted": commit["dirty"]}


def measure_all(setting: Setting, repeat: int, data_dir: str | None, folder: pathlib.Path = FOLDER) -> pathlib.Path:
    """Measure `repeat` times, each in a process of its own, and write one JSON file."""
    repeats = []
    for number in range(repeat):
        print(f"== repeat {number + 1} of {repeat}", flush=True)
        with tempfile.TemporaryDirectory() as scratch:
            part = pathlib.Path(scratch) / "part.json"
            command = [sys.executable, "-m", "bench.steps.once", json.dumps(asdict(setting)), str(part)]
            subprocess.run([*command, *([data_dir] if data_dir else [])], cwd=ROOT, check=True)
            repeats.append(json.loads(part.read_text()))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{setting.dataset}.json"
    write_json(path, {**environment(), "setting": asdict(setting), "to_reach": TO_REACH, "repeats": repeats})
    return path


def run(options: argparse.Namespace) -> None:
    """Measure, and print the tables."""
    optimizers = tuple(pages.select(options.names, Setting.optimizers, "optimizer"))
    measure_all(Setting(rounds=options.rounds, optimizers=optimizers), options.repeat, options.data_dir)
    print(table_of(FOLDER / "mnist.json"))


def table(options: argparse.Namespace) -> None:
    """Write the page."""
    pages.update("steps", table_of(FOLDER / "mnist.json"))
