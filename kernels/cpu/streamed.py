"""A large block's products with a few vectors, in float64, from one pass over its data.

Strips of the data are converted to float64 where the next product finds them in cache. Threads take groups of strips
with a BLAS thread each; how many groups there are does not depend on the threads, and sums run in their order.
"""

from __future__ import annotations

import functools
import math

import numpy as np

from .pool import each_block
from .subspace import Square

STRIP_ENTRIES, LEAST_STRIP = 1 << 19, 32  # float64 numbers of a strip: 4 MiB; lines at least, and of a sample's strip
GROUPS = 16


def over_strips(function, lines: np.ndarray, across: bool) -> list:
    """[function(strips) of every group]; it gets an iterator of (slice, float64 strip), overwritten by the next.

    Strips are rows of lines, or columns if `across`.
    """
    order, length = lines.shape if across else lines.shape[::-1]
    step = max(LEAST_STRIP, STRIP_ENTRIES // order)

    def of_group(first: int, last: int):
        room = np.empty((order, step) if across else (step, order))
        for i in range(first, last, step):
            part = slice(i, min(i + step, last))
            strip = room[:, : part.stop - i] if across else room[: part.stop - i]
            np.copyto(strip, lines[:, part] if across else lines[part])
            yield part, strip

    def run(group: int):
        with np.errstate(over="ignore", invalid="ignore"):
            return function(of_group(length * group // GROUPS, length * (group + 1) // GROUPS))

    return each_block(run, GROUPS, alone=True)


class Streamed:
    """lines^T lines, or lines lines^T if `across`, by its products alone; see subspace.Products.

    The first product comes with the trace, and with `moment`, the lines times the vector `beside`, if there is one.
    """

    whole = None

    def __init__(self, lines: np.ndarray, across: bool, beside: np.ndarray | None = None):
        self.order, self.trace, self.moment = lines.shape[0 if across else 1], math.nan, None
        self._lines, self._across, self._beside = lines, across, beside

    def times(self, Q: np.ndarray) -> np.ndarray:
        """G Q."""
        first = math.isnan(self.trace)

        def part(strips):
            product, trace, moment = np.zeros(Q.shape), 0.0, np.zeros(self.order)
            for where, strip in strips:
                F = strip if self._across else strip.T
                product += F @ (F.T @ Q)
                if first:
                    trace += float(np.vdot(strip, strip))
                if first and self._beside is not None:
                    moment += F @ self._beside[where]
            return product, trace, moment

        products, traces, moments = zip(*over_strips(part, self._lines, self._across), strict=True)
        if first:
            self.trace, self.moment = sum(traces), sum(moments)
        return sum(products)

    @functools.cached_property
    def sample(self) -> Square:
        """The same of a few strips of the lines, spread evenly."""
        lines = self._lines if self._across else self._lines.T
        length = lines.shape[1]
        starts = range(0, length, max(LEAST_STRIP, length // GROUPS))
        return Square(np.concatenate([lines[:, i : i + LEAST_STRIP] for i in starts], axis=1, dtype=np.float64))
