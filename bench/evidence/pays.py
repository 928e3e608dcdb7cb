"""Does a Koopman phase pay? All of the evidence, noisy and smooth, five seeds.

    python -m bench pays run            # two hours on two cores; needs FASTKOOP_DATA_DIR or --data-dir
    python -m bench pays run report     # the parts whose names begin so
    python -m bench pays table          # its page, the guide's and the README's verdict

Noisy: real MNIST, in the report's network and optimizer.

- sweep: settings x partitions on the same recordings, T = 1, 2, 5 and 10 epochs, 10 000 validation images;
- report: the recommended settings in the report's exact setting (60 000 images, 1876 iterates), baselines beside them;
- phases: a whole run with several phases, against the optimizer alone and its averages;
- tried: other options and recordings, again chosen by validation;
- momentum: velocities among the observables, or not;
- candidates: mean and line among a jump's ends, and jumps that the forecast gates.

Smooth, and in between: the benchmarks smooth, replaced, by-phases, noise and forecast as parts of those names.
Results go into bench/results/pays/ and bench/results/smooth/.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys

import numpy as np

from bench import RESULTS
from bench.common import pages
from bench.common.pages import keep_json, markdown
from bench.evidence import candidates, when
from bench.evidence.smooth import noise, replaced, rule
from bench.evidence.smooth import phases as by_phases
from bench.evidence.smooth import run as smooth
from fastkoop.checks import InputError
from fastkoop.experiments import phases, verdict
from fastkoop.experiments.paired import Paired, paired
from fastkoop.experiments.sweep import baseline, best_baseline, never_diverges, ranking

FOLDER = RESULTS / "pays"
PARTITIONS = ("node", "layer", "network")
WINDOW = 130  # a twelfth of what is recorded of 50 000 images
GRID = (
    f"partition=node,layer,network;window=1,20,{WINDOW};cutoff=array_api,jax,rank:1;stabilize=none,clip,0.875,project;"
    "observables=identity,affine"
)
RATHER = "partition=network;window={};stabilize=0.875,project;observables=affine;cutoff=array_api,rank:1,rank:2,rank:8"
COMMON = ["--problem", "mnist", "--t1", "3", "--t2", "5", "--seeds", "5"]
JOBS = {  # name -> a command of fastkoop and its options
    "sweep": ["sweep", *COMMON, "--T", "10", "--validation", "10000", "--grid", GRID],
    **{
        f"report-{partition}": ["compare", *COMMON, "--T", "2", "--preset", "noisy", "--partition", partition,
                                "--eval-every", "156"]
        for partition in PARTITIONS
    },
    **{
        f"phases-{name}": ["phases", "--problem", "mnist", "--t1", "2", "--t2", "4", "--T", "2", "--phases", "4",
                           "--seeds", "5", "--validation", "10000", "--partition", "network", *options]
        for name, options in {
            "recommended": ["--preset", "noisy", "--line", "0.333"],
            "guarded": ["--preset", "noisy", "--horizon", "auto"],
            "published": ["--cutoff", "jax"],
            "sgd": ["--optimizer", "sgd", "--lr", "0.01", "--observables", "affine", "--stabilize", "project",
                    "--window", "195", "--line", "2"],
        }.items()
    },
    **{
        f"tried-{name}": ["sweep", "--problem", "mnist", "--T", "2", "--seeds", "5", "--validation", "10000", *options]
        for name, options in {
            "options": ["--t1", "3", "--t2", "5", "--grid", "partition=layer,network;window=20,130;stabilize=project;"
                        "observables=affine;cutoff=array_api,svht,energy:0.99,rank:2,rank:8"],
            "delay": ["--t1", "3", "--t2", "5", "--grid", "partition=layer,network;window=20,130;stabilize=clip,0.98,"
                      "0.875;observables=affine+delay:2;cutoff=array_api,rank:1,rank:2,rank:8"],
            "carry": ["--t1", "3", "--t2", "5", "--grid", "partition=layer,network;window=130;stabilize=0.875,project;"
                      "observables=affine;cutoff=array_api,rank:1,rank:8;out_of_span=carry"],
            "short": ["--t1", "4", "--t2", "5", "--grid", RATHER.format(65)],
            "long": ["--t1", "2", "--t2", "5", "--grid", RATHER.format(195)],
            "early": ["--t1", "1", "--t2", "3", "--grid", RATHER.format(130)],
            "start": ["--t1", "0", "--t2", "2", "--grid", RATHER.format(130)],
        }.items()
    },
    **{
        f"momentum-{name}": ["compare", *COMMON, "--T", "2", "--partition", "layer", "--optimizer", "momentum",
                             "--eval-every", "156", "--window", "130", "--stabilize", "0.98",
                             "--observables", observables]
        for name, observables in {"without": "affine", "with": "affine,momentum"}.items()
    },
}  # fmt: skip
PARTS = {
    "candidates": candidates.run, "smooth": smooth.run, "replaced": replaced.run, "by-phases": by_phases.run,
    "noise": noise.run, "forecast": rule.run,
}  # fmt: skip
SHOWN = (  # settings of the sweep that the page shows: cutoff, stabilize, observables, window, what they are
    ("array_api", None, "identity", 1, "published, `array_api`"),
    ("jax", None, "identity", 1, "published, `jax`"),
    ("jax", "clip", "identity", 1, "`jax`, clipped at 1"),
    ("Rank(k=1)", "clip", "identity", 1, "rank 1, clipped: a projection, the null model"),
    ("array_api", "project", "Affine()", 1, "affine, projected"),
    ("array_api", "project", "Affine()", 20, "affine, projected, means of 20"),
    ("Rank(k=1)", 0.875, "Affine()", WINDOW, "**recommended**: affine, rank 1, radius 0.875, 12 means"),
)
TRIED = (  # job, words, which of its settings
    ("options", "`array_api`", {"cutoff": "array_api"}),
    ("options", "`svht`", {"cutoff": "svht"}),
    ("options", "`Energy(0.99)`", {"cutoff": "Energy(share=0.99)"}),
    ("options", "`Rank(2)`", {"cutoff": "Rank(k=2)"}),
    ("options", "`Rank(8)`", {"cutoff": "Rank(k=8)"}),
    ("delay", "`Delay(2)`, two means at a time", {}),
    ("carry", "what snapshots do not span carried along", {"out_of_span": "carry"}),
    ("short", "recording epoch 5 only", {}),
    ("long", "recording epochs 3 to 5", {}),
    ("early", "recording epochs 2 and 3", {}),
    ("start", "recording epochs 1 and 2", {}),
)
PHASES = {
    "recommended": "AdaDelta, recommended",
    "guarded": "AdaDelta, recommended, as far as validation likes",
    "published": "AdaDelta, published, `jax`",
    "sgd": "SGD, lr 0.01: affine, projected, 8 means",
}


def chosen(names: list[str]) -> list[str]:
    """Jobs and parts that begin with one of the names; all if there are none."""
    known = (*JOBS, *PARTS)
    for name in names:
        if not any(job.startswith(name) for job in known):
            raise InputError(f"job: expected the beginning of one of {', '.join(known)}, got {name!r}")
    return [job for job in known if not names or any(map(job.startswith, names))]


def run(options: argparse.Namespace) -> None:
    """Run jobs one after another, each in a process of its own, and parts."""
    for name in chosen(options.names):
        print(f"== {name}", flush=True)
        if name in PARTS:
            PARTS[name](argparse.Namespace(names=[], data_dir=options.data_dir, seeds=5))
            continue
        verb, *words = JOBS[name]
        command = [sys.executable, "-m", "fastkoop.cli", verb, *words, "--out", str(FOLDER / name)]
        subprocess.run([*command, *(["--data-dir", options.data_dir] if options.data_dir else [])], check=True)
        keep_json(FOLDER / name)


def read(name: str, file: str) -> dict:
    """A job's results, complete; None in them is a loss that diverged."""
    results = json.loads((FOLDER / name / file).read_text())
    if not results["complete"]:
        raise SystemExit(f"{name}: only a part of its seeds is done; run it to its end")
    return results


