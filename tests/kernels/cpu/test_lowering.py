"""Loops and entries of kernels against Python's own: whatever the range, the dtype and the layout."""

import operator

import numpy as np
import pytest
from numba import types
from numba.core.registry import cpu_target

from fastkoop.kernels.cpu import lowering
from fastkoop.kernels.cpu.jit import kernel


@kernel
def up(start, stop, out):
    count = 0
    for i in range(start, stop):
        out[count] = i
        count += 1
    return count


@kernel
def by_three(start, stop, out):
    count = 0
    for i in range(start, stop, 3):
        out[count] = i
        count += 1
    return count


@kernel
def down_by_two(start, stop, out):
    count = 0
    for i in range(start, stop, -2):
        out[count] = i
        count += 1
    return count


@kernel
def by(start, stop, step, out):
    count = 0
    for i in range(start, stop, step):
        out[count] = i
        count += 1
    return count


@pytest.mark.parametrize(("start", "stop"), [(0, 0), (0, 1), (3, 11), (-7, 5), (5, -7), (4, 4), (11, 3), (-3, -12)])
def test_ranges(start, stop):
    out = np.full(40, -99)
    for function, step in ((up, 1), (by_three, 3), (down_by_two, -2)):
        assert out[: function(start, stop, out)].tolist() == list(range(start, stop, step))
    for step in (-5, -1, 2, 4):  # not constant: an iterator, as Numba has it
        assert out[: by(start, stop, step, out)].tolist() == list(range(start, stop, step))


@kernel
def nested(n, out):
    count = 0
    for i in range(n):
        for j in range(i, n - 1):
            if j == 5:
                break
            if j == i + 1:
                continue
            out[count] = 10 * i + j
            count += 1
        else:
            out[count] = -i
            count += 1
        n -= 1  # the range has been taken
        i = 100
    return count


@pytest.mark.parametrize("n", [0, 1, 2, 6, 9])
def test_breaks_and_changes_within(n):
    out, expected = np.zeros(200, np.int64), np.zeros(200, np.int64)
    count = nested(n, out)
    assert count == nested.py_func(n, expected)
    np.testing.assert_array_equal(out, expected)


@kernel
def copy_entries(A, x, B, y):
    for i in range(A.shape[0]):
        y[i] = x[i]
        for j in range(A.shape[1]):
            B[i, j] = A[i, j]
    B[1, 2], y[0] = A[0, 0], x[1]


def in_layout(values, turned: bool):
    """The same numbers, C-ordered or with other strides."""
    return np.repeat(values, 2, axis=-1)[..., ::2] if turned else values.copy()


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int8, np.int64, np.bool_])
@pytest.mark.parametrize(("read", "written"), [(False, False), (True, False), (False, True)])
def test_entries(dtype, read, written):
    values = (10 * np.random.default_rng(0).normal(size=(4, 6))).astype(dtype)
    A, x = in_layout(values[:3], read), in_layout(values[3], read)
    B, y = in_layout(np.zeros((3, 6), dtype), written), in_layout(np.zeros(6, np.float64), written)
    copy_entries(A, x, B, y)
    expected, row = values[:3].copy(), np.zeros(6)
    row[:3] = values[3, :3]
    expected[1, 2], row[0] = values[0, 0], values[3, 1]
    np.testing.assert_array_equal(B, expected)
    np.testing.assert_array_equal(y, row)
    np.testing.assert_array_equal(A, values[:3])


@pytest.fixture
def typing_context():
    """Numba's typing context, filled: it knows no function until a process compiles one or loads one."""
    cpu_target.typing_context.refresh()
    return cpu_target.typing_context


class TestOperators:
    class Context:
        def __init__(self):
            self.asked, self.other = [], "attribute"

        def resolve_function_type(self, *call):
            self.asked.append(call)
            return call[1]

    def test_the_same_types_are_looked_up_once(self, typing_context):
        context = self.Context()
        known = lowering.Operators(context)
        add = typing_context.resolve_value_type(operator.add)
        pair = types.int64, types.float64
        for _ in range(3):
            assert known.resolve_function_type(add, pair, {}) == pair
        assert len(context.asked) == 1
        known.resolve_function_type(add, pair[::-1], {})
        assert len(context.asked) == 2 and known.other == "attribute"

    def test_calls_of_other_functions_are_not_kept(self, typing_context):
        context = self.Context()
        known = lowering.Operators(context)
        for function in (typing_context.resolve_value_type(max), types.unknown):
            known.resolve_function_type(function, (types.int64,), {})
            known.resolve_function_type(function, (types.int64,), {})
        assert len(context.asked) == 4
