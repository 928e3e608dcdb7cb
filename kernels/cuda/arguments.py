"""What kernels take by value, laid out as the sources have it: strides, a problem's numbers, pointers, recordings."""

from __future__ import annotations

import numpy as np

from ..contract import check_strides

LAYOUT = np.dtype([("time", "i8"), ("weight", "i8"), ("strides", "i8", 4), ("extents", "i4", 4)], align=True)
PROBLEM = np.dtype(
    [(name, "i4") for name in ("blocks", "n", "m", "columns", "order", "wide", "lines", "tile", "pitch", "vectors")]
    + [(name, "i4") for name in ("splits", "rule", "digits")]
    + [(name, "f8") for name in ("value", "gram", "svd", "least", "tiny", "huge")],
    align=True,
)
FACTORS = np.dtype([(name, "u8") for name in ("basis", "readout", "op", "start", "reports", "rank", "edge", "route")])
STRIP = np.dtype(
    [("from", "u8"), *((name, "i8") for name in ("to", "rows", "columns", "from_row", "from_column", "to_row"))]
)
COUNTS = np.dtype([("at", "i8", 64)])  # step counts that one launch writes

AXES = 4  # of the batch that a kernel follows
STRIP_NUMBERS = 1 << 14  # that a CTA records


def marks(routes: tuple[int, ...]) -> np.uint32:
    """A set of routes, a bit each."""
    return np.uint32(sum(1 << route for route in routes))


def split(strips: np.ndarray, itemsize: int) -> np.ndarray:
    """STRIP entries of parameters of this itemsize, cut into as much as one CTA should record."""
    parts = []
    for strip in strips:
        columns = max(1, min(int(strip["columns"]), STRIP_NUMBERS))
        rows = STRIP_NUMBERS // columns
        for i in range(0, int(strip["rows"]), rows):
            for j in range(0, int(strip["columns"]), columns):
                part = strip.copy()
                part["from"] = int(strip["from"]) + itemsize * int(i * strip["from_row"] + j * strip["from_column"])
                part["to"] = strip["to"] + i * strip["to_row"] + j
                part["rows"], part["columns"] = min(rows, strip["rows"] - i), min(columns, strip["columns"] - j)
                parts.append(part)
    return np.array(parts, STRIP)


def layout_of(X) -> np.ndarray:
    """Strides of X (columns, ..., n) for the kernels, neighbouring axes of the batch merged where they are one."""
    size = X.dtype.itemsize
    check_strides(X)
    axes: list[list[int]] = []
    for extent, stride in zip(X.shape[1:-1], X.strides[1:-1], strict=True):
        if extent == 1:
            continue
        if axes and axes[-1][1] == stride * extent:
            axes[-1] = [axes[-1][0] * extent, stride]
        else:
            axes.append([extent, stride])
    if len(axes) > AXES:
        raise ValueError(
            f"X: expected a batch of at most {AXES} axes that cannot be merged, got {len(axes)} (shape {X.shape}, "
            f"strides {X.strides}); pass a contiguous copy"
        )
    axes = [[1, 0]] * (AXES - len(axes)) + axes
    layout = np.zeros((), LAYOUT)
    layout["time"], layout["weight"] = X.strides[0] // size, X.strides[-1] // size
    layout["extents"] = [max(extent, 1) for extent, _ in axes]
    layout["strides"] = [stride // size for _, stride in axes]
    return layout


def mergeable(X) -> bool:
    """Whether the batch of X is one axis, so that it can be sliced without a copy."""
    return int((layout_of(X)["extents"] > 1).sum()) <= 1