def short(found: Paired) -> str:
    """A comparison in a cell."""
    if not found.comparable:
        return str(found)
    return f"{found.share:+.1%} ({found.wins}/{found.seeds}, p = {found.p:.2g})".replace("-", "−")


def in_words(setting: dict) -> str:
    """A setting of a sweep in a cell."""
    observables = (
        setting["observables"].replace("Delay(2) with Affine()", "delays, affine").replace("Affine()", "affine")
    )
    held = {None: "free", 1.0: "clipped"}.get(setting["stabilize"], setting["stabilize"])
    stabilize = f"radius {held}" if isinstance(held, float) else {"project": "projected"}.get(held, held)
    return f"{setting['partition']}, {observables}, `{setting['cutoff']}`, {stabilize}, means of {setting['window']}"


def settings_table() -> str:
    """Test losses of settings by partition and T, means over seeds; bold where every seed stays below the optimizer."""
    results = read("sweep", "sweep.json")
    at = [1, 2, 10]
    heads = ("setting", *(f"{partition}, T = {' / '.join(map(str, at))}" for partition in PARTITIONS))
    lines = []
    for cutoff, stabilize, observables, window, words in SHOWN:
        cells = []
        for partition in PARTITIONS:
            wanted = {"partition": partition, "window": window, "observables": observables, "stabilize": stabilize,
                      "cutoff": cutoff, "out_of_span": "drop"}  # fmt: skip
            i = results["settings"].index(wanted)
            runs = [run for run in results["runs"] if run["setting"] == i]
            losses = [_mean([run["test_loss"][results["horizons"].index(T)] for run in runs]) for T in at]
            safe = " ✓" if never_diverges(results, i) else ""
            cells.append(" / ".join(losses) + safe)
        lines.append((words, *cells))
    moving, line = (best_baseline(results, kind) for kind in ("moving", "line"))
    free = {
        "start": "no jump", "mean": "mean of all recorded (SWA)",
        moving: f"best moving average, decay {moving.split()[1]}",
        line: f"best line, {float(line.split()[1]):.1%} of the recording past its last iterate",
    }  # fmt: skip
    for name, words in free.items():
        lines.append((words, f"{np.mean(baseline(results, name, 'test_loss')):.4f}", "", ""))
    alone = {"AdaDelta's last iterate": "optimizer", "AdaDelta's mean of its last two epochs": "optimizer mean"}
    for words, name in alone.items():
        losses = (f"{np.mean(baseline(results, f'{name} {T}', 'test_loss')):.4f}" for T in at)
        lines.append((words, " / ".join(losses), "", ""))
    chosen = in_words(results["settings"][ranking(results)[0][1]])
    said = (
        "✓: never diverges: on every seed and at T = 1, 2, 5 and 10 below where the jump set out. "
        f"Of {len(results['settings'])} settings the best at T = 10 by validation: {chosen}."
    )
    return markdown(heads, lines) + "\n\n" + said


