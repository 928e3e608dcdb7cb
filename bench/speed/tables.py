"""The tables of bench/pages/speed.md, from the JSON of run.py.

Ratios are times of others over FastKoop's: below 1 FastKoop loses, and the table says so in bold.
"""

from __future__ import annotations

import json
import pathlib
from statistics import median

import numpy as np

from bench import RESULTS
from bench.common import pages

from .cases import CASES

FOLDER = RESULTS / "cpu"
REACHED, MISSED = "✓", "✗"


def load(results: pathlib.Path = FOLDER) -> dict[str, dict]:
    """The results of every case that has some, in the table's order."""
    paths = {case.name: results / f"{case.name}.json" for case in CASES}
    return {name: json.loads(path.read_text()) for name, path in paths.items() if path.exists()}


def microseconds(result: dict, contender: str = "fastkoop") -> float:
    """A contender's time for a block: the middle of its repeats' medians."""
    return median(middle for _, middle, _ in result["contenders"][contender]["microseconds_a_block"])


def duration(value: float) -> str:
    """Microseconds, in a unit that suits them.

    >>> duration(3.21), duration(142_000.0), duration(2.4e6)
    ('3.2 µs', '142 ms', '2.4 s')
    """
    unit, size = ("s", 1e6) if value >= 1e6 else ("ms", 1e3) if value >= 1e3 else ("µs", 1.0)
    value /= size
    return f"{value:.0f} {unit}" if value >= 100 else f"{value:.2g} {unit}"


def number(value: float) -> str:
    """Two digits, or all before the point."""
    return f"{value:.0f}" if value >= 10 else f"{value:.1f}"


def ratio(result: dict, column: str, named: bool = False) -> str:
    """A cell: how many times as long the other takes, its spread over the repeats, and the figure to reach."""
    against, goal = result["against"].get(column), result["case"]["goals"].get(column)
    if against is None:
        return ""
    low, high = against["low"], against["high"]
    value = number(against["ratio"])
    cell = f"**{value}**" if against["ratio"] < 1 else value
    cell += f" ({number(low)}-{number(high)})"
    if named:
        cell += f" {against['peer'].removeprefix('torch ')}"
    if goal is not None:
        cell += f" {REACHED if against['ratio'] >= goal else MISSED} {goal:g}"
    return cell


def errors(result: dict) -> str:
    """Ours over the float32 SVD's, medians; a void row says so."""
    ours = result["contenders"]["fastkoop"]["error"]
    svd = result["contenders"].get("torch pinv", {}).get("error")
    cell = " / ".join("-" if not one or one["median"] is None else f"{one['median']:.0e}" for one in (ours, svd))
    return cell + (" VOID" if result["void"] else "")


def share(result: dict) -> str:
    """Of the roofline, with the figure to reach."""
    value, goal = result["roofline"]["share"], result["case"]["goals"].get("roofline")
    cell = f"{value:.0%} {result['roofline']['bound']}"
    return cell if goal is None else f"{cell} {REACHED if value >= goal else MISSED} {goal:.0%}"


def row(result: dict) -> str:
    """A case's line of the main table."""
    case = result["case"]
    others = [ratio(result, "numpy"), ratio(result, "report")]
    cells = [
        case["name"],
        "nodes" if case["n"] is None else str(case["n"]),
        str(case["m"]),
        str(result["blocks"]),
        duration(microseconds(result)),
        ratio(result, "expert"),
        ratio(result, "chunks"),
        ratio(result, "library", named=True),
        next((cell for cell in reversed(others) if cell), ""),
        errors(result),
        share(result),
    ]
    return "| " + " | ".join(cells) + " |"


