"""What forecast, gate, limit and jump cost beside the fit: CPU seconds and memory, in one run.

    python -m bench costs run      # a minute on a core
    python -m bench costs table

The report's network, 784-20-20-20-10, whose weights decay at a few rates, with noise of float32. Every round fits and
then asks for each of the others once, on one thread; medians over rounds, as multiples of the fit in the same round.
Memory is the peak of what NumPy allocates meanwhile, over the bytes of the recording; PyTorch's copies of the
parameters are not in it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import time
import tracemalloc
import warnings
from collections.abc import Callable
from statistics import median

import torch
from torch import nn

import fastkoop
from bench import RESULTS
from bench.common import origin, pages
from fastkoop.experiments.training import torch_threads
from fastkoop.files import write_json
from fastkoop.profile.devices import Host
from fastkoop.torch_adapter import KoopmanPhase

FILE = RESULTS / "costs" / "costs.json"
SIZES = (784, 20, 20, 20, 10)
PRESETS, PARTITIONS, PAIRS = ("smooth", "published"), ("node", "layer", "network"), (12, 48)
PARTS = ("forecast", "gate", "jump", "limit")
FAR = 64  # intervals of a jump


def recorded(preset: str, partition: str, pairs: int) -> KoopmanPhase:
    """A phase with its recording."""
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(a, b) for a, b in itertools.pairwise(SIZES)))
    cutoff = {"cutoff": "jax"} if preset == "published" else {}
    phase = KoopmanPhase(model, partition, preset=preset, capacity=pairs + 1, **cutoff)
    rates = torch.linspace(0.8, 0.995, 8)
    starts = [p.detach().clone() for p in model.parameters()]
    modes = [torch.randn(len(rates), *p.shape) / 8 for p in starts]
    for t in range(pairs + 1):
        with torch.no_grad():
            for parameter, start, mode in zip(model.parameters(), starts, modes, strict=True):
                parameter.copy_(start + torch.tensordot(rates**t, mode, 1))
        phase.record()
    return phase


def asked(phase: KoopmanPhase) -> dict[str, Callable[[], object]]:
    """What is measured, in order; each but the first finds what those before have left."""
    return {
        "fit": phase.fit, "forecast": phase.forecast, "gate": lambda: phase.jump(FAR, gate="forecast"),
        "jump": lambda: phase.jump(FAR), "limit": lambda: phase.jump(math.inf),
    }  # fmt: skip


def measure(phase: KoopmanPhase, rounds: int) -> dict:
    """CPU seconds of every part in every round, and peaks in bytes in a round of its own."""
    seconds: dict[str, list[float]] = {name: [] for name in asked(phase)}
    for number in range(rounds + 1):  # the first warms up
        for name, act in asked(phase).items():
            began = time.process_time()
            act()
            if number:
                seconds[name].append(time.process_time() - began)
            if phase.position:
                phase.rollback()
    peaks = {}
    tracemalloc.start()
    for name, act in asked(phase).items():
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        act()
        peaks[name] = tracemalloc.get_traced_memory()[1] - before
        if phase.position:
            phase.rollback()
    tracemalloc.stop()
    recording = sum(4 * phase.snapshots * p.numel() for p in phase.parts.parameters.all)
    return {"seconds": seconds, "peaks": peaks, "recording": recording}


def run(options: argparse.Namespace) -> None:
    """Measure and write the JSON."""
    found, threads = [], fastkoop.get_num_threads()
    fastkoop.set_num_threads(1)
    with torch_threads(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        for preset, partition, pairs in itertools.product(PRESETS, PARTITIONS, PAIRS):
            phase = recorded(preset, partition, pairs)
            found.append({"preset": preset, "partition": partition, "pairs": pairs, **measure(phase, options.rounds)})
            print(preset, partition, pairs, multiples(found[-1]), flush=True)
    fastkoop.set_num_threads(threads)
    FILE.parent.mkdir(parents=True, exist_ok=True)
    write_json(FILE, {"environment": origin.environment(Host()), "far": FAR, "cases": found})


def multiples(case: dict) -> dict[str, float]:
    """Of the fit's seconds in the same round; the gate is what a gated jump takes beyond a jump."""
    seconds = case["seconds"]
    found = {}
    for name in PARTS:
        taken = seconds[name]
        if name == "gate":
            taken = [max(gated - plain, 0.0) for gated, plain in zip(taken, seconds["jump"], strict=True)]
        found[name] = median(part / fit for part, fit in zip(taken, seconds["fit"], strict=True))
    return found


def table_of(results: dict) -> str:
    """The table, in Markdown."""
    heads = (
        "preset", "blocks", "pairs", *(f"{name} / fit" for name in PARTS),
        *(f"peak of {name} / recording" for name in ("fit", *PARTS)),
    )  # fmt: skip
    rows = []
    for case in results["cases"]:
        times = [f"{value:.2f}" for value in multiples(case).values()]
        peaks = [f"{case['peaks'][name] / case['recording']:.2f}" for name in ("fit", *PARTS)]
        rows.append((case["preset"], case["partition"], case["pairs"], *times, *peaks))
    return pages.markdown(heads, rows)


def verdict(results: dict) -> str:
    """Whether a forecast is small beside the fit."""
    found = [multiples(case)["forecast"] for case in results["cases"]]
    large = sum(value > 0.5 for value in found)
    return (
        f"**A forecast takes {min(found):.2f} to {max(found):.2f} of the fit's CPU time, the median case "
        f"{median(found):.2f}.** It was to be small beside it; in {large} of {len(found)} cases it is above a half."
    )


def table(options: argparse.Namespace) -> None:
    """Write the page's parts."""
    results = json.loads(FILE.read_text())
    pages.update("costs", verdict(results), "verdict")
    pages.update("costs", table_of(results))