def _mean(losses: list[float | None]) -> str:
    if None in losses or max(losses) > 1e3:
        return "∞"
    return f"{np.mean(losses):.4f}" if max(losses) < 10 else f"{np.mean(losses):.2g}"


def baselines_table() -> str:
    """The recommended settings in the report's exact setting, beside what costs next to nothing."""
    found = {partition: read(f"report-{partition}", "results.json") for partition in PARTITIONS}
    heads = ("against", "its test loss", *(f"Koopman, {partition}" for partition in PARTITIONS))
    name = "AdaDelta"
    lines = [("its own", "", *(verdict.spread([run["koopman"]["jumped"]["test_loss"] for run in results["runs"]])
                        for results in found.values()))]  # fmt: skip
    for key, label in verdict.BASELINES.items():
        if any(key not in run["baselines"] for results in found.values() for run in results["runs"]):
            continue
        own = [run["baselines"][key]["test_loss"] for run in found["node"]["runs"]]
        cells = []
        for results in found.values():
            theirs = [run["baselines"][key]["test_loss"] for run in results["runs"]]
            cells.append(short(paired([run["koopman"]["jumped"]["test_loss"] for run in results["runs"]], theirs)))
        lines.append((label.format(name=name), verdict.spread(own), *cells))
    means = {partition: [np.mean(run["optimizer"]["test_loss"][1:]) for run in results["runs"]]
             for partition, results in found.items()}  # fmt: skip
    cells = []
    for partition, results in found.items():
        ends = [run["koopman"]["jumped"]["test_loss"] for run in results["runs"]]
        cells.append(short(paired(ends, means[partition])))
    lines.append((f"{name}'s losses on the way, their mean", verdict.spread(means["node"]), *cells))
    cells = []
    for results in found.values():
        cells.append(f"{np.median([run['koopman']['jumped']['from_mean'] for run in results['runs']]):.2f}")
    lines.append(("distance from the mean, over the last iterate's", "", *cells))
    return markdown(heads, lines)


