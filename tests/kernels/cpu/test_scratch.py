"""Memory of kernels: aligned, of the shape that was asked for, and an error where there is none."""

import numpy as np
import pytest
from cases import tile_of

from fastkoop.kernels.cpu import scratch, simd
from fastkoop.kernels.cpu.jit import kernel


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (3, 7), (9, 512), (2, 1024), (5, 785)])
def test_tiles_are_aligned_and_zero(rows, columns):
    tile = tile_of(rows, columns)
    assert tile.shape[0] == rows
    assert columns <= tile.shape[1] <= columns + 2 * simd.LANES
    assert tile.ctypes.data % 64 == 0
    assert tile.strides[0] % 64 == 0
    assert tile.strides[0] % 4096  # rows a page apart would share a set of the cache
    assert not tile.any()


@kernel
def some(rows, columns):
    return scratch.vector(columns), scratch.matrix(rows, columns), scratch.integers(rows, columns)


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (3, 7), (0, 5), (5, 0), (100, 33)])
def test_shapes_types_and_lines(rows, columns):
    vector, matrix, integers = some(rows, columns)
    assert vector.shape == (columns,) and matrix.shape == integers.shape == (rows, columns)
    assert vector.dtype == matrix.dtype == np.float64 and integers.dtype == np.int64
    for array in (vector, matrix, integers):
        assert array.flags.c_contiguous and array.ctypes.data % scratch.ALIGNMENT == 0
        array[...] = 1  # it is there


def test_too_much():
    with pytest.raises(MemoryError):
        some(1 << 20, 1 << 36)
