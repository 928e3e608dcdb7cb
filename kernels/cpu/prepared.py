"""Small calls of `predict`: what depends on shape, strides, dtype, steps and cutoff alone is decided once and kept."""

from __future__ import annotations

import functools
import math

import numpy as np

from ..contract import Rule
from ..cutoffs import companion_squaring_pays, keeps_constant
from ..plan import SVD, plan, resolution
from . import fused, parts, refined
from .layout import aligned_empty
from .pool import WORK_PER_THREAD

MOST_BLOCKS = 64  # that are looked at one by one in less time than NumPy takes for all of them
KEPT = 256  # signatures


class Call:
    """One signature of `predict` whose blocks a thread answers by their Gram matrices in one call of a kernel."""

    def __init__(self, axes: tuple[int, ...], offsets: np.ndarray, layout: tuple, steps: int, rule: tuple, dtype):
        self._axes, self._offsets, self._layout, self._rule, self._dtype = axes, offsets, layout, rule, dtype
        (_, _, n, m), wide, self._steps = layout, layout[2] <= layout[3], steps
        self.order = min(n, m)
        self._shape = len(offsets), n
        self._kernel = fused.predict_wide if wide else fused.predict_tall
        self._rest = parts.rest_of(wide, steps, refined.beyond(*rule[:3], rule[3][2]))
        self._far = parts.far_of(wide, steps, m)

    def __call__(self, X: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        """States and routes, "svd" of blocks to be answered from their data; None if a part has to be compiled."""
        flat = X.transpose(self._axes).reshape(-1)
        flat.flags.writeable = False  # the kernels' one signature
        out, route = aligned_empty(self._shape, self._dtype), np.zeros(self._shape[0], np.int8)
        self._kernel(
            0, self._shape[0], flat, self._offsets, *self._layout, self._steps, *self._rule,
            self._rest.address if self._rest else 0, self._far.address if self._far else 0, out, route,
        )  # fmt: skip
        if self._rest is None:
            route[route == parts.UNCERTIFIED] = SVD
        return None if min(route.tolist()) < 0 else (out, route)


@functools.lru_cache(maxsize=KEPT)
def prepared(shape: tuple[int, ...], strides: tuple[int, ...], dtype, steps: int, cutoff) -> Call | None:
    """How `predict` answers arrays like this one, or None if it takes more than one call of a kernel on one thread."""
    columns, *batch, n = shape
    m, blocks = columns - 1, math.prod(batch)
    how = plan(blocks, n, m, dtype, steps)
    small = 0 < blocks <= MOST_BLOCKS and len(batch) <= 1 and how.flops // 2 < WORK_PER_THREAD
    if not (small and n and m > 0 and steps > 0 and how.engine == "kernel"):
        return None
    kind, value, digits = Rule(*cutoff).numbers(dtype)
    axes = tuple(sorted(range(len(shape)), key=strides.__getitem__, reverse=True))
    like = np.lib.stride_tricks.as_strided(np.empty(1, dtype), shape, strides)  # never read
    if (n == 1 and keeps_constant(kind, value)) or not like.transpose(axes).flags.c_contiguous:
        return None
    if n > m and companion_squaring_pays(steps - 1, m):
        return None
    size = np.dtype(dtype).itemsize
    offsets = np.arange(blocks) * (strides[1] // size if batch else 0)
    layout = strides[0] // size, strides[-1] // size, n, m
    return Call(axes, offsets, layout, int(steps), (kind, value, digits, tuple(resolution(n, m, dtype))), dtype)