def tried_table() -> str:
    """Other options and recordings: of each the best by validation, beside averages and the line."""
    heads = ("tried", "best of it by validation", "test loss, T = 2", "against the best moving average",
             "against the best line", "against the mean (SWA)")  # fmt: skip
    lines = []
    for job, words, wanted in TRIED:
        results = read(f"tried-{job}", "sweep.json")
        fits = (i for _, i in ranking(results) if wanted.items() <= results["settings"][i].items())
        i = next(fits)
        losses = [run["test_loss"][-1] for run in results["runs"] if run["setting"] == i]
        names = best_baseline(results, "moving"), best_baseline(results, "line"), "mean"
        against = (short(paired(losses, baseline(results, name, "test_loss"))) for name in names)
        lines.append((words, in_words(results["settings"][i]), f"{np.mean(losses):.4f}", *against))
    found = {name: read(f"momentum-{name}", "results.json")["runs"] for name in ("without", "with")}
    for name, runs in found.items():
        losses = [run["koopman"]["jumped"]["test_loss"] for run in runs]
        against = (
            short(paired(losses, [run["baselines"][key]["test_loss"] for run in runs]))
            for key in ("moving", "line", "mean")
        )
        words = "layer, affine, `array_api`, radius 0.98, means of 130"
        lines.append((f"SGD with momentum, {name} velocities observed", words, f"{np.mean(losses):.4f}", *against))
    return markdown(heads, lines)


def phases_table() -> str:
    """Whole runs with four phases, against none, and against jumps along a line."""
    heads = ("run", "gradients", "seconds", "test loss", "of the moving average", "Koopman's moving average is",
             "at equal seconds")  # fmt: skip
    lines = []
    for name, words in PHASES.items():
        results = read(f"phases-{name}", "phases.json")
        for run in results["runs"]:  # diverged is infinite
            for side in set(phases.SIDES) & set(run):
                run[side]["test_loss"] = [math.inf if loss is None else loss for loss in run[side]["test_loss"]]
        held = {name: short(found) for name, found in phases.comparisons(results).items()}
        rows = {row[0]: row[1:] for row in phases.rows(results)}
        gone = np.mean([jump["steps"] for run in results["runs"] for jump in run["jumps"] if "steps" in jump])
        lines.append((f"{words}; jumps of {gone:.0f} iterations", *rows["koopman"], "", ""))
        if "line" in rows:
            ahead = f"jumps along the line, {results['ahead']:.2g} epochs ahead"
            lines.append((f"- {ahead}", *rows["line"], held["moving average, jumps along the line"], ""))
        equal = [held[f"moving average, equal {what}"] for what in ("gradients", "seconds")]
        through = held["moving average, the optimizer through all that the jumps stood for"]
        ends = [
            (phases.seconds_of(run, "optimizer", results["gradients"]),
             *(phases.at_gradients(run, side, results["gradients"]) for side in ("optimizer", "optimizer moving")))
            for run in results["runs"]
        ]  # fmt: skip
        seconds, last, moving = np.median(np.array(ends, float), axis=0)
        lines.append(("- no jumps", rows["koopman"][0], f"{seconds:.3g}", f"{last:.4f}", f"{moving:.4f}", *equal))
        lines.append(("- no jumps, through all that they stood for", *rows["optimizer"], through, ""))
    return markdown(heads, lines)


TABLES = {
    "settings": settings_table, "baselines": baselines_table, "tried": tried_table, "phases": phases_table,
    "candidates": candidates.table_of,
}  # fmt: skip


def table(options: argparse.Namespace) -> None:
    """Write the page."""
    for part, text in TABLES.items():
        pages.update("pays", text(), part)
    when.write()
