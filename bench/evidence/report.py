"""The report's experiment on real MNIST: run every setting, then write the page from the JSON.

    python -m bench report run      # about 10 minutes on two cores; needs FASTKOOP_DATA_DIR or --data-dir
    python -m bench report table

Results go into bench/results/report/<setting>/.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile
from statistics import median

from bench import PAGES, RESULTS
from bench.common import pages
from bench.common.pages import keep_json

FOLDER = RESULTS / "report"

# setting -> options of `fastkoop compare`; three seeds where the report has figures to stand beside
SETTINGS = {
    "node-T1-jax": ["--partition", "node", "--T", "1", "--cutoff", "jax", "--seeds", "3"],
    "node-T2-jax": ["--partition", "node", "--T", "2", "--cutoff", "jax", "--seeds", "3"],
    "layer-T1-jax": ["--partition", "layer", "--T", "1", "--cutoff", "jax", "--seeds", "3"],
    "layer-T2-jax": ["--partition", "layer", "--T", "2", "--cutoff", "jax", "--seeds", "3"],
    "node-T2-array_api": ["--partition", "node", "--T", "2", "--cutoff", "array_api", "--seeds", "3"],
    "weight-T1-jax": ["--partition", "weight", "--T", "1", "--cutoff", "jax"],
    "quasi-node-98-T1-jax": ["--partition", "quasi-node", "--q", "98", "--T", "1", "--cutoff", "jax"],
    "quasi-node-100-T1-jax": ["--partition", "quasi-node", "--q", "100", "--T", "1", "--cutoff", "jax"],
    "network-T1-jax": ["--partition", "network", "--T", "1", "--cutoff", "jax"],
}
COMMON = ["--problem", "mnist", "--t1", "3", "--t2", "5", "--eval-every", "5"]

# what the report's figures show (read off the plots): loss along the phase, and milliseconds a step
REPORT = {
    "node-T1-jax": ("0.195 → 0.176 → 0.266", "3.2 / 1.0"),
    "layer-T1-jax": ("0.171 → 0.169 → 0.178", "28-30 / 1.0"),
    "node-T2-jax": ("→ ~1.0", ""),
    "layer-T2-jax": ("→ 0.40", ""),
}


def run(options: argparse.Namespace) -> None:
    """Run settings one after another, each in a process of its own so that its peak memory is its own."""
    for name in pages.select(options.names, SETTINGS, "setting"):
        command = [sys.executable, "-m", "fastkoop.cli", "compare", *COMMON, *SETTINGS[name]]
        command += ["--out", str(FOLDER / name), *(["--data-dir", options.data_dir] if options.data_dir else [])]
        print(f"== {name}", flush=True)
        subprocess.run(command, check=True)
        keep_json(FOLDER / name)


def row(name: str) -> str:
    """A line of the table: medians over the setting's seeds."""
    results = json.loads((FOLDER / name / "results.json").read_text())
    runs = results["runs"]

    def over(value) -> float:
        return median(value(one) for one in runs)

    def loss(side: str, at) -> str:
        values = [at(one[side]["test_loss"]) for one in runs]
        return "∞" if None in values else f"{median(values):.3f}"

    lowest = loss("koopman", lambda losses: min(value for value in losses if value is not None))
    step = over(lambda one: median(one["optimizer"]["step_seconds"]) / median(one["koopman"]["step_seconds"]))
    walked = over(lambda one: sum(one["optimizer"]["step_seconds"]) / _cost(one, sum(one["koopman"]["step_seconds"])))
    jumped = over(lambda one: sum(one["optimizer"]["step_seconds"]) / _cost(one, one["koopman"]["jump_seconds"]))
    spans = runs[0]["koopman"]["rank"].values()
    ranks = " ".join(f"{low}-{high}" if low < high else str(low) for low, _, high in spans)
    said, milliseconds = REPORT.get(name, ("", ""))
    cells = [
        name.replace("-T", ", T = ").replace("-jax", ", jax").replace("-array_api", ", array_api"),
        str(len(runs)),
        f"{loss('koopman', lambda losses: losses[0])} → {lowest} → {loss('koopman', lambda losses: losses[-1])}",
        said,
        loss("optimizer", lambda losses: losses[-1]),
        f"{over(lambda one: one['average']['test_loss']):.3f}",
        f"{step:.1f}",
        milliseconds,
        f"{walked:.2f}",
        f"{jumped:.2f}",
        ranks,
        f"{results['machine']['peak_memory_bytes'] / 1e9:.2f}",
    ]
    return "| " + " | ".join(cells) + " |"


def _cost(run: dict, moving: float) -> float:
    return run["koopman"]["record_seconds"] + run["koopman"]["fit_seconds"] + moving


def table_of() -> str:
    """The table, in Markdown, of the settings that have results."""
    heads = (
        "setting", "seeds", "Koopman loss: start → lowest → end", "the report's", "AdaDelta's end", "mean of recorded",
        "step: AdaDelta / Koopman", "the report's ms, Koopman / AdaDelta", "phase walked", "phase jumped",
        "ranks by layer (seed 0)", "peak GB",
    )  # fmt: skip
    lines = ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
    return "\n".join(lines + [row(name) for name in SETTINGS if (FOLDER / name / "results.json").exists()])


def picture() -> None:
    """Draw the losses of the published method, which the README shows."""
    from fastkoop.experiments import figures

    results = json.loads((FOLDER / "node-T2-jax" / "results.json").read_text())
    with tempfile.TemporaryDirectory() as folder:
        figures.draw(results, None, pathlib.Path(folder))
        shutil.move(pathlib.Path(folder) / "loss.png", PAGES / "report-loss.png")


def table(options: argparse.Namespace) -> None:
    """Write the page and draw its picture."""
    pages.update("report", table_of())
    picture()
