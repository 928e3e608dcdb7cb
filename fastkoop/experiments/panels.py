"""The report's panels, from results: losses, accuracy, times, paths of single weights, eigenvalues."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from statistics import median

import numpy as np

from .chart import SMALL, Axis, Series, circle_chart, keys, line_chart
from .figures import has_accuracy, loss_name
from .paths import WeightPaths

BLUE, ORANGE, GREEN, GREY = "#0072b2", "#d55e00", "#009e73", "#777b80"
DECADES = 6  # above the lowest loss; what lies beyond is drawn at the edge
BINS = 100  # of step times, medians within
WIDEST, LEAST = 1.6, 1.1  # half the axes of eigenvalues
EIGENVALUES = 3000  # of all layers together
RECORDED_MEAN = "mean of the recorded iterates"


def loss_panel(results: dict) -> str:
    """Both sides' losses, medians over seeds; empty where nothing was evaluated twice."""
    series = _evaluated(results, "test_loss", _worst)
    shown = [y for entry in series for _, y in entry.points if 0 < y < math.inf]
    if len(shown) < 2 or all(len(entry.points) < 2 for entry in series):
        return ""
    high = min(max(shown), min(shown) * 10.0**DECADES)
    what = loss_name(results)
    caption = f"{what.capitalize()} over the phase, logarithmic, against iterations since the recording"
    chart = line_chart(series, Axis(min(shown), high * 1.0001, log=True), caption)
    return _figure(keys(series) + chart, f"{caption}. {_over(results)}Point at a curve for its numbers.")


def accuracy_panel(results: dict) -> str:
    """Both sides' accuracies, in percent; empty where nothing is classified."""
    if not has_accuracy(results):
        return ""
    series = _evaluated(results, "test_accuracy", lambda share: math.nan if share is None else 100 * share)
    shown = [y for entry in series for _, y in entry.points if math.isfinite(y)]
    if not shown or all(len(entry.points) < 2 for entry in series):
        return ""
    caption = "Test accuracy in percent"
    chart = line_chart(series, Axis(min(shown) - 0.1, min(max(shown) + 0.1, 100.0)), caption, unit="%")
    return _figure(keys(series) + chart, f"{caption}. {_over(results)}")


def time_panel(results: dict) -> str:
    """Milliseconds an iteration: medians over seeds, and over a few neighbours where there are many."""
    names = _names(results)
    series = []
    for side, colour in (("optimizer", BLUE), ("koopman", ORANGE)):
        runs = [run[side]["step_seconds"] for run in results["runs"]]
        count = min(map(len, runs))
        steps = [1e3 * median(values) for values in zip(*(run[:count] for run in runs), strict=True)]
        if len(steps) < 2:
            return ""
        every = results["config"].get("every", 1) if side == "koopman" else 1
        cuts = np.unique(np.linspace(0, count, BINS + 1).astype(int)).tolist()
        points = [((first + last + 1) / 2 * every, median(steps[first:last])) for first, last in pairwise(cuts)]
        series.append(Series(f"{names[side]}, median {median(steps):.3g} ms", colour, points))
    shown = [y for entry in series for _, y in entry.points if y > 0]
    if not shown:
        return ""
    caption = "Milliseconds of a step, logarithmic"
    chart = line_chart(series, Axis(min(shown), max(shown) * 1.0001, log=True), caption, unit=" ms")
    return _figure(keys(series) + chart, f"{caption}. {_over(results)}")


