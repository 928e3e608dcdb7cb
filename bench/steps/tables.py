"""The page's two tables: single steps, and whole phases with recording and fit."""

from __future__ import annotations

import itertools
import json
import pathlib
from statistics import median


def spread(ratios: list[float]) -> str:
    """Median and range."""
    if not ratios:
        return "-"
    low, middle, high = min(ratios), median(ratios), max(ratios)
    return f"{middle:.3g} ({low:.3g}-{high:.3g})"


def _ratios(results: dict, name: str, above, below) -> list[float]:
    """above / below of every round of every repeat."""
    return [
        a / b for one in results["repeats"] for a, b in zip(above(one[name]), below(one[name]), strict=True) if a and b
    ]


def step_rows(results: dict) -> list[str]:
    """The table of single steps: how many times faster than the optimizer's a Koopman step is, an iteration."""
    setting = results["setting"]
    heads = ["optimizer", "ms a step"]
    ways = ("one at a time", f"{setting['ahead']} at a time")
    heads += [f"{partition}, {way}" for partition in setting["partitions"] for way in ways]
    recordings = list(itertools.product(setting["partitions"], setting["windows"]))
    heads += [f"recording {p}, window={w}, share of a step" for p, w in recordings]
    reach = results["to_reach"]
    goal = [f"≥ {reach['step']:g}", f"≥ {reach['ahead']:g}"] * len(setting["partitions"])
    goal += [f"≤ {reach['record']:.0%}"] * len(recordings)
    lines = [_line(heads), _line(["---"] * len(heads)), _line(["to reach, against AdaDelta, eager", "", *goal])]
    for name, mode in itertools.product(setting["optimizers"], setting["modes"]):
        mine = [one[name]["optimizer"][mode] for one in results["repeats"]]
        if any(one["reason"] for one in mine):
            lines.append(_line([f"{name}, {mode}", "torch.compile fails here", *[""] * (len(heads) - 2)]))
            continue
        cells = [f"{1e3 * median(s for one in mine for s in one['step']):.3f}"]
        for partition, what in itertools.product(setting["partitions"], ("step", "ahead")):
            cells.append(spread(_ratios(
                results, name, lambda one, mode=mode: one["optimizer"][mode]["step"],
                lambda one, p=partition, w=what: one["koopman"][p]["1"][w],
            )))  # fmt: skip
        for partition, window in recordings:
            found = (one[name]["record_share"][partition][str(window)] for one in results["repeats"])
            shares = list(itertools.chain.from_iterable(found))
            cells.append(f"{median(shares):.1%}" if mode == "eager" else "")
        lines.append(_line([f"{name}, {mode}", *cells]))
    return lines


def phase_rows(results: dict, batches: int) -> list[str]:
    """The table of whole phases: how many times faster than the optimizer, recording and fit included."""
    setting = results["setting"]
    heads = [
        "optimizer, eager", "partition", "every", "T", "optimizer s", "record s", "fit s", "one at a time",
        f"{setting['ahead']} at a time", "one jump", "to reach", "jump against the fastest mode", "optimizer's loss",
        "Koopman's, walked / jumped", "mean of recorded",
    ]  # fmt: skip
    lines = [_line(heads), _line(["---"] * len(heads))]
    for name, partition, every, T in itertools.product(
        setting["optimizers"], setting["partitions"], setting["every"], setting["epochs"]
    ):
        at = str(T * batches // every * every)
        mine = [one[name]["koopman"][partition][str(every)] for one in results["repeats"]]

        def cost(one, way, partition=partition, every=every, T=T):
            k = one["koopman"][partition][str(every)]
            return [k["record_seconds"] + fit + moved for fit, moved in zip(k["fit"], k[way][str(T)], strict=True)]

        def spent(one, mode="eager", at=at):
            return one["optimizer"][mode]["seconds"][at]

        def fastest(one, at=at):
            modes = [mode["seconds"][at] for mode in one["optimizer"].values() if not mode["reason"]]
            return [min(each) for each in zip(*modes, strict=True)]

        ways = ("walk_phase", "ahead_phase", "jump_phase")
        goal = results["to_reach"]["phase"].get(str(every)) if name == "adadelta" and T == 2 else None
        first = results["repeats"][0][name]
        losses = mine[0]["loss"][str(T)]
        lines.append(_line([
            name, partition, str(every), str(T),
            f"{median(s for one in results['repeats'] for s in spent(one[name])):.3f}",
            f"{median(one['record_seconds'] for one in mine):.3f}",
            f"{median(fit for one in mine for fit in one['fit']):.3f}",
            *(spread(_ratios(results, name, spent, lambda one, way=way: cost(one, way))) for way in ways),
            f"≥ {goal:g}" if goal else "",
            spread(_ratios(results, name, fastest, lambda one: cost(one, "jump_phase"))),
            _loss(first["optimizer"]["eager"]["loss"][str(T)]),
            f"{_loss(losses['walk'])} / {_loss(losses['jump'])}",
            _loss(first["average_loss"]),
        ]))  # fmt: skip
    return lines


def _loss(value: float | None) -> str:
    return "∞" if value is None else f"{value:.3f}"


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def table_of(path: pathlib.Path) -> str:
    """Both tables, in Markdown."""
    results = json.loads(path.read_text())
    setting = results["setting"]
    ends = results["repeats"][0][setting["optimizers"][0]]["optimizer"]["eager"]["seconds"]
    batches = max(map(int, ends)) // max(setting["epochs"])
    return "\n".join([*step_rows(results), "", *phase_rows(results, batches)])
