"""Any strides, no copy: a batch of blocks as one flat array, an offset per block and two strides."""

from __future__ import annotations

import ctypes
import math
from typing import NamedTuple

import numpy as np

from ..contract import check_strides

ALIGNMENT = 64


class Blocks(NamedTuple):
    """Snapshot t, weight i of block b is flat[offsets[b] + t * time_stride + i * stride]."""

    flat: np.ndarray  # (extent,), read-only, so that every kernel has one signature per dtype
    offsets: np.ndarray  # (B,) int64
    time_stride: int
    stride: int
    n: int
    columns: int
    batch: tuple[int, ...]

    @property
    def dtype(self) -> np.dtype:
        return self.flat.dtype

    def only(self, chosen: np.ndarray) -> Blocks:
        """Some of the blocks, a batch of their own."""
        return self._replace(offsets=self.offsets[chosen], batch=(len(chosen),))

    def block(self, b: int) -> np.ndarray:
        """Block b as a (columns, n) view."""
        size = self.flat.itemsize
        start = self.flat[self.offsets[b] : self.offsets[b] + 1]
        strides = (self.time_stride * size, self.stride * size)
        return np.lib.stride_tricks.as_strided(start, (self.columns, self.n), strides, writeable=False)


def blocks_of(X: np.ndarray) -> Blocks:
    """Blocks of X (columns, ..., n) with any strides: negative, zero or transposed ones too."""
    columns, *batch, n = X.shape
    size = X.itemsize
    check_strides(X)
    count = math.prod(batch)
    if X.size == 0:
        nothing = np.broadcast_to(np.zeros(1, X.dtype), 1)  # read-only like any other, for the same signature
        return Blocks(nothing, np.zeros(count, np.int64), 0, 0, n, columns, tuple(batch))
    strides = [stride // size for stride in X.strides]
    packed = X.transpose(sorted(range(X.ndim), key=X.strides.__getitem__, reverse=True))
    if packed.flags.c_contiguous and len(batch) <= 1:  # the usual case, in half the time
        flat = packed.reshape(-1)
        flat.flags.writeable = False
        offsets = np.arange(count) * (strides[1] if batch else 0)
        return Blocks(flat, offsets, strides[0], strides[-1], n, columns, tuple(batch))
    lowest = X[tuple(slice(None, None, -1) if stride < 0 else slice(None) for stride in strides)]
    base = -sum(stride * (length - 1) for stride, length in zip(strides, X.shape, strict=True) if stride < 0)
    extent = 1 + sum(abs(stride) * (length - 1) for stride, length in zip(strides, X.shape, strict=True))
    flat = np.lib.stride_tricks.as_strided(lowest, (extent,), (size,), writeable=False)
    offsets = np.full(batch, base, np.int64)
    for axis, length in enumerate(batch):
        shape = [1] * len(batch)
        shape[axis] = length
        offsets += (np.arange(length) * strides[axis + 1]).reshape(shape)
    return Blocks(flat, offsets.reshape(count), strides[0], strides[-1], n, columns, tuple(batch))


def aligned_empty(shape: tuple[int, ...], dtype) -> np.ndarray:
    """An uninitialised C-ordered array whose memory starts on a 64-byte boundary (JAX copies others)."""
    dtype = np.dtype(dtype)
    count = math.prod(shape) * dtype.itemsize
    raw = np.empty(count + ALIGNMENT, np.uint8)
    start = -ctypes.addressof(ctypes.c_char.from_buffer(raw)) % ALIGNMENT  # a third of `__array_interface__`'s time
    return np.ndarray(shape, dtype, raw, start)
