"""The figure of ``fastkoop profile``: a panel for each size, its kernels under this machine's measured roofs."""

from __future__ import annotations

import io
import textwrap

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from .throughput import Ceilings

_COLUMNS, _WIDTH, _HEIGHT, _DPI = 3, 3.6, 3.0, 120  # panels a row, inches of each, dots per inch
_GREY, _LIGHT = "#4D4D4D", "#8C8C8C"
# Okabe and Ito's palette, distinct under the common colour blindnesses; every point is named as well.
_STYLES = {
    "gram": ("#0072B2", "o"),
    "solve": ("#D55E00", "s"),
    "evolve": ("#CC79A7", "v"),
    "advance": ("#000000", "^"),
    "reconstruct": ("#E69F00", "D"),
    "predict": ("#009E73", "P"),
    "pinv": ("#56B4E9", "X"),
    "product": ("#8C8C8C", "p"),
    "tridiagonal": ("#F0E442", "h"),
}
_MARK = 6  # half a marker's width, in pixels


def draw(results: dict) -> bytes:
    """The PNG of a profile: GFLOP/s over flops a byte, both logarithmic.

    A kernel at the solid line leaves nothing to gain but less work; hollow points are truncated blocks.

    Args:
        results: the dict of profile.json.
    """
    points = [row for row in results["kernels"] if row["intensity"]]  # copies have no place on logarithmic axes
    sizes = list(dict.fromkeys((row["n"], row["m"]) for row in points))
    rows, columns = -(-len(sizes) // _COLUMNS), min(len(sizes), _COLUMNS)
    fig = Figure(figsize=(max(2, columns) * _WIDTH, rows * _HEIGHT + 1.15), dpi=_DPI)
    FigureCanvasAgg(fig)
    room = _heading(fig, results)
    fig.set_layout_engine("constrained", rect=(0, 0, 1, 1 - room / fig.get_figheight()))
    axes = list(fig.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat)
    for ax in axes[len(sizes) :]:
        ax.remove()
    _limits(axes[0], points, results["ceilings"])
    for ax, size in zip(axes, sizes, strict=False):
        _roofs(ax, results["ceilings"], results["config"]["dtype"])
        _points(ax, [row for row in points if (row["n"], row["m"]) == size])
        ax.set_title(f"n = {size[0]}, m = {size[1]}", fontsize=9.5)
    fig.supxlabel("arithmetic intensity (flops a byte)", fontsize=9.5)
    fig.supylabel("GFLOP/s", fontsize=9.5)
    fig.draw_without_rendering()  # the layout decides where the labels may go,
    fig.set_layout_engine("none")  # and they not the layout
    for ax in axes[: len(sizes)]:
        _labels(ax)
    png = io.BytesIO()
    fig.canvas.print_png(png)
    return png.getvalue()


def _heading(fig: Figure, results: dict) -> float:
    """Title, setting and legend above the panels; the inches they take."""
    best = results["ceilings"][-1]
    whose = Ceilings(**best).whose
    title = f"What FastKoop's kernels reach on {results['machine'].get('device', results['machine']['processor'])}"
    words = (
        f"{results['config']['dtype']} data; {whose}: copy {best['copy'] / 1e9:.3g} GB/s, matrix "
        f"product {best['float32'] / 1e9:.3g} GFLOP/s in float32, {best['float64'] / 1e9:.3g} in float64"
    )
    style = {"x": 0.01, "va": "top", "parse_math": False}
    height, width = fig.get_figheight(), fig.get_figwidth()
    fig.text(y=1 - 0.09 / height, s=title, fontsize=11.5, weight="bold", **style)
    lines = textwrap.wrap(words, int(17 * width))
    for i, line in enumerate(lines):
        fig.text(y=1 - (0.34 + 0.16 * i) / height, s=line, fontsize=8.5, color=_GREY, **style)
    below = 0.34 + 0.16 * len(lines)
    handles = [
        Line2D([], [], color=_GREY, lw=1.6, label=f"roof, {whose}"),
        Line2D([], [], color=_LIGHT, lw=1.0, ls="--", label="roof, 1 thread"),
        Line2D([], [], color=_GREY, marker="o", ls="", label="full rank"),
        Line2D([], [], color=_GREY, marker="o", mfc="white", ls="", label="truncated"),
    ]
    if len(results["ceilings"]) == 1:
        handles = [handles[0], *handles[2:]]
    place = {"loc": "upper left", "bbox_to_anchor": (0.01, 1 - (below + 0.02) / height), "borderpad": 0}
    fig.legend(handles=handles, ncols=4, fontsize=8.5, frameon=False, borderaxespad=0, **place)
    return below + 0.3


def _limits(ax, points: list[dict], ceilings: list[dict]) -> None:
    """Shared axes that hold every point, and the corner of the roof."""
    best = ceilings[-1]
    top = max(best["float32"], best["float64"])
    x = [row["intensity"] for row in points] + [1.5 * top / best["copy"]]
    y = [row["gigaflops_per_second"] for row in points] + [top / 1e9]
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlim(min(x) / 2, max(x) * 2)
    ax.set_ylim(min(y) / 2, max(y) * 2)


def _roofs(ax, ceilings: list[dict], dtype: str) -> None:
    """min(bandwidth x intensity, rate), for all threads and for one, and float64's rate below float32's."""
    x = np.geomspace(*ax.get_xlim(), 200)
    for level in ceilings:
        many = level is ceilings[-1]
        style = {"color": _GREY, "lw": 1.6} if many else {"color": _LIGHT, "lw": 1.0, "ls": "--"}
        rate = level["float64"] if dtype == "float64" else max(level["float32"], level["float64"])
        ax.plot(x, np.minimum(level["copy"] * x, rate) / 1e9, zorder=1, **style)
        if many and dtype == "float32":
            flat = x[level["copy"] * x > level["float64"]]
            ax.plot(flat, np.full(len(flat), level["float64"] / 1e9), zorder=1, color=_GREY, lw=1.0, ls=":")
            ax.text(x[-1] / 1.1, level["float64"] / 1e9, "float64", fontsize=7, color=_GREY, ha="right", va="bottom")
    ax.grid(color="0.92", lw=0.6)
    ax.set_axisbelow(True)
    ax.tick_params(labelsize=8)
    ax.spines[["top", "right"]].set_visible(False)


def _points(ax, rows: list[dict]) -> None:
    """A marker for each row; its label waits in the gid until the layout is known."""
    for row in rows:
        colour, marker = _STYLES[row["kernel"]]
        face = colour if row["data"] == "full" else "white"
        style = {"ls": "", "ms": 6, "mec": colour, "mfc": face, "mew": 1.2, "zorder": 3}
        ax.plot([row["intensity"]], [row["gigaflops_per_second"]], marker, gid=_name(row), **style)


def _name(row: dict) -> str:
    data = "" if row["data"] == "full" else f", {row['data']}"
    return f"{row['kernel']}{data} {100 * row['share']:.0f}%"


def _labels(ax) -> None:
    """Each point's name and share at the nearest place where it hides neither a point, a roof nor another name."""
    marks = [line for line in ax.lines if line.get_marker() != "None"]
    pixels = [ax.transData.transform(line.get_xydata()[0]) for line in marks]
    roofs = [ax.transData.transform(line.get_xydata()) for line in ax.lines if line not in marks]
    points = [(x, y, x, y) for x, y in np.concatenate(roofs)[::3]]
    taken = [(x - _MARK, y - _MARK, x + _MARK, y + _MARK) for x, y in pixels] + points
    taken += [text.get_window_extent().extents for text in ax.texts]
    frame = ax.get_window_extent()
    for mark, (x, y) in zip(marks, pixels, strict=True):
        text = ax.annotate(
            mark.get_gid(), (x, y), (x, y), fontsize=7, xycoords="figure pixels", textcoords="figure pixels",
            ha="center", va="center", zorder=4,
            arrowprops={"arrowstyle": "-", "color": mark.get_markeredgecolor(), "lw": 0.6, "shrinkA": 0, "shrinkB": 3},
        )  # fmt: skip
        size = text.get_window_extent()
        box = _place(x, y, size.width + 2, size.height, frame, taken)
        taken.append(box)
        text.set_position(((box[0] + box[2]) / 2, (box[1] + box[3]) / 2))


def _place(x: float, y: float, width: float, height: float, frame, taken: list[tuple]) -> tuple:
    """The free box (left, bottom, right, top) nearest to a point; the last one tried if none is free."""
    angles = np.arange(24) * (np.pi / 12)
    for away in range(8, 200, 4):
        for cosine, sine in zip(np.cos(angles), np.sin(angles), strict=True):
            left = x + cosine * (away + width / 2) - width / 2
            low = y + sine * (away + height / 2) - height / 2
            box = (left, low, left + width, low + height)
            inside = frame.x0 < left and frame.y0 < low and box[2] < frame.x1 and box[3] < frame.y1
            if inside and not any(_overlap(box, other) for other in taken):
                return box
    return box


def _overlap(one: tuple, other: tuple) -> bool:
    return one[0] <= other[2] and other[0] <= one[2] and one[1] <= other[3] and other[1] <= one[3]
