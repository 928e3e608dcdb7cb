"""`fastkoop compare` on problems that the package does not know, and the lengths of its built-in softmax regression.

    python -m bench compare run [problems] [lengths] [softmax]     # `problems` needs MNIST
    python -m bench compare table

`lengths` chooses t1, recorded iterations and T on seeds 100 to 104: of the grid, the triple with the largest gain on
its worst seed, the gain being the best loss that costs no further gradient over the loss after one jump. `softmax`
judges the choice on seeds 0 to 4.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

from bench import PAGES, RESULTS, ROOT
from bench.common import origin, pages
from fastkoop.backends import kernels
from fastkoop.experiments.averages import weights_of
from fastkoop.experiments.compare import compare
from fastkoop.experiments.config import Config, prepare
from fastkoop.experiments.results import Results
from fastkoop.experiments.runs import Recorded, silent
from fastkoop.experiments.training import torch_threads
from fastkoop.experiments.verdict import FREE, jump_loss, pays
from fastkoop.files import write_json
from fastkoop.profile.devices import Host

FOLDER = RESULTS / "compare"
PROBLEMS = {
    "convnet": ("conv_net.py:ConvNet", "convolutional net with BatchNorm, MNIST, SGD with momentum and a scheduler"),
    "characters": ("transformer.py:Characters", "character-level transformer with dropout, batches without a length"),
    "physics": ("physics.py:Physics", "physics-informed net, float64, full batches"),
    "regression": ("regression.py:Regression", "linear regression, float64, full batches, optimum known"),
}
USER = ROOT / "tests" / "fastkoop" / "experiments" / "user"
SEEDS, CHOICE_SEEDS = 3, (100, 101, 102, 103, 104)
BEFORE, RECORDED, PHASE = (50, 100, 200), (40, 80, 160), (500, 1000, 2000)  # t1, iterations recorded, T


def problems() -> dict:
    """Every problem by the command, when all kernels have been compiled."""
    kernels.warm_up(all=True)
    return {name: _timed(target) for name, (target, _) in PROBLEMS.items()}


def _timed(target: str) -> dict:
    with tempfile.TemporaryDirectory() as out:
        given = ["compare", "--problem", str(USER / target), "--seeds", str(SEEDS), "--out", out]
        before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run([sys.executable, "-m", "fastkoop.cli", *given], check=True, stdout=subprocess.DEVNULL)
        spent, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
        results = Results.read(out)
    runs, cpu = results["runs"], sum(getattr(after, k) - getattr(before, k) for k in ("ru_utime", "ru_stime"))
    return {
        "wall_seconds": spent, "cpu_seconds": cpu, "busy": os.getloadavg()[0], "verdict": results.verdict,
        "pays": [pays(run) for run in runs], "forecast": [run["koopman"]["forecast"]["pays"] for run in runs],
    }  # fmt: skip


def lengths() -> dict:
    """The gain of one jump on every seed, of every triple."""
    gains = []
    for before, recorded, phase in itertools.product(BEFORE, RECORDED, PHASE):
        spans = {"t1": f"{before}it", "t2": f"{before + recorded}it", "T": f"{phase}it"}
        setup = prepare(Config.of(problem="softmax", out=None, **spans))
        with torch_threads(1):
            gains.append([before, recorded, phase, [_gain(setup, seed) for seed in CHOICE_SEEDS]])
    return {"seeds": list(CHOICE_SEEDS), "gains": gains, "chosen": max(gains, key=lambda row: min(row[3]))[:3]}


def _gain(setup, seed: int) -> float:
    recorded = Recorded(setup, seed, silent)
    free = min(recorded.judge(recorded.model, recorded.baselines[key].outcome().weights)["test_loss"] for key in FREE)
    recorded.judge(recorded.model, recorded.start)
    recorded.phase.fit()
    recorded.phase.jump(recorded.final)
    jumped = recorded.judge(recorded.model, weights_of(recorded.model))["test_loss"]
    return free / jumped if math.isfinite(jumped) else 0.0


def softmax() -> dict:
    """The built-in problem on seeds that did not choose its lengths."""
    results = compare(Config.of(problem="softmax", seeds=5, eval_every=100, out=None))
    rows = []
    for run in results["runs"]:
        ends = {key: entry["test_loss"] for key, entry in run["baselines"].items()}
        rows.append({"seed": run["seed"], "jump": jump_loss(run), "pays": pays(run),
                     "forecast": run["koopman"]["forecast"]["pays"], "baselines": ends})  # fmt: skip
    return {"verdict": results.verdict, "runs": rows}


PARTS: dict[str, Callable[[], dict]] = {"problems": problems, "lengths": lengths, "softmax": softmax}


def run(options: argparse.Namespace) -> None:
    """Measure the parts that were asked for."""
    FOLDER.mkdir(exist_ok=True)
    for name in pages.select(options.names, list(PARTS), "part"):
        print(f"== {name}", flush=True)
        write_json(FOLDER / f"{name}.json", {"environment": origin.environment(Host()), **PARTS[name]()})


def read(name: str) -> dict:
    """A part's committed results."""
    return json.loads((FOLDER / f"{name}.json").read_text())


def problem_table() -> str:
    """What a stranger's problems take, and what is said of them."""
    rows = []
    for name, (target, what) in PROBLEMS.items():
        entry = read("problems")[name]
        right = sum(a == b for a, b in zip(entry["pays"], entry["forecast"], strict=True))
        command = f"`fastkoop compare --problem {target} --seeds {SEEDS}`"
        rows.append([
            f"{name}: {what}", command, f"{entry['wall_seconds']:.0f} s", f"{entry['cpu_seconds']:.0f} s",
            entry["verdict"].partition(":")[0], f"right on {right} of {SEEDS}",
        ])  # fmt: skip
    return pages.markdown(("problem", "command", "wall", "CPU", "verdict", "forecast"), rows)


def length_table() -> str:
    """The worst seed's gain of every triple; the chosen one in bold."""
    found = read("lengths")
    worst = {tuple(row[:3]): min(row[3]) for row in found["gains"]}
    chosen = tuple(found["chosen"])

    def cell(key: tuple) -> str:
        return f"**{worst[key]:.3g}**" if key == chosen else f"{worst[key]:.3g}"

    rows = [
        [before, recorded, *(cell((before, recorded, phase)) for phase in PHASE)]
        for before, recorded in itertools.product(BEFORE, RECORDED)
    ]
    return pages.markdown(("t1", "recorded", *(f"T = {phase}" for phase in PHASE)), rows)


def softmax_table() -> str:
    """Gaps to the optimum by seed."""
    shown = {"start": "no jump", "line": "line", "anderson": "Anderson", "optimizer": "gradient descent",
             "nesterov": "Nesterov", "l-bfgs": "L-BFGS"}  # fmt: skip
    rows = [
        [run["seed"], f"{run['jump']:.3g}", *(f"{run['baselines'][key]:.3g}" for key in shown),
         "yes" if run["forecast"] else "no", "yes" if run["pays"] else "no"]
        for run in read("softmax")["runs"]
    ]  # fmt: skip
    return pages.markdown(("seed", "one jump", *shown.values(), "forecast: pays", "pays"), rows)


def table(options: argparse.Namespace) -> None:
    """Write the page's three parts."""
    for part, text in (("problems", problem_table()), ("lengths", length_table()), ("softmax", softmax_table())):
        pages.update("compare", text, part)
    print(PAGES / "compare.md")
