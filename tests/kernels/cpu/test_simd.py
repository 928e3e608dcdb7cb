"""The vector loops against NumPy, and that they touch nothing outside first .. last."""

import numpy as np
import pytest

from fastkoop.kernels.cpu import simd
from fastkoop.kernels.cpu.jit import kernel

ROWS, WIDTH = 9, 40
SPANS = [(0, 8), (8, 40), (16, 16), (0, 40)]


@kernel
def scale(first, last, a, row):
    simd.scale(first, last, a, row)


@kernel
def subtract2(first, last, a, b, x, y, row):
    simd.subtract2(first, last, a, b, x, y, row)


@kernel
def subtract4(first, last, a, b, c, d, x, y, z, w, row):
    simd.subtract4(first, last, a, b, c, d, x, y, z, w, row)


@kernel
def subtract2_and_sum(first, last, a, b, c, d, e, f, x, y, row, other, total):
    simd.subtract2_and_sum(first, last, a, b, c, d, e, f, x, y, row, other, total)


@kernel
def add(first, last, a, x, row):
    simd.add(first, last, a, x, row)


@kernel
def rotate(first, last, c, s, x, y):
    simd.rotate(first, last, c, s, x, y)


@kernel
def add_products(width, T, i, left, U, j, right, S):
    simd.add_products(width, T, i, left, U, j, right, S)


@kernel
def turn4(flat, start, stride, T, at):
    simd.turn4(flat, start, stride, T[0], T[1], T[2], T[3], at)


@kernel
def touch(array, index):
    simd.prefetch(simd.address_of(array, index))


@pytest.mark.parametrize(("first", "last"), SPANS)
def test_loops_over_rows(first, last, rng):
    a, b, c, d, e, f = rng.normal(size=6)
    x, y, z, w, row, other, total = rng.normal(size=(7, WIDTH))
    part = slice(first, last)
    expected = row.copy()

    def check(got):
        np.testing.assert_allclose(got, expected, rtol=1e-14, atol=1e-14)

    got = row.copy()
    scale(first, last, a, got)
    expected[part] *= a
    check(got)
    subtract2(first, last, a, b, x, y, got)
    expected[part] -= (a * x + b * y)[part]
    check(got)
    subtract4(first, last, a, b, c, d, x, y, z, w, got)
    expected[part] -= (a * x + b * y + c * z + d * w)[part]
    check(got)
    add(first, last, a, x, got)
    expected[part] += (a * x)[part]
    check(got)
    beside, sums = other.copy(), total.copy()
    subtract2_and_sum(first, last, a, b, c, d, e, f, x, y, got, beside, sums)
    expected[part] -= (a * x + b * y)[part]
    check(got)
    other[part] -= (d * x + e * y)[part]
    np.testing.assert_allclose(beside, other, rtol=1e-14, atol=1e-14)
    total[part] += (c * expected + f * other)[part]
    np.testing.assert_allclose(sums, total, rtol=1e-13, atol=1e-14)


def test_rotation(rng):
    x, y = rng.normal(size=(2, WIDTH))
    a, b = x.copy(), y.copy()
    rotate(8, 32, 0.8, 0.6, a, b)
    np.testing.assert_array_equal(a[:8], x[:8])
    np.testing.assert_array_equal(b[32:], y[32:])
    np.testing.assert_allclose(a[8:32], (0.8 * x - 0.6 * y)[8:32], rtol=1e-14, atol=1e-14)
    np.testing.assert_allclose(b[8:32], (0.6 * x + 0.8 * y)[8:32], rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("width", [8, 16, 40])
@pytest.mark.parametrize(("i", "left", "j", "right"), [(0, 0, 0, 0), (3, 1, 0, 7), (1, 0, 4, 2)])
def test_nine_dot_products(width, i, left, j, right, rng):
    T, U, S = rng.normal(size=(6, WIDTH + 8)), rng.normal(size=(7, WIDTH + 16)), rng.normal(size=(7, 9))
    expected = S.copy()
    expected[i : i + 3, j : j + 3] += T[i : i + 3, left : left + width] @ U[j : j + 3, right : right + width].T
    add_products(width, T, i, left, U, j, right, S)
    np.testing.assert_allclose(S, expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_transpose_of_four_by_four(dtype, rng):
    flat = rng.normal(size=100).astype(dtype)
    flat.flags.writeable = False
    T = np.zeros((4, 16))
    turn4(flat, 7, 11, T, 8)
    expected = np.zeros((4, 16))
    expected[:, 8:12] = np.array([flat[7 + 11 * i : 11 + 11 * i] for i in range(4)]).T
    np.testing.assert_array_equal(T, expected)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_prefetch_is_safe_anywhere(dtype):
    array = np.zeros(4, dtype)
    for index in (0, 3, 10**12, -(10**12)):
        touch(array, index)
    np.testing.assert_array_equal(array, 0)


@kernel
def move(source, target, first, last):
    simd.copy(source, target, first, last)


@kernel
def zero(target, first, last):
    simd.clear(target, first, last)


@pytest.mark.parametrize(("first", "last"), [(0, 0), (0, 9), (2, 7), (9, 9)])
def test_copies_and_zeros(first, last, rng):
    source, target = rng.normal(size=9), rng.normal(size=9)
    expected = target.copy()
    move(source, target, first, last)
    expected[first:last] = source[first:last]
    np.testing.assert_array_equal(target, expected)
    zero(target, first, last)
    expected[first:last] = 0.0
    np.testing.assert_array_equal(target, expected)
