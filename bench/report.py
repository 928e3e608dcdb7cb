"""The report's experiment on real MNIST: run every setting, then write the README's table from the JSON.

    python bench/report.py run      # about 10 minutes on two cores; needs FASTKOOP_DATA_DIR or --data-dir
    python bench/report.py table    # rewrites the part of README.md between the report's markers

Results and figures go into bench/results/report/<setting>/.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import subprocess
import sys
from statistics import median

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))

from bench import readme  # noqa: E402

RESULTS = ROOT / "bench" / "results" / "report"

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
COMMON = ["--dataset", "mnist", "--t1", "3", "--t2", "5", "--eval-every", "5"]

# what the report's figures show (read off the plots): loss along the phase, and milliseconds a step
REPORT = {
    "node-T1-jax": ("0.195 → 0.176 → 0.266", "3.2 / 1.0"),
    "layer-T1-jax": ("0.171 → 0.169 → 0.178", "28-30 / 1.0"),
    "node-T2-jax": ("→ ~1.0", ""),
    "layer-T2-jax": ("→ 0.40", ""),
}


def run(names: list[str], data_dir: str | None) -> None:
    """Run settings one after another, each in a process of its own so that its peak memory is its own."""
    for name in names:
        command = [sys.executable, "-m", "fastkoop.cli", "compare", *COMMON, *SETTINGS[name]]
        command += ["--out", str(RESULTS / name), *(["--data-dir", data_dir] if data_dir else [])]
        print(f"== {name}", flush=True)
        subprocess.run(command, check=True)


def row(name: str) -> str:
    """A line of the table: medians over the setting's seeds."""
    results = json.loads((RESULTS / name / "results.json").read_text())
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


def table() -> str:
    """The README's table, in Markdown, of the settings that have results."""
    heads = (
        "setting", "seeds", "Koopman loss: start → lowest → end", "the report's", "AdaDelta's end", "mean of recorded",
        "step: AdaDelta / Koopman", "the report's ms, Koopman / AdaDelta", "phase walked", "phase jumped",
        "ranks by layer (seed 0)", "peak GB",
    )  # fmt: skip
    lines = ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
    return "\n".join(lines + [row(name) for name in SETTINGS if (RESULTS / name / "results.json").exists()])


def main() -> None:
    """Run settings, or write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "table"))
    parser.add_argument("settings", nargs="*", metavar="setting", help=f"of {', '.join(SETTINGS)}; all if none")
    parser.add_argument("--data-dir", help="folder with the MNIST files")
    options = parser.parse_args()
    unknown = [name for name in options.settings if name not in SETTINGS]
    if unknown:
        parser.error(f"unknown setting {unknown[0]}; expected one of {', '.join(SETTINGS)}")
    if options.what == "run":
        run(options.settings or list(SETTINGS), options.data_dir)
    readme.update("report", table())


if __name__ == "__main__":
    main()
