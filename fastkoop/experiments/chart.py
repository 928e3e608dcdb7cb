"""The report's charts: inline SVG whose points say their numbers under the pointer, without a script."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

WIDE, SMALL = (720, 360), (360, 260)  # sizes of a chart of its own, and of one among several
LEFT, RIGHT, TOP, BOTTOM = 96, 20, 14, 36  # margins; the left one holds six digits as large as a phone needs them
POINTS = 100  # of a curve that answer to the pointer
DRAWN = 2000  # of a curve that are drawn


class Series(NamedTuple):
    """A curve: its name, colour and points (x, y); dashed for what is beside the point."""

    name: str
    colour: str
    points: Sequence[tuple[float, float]]
    dashed: bool = False


class Axis:
    """Numbers to shares of an axis, linear or logarithmic; what lies beyond an end is drawn there.

    >>> axis = Axis(0.0, 400.0)
    >>> axis.share(100.0), axis.ticks
    (0.25, [0.0, 100.0, 200.0, 300.0, 400.0])
    >>> Axis(1e-6, 1.0, log=True).ticks
    [1e-06, 1e-05, 0.0001, 0.001, 0.01, 0.1, 1.0]
    """

    def __init__(self, low: float, high: float, log: bool = False):
        self.low, self.high, self._log = low, high, log
        ends = [math.log10(low), math.log10(high)] if log else [low, high]
        least = 0.02 if log else 1e-9 * max(abs(low), abs(high), 1e-300)
        self._first, self._span = ends[0], max(ends[1] - ends[0], least)

    def share(self, value: float) -> float:
        """Where a number lies, 0 to 1."""
        if math.isnan(value):
            return 1.0
        at = math.log10(max(value, 1e-300)) if self._log and value < math.inf else value
        return min(1.0, max(0.0, (at - self._first) / self._span))

    @property
    def ticks(self) -> list[float]:
        """Round numbers within the ends, about five."""
        if self._log:
            decades = range(math.floor(self._first), math.ceil(self._first + self._span) + 1)
            for digits in ((1, 2, 5), (1,)):
                values = self._within(float(f"{digit}e{k}") for k in decades for digit in digits)
                if 3 <= len(values) <= 7:
                    return values
            if self._span > 3:
                return self._within(float(f"1e{k}") for k in decades if k % -(-len(decades) // 6) == 0)
        rough = (self.high - self.low) / 5
        if not (math.isfinite(rough) and rough > 0):
            return [self.low]
        size = 10.0 ** math.floor(math.log10(rough))
        step = next(size * digit for digit in (1, 2, 2.5, 5, 10) if size * digit >= 0.999 * rough)
        first = math.ceil(self.low / step)
        return self._within((first + k) * step for k in range(12))

    def _within(self, values: Iterable[float]) -> list[float]:
        room = 1e-9 * abs(self.high)
        return [value for value in values if self.low - room <= value <= self.high + room]


def line_chart(
    series: Sequence[Series], y: Axis, label: str, size: tuple[int, int] = WIDE, unit: str = "", what: str = "iteration"
) -> str:
    """Curves over iterations.

    Args:
        series: one entry a curve; a curve of one point is a level across the chart.
        y: the vertical axis.
        label: what a screen reader says of the chart.
        size: of the viewBox.
        unit: behind the numbers under the pointer.
        what: the horizontal axis counts.
    """
    width, height = size
    ends = [x for entry in series if len(entry.points) > 1 for x, _ in entry.points]
    x = Axis(min(ends), max(max(ends), min(ends) + 1))

    def at(point: tuple[float, float]) -> tuple[float, float]:
        return (LEFT + (width - LEFT - RIGHT) * x.share(point[0]),
                height - BOTTOM - (height - TOP - BOTTOM) * y.share(point[1]))  # fmt: skip

    parts = [_axes(x, y, size)]
    for entry in series:
        if len(entry.points) == 1:
            level = entry.points[0][1]
            parts.append(_line([at((x.low, level)), at((x.high, level))], entry, f"{entry.name}: {level:.6g}{unit}"))
            continue
        parts.append(_line([at(point) for point in _thinned(entry.points, DRAWN)], entry))
        parts += [
            _mark(at(point), entry.colour, f"{entry.name}, {what} {point[0]:g}: {point[1]:.6g}{unit}")
            for point in _thinned(entry.points, POINTS)
        ]
    return _svg(size, label, parts)


def circle_chart(values: Sequence[tuple[float, float]], reach: float, colours: tuple[str, str], label: str) -> str:
    """Complex numbers on square axes around the unit circle; those outside it in the second colour.

    Args:
        values: (real, imaginary), the largest first; what lies beyond the axes is drawn on their edge.
        reach: half the axes.
        colours: of numbers in or on the circle, and outside.
        label: what a screen reader says of the chart.
    """
    side, edge = SMALL[0], 14
    middle = scale = (side - 2 * edge) / 2
    middle, scale = middle + edge, scale / reach
    parts = [f'<circle cx="{middle:g}" cy="{middle:g}" r="{scale:.1f}" class="unit"/>']
    for value in (-1, 0, 1):
        place, name = middle + value * scale, f"{value}i" if value else ""
        parts.append(f'<line x1="{place:.1f}" x2="{place:.1f}" y1="{edge}" y2="{side - edge}" class="grid"/>'
                     f'<line y1="{place:.1f}" y2="{place:.1f}" x1="{edge}" x2="{side - edge}" class="grid"/>'
                     f'<text x="{place + 4:.1f}" y="{side - edge - 4}">{value}</text>'
                     f'<text x="{edge + 2}" y="{2 * middle - place - 4:.1f}">{name}</text>')  # fmt: skip
    for real, imaginary in reversed(values):  # the largest on top
        x, y = (min(max(part, -reach), reach) for part in (real, imaginary))
        modulus = math.hypot(real, imaginary)
        said = f"{real:.4g}{imaginary:+.4g}i, modulus {modulus:.6g}"
        parts.append(f'<circle cx="{middle + x * scale:.1f}" cy="{middle - y * scale:.1f}" r="4" '
                     f'fill="{colours[modulus > 1]}" fill-opacity=".7"><title>{said}</title></circle>')  # fmt: skip
    return _svg((side, side), label, parts)


def keys(series: Iterable[Series]) -> str:
    """The legend, in lines that wrap."""
    entries = dict.fromkeys((entry.name, entry.colour) for entry in series)
    return '<p class="keys">' + "".join(
        f'<span><i style="background:{colour}"></i>{html.escape(name)}</span>' for name, colour in entries
    ) + "</p>"  # fmt: skip


def _svg(size: tuple[int, int], label: str, parts: list[str]) -> str:
    kind = "wide" if size == WIDE else "small"
    return (f'<svg class="{kind}" viewBox="0 0 {size[0]} {size[1]}" role="img" aria-label="{html.escape(label)}">'
            f"{''.join(parts)}</svg>")  # fmt: skip


def _axes(x: Axis, y: Axis, size: tuple[int, int]) -> str:
    width, height = size
    parts = []
    for value in y.ticks:
        place = height - BOTTOM - (height - TOP - BOTTOM) * y.share(value)
        parts.append(f'<line x1="{LEFT}" x2="{width - RIGHT}" y1="{place:.1f}" y2="{place:.1f}" class="grid"/>'
                     f'<text x="{LEFT - 8}" y="{place:.1f}" dy=".35em" text-anchor="end">{value:.4g}'
                     "</text>")  # fmt: skip
    for value in x.ticks if width == WIDE[0] or len(x.ticks) < 5 else x.ticks[::2]:
        place = LEFT + (width - LEFT - RIGHT) * x.share(value)
        anchor = "end" if place > width - RIGHT - 20 else "middle"
        parts.append(f'<text x="{place:.1f}" y="{height - BOTTOM + 26}" text-anchor="{anchor}">{value:g}</text>')
    return "".join(parts)


def _line(points: list[tuple[float, float]], entry: Series, title: str = "") -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dashes = ' stroke-dasharray="6 4"' if entry.dashed else ""
    said = f"<title>{html.escape(title)}</title>" if title else ""
    return f'<polyline points="{path}" fill="none" stroke="{entry.colour}" stroke-width="2"{dashes}>{said}</polyline>'


def _mark(at: tuple[float, float], colour: str, title: str) -> str:
    return (f'<circle cx="{at[0]:.1f}" cy="{at[1]:.1f}" r="6" fill="{colour}" class="mark">'
            f"<title>{html.escape(title)}</title></circle>")  # fmt: skip


def _thinned(points: Sequence[tuple[float, float]], most: int) -> list[tuple[float, float]]:
    """Evenly spaced points, the last among them."""
    stride = max(1, -(-len(points) // most))
    return [*points[:-1:stride], points[-1]]
