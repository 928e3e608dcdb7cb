"""The report's first chart: both sides' losses as inline SVG, the exact number under the pointer, without a script."""

from __future__ import annotations

import html
import math
from statistics import median

import numpy as np

from .figures import loss_name

WIDTH, HEIGHT = 720, 360
LEFT, RIGHT, TOP, BOTTOM = 76, 14, 40, 44  # margins
POINTS = 100  # of a curve that answer to the pointer
DECADES = 6  # above the lowest loss; what lies beyond is drawn at the edge
STYLE = {"optimizer": "#0072b2", "koopman": "#d55e00", "average": "#009e73"}


def loss_chart(results: dict) -> str:
    """The chart, medians over seeds; empty where nothing was evaluated twice."""
    curves = {side: _curve(results, side) for side in ("optimizer", "koopman")}
    average = _finite([run["average"]["test_loss"] for run in results["runs"]])
    shown = [y for points in curves.values() for _, y in points if y > 0 and math.isfinite(y)]
    if len(shown) < 2 or all(len(points) < 2 for points in curves.values()):
        return ""
    low = min([*shown, *([average] if average and average > 0 else [])])
    high = min(max([*shown, average or 0.0]), low * 10.0**DECADES)
    scale = _Scale(max(x for points in curves.values() for x, _ in points), low, high * 1.0001)
    names = {"optimizer": results["config"]["optimizer"], "koopman": "Koopman, step by step"}
    parts = [
        _axes(scale, loss_name(results)),
        *(_side(scale, points, names[side], STYLE[side]) for side, points in curves.items()),
    ]
    entries = [(names[side], STYLE[side]) for side in curves]
    if average and average > 0:
        parts.append(_level(scale, average, "mean of the recorded iterates", STYLE["average"]))
        entries.append(("mean of the recorded", STYLE["average"]))
    label = f"{loss_name(results)} of {names['optimizer']} and of Koopman over the phase"
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{_text(label)}">'
        + _legend(entries) + "".join(parts) + "</svg>"
    )  # fmt: skip


def _curve(results: dict, side: str) -> list[tuple[int, float]]:
    """(iteration, loss) at the iterations that all seeds have; a diverged loss is infinite."""
    runs = [run[side] for run in results["runs"]]
    count = min(len(run["test_loss"]) for run in runs)
    losses = [[_worst(loss) for loss in run["test_loss"][:count]] for run in runs]
    return [(runs[0]["iteration"][i], median(values)) for i, values in enumerate(zip(*losses, strict=True))]


def _worst(loss: float | None) -> float:
    return math.inf if loss is None or math.isnan(loss) else loss


def _finite(losses: list) -> float | None:
    value = median(map(_worst, losses))
    return value if math.isfinite(value) else None


class _Scale:
    """Iterations and losses, logarithmic, to pixels."""

    def __init__(self, last: int, low: float, high: float):
        self.last, self.low, self.high = max(last, 1), math.log10(low), math.log10(high)
        self.span = max(self.high - self.low, 0.05)

    def x(self, iteration: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * iteration / self.last

    def y(self, loss: float) -> float:
        at = self.high if math.isinf(loss) else math.log10(max(loss, 1e-300))
        share = min(1.0, max(0.0, (at - self.low) / self.span))
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * share


def _axes(scale: _Scale, name: str) -> str:
    parts = []
    for value in _ticks(scale):
        y = scale.y(value)
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>'
                     f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{value:.3g}</text>')  # fmt: skip
    for share in (0, 0.25, 0.5, 0.75, 1):
        at = round(share * scale.last)
        parts.append(f'<text x="{scale.x(at):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{at}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle:.0f}" y="{HEIGHT - 6}" text-anchor="middle">iterations after the recording; '
                 f"{_text(name)}, logarithmic</text>")  # fmt: skip
    return "".join(parts)


def _ticks(scale: _Scale) -> list[float]:
    """Round losses within the axes, at most seven; the ends where no round one lies between."""
    decades = range(math.floor(scale.low), math.ceil(scale.high) + 1)
    for digits in ((1, 2, 5), (1,)):
        values = [digit * 10.0**k for k in decades for digit in digits]
        values = [value for value in values if scale.low - 1e-9 <= math.log10(value) <= scale.high + 1e-9]
        if 2 <= len(values) <= 7:
            return values
    return [10**at for at in np.linspace(scale.low, scale.high, 4)]


def _side(scale: _Scale, points: list[tuple[int, float]], name: str, colour: str) -> str:
    line = " ".join(f"{scale.x(x):.1f},{scale.y(y):.1f}" for x, y in points)
    stride = max(1, -(-len(points) // POINTS))
    marks = "".join(
        f'<circle cx="{scale.x(x):.1f}" cy="{scale.y(y):.1f}" r="4" fill="{colour}" class="mark">'
        f"<title>{_text(name)}, iteration {x}: {y:.6g}</title></circle>"
        for x, y in [*points[::stride], points[-1]]
    )
    return f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>{marks}'


def _level(scale: _Scale, loss: float, name: str, colour: str) -> str:
    y = scale.y(loss)
    return (
        f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="{colour}" stroke-width="2" '
        f'stroke-dasharray="6 4"><title>{_text(name)}: {loss:.6g}</title></line>'
    )


def _legend(entries: list[tuple[str, str]]) -> str:
    parts, x = [], LEFT
    for name, colour in entries:
        parts.append(f'<rect x="{x}" y="12" width="14" height="4" fill="{colour}"/>'
                     f'<text x="{x + 20}" y="19">{_text(name)}</text>')  # fmt: skip
        x += 40 + 8 * len(name)
    return "".join(parts)


def _text(value) -> str:
    return html.escape(str(value))
