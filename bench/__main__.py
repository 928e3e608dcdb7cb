"""The one entry: `python -m bench NAME run|table [options]`; without a name, the list of benchmarks.

`run` measures and writes JSON into bench/results; `table` writes the page in bench/pages from that JSON.
"""

from __future__ import annotations

import argparse
import importlib
import math
import pathlib
import sys
from dataclasses import dataclass

from bench import needs

if said := needs.missing():
    print(f"python -m bench: {said}", file=sys.stderr)
    raise SystemExit(2)

from fastkoop.checks import InputError

OPTIONS = {  # every option of every benchmark; each entry below names those it takes
    "names": {"nargs": "*", "metavar": "name", "help": "which of its cases or settings; all if none"},
    "--data-dir": {"help": "folder with the MNIST files; $FASTKOOP_DATA_DIR if not given"},
    "--redman-dir": {"help": "folder with the published eigenvalues; $FASTKOOP_REDMAN_DIR if not given"},
    "--rounds": {"type": int, "default": 9, "help": "interleaved rounds of a measurement"},
    "--repeat": {"type": int, "default": 2, "help": "whole measurements, whose spread is reported"},
    "--device": {"choices": ("cpu", "cuda", "emulated"), "default": "cpu"},
    "--out": {"type": pathlib.Path, "help": "folder for the results instead of bench/results"},
    "--seconds": {"type": float, "default": math.inf, "help": "begin no case later than that"},
    "--blocks": {"type": int, "help": "fewer blocks or windows than the case has, to try things out"},
    "--only-time": {"action": "store_true", "help": "neither cold starts nor peak memory"},
    "--without": {"action": "append", "default": [], "metavar": "WORD", "help": "leave out peers so named"},
    "--results": {"type": pathlib.Path, "help": "print the tables of this folder instead of writing the page"},
    "--dry-run": {"action": "store_true", "help": "on an emulated device, with tiny sizes"},
    "--seeds": {"type": int, "default": 5, "help": "runs of every setting"},
}


@dataclass(frozen=True)
class Benchmark:
    """An entry: the module that has a function for each verb, what it measures, and the options it takes."""

    module: str
    measures: str
    options: tuple[str, ...] = ("names",)
    verbs: tuple[str, ...] = ("run", "table")


BENCHMARKS = {
    "speed": Benchmark(
        "speed.run", "every case against library routines and what an expert would write",
        ("names", "--rounds", "--repeat", "--device", "--out", "--seconds", "--blocks", "--only-time", "--without",
         "--results"),
    ),
    "first-calls": Benchmark(
        "speed.first_calls", "CPU seconds of first calls: an empty cache, a filled one, imports",
        ("names", "--repeat", "--out"),
    ),
    "steps": Benchmark(
        "steps.run", "a Koopman step against an optimizer step, on MNIST",
        ("names", "--data-dir", "--rounds", "--repeat"),
    ),
    "report": Benchmark("evidence.report", "the report's experiment on MNIST", ("names", "--data-dir")),
    "pays": Benchmark("evidence.pays", "when a phase pays: all evidence, noisy and smooth", ("names", "--data-dir")),
    "smooth": Benchmark(
        "evidence.smooth.run", "full-batch training: gap to the optimum at equal gradients",
        ("names", "--data-dir", "--seeds"), ("run", "clock", "table"),
    ),
    "phases": Benchmark(
        "evidence.smooth.phases", "the same through KoopmanPhase: partitions, and velocities moved along",
        ("names", "--seeds"),
    ),
    "replaced": Benchmark(
        "evidence.smooth.replaced", "phases that replace steps: gradients and seconds to the same loss",
        ("names", "--seeds"),
    ),
    "noise": Benchmark(
        "evidence.smooth.noise", "where it stops paying: batches from full to 30, and the forecast's verdict",
        ("--seeds",),
    ),
    "forecast": Benchmark(
        "evidence.smooth.rule", "the forecast's rule on recordings that did not choose it",
        ("names", "--data-dir", "--seeds"),
    ),
    "calibration": Benchmark(
        "evidence.smooth.calibration", "what the forecast's rule was chosen on: 55 other settings", ("--data-dir",)
    ),
    "costs": Benchmark(
        "evidence.costs", "forecast, gate, limit and jump beside the fit: time and memory", ("--rounds",)
    ),
    "safety": Benchmark(
        "evidence.safety.run", "schedules without a guard, and where guarded jumps end",
        ("names", "--data-dir", "--seeds"),
    ),
    "oscillator": Benchmark("evidence.oscillator", "the paper's first experiment, 25 networks"),
    "monitor": Benchmark("evidence.monitor", "the spectrum of training, watched: cost, convergence, late generalising"),
    "pruning": Benchmark(
        "evidence.pruning", "weights pruned by modes, by magnitude and by a line", ("names", "--data-dir", "--seeds")
    ),
    "compare": Benchmark(
        "evidence.compare", "fastkoop compare on a user's own problems, and the lengths of its built-in softmax"
    ),
    "spectra": Benchmark(
        "evidence.spectra", "training runs compared by eigenvalues, as published and trained again",
        ("names", "--redman-dir", "--data-dir", "--seeds"),
    ),
    "training": Benchmark(
        "training.run", "three models, killed and resumed, on one rank and on two", ("names", "--data-dir")
    ),
    "frameworks": Benchmark("training.frameworks", "Koopman in plain loops, accelerate, Lightning and the Trainer"),
    "gpu": Benchmark(
        "gpu.run", "all that needs a GPU, in one command of under nine minutes",
        ("--out", "--dry-run", "--device", "--seconds"), ("run", "table", "kernels", "environment", "profile"),
    ),
}  # fmt: skip


def parser() -> argparse.ArgumentParser:
    """The one parser, a subparser for every benchmark."""
    whole = argparse.ArgumentParser(
        prog="python -m bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    entries = whole.add_subparsers(dest="benchmark", metavar="NAME")
    for name, benchmark in BENCHMARKS.items():
        entry = entries.add_parser(name, help=benchmark.measures, description=benchmark.measures)
        first = {"nargs": "?", "default": "run"} if name == "gpu" else {}
        entry.add_argument("verb", choices=benchmark.verbs, metavar="|".join(benchmark.verbs), **first)
        for option in benchmark.options:
            entry.add_argument(option, **OPTIONS[option])
    return whole


def listing() -> str:
    """Every benchmark's name and what it measures, a line each."""
    width = max(map(len, BENCHMARKS))
    return "\n".join(f"{name:{width}}  {benchmark.measures}" for name, benchmark in BENCHMARKS.items())


def parse(whole: argparse.ArgumentParser, arguments: list[str] | None) -> argparse.Namespace:
    """The options; names may stand before them or after them, which argparse alone does not take after a verb."""
    options, rest = whole.parse_known_args(arguments)
    if rest and (not hasattr(options, "names") or any(word.startswith("-") for word in rest)):
        whole.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        options.names += rest
    return options


def main(arguments: list[str] | None = None) -> int:
    """Run a verb of a benchmark; exit code 2 for a wrong name or option."""
    whole = parser()
    options = parse(whole, arguments)
    if options.benchmark is None:
        print(listing())
        return 0
    module = importlib.import_module(f"bench.{BENCHMARKS[options.benchmark].module}")
    try:
        return getattr(module, options.verb)(options) or 0
    except InputError as error:
        whole.error(str(error))


if __name__ == "__main__":
    sys.exit(main())
