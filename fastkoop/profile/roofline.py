"""The figure of ``fastkoop profile``: a panel for each size, its kernels under this machine's measured roofs."""

from __future__ import annotations

import io
import textwrap

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from .throughput import Ceilings

_COLUMNS, _WIDTH, _HEIGHT, _DPI = 3, 4.4, 3.0, 120  # panels a row, inches of each, dots per inch
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
    """A numbered marker for each row, and beside the panel what the numbers are."""
    for number, row in enumerate(rows, 1):
        colour, marker = _STYLES[row["kernel"]]
        face = colour if row["data"] == "full" else "white"
        style = {"ls": "", "ms": 6, "mec": colour, "mfc": face, "mew": 1.2, "zorder": 3}
        at = row["intensity"], row["gigaflops_per_second"]
        ax.plot([at[0]], [at[1]], marker, label=f"{number} {_name(row)}", **style)
        ax.annotate(str(number), at, (4, 3), textcoords="offset points", fontsize=6.5, color=_GREY)
    place = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0), "borderaxespad": 0, "handletextpad": 0}
    ax.legend(fontsize=6.5, frameon=False, labelspacing=0.3, handlelength=1.5, **place)


def _name(row: dict) -> str:
    data = "" if row["data"] == "full" else f", {row['data']}"
    return f"{row['kernel']}{data} {100 * row['share']:.0f}%"
