"""The GPU benchmark's table, against the figures to reach on an H200-class GPU."""

from __future__ import annotations

import pathlib

from bench import RESULTS
from bench.common import pages
from bench.speed import measure, tables

FOLDER = RESULTS / "cuda"
NOTHING = "Nothing has been measured on a GPU yet."


def time_of(result: dict, contender: str) -> str:
    """A contender's time for a block; nothing if it did not run."""
    return tables.duration(tables.microseconds(result, contender)) if contender in result["contenders"] else ""


def row(result: dict) -> str:
    """A case's line."""
    case = result["case"]
    judged = {**result, "case": {**case, "goals": case["gpu_goals"]}}
    cells = [
        case["name"], "nodes" if case["n"] is None else str(case["n"]), str(case["m"]), str(result["blocks"]),
        *(time_of(result, form) for form in ("fastkoop", measure.PUBLIC, "fastkoop in a graph")), tables.share(judged),
        tables.ratio(judged, "expert", named=True), tables.ratio(judged, "library", named=True), tables.errors(result),
    ]  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def table(results: dict[str, dict]) -> str:
    """Every case that has results, and what they come from."""
    if not results:
        return NOTHING
    heads = (
        "case", "n", "m", "B", "FastKoop, a block", "public call", "in a CUDA graph", "of the roofline",
        "vs best expert", "vs best library routine", "error, ours / float32 SVD",
    )  # fmt: skip
    said = [machine(results), *left_out(results)]
    return "\n\n".join([tables.lines(heads, [row(result) for result in results.values()]), "\n".join(said)])


def left_out(results: dict[str, dict]) -> list[str]:
    """Who did not run, and why, with the cases where."""
    where: dict[tuple[str, str], list[str]] = {}
    for name, result in results.items():
        for peer, why in result["absent"].items():
            where.setdefault((peer, why), []).append(name)
    return [f"Left out: {peer} ({', '.join(names)}): {why}." for (peer, why), names in where.items()]


def machine(results: dict[str, dict]) -> str:
    """What the results come from; every device or commit among them."""
    found = []
    for result in results.values():
        env, roof = result["environment"], result["roofline"]
        libraries = ", ".join(f"{name} {version}" for name, version in env["versions"].items())
        commit = (env["commit"] or "unknown")[:10] + " with changes" * bool(env["dirty"])
        found.append(
            f"{env['device']}, driver {env.get('driver')}, copy {roof['copy_bytes_per_second'] / 1e9:.0f} GB/s, "
            f"products {roof['flops_per_second'] / 1e12:.3g} TFLOP/s; {libraries}; commit {commit}, {env['date']}"
        )
    return "Measured on: " + "; ".join(dict.fromkeys(found)) + "."


def update(folder: pathlib.Path = FOLDER) -> None:
    """Put it into the page."""
    pages.update("cuda", table(tables.load(folder)), "cases")
