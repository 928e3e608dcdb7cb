"""Cycles a block of the CUDA kernels takes, before and after: machine code times trip counts; nothing was measured.

    python -m bench.gpu.cycles after FILE     # keeps the loops of FILE, which a reader of machine code wrote
    python -m bench gpu table                 # writes the table into bench/pages/cuda.md

bench/results/cuda/loops.json holds registers, spilled bytes and every innermost loop of both versions: its source line
and the cycles of one warp for an iteration, read from sm_90 machine code by a model of the scheduler that knows
latencies and issue slots, not caches nor other warps: good to +-35%. bench/results/cuda/cycles.json says which of them
a stage of the kernels is, or has a sum by hand where straight code and barriers are in no loop. How often each turns
follows here from the launch (kernels/cuda/launch.py). Warps of a CTA work side by side, so a block takes what its
busiest warp does; a multiprocessor holds several CTAs, whose waits hide each other's.
"""

from __future__ import annotations

import json
import math
import pathlib
import sys

from bench import RESULTS
from bench.common import pages
from bench.speed.cases import Case, select
from fastkoop import backends
from fastkoop.checks import InputError
from fastkoop.files import write_json
from fastkoop.kernels.cuda import launch as cuda

from . import predictions

FILE, LOOPS = RESULTS / "cuda" / "cycles.json", RESULTS / "cuda" / "loops.json"
CASES = ("A8", "A16", "A32", "A64", "B11", "B21", "R32")
TARGETS = {"A8": 18, "A16": 22, "A32": 55, "A64": 150, "B11": 20, "B21": 75, "R32": 150}  # thousands
CLOCK = 1.755e9  # Hz, of an H200 under load, by its datasheet's boost less a tenth
WARP, PANEL = 32, 8
CHECKS, POWERS, NORMS = 3, 5, 6  # of R32's Jacobi: looks for what is left, products of its corrections, norms of rows