def lines(heads: tuple[str, ...], rows: list[str]) -> str:
    """A Markdown table."""
    return "\n".join(["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads), *rows])


def main_table(results: dict[str, dict]) -> str:
    """Every case but the curves."""
    heads = (
        "case", "n", "m", "B", "FastKoop, a block", "vs expert", "vs expert in chunks", "vs best library routine",
        "vs numpy pinv (P: the report's)", "error, ours / float32 SVD", "of the roofline",
    )  # fmt: skip
    return lines(heads, [row(result) for name, result in results.items() if not name.startswith("S-")])


def curves(results: dict[str, dict]) -> str:
    """Case S: cost along B, T and n."""
    rows = [
        "| " + " | ".join([
            name.removeprefix("S-").replace("B", "B = ").replace("T", "T = ").replace("n", "n = "),
            duration(microseconds(result)),
            duration(microseconds(result) * result["blocks"]),
            ratio(result, "expert"), ratio(result, "chunks"), ratio(result, "library", named=True),
            errors(result),
        ]) + " |"
        for name, result in results.items() if name.startswith("S-")
    ]  # fmt: skip
    heads = (
        "m = 32", "a block", "a call", "vs expert", "vs expert in chunks", "vs best library routine",
        "error, ours / float32 SVD",
    )  # fmt: skip
    return lines(heads, rows) if rows else ""


def exponents(results: dict[str, dict]) -> dict[str, float]:
    """Slopes of log(cost) against log(B) for a call, and against log(n) for a block."""
    found = {}
    for letter in ("B", "n"):
        points = [
            (int(name[3:]), microseconds(result) * (result["blocks"] if letter == "B" else 1))
            for name, result in results.items()
            if name.startswith(f"S-{letter}")
        ]
        if len(points) > 1:
            found[letter] = float(np.polyfit(*np.log(np.array(points)).T, 1)[0])
    return found


def asides(results: dict[str, dict]) -> str:
    """Layout, cold starts, memory and the machine, a sentence each."""
    said = []
    if slopes := exponents(results):
        said.append("Cost grows as " + " and ".join(f"{letter}^{slope:.2f}" for letter, slope in slopes.items()) + ".")
    layouts = [
        f"{name} {duration(microseconds(result, 'fastkoop, time last'))}"
        for name, result in results.items()
        if "fastkoop, time last" in result["contenders"]
    ]
    if layouts:
        said.append(f"In the layout (..., n, m+1) a block takes: {', '.join(layouts)}.")
    starts = [result["cold_start"] for result in results.values() if result["cold_start"]]
    starts = {start["measured_on"]: start for start in starts}
    if starts:
        each = "; ".join(
            f"{name} {one['empty_cache']['first_call_seconds']:.1f} s, {one['warm_cache']['first_call_seconds']:.2f} s"
            for name, one in starts.items()
        )
        said.append(f"First call of a process, with kernels to compile, and with them in the cache: {each}.")
    memories = [
        f"{name} " + ", ".join(f"{who} {one['increment_bytes'] / 1e6:.0f} MB" for who, one in result["memory"].items())
        for name, result in results.items()
        if result["memory"]
    ]
    if memories:
        said.append(f"A call raises the memory in use by: {'; '.join(memories)}.")
    return "\n".join([*said, machine(results)])


def machine(results: dict[str, dict]) -> str:
    """What the results come from; every machine or commit among them."""
    found = []
    for result in results.values():
        env, roof = result["environment"], result["roofline"]
        present = [name for name in ("numpy", "torch", "jax", "numba") if name in env["versions"]]
        libraries = ", ".join(f"{name} {env['versions'][name]}" for name in present)
        commit = (env["commit"] or "unknown")[:10] + " with changes" * bool(env["dirty"])
        found.append(
            f"{env['processor']}, {env['cores']} cores, copy {roof['copy_bytes_per_second'] / 1e9:.0f} GB/s, "
            f"products {roof['flops_per_second'] / 1e9:.0f} GFLOP/s; {libraries}; commit {commit}, {env['date']}"
        )
    return "Measured on: " + "; ".join(dict.fromkeys(found)) + "."


def tables(results: dict[str, dict] | None = None) -> str:
    """All of it, in Markdown."""
    results = load() if results is None else results
    return "\n\n".join(part for part in (main_table(results), curves(results), asides(results)) if part)


def update() -> None:
    """Put them into the page."""
    pages.update("speed", tables(), "cases")