def paths_panel(results: dict) -> str:
    """Single weights: as recorded, under the optimizer, and as the operators predict."""
    if not results.get("paths"):
        return ""
    paths, name = WeightPaths.of(results["paths"]), results["config"]["optimizer"]
    if not len(paths.recorded) or not len(paths.iteration):
        return ""
    charts: list[str] = []
    series: list[Series] = []
    for k, label in enumerate(paths.labels):
        start = (float(paths.recorded_iteration[-1]), float(paths.recorded[-1, k]))
        series = [
            Series("recorded", GREY, _pairs(paths.recorded_iteration, paths.recorded[:, k])),
            Series(f"{name}'s path", BLUE, [start, *_pairs(paths.iteration, paths.true[:, k])]),
            Series("Koopman's prediction", ORANGE, [start, *_pairs(paths.iteration, paths.predicted[:, k])]),
        ]
        seen = np.concatenate([paths.recorded[:, k], paths.true[:, k]])
        seen = seen[np.isfinite(seen)]
        room = max(0.25 * float(np.ptp(seen)), 1e-6 * float(np.abs(seen).max(initial=0)), 1e-12)
        axis = Axis(float(seen.min()) - room, float(seen.max()) + room)
        charts.append(_titled(label, line_chart(series, axis, f"Path of {label}", SMALL)))
    caption = "Paths of single weights: of up to three matrices the one that moved most and one that moved as usual"
    return _figure(keys(series) + _grid(charts), f"{caption}. Iteration 0 is the last recorded.")


def spectra_panel(results: dict) -> str:
    """Eigenvalues of every layer around the unit circle."""
    stored = [run["koopman"]["eigenvalues"] for run in results["runs"] if run["koopman"].get("eigenvalues")]
    if not stored:
        return ""
    charts, most = [], max(20, EIGENVALUES // len(stored[0]))
    for name, values in stored[0].items():
        moduli = [math.hypot(*value) for value in values]
        reach = min(max(LEAST, 1.05 * max(moduli, default=0.0)), WIDEST)
        outside = sum(modulus > 1 for modulus in moduli)
        chart = circle_chart(values[:most], reach, (BLUE, ORANGE), f"Eigenvalues of {name}")
        charts.append(_titled(f"{name}: {outside} of {len(values)} outside", chart))
    legend = keys([Series("decays", BLUE, []), Series("grows", ORANGE, [])])
    return _figure(legend + _grid(charts), "Eigenvalues of the first seed's operators around the unit circle, largest "
                   "moduli first where there are many. Point at one for its value.")  # fmt: skip


def _evaluated(results: dict, key: str, read: Callable) -> list[Series]:
    """Both sides' curves and the level of the recording's mean."""
    names = _names(results)
    series = [
        Series(names[side], colour, _curve(results, side, key, read))
        for side, colour in (("optimizer", BLUE), ("koopman", ORANGE))
    ]
    level = median(read(run["average"].get(key)) for run in results["runs"])
    if math.isfinite(level) and (level > 0 or key != "test_loss"):
        series.append(Series(RECORDED_MEAN, GREEN, [(0, level)], dashed=True))
    return series


def _curve(results: dict, side: str, key: str, read: Callable) -> list[tuple[int, float]]:
    """(iteration, value) at the iterations that all seeds have, medians over them."""
    runs = [run[side] for run in results["runs"]]
    count = min(len(run[key]) for run in runs)
    values = [[read(value) for value in run[key][:count]] for run in runs]
    return [(runs[0]["iteration"][i], median(of_seeds)) for i, of_seeds in enumerate(zip(*values, strict=True))]


def _worst(loss: float | None) -> float:
    """A loss that is no number counts as infinite."""
    return math.inf if loss is None or math.isnan(loss) else loss


def _names(results: dict) -> dict[str, str]:
    return {"optimizer": results["config"]["optimizer"], "koopman": "Koopman, step by step"}


def _over(results: dict) -> str:
    return "Medians over seeds. " if len(results["runs"]) > 1 else ""


def _pairs(x: np.ndarray, y: np.ndarray) -> Sequence[tuple[float, float]]:
    return list(zip(x.tolist(), y.tolist(), strict=True))


def _titled(title: str, chart: str) -> str:
    return f"<div><h3>{html.escape(title)}</h3>{chart}</div>"


def _grid(charts: list[str]) -> str:
    return f'<div class="charts">{"".join(charts)}</div>'


def _figure(body: str, caption: str) -> str:
    return f"<figure>{body}<figcaption>{html.escape(caption)}</figcaption></figure>"