def counts(n: int, m: int, truncated: bool = False) -> dict[str, float]:
    """How often the loops of `predict`, and of `solve` where blocks are truncated, turn for one block.

    >>> counts(785, 8)["group"], counts(785, 32)["panel"]
    (98.125, 4)
    """
    wide = n <= m
    shape = cuda.shape_of("predict", n, m, m + 1, wide, predictions.SIZE)
    how = cuda.launch_of(shape, predictions.H200)
    order, rows, warps = min(n, m), shape.rows, how.threads // WARP
    tiles = math.ceil(shape.lines / how.tile)
    columns = range(order)
    update = sum(
        math.ceil((height - first) / 8) - k
        for height in (order, order + 1)
        for first in range(PANEL, order, PANEL)
        for k in range(math.ceil((order - first) / 8))
    )
    again = shape.lines - how.tile if tiles > 1 else 0  # weights that are read again
    eigen = cuda.small_launch(order, 0).threads // WARP
    eighths = math.ceil(order / 8)
    return {
        "block": 1,
        "tile": tiles,
        "row": math.ceil(rows / warps) * tiles,  # of a tile, by a warp
        "number": math.ceil(rows / warps) * shape.lines / WARP,  # of a row, by a lane
        "vector": math.ceil(rows / warps) * shape.lines * predictions.SIZE / 16 / WARP,
        "group": shape.lines / 4 / warps,  # of four lines, by a warp
        "warp": warps,
        "two warps": math.ceil(warps / 2),
        "order": order,
        "square": order * order / WARP,  # entries, by a lane of the only warp
        "entry": (order + 1) ** 2 / how.threads,
        "four rows": math.ceil(rows / (4 * warps)) * math.ceil(rows / WARP),
        "column": order,
        "pair of columns": sum(math.ceil((order - 1 - k) / warps) for k in columns),
        "entries of a pair": sum(
            math.ceil((order - 1 - k) / warps) * math.ceil((order - k) / 2 / WARP) for k in columns
        ),
        "panel": math.ceil(order / PANEL),
        "tile behind a panel": update / warps,
        "eight columns": math.ceil(order / 8),
        "weight": math.ceil(n / how.threads) if not wide else 0,
        "product": math.ceil((n - again) / how.threads) * m if not wide else 0,
        "product again": math.ceil(again / how.threads) * m if not wide else 0,
        "line product": math.ceil(shape.lines / how.threads) * n if wide else 0,
        "row product": math.ceil(n / warps) * shape.lines / WARP if wide else 0,
        "wide row": math.ceil(n / warps) * tiles if wide else 0,
        "round": (order - 1 + order % 2) if truncated else 0,
        "pair of a round": (order - 1 + order % 2) * math.ceil((order + 1) // 2 / eigen) if truncated else 0,
        "eigen column": order if truncated else 0,
        "reduced": order * order / (WARP * eigen) if truncated else 0,
        "rows of eight": math.ceil(order / (8 * eigen)) if truncated else 0,
        "norm": NORMS * math.ceil(order / (4 * eigen)) if truncated else 0,
        "check tile": CHECKS * math.ceil(eighths * (eighths + 1) / 2 / eigen) if truncated else 0,
        "correction step": POWERS * math.ceil(eighths / eigen) * math.ceil(order / 16) if truncated else 0,
        "entry of a sort": order if truncated else 0,
        "halving": 1 + math.ceil(math.log2(order)) if truncated else 0,
        "edge entry": order if truncated else 0,
        "truncated": int(truncated),
    }


def cost(constant: float | dict, loops: list) -> tuple[float, float]:
    """Cycles a turn, and how many of them were read from machine code.

    >>> cost(40, []), cost({"loop": "a.cu:3", "of": 4, "plus": 10}, [["a.cu:3 in b.cu:7", 80], ["a.cu:9", 1]])
    ((40, 0), (30.0, 20.0))
    """
    if not isinstance(constant, dict):
        return constant, 0
    place = constant["loop"]
    found = sorted(count for where, count in loops if place in (where, where.split()[0]))
    read = found[constant.get("pick", -1)] / constant["of"] * constant.get("times", 1)
    return read + constant.get("plus", 0), read


def cycles(version: str, case: Case) -> dict:
    """Cycles a block, by stage, and what follows from them for a multiprocessor that holds several CTAs."""
    rules, code = json.loads(FILE.read_text())["versions"][version], json.loads(LOOPS.read_text())[version]
    ((n, blocks),) = case.sizes
    truncated = case.name.startswith("R")
    turns = counts(n, case.m, truncated)
    one = predictions.batch(n, case.m, case.gpu_blocks or blocks, case.steps)
    solve = [name for name in rules["kernels"] if name.startswith("solve") and truncated]
    by_stage, read = {}, 0.0
    for kernel in (one["kernel"], *solve):
        for stage, parts in rules["kernels"][kernel]["stages"].items():
            if truncated and stage in rules["not when truncated"]:  # the certificate fails in its first panel or column
                continue
            costs = [(turns[unit], *cost(part, code[kernel]["loops"])) for unit, part in parts.items()]
            by_stage[stage] = sum(count * each for count, each, _ in costs)
            read += sum(count * each for count, _, each in costs)
    registers, spills = code[one["kernel"]]["registers"], code[one["kernel"]]["spills"]
    shape = cuda.shape_of("predict", n, case.m, case.m + 1, n <= case.m, predictions.SIZE)
    how = cuda.launch_of(shape, predictions.H200)
    resident = backends.resident(predictions.H200, how.threads, how.shared, registers)
    total = sum(by_stage.values())
    seconds = total * one["blocks"] / (predictions.H200.multiprocessors * resident * CLOCK)
    return {
        "case": case.name, "kernel": one["kernel"], "cycles": total, "stages": by_stage, "resident": resident,
        "read": read / total, "registers": registers, "spills": spills, "shared": how.shared, "seconds": seconds,
        "occupancy": resident * how.threads / predictions.H200.threads,
        "share": predictions.predict(case)["floor_seconds"] / seconds,
    }  # fmt: skip


def results() -> list[tuple[Case, dict, dict]]:
    """(case, before, after) of every case."""
    return [(case, *(cycles(version, case) for version in ("before", "after"))) for case in select(list(CASES))]


def keep(version: str, file: pathlib.Path) -> None:
    """The kernels of the table among the loops in `file`: {kernel: {registers, spills, loops: [{cycles, lines}]}}."""
    rules, text = json.loads(FILE.read_text())["versions"], file.read_text()
    if version not in rules:
        raise InputError(f"version: expected {' or '.join(rules)}, got {version!r}")
    known = json.loads(LOOPS.read_text()) if LOOPS.exists() else {}
    given = json.loads(text)
    known[version] = {
        kernel: {
            "registers": given[kernel]["registers"], "spills": given[kernel]["spills"],
            "loops": [[loop["lines"][0], loop["cycles"]] for loop in given[kernel]["loops"] if loop["lines"]],
        }
        for kernel in rules[version]["kernels"]
    }  # fmt: skip
    write_json(LOOPS, known)


def table() -> str:
    """Both versions of every case, in Markdown."""
    heads = (
        "case", "cycles a block, before", "after", "of it read from loops", "to reach", "registers", "spilled bytes",
        "shared memory, KB", "CTAs an SM", "occupancy", "ms, before", "after", "share of the roofline, before", "after",
    )  # fmt: skip
    lines = ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
    for case, before, after in results():
        cells = [
            case.name, f"{before['cycles'] / 1e3:.0f}k", f"{after['cycles'] / 1e3:.0f}k",
            f"{before['read']:.0%}, {after['read']:.0%}", f"{TARGETS[case.name]}k",
            str(after["registers"]), str(after["spills"]), f"{after['shared'] / 1024:.0f}", str(after["resident"]),
            f"{after['occupancy']:.0%}", f"{1e3 * before['seconds']:.2g}", f"{1e3 * after['seconds']:.2g}",
            f"{before['share']:.0%}", f"{after['share']:.0%}",
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    said = (
        "**Estimates, +-35%: no GPU has run this.** Cycles are those of one warp by a model of the scheduler, from the "
        "machine code (sm_90) of two versions, times the trip counts of the launch, by one program; what stands in no "
        "loop is summed by hand, and the shares read are given, before and after. The time is that of as many CTAs "
        f"as a multiprocessor holds, at {CLOCK / 1e9:g} GHz, and the share that of the floor above. R32 counts the "
        "second launch, at as many CTAs as the first."
    )
    return "\n".join([*lines, "", said])


def update() -> None:
    """Put it into the page."""
    pages.update("cuda", table(), "cycles")


if __name__ == "__main__":
    keep(sys.argv[1], pathlib.Path(sys.argv[2]))
